"""The table of encoders in ``docs/encoders.md``, made from the registry.

    python -m encbench.encoders.table docs/encoders.md

It goes between two marks in that page: a row for each example of each family, then what has been
run with real weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import registry
from ..data.hub_facts import HUB_FACTS, HubFacts
from ..errors import EncbenchError, UsageError
from ..files import read_text, write_atomic
from . import EncoderFamily, EncoderSpec

BEGIN, END = "<!-- encoders: begin -->", "<!-- encoders: end -->"


CONNECTED = "2304"  # width after BLIP3o-NEXT's connector


def row(family: EncoderFamily, example: str) -> tuple[str, ...]:
    """Family, spec, width, tokens, recipe and license of one example.

    Raises:
        UsageError: if nothing is known about it.
    """
    spec = EncoderSpec.parse(example)
    if family.control:
        known = _loaded(spec)
    elif spec.pair is not None:
        known = HubFacts("sum of both", "sum of both", "of both", "of both")
    elif family.name == "python" or spec.source.startswith("/path"):
        known = HubFacts("its own", "its own", "its own", "its own")
    else:
        part = spec.get("subfolder")
        source = f"{spec.source}/{part}" if part else spec.source
        if source not in HUB_FACTS:
            raise UsageError(f"say width, tokens and license of '{source}' in data/hub_facts.py")
        known = HUB_FACTS[source]
    width = CONNECTED if spec.get("connector") else known.width
    tokens = spec.get("max_length") or known.tokens
    recipe = spec.get("recipe") or known.recipe
    return family.name, f"`{example}`", width, tokens, recipe, known.license


def _loaded(spec: EncoderSpec) -> HubFacts:
    """What the card of an encoder that needs no download says."""
    from . import load_encoder

    inner = spec.shuffled
    if inner is not None:
        return HubFacts("as inside", "as inside", "as inside", "as inside")
    card = load_encoder(str(spec), "cpu").card
    tokens = "any" if card.max_tokens is None else str(card.max_tokens)
    return HubFacts(str(card.dim), tokens, card.license, card.recipe)


def table() -> str:
    """Both tables, in Markdown."""
    families = [registry.get("encoder", name) for name in registry.names("encoder")]
    lines = ["| family | example | width | tokens | recipe | license |", "|---" * 6 + "|"]
    for family in families:
        for example in family.examples:
            lines.append("| " + " | ".join(row(family, example)) + " |")
    lines += ["", "| family | what it is | run with real weights |", "|---" * 3 + "|"]
    lines += [f"| {f.name} | {f.summary} | {f.real_weights} |" for f in families]
    return "\n".join(lines) + "\n"


def filled(page: str) -> str:
    """A page with the table between its marks.

    Raises:
        UsageError: if it lacks the marks.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the page needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table()}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if len(given) != 1:
        print("usage: python -m encbench.encoders.table PAGE.md", file=sys.stderr)
        return 2
    path = Path(given[0])
    try:
        write_atomic(path, filled(read_text(path)).encode())
    except (EncbenchError, OSError) as error:
        print(f"encbench: {error}", file=sys.stderr)
        return 1
    print(f"the table is in {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
