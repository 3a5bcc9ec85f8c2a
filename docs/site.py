"""Hooks of the docs site: the README and the changelog become pages of it, links have titles, and
Sphinx roles in docstrings become plain code."""

import re
from pathlib import Path
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]*)\]\((?:\.\./)+((?:benchmarks|notebooks|tests)/[^)]*)\)")
PAGE = re.compile(r"\[[\w./-]*?([\w-]+\.md)\](?=\()")  # a link whose text is a file name
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):(<[^>]*>)(?:~[\w.]*\.)?")
titles: dict[str, str] = {}


def on_nav(nav: Any, **_: Any) -> None:
    """Note the title of each page, by the name of its file."""
    titles.update((Path(page.file.src_uri).name, page.title) for page in nav.pages)


def on_page_content(html: str, **_: Any) -> str:
    """``:class:`~encbench.types.Score``` in a docstring becomes the code ``Score``."""
    return ROLE.sub(r"\1", html)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Include a file at the top of the repository, whose links are relative to that; links of
    other pages to files that are not in docs/ become the names of these files. The text of a link
    that is the name of a page becomes its title."""
    markdown = _include(markdown)
    return PAGE.sub(lambda link: f"[{titles.get(link[1], link[1])}]", markdown)


def _include(markdown: str) -> str:
    included = re.fullmatch(r'--8<-- "(.+)"\s*', markdown)
    if included:
        text = Path(included[1]).read_bytes().decode()
        return re.sub(r"\]\((?:docs/)(?=[^)])", "](", text)

    def name_file(link: re.Match[str]) -> str:
        label, path = link.groups()
        return label if path in label else f"{label} (`{path}`)"

    return OUTSIDE.sub(name_file, markdown)
