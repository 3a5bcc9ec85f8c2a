"""BLIP3o-NEXT (arXiv 2510.15857) as its generator reads it: a Qwen3 language model that writes
image tokens. Their last hidden states condition a diffusion transformer.

``mode=text`` gives the states of the prompt under the chat template; ``mode=image`` lets the model
write image tokens and gives the states from the scale token ``<S0>`` on, as the published
generator does. The published layout is read without the code that comes with it: its config is a
Qwen3 config under another ``model_type``, and of its weights only the language model's (and the
connector's, if asked for) are read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..data.hub import ResolvedModel
from ..errors import ModelError, UsageError
from ..schema import read_model_config
from ..types import TextFeatures
from . import EncoderFamily
from .batching import Hidden, Tokenized
from .decoder import SUBFOLDER, DecoderEncoder, dress, last_positions, require_causal, resolve
from .decoder_weights import StoredTensor, below, load_from_tensors, stored_weights
from .hf import (
    DEVICE_OPTIONS,
    count_parameters,
    dtype_of,
    freeze,
    parts_of,
    quiet,
    require_kind,
    requires_source,
    tokenizer_folder,
)
from .hub_tokenizer import HubTokenizer, load_tokenizer
from .recipes import IMAGE_TOKENS, PromptRecipe, option_of, prompt_recipe
from .spec import EncoderSpec

KINDS = ("blip3o_qwen", "blip3o_qwen_inference")
LANGUAGE = ("model.embed_tokens.", "model.layers.", "model.norm.", "lm_head.")
CONNECTOR = "model.diffusion_connector."
DEFAULT_LENGTH = 1024
VOCABULARY = 65_536  # image tokens in the published vocabulary, where the config doesn't say
NUMBERS: Mapping[str, tuple[type, float, float]] = {
    "image_tokens": (int, 1, 100_000),
    "seed": (int, 0, 2**63 - 1),
    "top_k": (int, 1, 10_000_000),
    "top_p": (float, 0.0, 1.0),
}
DEFAULTS = {"image_tokens": IMAGE_TOKENS, "seed": 0, "top_k": 1200, "top_p": 0.95}


class Blip3oEncoder(DecoderEncoder):
    """States of the dressed prompt; nothing is generated."""

    def __init__(
        self,
        spec: EncoderSpec,
        resolved: ResolvedModel,
        model: Any,
        tokenizer: HubTokenizer,
        device: torch.device,
        recipe: PromptRecipe,
        connector: nn.Sequential | None = None,
    ) -> None:
        super().__init__(spec, resolved, model, tokenizer, device, recipe)
        self.connector = connector
        if connector is not None:
            freeze(connector, device)
            parameters = self.card.parameters + count_parameters(connector)
            self.card = replace(
                self.card, dim=len(next(connector.parameters())), parameters=parameters
            )

    def states(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Tensor:
        found = super().states(ids, mask)
        return found if self.connector is None else self.connector(found)


class Blip3oImageEncoder(Blip3oEncoder):
    """States of image tokens that the model writes after the prompt, ``<S0>`` before them.

    Token ids of a prompt end with room for the image tokens; :meth:`forward` fills it. What is
    drawn for a prompt depends on its own token ids and the seed only: each has a random generator
    of its own, and a number drawn for each token picks by the probabilities in the order of ids.
    """

    causal = False

    def __init__(
        self, *args: Any, head: nn.Linear, drawn: Mapping[str, Any], first: int, last: int
    ):
        super().__init__(*args)
        self.head = freeze(head, self.device)
        self.greedy = bool(drawn["greedy"])
        self.count = int(drawn["image_tokens"])
        self.seed = int(drawn["seed"])
        self.top_k, self.top_p = int(drawn["top_k"]), float(drawn["top_p"])
        self.first, self.last = first, last
        self.keep = self._image_positions
        if self.device.type == "cuda":  # one token at a time for each: more side by side
            self.batch_tokens *= 4

    def tokenize(self, prompts: list[str]) -> Tokenized:
        found = super().tokenize(prompts)
        room = [self.first] * self.count
        return Tokenized([[*row, *room] for row in found.ids], found.truncated)

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Hidden:
        lengths = mask.sum(1) - self.count
        written = self.write(ids, lengths)
        where = lengths[:, None] + torch.arange(self.count, device=ids.device)
        return Hidden(self.states(ids.scatter(1, where, written), mask), None)

    def write(self, ids: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Int[Tensor, "B N"]:
        """Image tokens after each prompt, whose ids are the first ``lengths`` of its row."""
        from transformers import DynamicCache

        longest = int(lengths.max())
        positions = torch.arange(longest, device=ids.device) - (longest - lengths)[:, None]
        seen = positions >= 0  # left padding, as one token is written for all at a time
        given = ids.gather(1, positions.clamp(min=0))
        cache = DynamicCache(config=self.model.config)
        draws = None if self.greedy else self._draws(ids, lengths)
        written: list[Tensor] = []
        for step in range(self.count):
            out = self.model(
                input_ids=given,
                attention_mask=seen.long(),
                position_ids=positions.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )
            scores = self.scores(out.last_hidden_state[:, -1])
            if draws is None:
                chosen = scores.argmax(1)
            else:
                chosen = sample_token(scores, draws[:, step], self.top_k, self.top_p)
            written.append(chosen + self.first)
            given = written[-1][:, None]
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            positions = (lengths + step)[:, None]
        return torch.stack(written, 1)

    def scores(self, states: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        """Of the image tokens alone; other tokens cannot be written."""
        if hasattr(self.head, "_hf_hook"):  # spread over devices: its weights may be elsewhere
            scores: Tensor = self.head(states)[:, self.first : self.last].float()
            return scores
        return nn.functional.linear(states, self.head.weight[self.first : self.last]).float()

    def _draws(self, ids: Tensor, lengths: Tensor) -> Float[Tensor, "B N"]:
        """Numbers in [0, 1), one for each image token of each prompt, whatever the device."""
        rows = []
        for row, length in zip(ids.tolist(), lengths.tolist(), strict=True):
            text = f"{self.seed}:{row[:length]}".encode()
            seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
            generator = torch.Generator().manual_seed(seed)
            rows.append(torch.rand(self.count, dtype=torch.float64, generator=generator))
        return torch.stack(rows).to(ids.device)

    def _image_positions(self, features: TextFeatures) -> TextFeatures:
        """``<S0>`` and the image tokens."""
        return last_positions(features, self.count + 1)


def sample_token(
    scores: Float[Tensor, "B V"], draws: Float[Tensor, " B"], top_k: int, top_p: float
) -> Int[Tensor, " B"]:
    """One index a row, by its probability among the likeliest, as transformers cuts them: first
    the best ``top_k``, then the fewest of those that hold ``top_p`` together.

    Args:
        draws: uniform in [0, 1): where on the line of cumulated probabilities to look.
    """
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    no_ids = torch.empty(0, dtype=torch.long)
    scores = TopKLogitsWarper(min(top_k, scores.shape[1]))(no_ids, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(no_ids, scores)
    line = scores.softmax(1, dtype=torch.float64).cumsum(1)
    found = torch.searchsorted(line, draws.double()[:, None] * line[:, -1:], right=True)[:, 0]
    # at the very end of the line rounding could point beyond the last index that was kept
    return torch.minimum(found, (scores > -torch.inf).long().cumsum(1).argmax(1))


# -------------------------------------------------------------------------------- loading


def _load(spec: EncoderSpec, resolved: ResolvedModel, device: torch.device) -> Blip3oEncoder:
    recipe = prompt_recipe(spec)
    drawn = _options(spec)
    folder = resolved.folder / parts_of(spec)[0]
    require_kind(folder, KINDS)
    raw = read_model_config(folder)
    import transformers

    config = transformers.Qwen3Config.from_dict(
        # the published code sets rope_scaling to None, whatever the file says
        {k: v for k, v in raw.items() if k != "auto_map"}
        | {"model_type": "qwen3", "rope_scaling": None}
    )
    with quiet():  # transformers looks into config.json, too, and does not know its model_type
        tokenizer = load_tokenizer(spec, tokenizer_folder(spec, resolved))
    end = [_token_id(raw, "image_start_tag_id", folder), _scale_id(raw, tokenizer, folder)]
    weights = stored_weights(spec, folder)
    language = {n: w for n, w in weights.items() if n.startswith(LANGUAGE)}
    dtype = dtype_of(spec, device)
    image = drawn["mode"] == "image"
    if image:
        kind = transformers.Qwen3ForCausalLM
        whole = load_from_tensors(kind, config, language, spec, folder, dtype)
        model = whole.model
    else:
        body = below(language, "model.")
        model = load_from_tensors(transformers.Qwen3Model, config, body, spec, folder, dtype)
    require_causal(model, folder)
    generated = drawn["image_tokens"] if image else 0
    tokenizer = dress(spec, tokenizer, recipe, model, DEFAULT_LENGTH, end, generated)
    connector = _connector(below(weights, CONNECTOR), folder, dtype) if drawn["connector"] else None
    given = (spec, resolved, model, tokenizer, device, recipe, connector)
    if not image:
        return Blip3oEncoder(*given)
    first, last = _image_range(raw, folder)
    return Blip3oImageEncoder(*given, head=whole.lm_head, drawn=drawn, first=first, last=last)


def _options(spec: EncoderSpec) -> dict[str, Any]:
    """The family's own options, checked before anything is loaded.

    Raises:
        UsageError: naming the option, if one makes no sense.
    """
    found: dict[str, Any] = {"connector": spec.flag("connector")}
    for name, known in (("mode", ("text", "image")), ("decode", ("sampled", "greedy"))):
        found[name] = spec.get(name) or known[0]
        if found[name] not in known:
            raise UsageError(f"{name}={found[name]} of '{spec}' must be {' or '.join(known)}")
    for name, (kind, low, high) in NUMBERS.items():
        text = spec.get(name)
        try:
            found[name] = kind(DEFAULTS[name] if text is None else text)
        except ValueError:
            found[name] = -1
        if not low <= found[name] <= high or (name == "top_p" and not found[name]):
            what = "a number in (0, 1]" if kind is float else f"a whole number of at least {low}"
            raise UsageError(f"{name}={text} of '{spec}' must be {what}")
    writing = [n for n in (*NUMBERS, "decode") if spec.get(n)]
    if found["mode"] == "text" and writing:
        raise UsageError(
            f"{writing[0]}= of '{spec}' is for mode=image; in mode=text nothing is drawn"
        )
    if found["decode"] == "greedy" and (drawing := [n for n in writing if n in list(NUMBERS)[1:]]):
        raise UsageError(
            f"{drawing[0]}= of '{spec}' has no effect with decode=greedy; leave it out"
        )
    if found["mode"] == "image" and spec.pool == "mean-padded":
        raise UsageError(
            f"pool=mean-padded of '{spec}': image tokens have no padding; use pool=mean"
        )
    if found["connector"] and spec.layer != "last":
        raise UsageError(f"layer={spec.layer} of '{spec}': the connector reads the last layer only")
    found["greedy"] = found["decode"] == "greedy"
    return found


def _token_id(config: Mapping[str, Any], name: str, folder: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or not 0 <= value < int(config.get("vocab_size") or 0):
        raise ModelError(f"{folder}/config.json: {name} is {value!r}, no id in its vocabulary")
    return value


def _scale_id(config: Mapping[str, Any], tokenizer: Any, folder: Path) -> int:
    """The id of ``<S0>``: by the config if it says, else by the tokenizer."""
    if config.get("scale_start_token_id") is not None:
        return _token_id(config, "scale_start_token_id", folder)
    found = tokenizer.get_vocab().get("<S0>")
    if found is None:
        raise ModelError(f"{folder}: neither its config nor its tokenizer knows the token <S0>")
    return int(found)


def _image_range(config: Mapping[str, Any], folder: Path) -> tuple[int, int]:
    """First id of the image tokens and the one after the last."""
    first = _token_id(config, "image_start_token_id", folder)
    if config.get("image_end_token_id") is not None:
        last = _token_id(config, "image_end_token_id", folder) + 1
    else:
        last = first + int(config.get("num_image_tokens") or VOCABULARY)
    last = min(last, int(config["vocab_size"]))
    if last <= first:
        raise ModelError(f"{folder}/config.json: image_end_token_id is before image_start_token_id")
    return first, last


def _connector(
    weights: Mapping[str, StoredTensor], folder: Path, dtype: torch.dtype
) -> nn.Sequential:
    """Linear, GELU (tanh), Linear, RMSNorm, in the sizes that the weights have."""
    state = {name: weight[...].to(dtype) for name, weight in weights.items()}
    expected = {"0.weight", "0.bias", "2.weight", "2.bias", "3.weight"}
    if set(state) != expected:
        odd = sorted(expected ^ set(state))
        raise ModelError(
            f"connector=true, but the weights in {folder} hold no connector of Linear, GELU, "
            f"Linear, RMSNorm under {CONNECTOR}* (see {odd[0]})"
        )
    width, inputs = state["0.weight"].shape
    with torch.device("meta"):
        connector = nn.Sequential(
            nn.Linear(inputs, width),
            nn.GELU(approximate="tanh"),
            nn.Linear(width, width),
            nn.RMSNorm(width, eps=1e-5),
        )
    connector.load_state_dict(state, assign=True)
    return connector.eval()


FAMILY = EncoderFamily(
    name="blip3o",
    summary="BLIP3o-NEXT: states of the prompt, or of the image tokens it writes for it",
    examples=(
        "blip3o:BLIP3o/BLIP3o-NEXT-SFT-3B?mode=text",
        "blip3o:BLIP3o/BLIP3o-NEXT-GRPO-Geneval-3B?mode=image",
        "blip3o:BLIP3o/BLIP3o-NEXT-SFT-3B?mode=image&decode=greedy&image_tokens=64&connector=true",
    ),
    model_types=KINDS,
    resolve=resolve,
    load=_load,
    requires=requires_source,
    options={
        "mode": "text: states of the prompt (default); image: of the image tokens written for it",
        "image_tokens": f"mode=image: how many are written (default {IMAGE_TOKENS})",
        "decode": "mode=image: sampled (default) or greedy",
        "seed": "mode=image, sampled: of the draws (default 0)",
        "top_k": f"mode=image, sampled: among how many tokens (default {DEFAULTS['top_k']})",
        "top_p": f"mode=image, sampled: and of what share (default {DEFAULTS['top_p']})",
        "connector": "true: after the connector to the diffusion transformer",
        "recipe": option_of("blip3o") + " (default blip3o: its chat template)",
        "subfolder": SUBFOLDER,
        **DEVICE_OPTIONS,
    },
)
