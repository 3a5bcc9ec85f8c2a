"""Format numbers and names for readers, with escapes for Markdown and TeX."""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from itertools import takewhile
from typing import Any, TypeGuard

from encbench.types import Estimate, Score

NOTHING = "–"
Real = float | int  # annotations are checked in tests, and there an int is no float
_DIRECTION = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite int or float; a bool is not a number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """A score with fixed digits (one from 10 on) and a true minus sign; '–' for none."""
    if not is_number(value):
        return NOTHING
    if abs(value) >= 10:
        digits = min(digits, 1)
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")  # no negative zero
    return text.replace("-", "−")


def interval(low: Any, high: Any, digits: int = 3) -> str:
    """'[0.712, 0.755]', or nothing where an end is missing."""
    if not (is_number(low) and is_number(high)):
        return ""
    return f"[{number(low, digits)}, {number(high, digits)}]"


def format_score(entry: Estimate | Score | None, digits: int = 3) -> str:
    """A score's value and its 95 % interval, as one piece of text."""
    if not entry:
        return NOTHING
    return f"{number(entry.value, digits)} {span(entry, digits)}".strip()


def span(entry: Estimate | Score | None, digits: int = 3) -> str:
    """A score's interval alone; nothing where there is none."""
    return interval(entry.low, entry.high, digits) if entry else ""


def format_ranks(low: int | None, high: int | None) -> str:
    """A rank interval: '1 to 3', or '2' where both ends agree."""
    if low is None or high is None:
        return NOTHING
    return str(low) if low == high else f"{low} to {high}"


def p_value(p: Any) -> str:
    if not is_number(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def count(value: Any) -> str:
    """A whole number with separators; '–' where there is none."""
    return f"{value:,.0f}" if is_number(value) else NOTHING


def quantity(value: Any) -> str:
    """Three figures and a letter: 22.7M, 4.76B; '–' for none, 0 for zero."""
    if not is_number(value):
        return NOTHING
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def format_bytes(value: Any) -> str:
    """Bytes in decimal units; '–' where there is none."""
    if not is_number(value):
        return NOTHING
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def listing(names: Iterable[str], most: int = 4) -> str:
    """'a, b and c', or 'a, b, c and 5 more'."""
    names = list(names)
    if len(names) > most + 1:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def count_noun(n: int, noun: str) -> str:
    """'1 query' or '79 queries'."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun[:-1]}ies" if noun.endswith("y") else f"{n:,} {noun}s"


def shorten(name: str, width: int) -> str:
    """A long name with its middle left out; folders of a path go first."""
    if len(name) <= width:
        return name
    head, colon, rest = name.partition(":")
    if colon and "/" in rest.partition("?")[0]:
        source, mark, options = rest.partition("?")
        name = f"{head}:…/{source.rsplit('/', 1)[1]}{mark}{options}"
        if len(name) <= width:
            return name
    keep = width - 1
    return name[: keep - keep // 2] + "…" + name[len(name) - keep // 2 :]


def short_names(names: Mapping[str, str], width: int) -> dict[str, str]:
    """Spec -> a name of at most ``width`` characters, still different for each spec.

    Where names become equal when shortened, the part that tells them apart is kept.
    """
    full = {spec: clean_text(name) for spec, name in names.items()}
    short = {spec: shorten(name, width) for spec, name in full.items()}
    groups: dict[str, list[str]] = {}
    for spec, name in short.items():
        groups.setdefault(name, []).append(spec)
    for specs in groups.values():
        if len(specs) > 1:
            same = [full[spec] for spec in specs]
            start = _shared(same)
            end = _shared([name[start:][::-1] for name in same])
            for spec in specs:
                short[spec] = _around(full[spec], start, len(full[spec]) - end, width)
    taken: set[str] = set()
    for spec, name in short.items():  # names may be equal from the start
        unique, turn = name, 2
        while unique in taken:
            mark = f" ({turn})"
            unique = shorten(name, width - len(mark)) + mark
            turn += 1
        taken.add(unique)
        short[spec] = unique
    return short


def _shared(names: list[str]) -> int:
    """How many leading characters all have in common."""
    return sum(1 for _ in takewhile(lambda chars: len(set(chars)) == 1, zip(*names, strict=False)))


def _around(name: str, start: int, end: int, width: int) -> str:
    """The word that holds name[start:end], with as much of the name's head as there is room."""
    while start > 0 and name[start - 1].isalnum():
        start -= 1
    while end < len(name) and name[end].isalnum():
        end += 1
    core = shorten(name[start:end], width - 2)
    tail = "…" if end < len(name) else ""
    head = name[:start]
    room = width - len(core) - len(tail)
    if len(head) > room:
        head = head[: max(room - 1, 0)] + "…"
    return head + core + tail


def clean_text(text: Any) -> str:
    """One line without control characters or direction marks. A lone surrogate, as of a file
    name that is not UTF-8, is written escaped, so that two names stay two."""
    return "".join(map(_clean_character, " ".join(str(text).split())))


def _clean_character(c: str) -> str:
    kind = unicodedata.category(c)
    if kind == "Cs":
        return f"\\u{ord(c):04x}"
    return "\ufffd" if kind == "Cc" or c in _DIRECTION else c


def tex(text: str) -> str:
    """Escape for TeX text mode."""
    special = {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%",
        "#": r"\#", "_": r"\_", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
        "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
        "–": "--", "−": r"$-$", "…": r"\dots{}",
    }  # fmt: skip
    return "".join(special.get(c, c) for c in clean_text(text))


def markdown(text: str) -> str:
    """Escape for Markdown text and table cells; tags are shown as text."""
    text = html.escape(clean_text(text), quote=False)
    text = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", text)
    text = re.sub(r"^([#+=-])", r"\\\1", text)  # would start a heading or a list
    text = re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text)
    return re.sub(r"(https?)(://)", r"\1&#58;//", text)  # no automatic links
