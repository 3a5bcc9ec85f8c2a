"""Several text encoders together, as Stable Diffusion 3 and FLUX read a prompt.

The source is a diffusers pipeline (folder or hub id): ``text_encoder``, ``text_encoder_2``, ...,
with ``tokenizer``, ``tokenizer_2``, ...; its transformer and autoencoder are not needed. Both
recipes pad every prompt to a fixed length and mask nothing, so all positions are real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional

from ..data.hub import ResolvedModel, resolve_model
from ..errors import ModelError, UsageError
from ..schema import read_model_config
from ..types import TextFeatures
from . import EncoderFamily
from .batching import Hidden, Tokenized
from .hf import (
    DEVICE_OPTIONS,
    count_parameters,
    dtype_of,
    freeze,
    load_transformers,
    patterns_of,
    requires_source,
)
from .hub_tokenizer import HubTokenizer, load_tokenizer
from .lengths import choose_length, embedding_rows, positions_of
from .loaded import LoadedEncoder
from .recipes import RECIPES, PromptRecipe, option_of, prompt_recipe
from .spec import EncoderSpec

INDEX = "model_index.json"
CLASSES = {"StableDiffusion3Pipeline": "sd3", "FluxPipeline": "flux"}


def sd3(parts: Sequence[Any], ids: Sequence[Tensor]) -> Hidden:
    """Stable Diffusion 3 (arXiv 2403.03206): both CLIPs' penultimate states side by side, padded
    with zeros to T5's width, then T5's states; both CLIPs' own vectors side by side."""
    first, second = (
        m(i, output_hidden_states=True) for m, i in zip(parts[:2], ids[:2], strict=True)
    )
    clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    t5 = parts[2](ids[2]).last_hidden_state
    clip = functional.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return Hidden(torch.cat([clip, t5], 1), torch.cat([first.text_embeds, second.text_embeds], -1))


def flux(parts: Sequence[Any], ids: Sequence[Tensor]) -> Hidden:
    """FLUX.1: T5's states; CLIP's own vector."""
    return Hidden(parts[1](ids[1]).last_hidden_state, parts[0](ids[0]).pooler_output)


@dataclass(frozen=True)
class Layout:
    """How a recipe joins the outputs of several models.

    Attributes:
        kinds: transformers' class of each text encoder, in order; the last one is T5.
        widths: which of them stand side by side, so must fit into T5's width together.
        tokens: which of them give token features, one after the other.
        join: their outputs together.
    """

    kinds: tuple[str, ...]
    widths: tuple[int, ...]
    tokens: tuple[int, ...]
    join: Callable[[Sequence[Any], Sequence[Tensor]], Hidden]


LAYOUTS = {
    "sd3": Layout(
        ("CLIPTextModelWithProjection", "CLIPTextModelWithProjection", "T5EncoderModel"),
        widths=(0, 1),
        tokens=(0, 2),
        join=sd3,
    ),
    "flux": Layout(("CLIPTextModel", "T5EncoderModel"), widths=(), tokens=(1,), join=flux),
}


class PipelineEncoder(LoadedEncoder):
    """Token ids of a prompt are those of all tokenizers, each padded to its own length, one after
    the other. A prompt counts as truncated where no encoder of token features read all of it."""

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        models: Sequence[Any],
        tokenizers: Sequence[HubTokenizer],
        device: torch.device,
        recipe: PromptRecipe,
    ) -> None:
        self.models = [freeze(model, device) for model in models]
        self.tokenizers = list(tokenizers)
        self.layout = LAYOUTS[recipe.name]
        self.lengths = [tokenizer.max_length for tokenizer in tokenizers]
        self.positions = sum(self.lengths[i] for i in self.layout.tokens)
        super().__init__(
            spec,
            resolved,
            device,
            dtype=models[-1].dtype,
            dim=models[-1].config.d_model,
            max_tokens=self.positions,
            parameters=count_parameters(*models),
            recipe=recipe.name,
        )
        self.padded, self.width = False, None  # always padded, and masked nowhere

    def tokenize(self, prompts: list[str]) -> Tokenized:
        found = [tokenizer(prompts) for tokenizer in self.tokenizers]
        rows: list[list[int]] = [[] for _ in prompts]
        for part, tokenizer in zip(found, self.tokenizers, strict=True):
            for row, ids in zip(rows, part.ids, strict=True):
                row += [*ids, *[tokenizer.pad_id] * (tokenizer.max_length - len(ids))]
        cut = [found[i].truncated for i in self.layout.tokens]
        return Tokenized(rows, [all(flags) for flags in zip(*cut, strict=True)])

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        tokens, pooled = self.layout.join(self.models, ids.split(self.lengths, 1))
        # as long as the ids; what is not a position of the features goes again in finish()
        return Hidden(functional.pad(tokens, (0, 0, 0, ids.shape[1] - tokens.shape[1])), pooled)

    def finish(self, features: TextFeatures) -> TextFeatures:
        """The positions that the generator reads."""
        tokens, mask = (t[:, : self.positions] for t in (features.tokens, features.mask))
        return replace(features, tokens=tokens, mask=mask)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        return self.finish(super().encode(prompts))


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> PipelineEncoder:
    folder = resolved.folder
    recipe = _recipe(spec, folder)
    if spec.layer != "last":
        raise UsageError(f"layer={spec.layer} of '{spec}': recipe={recipe.name} says which layers")
    dtype = dtype_of(spec, device)
    if dtype == torch.float16:
        raise UsageError(f"'{spec}': T5 overflows in float16; use dtype=bfloat16 or float32")
    import transformers

    layout = LAYOUTS[recipe.name]
    models, tokenizers = [], []
    for number, kind in enumerate(layout.kinds):
        model_part, tokenizer_part = _names(number)
        model = load_transformers(getattr(transformers, kind), spec, folder / model_part, dtype)
        # max_length is that of T5; a CLIP always reads what it has positions for
        asked = spec if kind.startswith("T5") else spec.with_options(max_length=None)
        positions = positions_of(model)
        length = choose_length(asked, positions or recipe.length, positions)
        tokenizer = load_tokenizer(spec, folder / tokenizer_part)
        models.append(model)
        tokenizers.append(HubTokenizer(tokenizer, length, embedding_rows(model)))
    side_by_side = sum(models[i].config.hidden_size for i in layout.widths)
    if side_by_side > models[-1].config.d_model:
        raise ModelError(
            f"recipe={recipe.name}: the CLIP states of {spec.source} are {side_by_side} wide "
            f"together and do not fit into T5's {models[-1].config.d_model}"
        )
    return PipelineEncoder(spec, resolved, models, tokenizers, device, recipe)


def _check(folder: Path, spec: EncoderSpec, recipe: PromptRecipe, number: int, kind: str) -> None:
    """The n-th text encoder must be there and of the kind that the recipe wants.

    Raises:
        ModelError: naming it.
    """
    model_part, tokenizer_part = _names(number)
    for part in (model_part, tokenizer_part):
        if not (folder / part).is_dir():
            raise ModelError(f"recipe={recipe.name} needs {part}, and {spec.source} has none")
    expected = "t5" if kind.startswith("T5") else "clip_text_model"
    found = read_model_config(folder / model_part).get("model_type")
    if found != expected:
        raise ModelError(
            f"recipe={recipe.name} needs a {expected} as {model_part}, and that of {spec.source} "
            f"is a {found}"
        )


def _recipe(spec: EncoderSpec, folder: Path) -> PromptRecipe:
    """The recipe that a spec names, else that of the pipeline's own class.

    Raises:
        UsageError: if it names none and the class is not one of these.
    """
    if spec.get("recipe"):
        return prompt_recipe(spec)
    named = (folder / INDEX).is_file()
    kind = read_model_config(folder, INDEX).get("_class_name") if named else None
    if kind not in CLASSES:
        known = ", ".join(r.name for r in RECIPES.values() if "pipeline" in r.families)
        what = f"{kind} of {spec.source} has no recipe" if kind else f"{spec.source} names no class"
        raise UsageError(
            f"{what} here; add ?recipe= with one of {known}, or name its text encoder alone, e.g. "
            f"t5:{spec.source}?subfolder=text_encoder"
        )
    return RECIPES[CLASSES[kind]]


def _names(number: int) -> tuple[str, str]:
    """Folders of a pipeline's n-th text encoder (from 0) and its tokenizer."""
    end = f"_{number + 1}" if number else ""
    return f"text_encoder{end}", f"tokenizer{end}"


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    configs = [INDEX, "text_encoder*/config.json", "tokenizer*/tokenizer_config.json"]
    folder = resolve_model(spec.source, spec.revision, patterns=configs).folder
    recipe = _recipe(spec, folder)
    parts = []
    for number, kind in enumerate(LAYOUTS[recipe.name].kinds):
        _check(folder, spec, recipe, number, kind)
        parts.append(_names(number)[0])
    patterns = [p for part in parts for p in patterns_of(spec.with_options(subfolder=part))]
    return resolve_model(
        spec.source,
        spec.revision,
        patterns=[INDEX, *patterns],
        pickle=spec.flag("pickle"),
        weights_in=parts,
    )


FAMILY = EncoderFamily(
    name="pipeline",
    summary="the text encoders of a diffusers pipeline together: Stable Diffusion 3, FLUX",
    examples=(
        "pipeline:stabilityai/stable-diffusion-3.5-large?recipe=sd3",
        "pipeline:black-forest-labs/FLUX.1-schnell?recipe=flux&pool=own",
    ),
    marks=(INDEX,),
    resolve=_resolve,
    load=_load,
    requires=requires_source,
    options={
        "recipe": option_of("pipeline") + " (default: that of the pipeline's class)",
        **DEVICE_OPTIONS,
    },
)
