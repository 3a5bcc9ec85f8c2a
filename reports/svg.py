"""SVG figures with text on hover, as parts of a page."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from . import text

GID = "tip:"
_MARK = re.compile(rf"<g id=([\"']){GID}(.*?)\1>", re.DOTALL)
_LEFT_OUT = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", re.DOTALL)
MOST_POINTS = 6


def hover(name: Any, *facts: str) -> dict[str, Any]:
    """Keywords for an artist whose mark shows text on hover: a name, and a line for each fact.

    Marks of the same name in a figure are highlighted together.
    """
    lines = [text.clean_text(name), *map(text.clean_text, filter(None, facts))]
    return {"gid": GID + "\n".join(lines)}


def hover_curve(
    name: Any, xs: Sequence[Any], ys: Sequence[Any], unit: str = "", what: str = ""
) -> dict[str, Any]:
    """The same for a line: what it shows and its points, or of many the first, the highest and
    the last."""
    known = [(x, y) for x, y in zip(xs, ys, strict=True) if text.is_number(y)]
    if len(known) > MOST_POINTS:
        known = sorted({known[0], max(known, key=lambda point: point[1]), known[-1]})
    return hover(name, what, *(f"{text.quantity(x)}{unit}: {text.number(y)}" for x, y in known))


def add_titles(svg: bytes) -> bytes:
    """Give each mark that :func:`hover` named its ``<title>``, which browsers show on hover."""

    def title(mark: re.Match[str]) -> str:  # escaped for either kind of quotes
        words = html.escape(html.unescape(mark[2]))
        name = words.partition("\n")[0]
        return f'<g class="mark" data-name="{name}"><title>{words}</title>'

    return _MARK.sub(title, svg.decode()).encode()


def inline_svg(svg: bytes, alt: str, prefix: str) -> Markup:
    """A figure as an element of a page, scaled to its column.

    Args:
        alt: what the figure shows, for those who do not see it.
        prefix: begins the ids in it, which must differ from those of other figures on the page.
    """
    source = _LEFT_OUT.sub("", svg.decode())
    head, _, body = source[source.index("<svg ") :].partition(">")
    box = re.search(r'viewBox="[\d. ]+"', head)
    body = re.sub(r'<g id="[^"]*">', "<g>", body)
    body = re.sub(r' id="', f' id="{prefix}-', body)
    body = re.sub(r'="(url\()?#', rf'="\1#{prefix}-', body)
    body = re.sub(r"\s*\n\s*(?=<)", "\n", body)
    label = escape(alt)
    return Markup(f'<svg role="img" aria-label="{label}" {box[0] if box else ""}>{body}')
