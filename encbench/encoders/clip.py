"""CLIP text towers: open_clip (SigLIP included) and transformers.

``clip:ARCH/TAG`` names an open_clip architecture and one of its pretrained tags; anything else
is a folder or hub repository, in open_clip's layout or in transformers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor

from ..data.hub import ResolvedModel, resolve_model
from ..errors import ModelError
from ..schema import read_model_config
from . import EncoderFamily
from .batching import Hidden
from .guard import one_line_errors
from .hf import (
    TOKENIZER_FILES,
    count_parameters,
    dtype_of,
    load_transformers,
    parts_of,
    readable_errors,
    resolve_parts,
    tokenizer_folder,
)
from .hub_tokenizer import HubTokenizer, load_tokenizer
from .lengths import choose_length, embedding_rows, positions_of
from .loaded import LoadedEncoder
from .openclip import CONFIG, ImageTower, Towers, library_of, load_open_clip, repository_of, tag_of
from .pooling import select_layer
from .spec import EncoderSpec

IMAGE_BATCH = 32


class ClipEncoder(LoadedEncoder):
    """Tokens are the text tower's hidden states, up to and including the end-of-text token;
    ``pooled`` is its projected embedding, as the library gives it (not normalized)."""

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        towers: Towers,
        device: torch.device,
    ) -> None:
        self.towers, self.tower = towers, towers.text
        super().__init__(
            spec,
            resolved,
            device,
            dtype=self.tower.dtype,
            dim=towers.dim,
            max_tokens=towers.tokenizer.max_length,
            parameters=self.tower.parameters,
            tokenizer=towers.tokenizer,
            width=self.tower.width,
        )

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        hidden: Hidden = self.tower(ids, mask)
        return hidden


class JointClipEncoder(ClipEncoder):
    """One that has its image tower, too; that is loaded to the device when first used."""

    _images: ImageTower | None = None

    def encode_images(self, images: Sequence[Image]) -> Float[Tensor, "N P"]:
        """Projected image embeddings (not normalized) after the model's own preprocessing."""
        if self._images is None:
            assert self.towers.images is not None
            self._images = self.towers.images()
        images_of = self._images
        with torch.inference_mode(), one_line_errors(f"encoding images with {self.card.spec}"):
            parts = [
                images_of([image.convert("RGB") for image in images[i : i + IMAGE_BATCH]])
                for i in range(0, len(images), IMAGE_BATCH)
            ]
        return torch.cat(parts).float().clone()


# ------------------------------------------------------------------------- transformers


class HubTower:
    """transformers' text tower. Without a projection the pooled vector is the tower's own."""

    width: int | None = None

    def __init__(self, model: Any, layer: str) -> None:
        self.model, self.layer = model, layer
        self.dtype = model.dtype
        self.parameters = count_parameters(model)

    def __call__(self, ids: Tensor, mask: Tensor) -> Hidden:
        out = self.model(
            input_ids=ids, attention_mask=mask.long(), output_hidden_states=self.layer != "last"
        )
        tokens = select_layer(out.hidden_states or (), out.last_hidden_state, self.layer)
        projected = getattr(out, "text_embeds", None)
        return Hidden(tokens, out.pooler_output if projected is None else projected)


def _load_hub(
    spec: EncoderSpec, resolved: ResolvedModel, folder: Path, device: torch.device
) -> Towers:
    import transformers

    config = read_model_config(folder)
    kind = config.get("model_type")
    if kind not in ("clip", "clip_text_model"):
        raise ModelError(
            f"{folder}: model_type '{kind}' is not a CLIP; for SigLIP name an open_clip model, "
            "e.g. "
            "clip:ViT-B-16-SigLIP/webli"
        )
    dtype = dtype_of(spec, device)
    with readable_errors(spec, folder, "config"):
        text: Any
        if kind == "clip":
            both = transformers.CLIPConfig.from_pretrained(folder)
            text, vision = both.text_config, both.vision_config
            # several published configs repeat a default here; the model's own stands at the top
            text.projection_dim = vision.projection_dim = both.projection_dim
        else:
            text, vision = transformers.CLIPTextConfig.from_pretrained(folder), None
    projected = vision is not None or "CLIPTextModelWithProjection" in (
        config.get("architectures") or ()
    )
    tokenizer = load_tokenizer(spec, tokenizer_folder(spec, resolved))
    model_class = (
        transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    )
    model = load_transformers(model_class, spec, folder, dtype, config=text)
    positions = positions_of(model)
    length = choose_length(spec, positions, positions)
    tokenizer = HubTokenizer(tokenizer, length, embedding_rows(model))
    tower = HubTower(model.requires_grad_(False).to(device), spec.layer)
    if vision is None or not (folder / "preprocessor_config.json").is_file():
        return Towers(tower, tokenizer, text.hidden_size, None)

    def load_images() -> ImageTower:
        image_class = transformers.CLIPVisionModelWithProjection
        tower = load_transformers(image_class, spec, folder, dtype, config=vision).to(device)
        with readable_errors(spec, folder, "image preprocessing"):
            prepare = transformers.AutoImageProcessor.from_pretrained(folder, local_files_only=True)

        def encode(images: Sequence[Image]) -> Tensor:
            pixels = prepare(images=list(images), return_tensors="pt")["pixel_values"]
            embedded: Tensor = tower(pixel_values=pixels.to(device, dtype)).image_embeds
            return embedded

        return encode

    return Towers(tower, tokenizer, text.hidden_size, load_images)


# -------------------------------------------------------------------------------- family


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> ClipEncoder:
    folder = resolved.folder / parts_of(spec)[0]
    if tag_of(spec) or (folder / CONFIG).is_file():
        towers = load_open_clip(spec, folder, device)
    else:
        towers = _load_hub(spec, resolved, folder, device)
    kind = ClipEncoder if towers.images is None else JointClipEncoder
    return kind(spec, resolved, towers, device)


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    named = tag_of(spec)
    source, file = repository_of(named[1]) if named else (spec.source, "")
    small = [CONFIG, "config.json", "preprocessor_config.json", *TOKENIZER_FILES]
    pickle = spec.flag("pickle")
    if not named:
        if spec.get("subfolder"):
            return resolve_parts(spec)
        about = resolve_model(source, spec.revision, patterns=small)
        if not (about.folder / CONFIG).is_file():
            return resolve_parts(spec, "preprocessor_config.json")
    first = resolve_model(
        source, spec.revision, patterns=[*small, "open_clip*.safetensors"], weights_in=()
    )
    if any(first.folder.glob("open_clip*.safetensors")):
        return first
    weights = ["model.safetensors", "open_clip*.bin", "open_clip*.pt", "pytorch_model.bin", file]
    patterns = [*small, *filter(None, weights)]
    return resolve_model(source, spec.revision, patterns=patterns, pickle=pickle)


def _requires(spec: EncoderSpec) -> list[tuple[str, str | None]]:
    named = tag_of(spec)
    if named is None:
        return [(spec.source, spec.revision)]
    text = library_of().get_model_config(named[0])["text_cfg"]
    more = {text.get("hf_model_name"), text.get("hf_tokenizer_name")} - {None, ""}
    repository = repository_of(named[1])[0]
    return [(repository, spec.revision), *((name, None) for name in sorted(more - {repository}))]


FAMILY = EncoderFamily(
    name="clip",
    summary="CLIP and SigLIP text towers: open_clip ARCH/TAG, or a hub id or folder",
    examples=(
        "clip:ViT-L-14/openai",
        "clip:ViT-B-16-SigLIP/webli?pool=own",
        "clip:openai/clip-vit-large-patch14?layer=penultimate",
        "clip:stabilityai/stable-diffusion-xl-base-1.0?subfolder=text_encoder_2",
    ),
    marks=(CONFIG,),
    model_types=("clip", "clip_text_model"),
    resolve=_resolve,
    load=_load,
    requires=_requires,
    options={
        "subfolder": "where the encoder lies in a diffusers folder, e.g. text_encoder_2 "
        "(its tokenizer is then read from tokenizer_2)"
    },
)
