"""Hooks of the docs site: the README and the changelog become pages of it."""

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+((?:benchmarks|notebooks|tests)/[^)]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Include a file at the top of the repository, whose links are relative to that; links of
    other pages to files that are not in docs/ become the names of these files."""
    included = re.fullmatch(r'--8<-- "(.+)"\s*', markdown)
    if included:
        text = Path(included[1]).read_bytes().decode()
        return re.sub(r"\]\((?:docs/)(?=[^)])", "](", text)

    def name_file(link: re.Match[str]) -> str:
        label, path = link.groups()
        return label if path in label else f"{label} (`{path}`)"

    return OUTSIDE.sub(name_file, markdown)
