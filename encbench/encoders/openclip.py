"""Text and image towers of open_clip, with its tokenizers and its weights, from local folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from ..data.hub import resolve_model
from ..errors import ModelError, UnknownNameError, UsageError
from ..schema import read_model_config
from .batching import Hidden, Tokenized
from .hf import (
    TOKENIZER_FILES,
    count_parameters,
    dtype_of,
    quiet,
    readable_errors,
)
from .hub_tokenizer import HubTokenizer, load_tokenizer
from .lengths import choose_length, embedding_rows, positions_of, require_rows
from .pooling import select_layer
from .spec import EncoderSpec

CONFIG = "open_clip_config.json"
ImageTower = Callable[[Sequence[Image]], Tensor]


class Towers(NamedTuple):
    """A CLIP's parts.

    Attributes:
        text: (ids, mask) -> Hidden; has dtype, parameters and the width it must run at, if any.
        tokenizer: prompts -> Tokenized; has max_length, pad_id and ends.
        dim: width of the text tower's hidden states.
        images: loads the image tower to the device; None if there is none.
    """

    text: Any
    tokenizer: Any
    dim: int
    images: Callable[[], ImageTower] | None


@cache
def library_of() -> Any:
    """open_clip, imported when first needed."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    import open_clip

    # importing it switches parallel tokenization off for everybody
    if before is None:
        os.environ.pop("TOKENIZERS_PARALLELISM", None)
    else:
        os.environ["TOKENIZERS_PARALLELISM"] = before
    return open_clip


class OpenClipTokenizer:
    """open_clip's own tokenizer with its byte-pair merges done by the tokenizers library.

    The same ids; but its Python merges take time quadratic in the length of a word.
    """

    def __init__(self, simple: Any, max_length: int, rows: int | None) -> None:
        from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

        if simple.reduction_fn is not None:
            raise ModelError(
                "its tokenizer shortens long prompts at random, which is not supported"
            )
        if max_length < 3:
            raise UsageError(f"max_length={max_length} leaves no room beside 2 special tokens")
        backend = Tokenizer(
            models.BPE(simple.encoder, list(simple.bpe_ranks), end_of_word_suffix="</w>")
        )
        special = [simple.decoder[i] for i in simple.all_special_ids]
        backend.add_special_tokens([AddedToken(t, normalized=False) for t in special])
        words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+)"
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self.backend, self.clean, self.max_length = backend, simple.clean_fn, max_length
        self.begin, self.end = simple.sot_token_id, simple.eot_token_id
        self.pad_id, self.ends = 0, True
        require_rows(simple.decoder, rows, simple.decoder.get)

    def __call__(self, prompts: list[str]) -> Tokenized:
        cleaned = [self.clean(prompt) for prompt in prompts]
        whole = [encoding.ids for encoding in self.backend.encode_batch_fast(cleaned)]
        room = self.max_length - 2
        return Tokenized(
            [[self.begin, *ids[:room], self.end] for ids in whole],
            [len(ids) > room for ids in whole],
        )


class SepStripped(HubTokenizer):
    """One whose SEP tokens count as padding, as CLIPA's text towers were trained."""

    def __call__(self, prompts: list[str]) -> Tokenized:
        found, sep = super().__call__(prompts), self.tokenizer.sep_token_id
        self.ends, self.pad_id = False, 0
        kept = [list(row[:-1]) if row[-1] == sep else list(row) for row in found.ids]
        return Tokenized([[0 if i == sep else i for i in row] for row in kept], found.truncated)


class OpenClipTower:
    """open_clip's text tower, run no longer than needed where padding comes after everything."""

    def __init__(self, text: Any, layer: str, dtype: torch.dtype) -> None:
        self.text, self.layer, self.dtype = text, layer, dtype
        self.parameters = count_parameters(text)
        self.causal_mask = text.attn_mask
        text.output_tokens = True
        free = (
            self.causal_mask is not None
            and text.cls_emb is None
            and text.pool_type in ("first", "argmax", "eos")
        )
        # elsewhere padding is attended, or pooled from, as the model was trained
        self.width: int | None = None if free else text.context_length
        self.states: list[Tensor] = []
        if layer != "last":
            blocks = text.transformer.resblocks
            blocks[0].register_forward_pre_hook(lambda _, given: self.states.append(given[0]))
            for block in blocks:
                block.register_forward_hook(lambda _, given, out: self.states.append(out))

    def __call__(self, ids: Tensor, mask: Tensor) -> Hidden:
        self.states.clear()
        if self.width is None:
            self.text.attn_mask = self.causal_mask[: ids.shape[1], : ids.shape[1]]
        pooled, last = self.text(ids)
        states = [state[:, : ids.shape[1]] for state in self.states]  # CoCa appends a token
        return Hidden(select_layer(states, last, self.layer), pooled)


class OpenClipHubTower:
    """open_clip's wrapper of a transformers model as text tower."""

    width: int | None = None

    def __init__(self, text: Any, layer: str, dtype: torch.dtype) -> None:
        self.text, self.layer, self.dtype = text, layer, dtype
        self.parameters = count_parameters(text)

    def __call__(self, ids: Tensor, mask: Tensor) -> Hidden:
        real = (ids != self.text.config.pad_token_id).long()
        out = self.text.transformer(
            input_ids=ids, attention_mask=real, output_hidden_states=self.layer != "last"
        )
        tokens = select_layer(out.hidden_states or (), out.last_hidden_state, self.layer)
        return Hidden(tokens, self.text.proj(self.text.pooler(out, real)))


def tag_of(spec: EncoderSpec) -> tuple[str, dict[str, Any]] | None:
    """The architecture, and what open_clip knows of the tag, if the spec names one.

    Raises:
        UnknownNameError: if the architecture has no such tag.
    """
    library = library_of()
    arch, _, tag = spec.source.partition("/")
    if arch not in library.list_models():
        return None
    known = library.get_pretrained_cfg(arch, tag)
    if not known:
        tags = library.list_pretrained_tags_by_model(arch)
        raise UnknownNameError(f"pretrained tag of {arch}", tag, tags)
    return arch, known


def repository_of(known: dict[str, Any]) -> tuple[str, str]:
    """Hub repository of a tag, and the name of its weights if it has one of its own."""
    owner, name, *file = known["hf_hub"].split("/")
    return f"{owner}/{name}", "".join(file)


def _checkpoint(spec: EncoderSpec, folder: Path, named: str = "") -> Path:
    """The weights to load, chosen as open_clip does: its own file names first."""
    names = [named, "open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model"]
    stems = [Path(name).stem for name in names if name]
    for suffix in (".safetensors", ".bin", ".pt"):
        found = [folder / f"{stem}{suffix}" for stem in stems]
        for path in filter(Path.is_file, found):
            if suffix != ".safetensors" and not spec.flag("pickle"):
                raise ModelError(
                    f"{folder} has only pickled weights ({path.name}), which can run code when "
                    f"loaded; add ?pickle=true to '{spec}' if you trust them"
                )
            return path
    raise ModelError(f"{folder} holds no weights (open_clip_model.safetensors)")


def load_open_clip(spec: EncoderSpec, folder: Path, device: torch.device) -> Towers:
    """The towers of a tag's architecture, or of the configuration in the folder."""
    library = library_of()
    named = tag_of(spec)
    dtype = dtype_of(spec, device)
    if named:
        arch, known = named
        config = library.get_model_config(arch)
        # open_clip only warns where architecture and weights disagree on the activation
        config["quick_gelu"] = config.get("quick_gelu", False) or known.get("quick_gelu", False)
        preprocess, weights = known, _checkpoint(spec, folder, repository_of(known)[1])
    else:
        arch = f"local-dir:{folder}"
        written = read_model_config(folder, CONFIG)
        if not isinstance(written.get("model_cfg"), dict):
            raise ModelError(f"{folder / CONFIG} lacks model_cfg; download it again")
        config, preprocess = written["model_cfg"], written.get("preprocess_cfg") or {}
        weights = _checkpoint(spec, folder)
    text_config = dict(config["text_cfg"])
    if text_config.get("hf_model_name"):
        base = resolve_model(text_config["hf_model_name"], None, patterns=["config.json"])
        text_config |= {"hf_model_name": str(base.path), "hf_model_pretrained": False}
    with readable_errors(spec, folder, "model"), quiet():
        model = library.create_model(
            arch,
            load_weights=False,
            pretrained_text=False,
            force_custom_text=True,  # the text tower as a module of its own
            force_preprocess_cfg=preprocess,
            text_cfg=text_config,
            quick_gelu=config.get("quick_gelu", False),
        )
        library.load_checkpoint(model, str(weights), strict=True)
    model.eval().requires_grad_(False)
    text, image = model.text.to(device, dtype), model.visual
    hub = hasattr(text, "pooler")
    longest = text_config.get("context_length", 77)
    if hub:
        longest = min(longest, positions_of(text.transformer) or longest)
    length = choose_length(spec, longest, longest)
    rows = embedding_rows(text.transformer) if hub else text.token_embedding.num_embeddings
    tokenizer = _tokenizer(spec, folder, text_config, length, rows)
    tower: Any = (OpenClipHubTower if hub else OpenClipTower)(text, spec.layer, dtype)
    dim = text.transformer.config.hidden_size if hub else text.width

    def load_images() -> ImageTower:
        image.to(device, dtype)
        settings = library.transform.PreprocessCfg(**image.preprocess_cfg)
        prepare = library.transform.image_transform_v2(settings, is_train=False)

        def encode(images: Sequence[Image]) -> Tensor:
            pixels = torch.stack([prepare(each) for each in images])
            embedded: Tensor | tuple[Tensor, ...] = image(pixels.to(device, dtype))
            # CoCa's image tower returns its tokens as well
            return embedded[0] if isinstance(embedded, tuple) else embedded

        return encode

    return Towers(tower, tokenizer, dim, load_images)


def _tokenizer(
    spec: EncoderSpec, folder: Path, text: dict[str, Any], length: int, rows: int | None
) -> Any:
    """What open_clip would tokenize with, from the model's folder if its tokenizer is there."""
    options = dict(text.get("tokenizer_kwargs") or {})
    name = text.get("hf_tokenizer_name")
    if not name:
        return OpenClipTokenizer(library_of().SimpleTokenizer(**options), length, rows)
    if text.get("tokenizer_mode"):
        raise ModelError(f"{spec}: tokenizer mode '{text['tokenizer_mode']}' is not supported")
    if not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        folder = resolve_model(name, None, patterns=TOKENIZER_FILES).folder
    clean = library_of().tokenizer.get_clean_fn(options.get("clean", "whitespace"))
    kind = SepStripped if options.get("strip_sep_token") else HubTokenizer
    return kind(load_tokenizer(spec, folder), length, rows, clean=clean)
