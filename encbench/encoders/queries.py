"""Learned queries after a prompt: OpenUni (arXiv 2505.23661), after MetaQuery (arXiv 2504.06256).

A multimodal language model reads the dressed prompt and then a fixed number of learned vectors in
place of token embeddings; its last states at these are the condition of a diffusion transformer,
with ``connector=true`` after the published connector (a transformer without a causal mask, and a
linear layer). The published file holds the queries, connector and projector beside the diffusion
transformer; the language model is the base, which was frozen.

MetaQuery itself keeps its queries as rows of the vocabulary and has no published weights; that
layout is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..data.hub import ResolvedModel, combine_hashes, digest_each, resolve_model
from ..errors import ModelError, UsageError
from ..files import digest, expand_home
from ..types import TextFeatures
from . import EncoderFamily
from .batching import Hidden, Tokenized
from .decoder import DecoderEncoder, last_places, last_positions, load_decoder
from .gguf import hub_parts
from .hf import (
    DEVICE_OPTIONS,
    count_parameters,
    dtype_of,
    freeze,
    readable_errors,
    resolve_parts,
    tokenizer_folder,
)
from .hub_tokenizer import HubTokenizer, load_tokenizer
from .lengths import DEFAULT_LENGTH, choose_length, embedding_rows, positions_of
from .pooling import select_layer
from .recipes import PromptRecipe, prompt_recipe
from .spec import EncoderSpec

BASES = {
    "internvl3_1b": "OpenGVLab/InternVL3-1B",
    "internvl3_2b": "OpenGVLab/InternVL3-2B",
    "qwen2_5_vl_3b": "Qwen/Qwen2.5-VL-3B-Instruct",
}
"""Base of a published file, by what its name holds."""
HEAD, TAIL = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
IMAGE = "<img>"  # InternVL's, after the prompt; the published recipe for Qwen2.5-VL has none
QUERIES, CONNECTOR, PROJECTOR = "meta_queries", "connector.layers.", "projector."
HEAD_WIDTH = 64  # of the connector's attention, in every published config


class QueryEncoder(DecoderEncoder):
    """Token ids of a prompt end with room for the queries; :meth:`states` puts them there."""

    causal = False  # the queries come after the prompt

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        model: Any,
        tokenizer: HubTokenizer,
        device: torch.device,
        recipe: PromptRecipe,
        queries: Float[Tensor, "N D"],
        connector: nn.Sequential | None,
    ) -> None:
        super().__init__(spec, resolved, model, tokenizer, device, recipe)
        self.queries = queries.to(device)
        self.connector = connector
        self.keep = self._query_positions
        more = queries.numel()
        if connector is not None:
            freeze(connector, device)
            more += count_parameters(connector)
            self.card = replace(self.card, dim=output_width(connector, self.card.dim))
        self.card = replace(self.card, parameters=self.card.parameters + more)

    def tokenize(self, prompts: list[str]) -> Tokenized:
        found = super().tokenize(prompts)
        room = [self.pad_id] * len(self.queries)
        return Tokenized([[*row, *room] for row in found.ids], found.truncated)

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        places = last_places(mask, len(self.queries))
        given = self.model.get_input_embeddings()(ids)
        given[places] = self.queries.to(given.dtype)
        out = self.model(
            inputs_embeds=given, output_hidden_states=self.layer != "last", use_cache=False
        )
        states = select_layer(out.hidden_states or (), out.last_hidden_state, self.layer)
        if self.connector is None:
            return Hidden(states, None)
        found = self.connector(states[places])
        tokens = found.new_zeros(*ids.shape, found.shape[-1])
        tokens[places] = found
        return Hidden(tokens, None)

    def _query_positions(self, features: TextFeatures) -> TextFeatures:
        return last_positions(features, len(self.queries))


class ConnectorLayers(nn.Module):
    """Pre-norm transformer layers without a mask, as SigLIP's."""

    def __init__(self, width: int, inner: int, count: int) -> None:
        super().__init__()
        from transformers import SiglipVisionConfig
        from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

        config = SiglipVisionConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_attention_heads=max(1, width // HEAD_WIDTH),
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
            attn_implementation="sdpa",
        )
        self.layers = nn.ModuleList(SiglipEncoderLayer(config) for _ in range(count))

    def forward(self, states: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        for layer in self.layers:
            found = layer(states, attention_mask=None)
            states = found[0] if isinstance(found, tuple) else found
        return states


def output_width(connector: nn.Sequential, width: int) -> int:
    """Width of what a connector gives for states of ``width``."""
    linear = [module for module in connector if isinstance(module, nn.Linear)]
    return linear[-1].out_features if linear else width


# -------------------------------------------------------------------------------- loading


def read_trained(spec: EncoderSpec, path: Path) -> dict[str, Tensor]:
    """Queries, connector and projector of a published file; nothing else of it is kept.

    Raises:
        ModelError: if it is damaged, needs code to load, or holds no queries.
    """
    with readable_errors(spec, path.parent, "queries"):
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if _is_trained(name)]  # noqa: SIM118
                state = {name: file.get_tensor(name) for name in names}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            state = state.get("state_dict", state)
    found = {name: value for name, value in state.items() if _is_trained(name)}
    queries = found.get(QUERIES)
    if queries is None or queries.ndim != 2:
        raise ModelError(
            f"{path} holds no learned queries ({QUERIES}); it is not an OpenUni checkpoint"
        )
    if any(name.startswith("lmm.") for name in state):
        raise ModelError(
            f"{path} holds a language model of its own, which is not read; only files whose base "
            "was frozen are"
        )
    return found


def _is_trained(name: str) -> bool:
    return name == QUERIES or name.startswith((CONNECTOR, PROJECTOR, "lmm."))


def build_connector(
    state: Mapping[str, Tensor], width: int, dtype: torch.dtype, path: Path
) -> nn.Sequential:
    """Connector and projector in the order that their shapes tell.

    Args:
        width: of the language model's states.

    Raises:
        ModelError: if they are missing, or do not fit each other.
    """
    layers = {n.removeprefix("connector."): v for n, v in state.items() if n.startswith(CONNECTOR)}
    inner = layers.get("layers.0.mlp.fc1.weight")
    if inner is None:
        raise ModelError(f"connector=true, but {path} holds no connector ({CONNECTOR}*)")
    body = ConnectorLayers(inner.shape[1], inner.shape[0], len({n.split(".")[1] for n in layers}))
    names = [PROJECTOR, f"{PROJECTOR}0.", f"{PROJECTOR}1."]
    linear = [_linear(state, name) for name in names if f"{name}weight" in state]
    own = inner.shape[1]
    if len(linear) == 2:
        order = [linear[0], body, linear[1]]
    elif linear and own != width:  # it brings the states to the connector's width
        order = [linear[0], body]
    else:
        order = [body, *linear]
    try:
        body.load_state_dict(layers)
        connector = nn.Sequential(*order).to(dtype).eval()
        with torch.inference_mode():
            connector(torch.zeros(1, 2, width, dtype=dtype))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"connector and projector of {path} do not fit: {reason}") from error
    return connector


def _linear(state: Mapping[str, Tensor], prefix: str) -> nn.Linear:
    weight, bias = state[f"{prefix}weight"], state.get(f"{prefix}bias")
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return made


def base_spec(spec: EncoderSpec) -> EncoderSpec:
    """The language model under the queries: the option ``base``, else by the file's name.

    Raises:
        UsageError: if neither tells.
    """
    named = spec.get("base")
    if named is None:
        file = spec.source.rpartition("/")[2]
        named = next((base for key, base in BASES.items() if key in file), None)
    if named is None:
        raise UsageError(
            f"'{spec}' does not say which language model its queries are for; add ?base=HUB-ID or "
            "a folder"
        )
    return EncoderSpec.parse(f"causal:{named}").with_options(device_map=spec.get("device_map"))


def _resolve_file(spec: EncoderSpec) -> tuple[Path, str, str]:
    """Path, revision and license of the file with the queries."""
    named = hub_parts(spec.source)
    file = expand_home(spec.source)
    pickled = not spec.source.endswith(".safetensors")
    if pickled and not spec.flag("pickle"):
        raise ModelError(
            f"{spec.source} is pickled, as published; add ?pickle=true to its spec if you trust it "
            "(only tensors are unpickled)"
        )
    if named is not None:
        repository, name = named
        found = resolve_model(
            repository, spec.revision, patterns=[name], pickle=True, weights_in=()
        )
        return found.folder / name, found.revision, found.license
    if not file.is_file():
        raise ModelError(f"there is no file {file}; check the path, or write owner/name/file.pth")
    return file, combine_hashes(digest_each({file.name: file})), "unknown"


def _resolve(spec: EncoderSpec) -> ResolvedModel:
    base = resolve_parts(base_spec(spec))
    _, revision, license = _resolve_file(spec)
    whole = digest([base.revision, revision])
    here = hub_parts(spec.source) is None
    if spec.revision and here and not whole.startswith(spec.revision):
        raise ModelError(f"'{spec}' has content hash {whole[:12]}..., not that revision")
    known = {license, base.license} - {"unknown"}
    return replace(base, revision=whole, license=", ".join(sorted(known)) or "unknown")


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> QueryEncoder:
    if spec.pool == "mean-padded":
        raise UsageError(f"pool=mean-padded of '{spec}': queries have no padding; use pool=mean")
    wanted = spec.flag("connector")
    if wanted and spec.layer != "last":
        raise UsageError(f"layer={spec.layer} of '{spec}': the connector reads the last layer only")
    recipe = prompt_recipe(spec)
    base, dtype = base_spec(spec), dtype_of(spec, device)
    path, _, _ = _resolve_file(spec)
    state = read_trained(spec, path)
    folder = resolved.folder
    model = load_decoder(base, folder, dtype)
    width = model.config.hidden_size
    queries = state[QUERIES].to(dtype)
    if queries.shape[1] != width:
        raise ModelError(
            f"the queries of {path} are {queries.shape[1]} wide and the states of {base.source} "
            f"{width}; name the base that they were trained for: ?base=..."
        )
    tokenizer = load_tokenizer(base, tokenizer_folder(base, resolved))
    dressed = dress_queries(spec, tokenizer, recipe, model, len(queries))
    connector = build_connector(state, width, dtype, path) if wanted else None
    return QueryEncoder(spec, resolved, model, dressed, device, recipe, queries, connector)


def dress_queries(
    spec: EncoderSpec, tokenizer: Any, recipe: PromptRecipe, model: Any, count: int
) -> HubTokenizer:
    """The tokenizer with the published prompt around it; ``count`` queries follow."""
    positions = positions_of(model)
    if positions is not None:
        positions = max(1, positions - count)
    length = choose_length(spec, recipe.length or DEFAULT_LENGTH, positions)
    tail = TAIL + (IMAGE if IMAGE in tokenizer.get_vocab() else "")
    after = tokenizer(tail, add_special_tokens=False)["input_ids"]
    return HubTokenizer(
        tokenizer,
        length,
        embedding_rows(model),
        head=HEAD + recipe.prefix,
        tail=after,
        clean=str.strip,
        special=False,
    )


def _requires(spec: EncoderSpec) -> list[tuple[str, str | None]]:
    base, named = base_spec(spec), hub_parts(spec.source)
    own = [(named[0], spec.revision)] if named else []
    return [*own, (base.source, base.revision)]


FAMILY = EncoderFamily(
    name="queries",
    summary="learned queries after the prompt of a multimodal language model: OpenUni",
    examples=(
        "queries:wusize/openuni/openuni_l_internvl3_2b_sana_1_6b_512_hf_blip3o60k.pth?pickle=true",
        "queries:wusize/openuni/openuni_b_internvl3_1b_sana_0_6b_512_hf_blip3o60k.pth"
        "?connector=true&pickle=true",
    ),
    resolve=_resolve,
    load=_load,
    requires=_requires,
    options={
        "base": "hub id or folder of the language model (default: by the file's name)",
        "connector": "true: after the connector and projector to the diffusion transformer",
        "recipe": "how the prompt is dressed: openuni",
        **DEVICE_OPTIONS,
    },
)
