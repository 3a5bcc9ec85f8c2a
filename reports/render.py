"""Renders templates as pages and Markdown."""

from __future__ import annotations

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from encbench.pages import hash_script

from . import tables
from .svg import inline_svg
from .text import clean_text, listing, markdown


def make_environment(**options: Any) -> Environment:
    """Jinja on the package's templates, and on those of encbench for the head of a page."""
    homes = [PackageLoader(home, "templates") for home in ("encbench.reports", "encbench")]
    return Environment(
        loader=ChoiceLoader(homes), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        **options,
    )  # fmt: skip


def render_html(template: str, view: dict[str, Any], *, confirmed: bool = False) -> str:
    """A whole page: its style and its one script are part of it."""
    environment = make_environment(autoescape=True)

    def source(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    script = source("script.js")
    environment.filters["line"] = clean_text
    environment.filters["inline"] = lambda drawing, prefix: inline_svg(
        drawing.svg, drawing.alt, f"{prefix}-{drawing.name}"
    )
    style = source("style.css") + (source("confirm.css") if confirmed else "")
    return environment.get_template(template).render(
        **view, style=Markup(style), script=Markup(script), script_hash=hash_script(script)
    )


class _Ready(str):
    """Markdown that is already escaped."""


def render_markdown(view: dict[str, Any]) -> str:
    """As with HTML, whatever a template prints is escaped unless it is marked as ready."""
    environment = make_environment(
        finalize=lambda value: value if isinstance(value, _Ready) else markdown(str(value))
    )
    environment.filters["table"] = lambda table: _Ready(tables.to_markdown(table))
    environment.filters["listing"] = listing
    return environment.get_template("report.md").render(**view)
