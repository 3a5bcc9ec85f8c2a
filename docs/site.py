"""Hooks of the docs site: the README and the changelog become pages of it."""

import re
from pathlib import Path
from typing import Any

REPOSITORY = "https://github.com/encbench/encbench/blob/main/"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Include a file at the top of the repository, whose links are relative to that; links of
    other pages out of docs/ go to the repository."""
    included = re.fullmatch(r'--8<-- "(.+)"\s*', markdown)
    if included:
        text = Path(included[1]).read_bytes().decode()
        return re.sub(r"\]\((?:docs/)(?=[^)])", "](", text)
    return re.sub(r"\]\((?:\.\./)+(?=benchmarks/|notebooks/|tests/)", f"]({REPOSITORY}", markdown)
