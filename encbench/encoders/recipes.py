"""How generators wrap and clean a prompt before they encode it: data and a few small functions.

A recipe sets the text around a prompt, its length, and which positions the generator uses; the
adapter stays the same. ``recipe=plain`` is the prompt alone.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import ModelError, UsageError
from ..types import TextFeatures
from .spec import EncoderSpec

OPTION = "how the prompt is dressed, as the generator does it: "
IMAGE_TOKENS = 729  # of BLIP3o-NEXT: 27 x 27, one SigLIP-2 token each
QUERY_TOKENS = 256  # of OpenUni
CLEANED = 4096  # characters of a prompt that are cleaned: enough for 300 tokens, and bounded work


@dataclass(frozen=True)
class PromptRecipe:
    """One way to wrap a prompt.

    Attributes:
        name: as in a spec.
        families: adapters that it fits.
        source: whose it is, and the license of what is quoted from there.
        length: longest prompt in tokens, special ones included; None = the adapter's own default.
        prefix: text before the prompt, without which its tokens are not counted.
        chat: (system message, user message with ``{prompt}``) for the tokenizer's chat template.
        clean: returns the function that is applied to the prompt first.
    """

    name: str
    families: tuple[str, ...]
    source: str = ""
    length: int | None = None
    prefix: str = ""
    chat: tuple[str, str] | None = None
    clean: Callable[[], Callable[[str], str]] | None = None


def lower(prompt: str) -> str:
    """Lower case, as SANA and (without its cleaning) PixArt use it."""
    return prompt.lower().strip()


def _lowered() -> Callable[[str], str]:
    return lower


@functools.cache
def _cleaned() -> Callable[[str], str]:
    """PixArt's cleaning of web captions (links, markup, file names, odd punctuation), twice over,
    by diffusers' own function, of which PixArt's generations depend on every rule.

    Raises:
        ModelError: if a package that it needs is not there.
    """
    try:
        import bs4
        import ftfy  # noqa: F401
        from diffusers import PixArtSigmaPipeline
    except ImportError as error:
        raise ModelError(
            f"recipe=pixart cleans prompts as diffusers does and needs {error.name}: "
            "pip install 'encbench[diffusers]'"
        ) from error
    once = functools.partial(PixArtSigmaPipeline._clean_caption, PixArtSigmaPipeline)

    def clean(prompt: str) -> str:
        with warnings.catch_warnings():  # a prompt that looks like a link or a file name
            warnings.simplefilter("ignore", bs4.MarkupResemblesLocatorWarning)
            cleaned: str = once(once(prompt.strip()[:CLEANED]))
        return cleaned

    return clean


SANA_INSTRUCTION = "\n".join(
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual "
        "descriptions suitable for image generation. Evaluate the level of detail in the user "
        "prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, "
        "textures, and spatial relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly "
        "without overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round "
        "shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red "
        "flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
        "featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a "
        "double-decker bus passing by towering glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including "
        "any additional commentary or evaluations:",
        "User Prompt: ",
    )
)
"""The 'complex human instruction' of SANA (arXiv 2410.10629, section 3.3), with which its
checkpoints were trained: published data of the model, quoted to the letter from NVlabs/Sana
(configs/sana_config) and diffusers' SanaPipeline, both Apache-2.0."""

RECIPES = {
    recipe.name: recipe
    for recipe in (
        PromptRecipe("plain", ("causal", "gemma", "blip3o", "t5")),
        PromptRecipe(
            "sana",
            ("causal", "gemma"),
            source="SANA, arXiv 2410.10629; instruction from NVlabs/Sana, Apache-2.0",
            length=300,
            prefix=SANA_INSTRUCTION,
            clean=_lowered,
        ),
        PromptRecipe(
            "blip3o",
            ("causal", "blip3o"),
            source="BLIP3o-NEXT, arXiv 2510.15857; prompt from JiuhaiChen/BLIP3o, Apache-2.0",
            chat=(
                "You are a helpful assistant.",
                "Please generate image based on the following caption: {prompt}",
            ),
        ),
        PromptRecipe(
            "openuni",
            ("queries",),
            source="OpenUni, arXiv 2505.23661; prompt from wusize/OpenUni",
            prefix="Generate an image: ",
        ),
        PromptRecipe(
            "pixart",
            ("t5",),
            source="PixArt-Sigma, arXiv 2403.04692",
            length=300,
            clean=_cleaned,
        ),
        PromptRecipe(
            "sd3", ("pipeline",), source="Stable Diffusion 3, arXiv 2403.03206", length=256
        ),
        PromptRecipe("flux", ("pipeline",), source="FLUX.1, black-forest-labs/flux", length=512),
    )
}


DEFAULTS = {"blip3o": "blip3o", "queries": "openuni"}
"""The recipe of a family where the spec names none and it isn't plain."""


def prompt_recipe(spec: EncoderSpec) -> PromptRecipe:
    """The recipe that a spec asks for.

    Raises:
        UsageError: if there is none of that name, or it does not fit the family.
    """
    name = spec.get("recipe") or DEFAULTS.get(spec.family, "plain")
    fitting = [recipe.name for recipe in RECIPES.values() if spec.family in recipe.families]
    if name not in fitting:
        what = "does not fit" if name in RECIPES else "is unknown to"
        raise UsageError(
            f"recipe={name} {what} '{spec.family}:' encoders; known there: {', '.join(fitting)}"
        )
    return RECIPES[name]


def option_of(family: str) -> str:
    """The help text of the option ``recipe`` for a family."""
    return OPTION + ", ".join(r.name for r in RECIPES.values() if family in r.families)


def added_tokens(spec: EncoderSpec) -> int:
    """About how many tokens an adapter computes for each prompt beside the prompt's own.

    Raises:
        UsageError: if the spec's recipe does not fit its family.
    """
    if not any(spec.family in recipe.families for recipe in RECIPES.values()):
        return 0
    if spec.family == "pipeline":  # always padded to the full length
        recipe = RECIPES["sd3"] if not spec.get("recipe") else prompt_recipe(spec)
        return spec.max_length or recipe.length or 0
    recipe = prompt_recipe(spec)
    around = sum(map(len, recipe.chat)) // 4 + 16 if recipe.chat else len(recipe.prefix) // 4
    if spec.family == "queries":
        around += QUERY_TOKENS
    if spec.get("mode") == "image":  # each written once, and read once more
        around += 2 * int(spec.get("image_tokens") or IMAGE_TOKENS)
    return around


def sana_positions(features: TextFeatures, prefix: int) -> TextFeatures:
    """What SANA's transformer reads: position 0 and the last 299 of (prefix + 298).

    Args:
        features: of sequences that begin with the prefix, right-padded to any width.
        prefix: its tokens, special ones included.

    Counted from the left these are 0 and everything from the prefix's last token on, whatever the
    maximum length.
    """
    width = features.mask.shape[1]
    keep = [0, *range(prefix - 1, width)] if width else []
    return replace(features, tokens=features.tokens[:, keep], mask=features.mask[:, keep])
