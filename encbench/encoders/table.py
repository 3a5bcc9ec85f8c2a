"""The table of encoders in ``docs/encoders.md``, made from the registry.

    python -m encbench.encoders.table docs/encoders.md

It goes between two marks in that page: a row for each example of each family, then what has been
run with real weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .. import registry
from ..errors import EncbenchError, UsageError
from ..files import read_text, write_atomic
from . import EncoderFamily, EncoderSpec

BEGIN, END = "<!-- encoders: begin -->", "<!-- encoders: end -->"


class PublishedEncoder(NamedTuple):
    """Of a published model: the width of its token features, its longest prompt in tokens as the
    adapter reads it, the recipe by default, and the license that its card names."""

    width: str
    tokens: str
    license: str
    recipe: str = "plain"


# Typed in by hand, by source and subfolder: the files are not at hand when the table is made. A
# run's card holds what they say.
PUBLISHED = {
    "sentence-transformers/all-MiniLM-L6-v2": PublishedEncoder("384", "256", "apache-2.0"),
    "BAAI/bge-base-en-v1.5": PublishedEncoder("768", "512", "mit"),
    "ViT-L-14/openai": PublishedEncoder("768", "77", "mit"),
    "ViT-B-16-SigLIP/webli": PublishedEncoder("768", "64", "apache-2.0"),
    "openai/clip-vit-large-patch14": PublishedEncoder("768", "77", "mit"),
    "stabilityai/stable-diffusion-xl-base-1.0/text_encoder_2": PublishedEncoder(
        "1280", "77", "openrail++"
    ),
    "google/flan-t5-xl": PublishedEncoder("2048", "512", "apache-2.0"),
    "google/t5-v1_1-xxl": PublishedEncoder("4096", "512", "apache-2.0"),
    "google/umt5-xxl": PublishedEncoder("4096", "512", "apache-2.0"),
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS/text_encoder": PublishedEncoder(
        "4096", "300", "openrail++"
    ),
    "black-forest-labs/FLUX.1-schnell/text_encoder_2": PublishedEncoder(
        "4096", "512", "apache-2.0"
    ),
    "google/gemma-2-2b-it": PublishedEncoder("2304", "300", "gemma"),
    "google/gemma-3-4b-it": PublishedEncoder("2560", "512", "gemma"),
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers/text_encoder": PublishedEncoder(
        "2304", "300", "gemma"
    ),
    "Qwen/Qwen3-1.7B": PublishedEncoder("2048", "512", "apache-2.0"),
    "Qwen/Qwen2.5-VL-3B-Instruct": PublishedEncoder("2048", "512", "qwen-research"),
    "meta-llama/Llama-3.2-1B": PublishedEncoder("2048", "512", "llama3.2"),
    "BLIP3o/BLIP3o-NEXT-SFT-3B": PublishedEncoder("2048", "1024", "apache-2.0", "blip3o"),
    "BLIP3o/BLIP3o-NEXT-GRPO-Geneval-3B": PublishedEncoder("2048", "1024", "apache-2.0", "blip3o"),
    "stabilityai/stable-diffusion-3.5-large": PublishedEncoder(
        "4096", "77 + 256", "stabilityai-community", "sd3"
    ),
    "black-forest-labs/FLUX.1-schnell": PublishedEncoder("4096", "512", "apache-2.0", "flux"),
    "mini-clip": PublishedEncoder("128", "77", "Apache-2.0"),
    "mini-t5": PublishedEncoder("128", "512", "Apache-2.0"),
    "mini-gemma": PublishedEncoder("128", "512", "Apache-2.0"),
    "mini-blip3o": PublishedEncoder("128", "616", "Apache-2.0", "blip3o"),
}
CONNECTED = "2304"  # width after BLIP3o-NEXT's connector


def row(family: EncoderFamily, example: str) -> tuple[str, ...]:
    """Family, spec, width, tokens, recipe and license of one example.

    Raises:
        UsageError: if nothing is known about it.
    """
    spec = EncoderSpec.parse(example)
    if family.control:
        known = _loaded(spec)
    elif family.name == "python" or spec.source.startswith("/path"):
        known = PublishedEncoder("its own", "its own", "its own", "its own")
    else:
        part = spec.get("subfolder")
        source = f"{spec.source}/{part}" if part else spec.source
        if source not in PUBLISHED:
            raise UsageError(
                f"say width, tokens and license of '{source}' in PUBLISHED, {__file__}"
            )
        known = PUBLISHED[source]
    width = CONNECTED if spec.get("connector") else known.width
    tokens = spec.get("max_length") or known.tokens
    recipe = spec.get("recipe") or known.recipe
    return family.name, f"`{example}`", width, tokens, recipe, known.license


def _loaded(spec: EncoderSpec) -> PublishedEncoder:
    """What the card of an encoder that needs no download says."""
    from . import load_encoder

    inner = spec.shuffled
    if inner is not None:
        return PublishedEncoder("as inside", "as inside", "as inside", "as inside")
    card = load_encoder(str(spec), "cpu").card
    tokens = "any" if card.max_tokens is None else str(card.max_tokens)
    return PublishedEncoder(str(card.dim), tokens, card.license, card.recipe)


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
