"""Tokens a second at true sizes, and the share of the machine's matrix rate that is used.

Random weights, made on the device, no downloads. Prompts are token ids of DPG-Bench's lengths (84
tokens in the mean, 30 to 180), through the project's own batching (BatchedEncoder.encode: sort,
pack to a token budget, pad, run, put back in order). 'Useful' counts the matrix products of real
tokens only, padding left out; the matrix rate is that of a large square product in the same dtype,
the better of those measured right before and after each round.

    python benchmarks/throughput.py                    # a small-size stand-in on a CPU, fp32
    python benchmarks/throughput.py --device cuda      # the true sizes in bf16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from provenance import keep

from encbench.device import choose_device
from encbench.encoders.batching import BatchedEncoder, Hidden, Tokenized
from encbench.estimate import matrix_rate
from encbench.types import EncoderCard

GEMMA = {  # huggingface.co/google/gemma-2-2b, config.json
    "vocab_size": 256_000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
    "query_pre_attn_scalar": 256, "max_position_embeddings": 8192,
}  # fmt: skip
T5 = {  # huggingface.co/google/t5-v1_1-xl, config.json
    "vocab_size": 32_128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24,
    "num_heads": 32, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
}  # fmt: skip
QWEN = {  # huggingface.co/Qwen/Qwen3-1.7B, config.json
    "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40_960, "tie_word_embeddings": True,
}  # fmt: skip
CLIP = {  # huggingface.co/openai/clip-vit-large-patch14, config.json, text_config
    "vocab_size": 49_408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "projection_dim": 768,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any], int]] = {  # model, config, true size, max length
    "gemma-2-2b": ("Gemma2Model", "Gemma2Config", GEMMA, 512),
    "t5-v1.1-xl": ("T5EncoderModel", "T5Config", T5, 512),
    "qwen3-1.7b": ("Qwen3Model", "Qwen3Config", QWEN, 512),
    "vit-l-14-text": ("CLIPTextModel", "CLIPTextConfig", CLIP, 77),
}
SMALL = {  # a quarter of the width and few layers, for a CPU
    "gemma-2-2b": {"hidden_size": 576, "intermediate_size": 2304, "num_hidden_layers": 4,
                   "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128,
                   "query_pre_attn_scalar": 128, "vocab_size": 8000},
    "t5-v1.1-xl": {"d_model": 512, "d_ff": 1280, "num_layers": 4, "num_heads": 8,
                   "vocab_size": 8000},
    "qwen3-1.7b": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4,
                   "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
                   "vocab_size": 8000},
    "vit-l-14-text": {"num_hidden_layers": 4},
}  # fmt: skip


class RandomEncoder(BatchedEncoder):
    """A model behind the project's batching; prompts are numbers, each a row of token ids."""

    def __init__(self, name: str, model: Any, rows: list[list[int]], device: torch.device) -> None:
        self.model, self.rows, self.device = model, rows, device
        self.batch_tokens = 16_384 if device.type == "cuda" else 4_096
        self.masked = name == "t5-v1.1-xl"  # the others look back only: no mask is needed
        width = model.config.hidden_size
        self.card = EncoderCard(name, "benchmark", name, "random", width, None)

    def tokenize(self, prompts: list[str]) -> Tokenized:
        return Tokenized([self.rows[int(p)] for p in prompts], [False] * len(prompts))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Hidden:
        more = {} if "clip" in self.model.config.model_type else {"use_cache": False}
        if self.masked:
            more = {"attention_mask": mask.long()}
        return Hidden(self.model(input_ids=ids, **more).last_hidden_state, None)


def build(kind: str, config_kind: str, values: dict[str, Any], device: torch.device) -> Any:
    """A model with random weights, never held twice: shapes first, then numbers in place."""
    import transformers

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = getattr(transformers, config_kind)(**values)
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    model = model.to(dtype).to_empty(device=device)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.02)
        for name, value in model.named_parameters():
            if "norm" in name and name.endswith("weight") and "Gemma" not in kind:
                value.fill_(1.0)
    _buffers(model, config, device)
    return model.eval().requires_grad_(False)


def _buffers(model: Any, config: Any, device: torch.device) -> None:
    """Rotary frequencies, position numbers and scales are no weights: as a real one has them."""
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            for name, value in type(module)(config).named_buffers():
                setattr(module, name, value.to(device))
        if hasattr(module, "position_ids"):
            module.position_ids.copy_(torch.arange(module.position_ids.shape[-1])[None])
        if isinstance(getattr(module, "embed_scale", None), torch.Tensor):
            module.embed_scale.fill_(config.hidden_size**0.5)


def flops(model: Any, lengths: np.ndarray) -> float:
    """Of the matrix products of sequences without padding: two a weight and token, embeddings
    left out, and four a layer, width and pair of tokens for attention (all pairs)."""
    config = model.config
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    weights = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    width = heads * (head or config.hidden_size // heads)
    pairs = float((lengths.astype(float) ** 2).sum())
    return 2 * weights * float(lengths.sum()) + 4 * config.num_hidden_layers * width * pairs


def clock_of(device: torch.device) -> Callable[[], float]:
    """On a CPU with one thread its own time, which other programs do not disturb."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def measure(
    name: str, device: torch.device, small: bool, count: int, rounds: int
) -> dict[str, Any]:
    kind, config_kind, values, limit = MODELS[name]
    model = build(kind, config_kind, {**values, **(SMALL[name] if small else {})}, device)
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(8, 84 / 8, count).round().astype(int), 30, min(180, limit))
    top = model.config.vocab_size
    rows = [rng.integers(5, top - 5, n).tolist() for n in lengths]
    encoder = RandomEncoder(name, model, rows, device)
    clock = clock_of(device)
    prompts = [str(i) for i in range(count)]

    def once() -> float:
        started = clock()
        features = encoder.encode(prompts)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = clock() - started
        assert torch.isfinite(features.tokens[:8].float()).all()
        return seconds

    encoder.encode(prompts[: max(1, count // 4)])  # warm up
    useful = flops(model, lengths)
    seconds, rates = [], [matrix_rate(device, clock=clock)]
    for _ in range(rounds):
        seconds.append(once())
        rates.append(matrix_rate(device, clock=clock))
    pairs = zip(seconds, rates, rates[1:], strict=False)
    shares = [useful / each / max(before, after) for each, before, after in pairs]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "prompts": count,
        "tokens": int(lengths.sum()),
        "tokens_per_second": float(lengths.sum() / statistics.median(seconds)),
        "seconds": seconds,
        "matrix_rates": rates,
        "share_of_matrix_rate": statistics.median(shares),
        "shares": shares,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="small sizes (always on a CPU)")
    parser.add_argument("--prompts", type=int, help="how many [1065 on a GPU, 48 on a CPU]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    device = choose_device(options.device)
    small = options.small or device.type == "cpu"
    count = options.prompts or (48 if device.type == "cpu" else 1065)
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": "bfloat16" if device.type == "cuda" else "float32",
        "sizes": "small stand-ins" if small else "true",
        "threads": torch.get_num_threads(),
        "clock": clock_of(device).__name__,
    }
    for name in options.models:
        result[name] = measure(name, device, small, count, options.rounds)
        share = result[name]["share_of_matrix_rate"]
        print(f"{name}: {result[name]['tokens_per_second']:,.0f} tokens/s, {share:.0%}", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    keep(f"throughput-{device.type}", result)


if __name__ == "__main__":
    main()
