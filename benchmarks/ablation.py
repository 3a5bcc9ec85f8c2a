"""What prefix reuse saves: prompts shortened at their ends, with and without it, in turn.

A causal language model of random weights (Qwen3's layout, a tokenizer trained on the prompts)
behind fresh stores. 'ends' is the whole prompts and those shortened at the end; 'probe' is the
whole ablation probe, most of whose shortened prompts are no beginnings and cost what they did.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --dpg DPG/prompts.jsonl --device cuda --width 2048 --layers 28
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from provenance import keep

from encbench.context import Context, Data
from encbench.data.dpg import load_prompts
from encbench.data.scenes.default import scene_prompts_long
from encbench.device import choose_device
from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec, load_encoder
from encbench.probes.ablation import AblationProbe, _versions, settings
from encbench.progress import log
from encbench.store import Store
from encbench.types import PromptSet

OPTIONS = {"draws": 5, "shares": (0.1, 0.3, 0.5, 0.7, 0.9)}  # the defaults of a run


def checkpoint(folder: Path, texts: list[str], width: int, layers: int) -> Path:
    """A Qwen3 of random weights with a byte-level tokenizer trained on the texts."""
    import transformers

    tokenizer = transformers.Qwen2Tokenizer().train_new_from_iterator(
        texts, vocab_size=8000, show_progress=False
    )
    tokenizer.save_pretrained(folder)
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        head_dim=64,
    )
    transformers.Qwen3Model(config).save_pretrained(folder)
    return folder


class Side:
    """One way of doing it: tokens that went through the model and seconds, by round."""

    def __init__(self, encoder, spec: EncoderSpec, device: torch.device, *, reuse: bool) -> None:
        self.encoder, self.spec, self.device, self.reuse = encoder, spec, device, reuse
        self.seconds: list[float] = []
        self.tokens = 0

    @contextmanager
    def timed(self) -> Iterator[StoredEncoder]:
        """A stored encoder around the loaded model and a fresh store."""
        forward, counted = type(self.encoder).states, [0]

        def states(ids, mask):
            counted[0] += ids.numel()
            return forward(self.encoder, ids, mask)

        with tempfile.TemporaryDirectory() as folder:
            stored = StoredEncoder(self.spec, Store(Path(folder)), self.device, ("mean",))
            stored._encoder = self.encoder
            assert stored.about["causal"]
            self.encoder.states = states
            alone = self.device.type == "cpu" and torch.get_num_threads() == 1
            clock = time.process_time if alone else time.perf_counter  # the former: undisturbed
            started = clock()
            yield stored
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds.append(clock() - started)
            self.tokens = counted[0]
            del self.encoder.states


def ends(side: Side, texts: list[str], lists: list[list[str]]) -> list[torch.Tensor]:
    with side.timed() as stored:
        known = {}
        if side.reuse:
            known = stored.beginnings(texts, [t for part in lists for t in part])
        return [stored.embed(texts), *(stored.embed(part, "mean", known) for part in lists)]


def probe(side: Side, prompts: PromptSet, limit: int) -> dict[str, float]:
    with side.timed() as stored:
        context = Context(stored, "mean", Data(None, prompts), None, OPTIONS)
        if not side.reuse:
            context.prepare = lambda whole, *shortened: None
        found = AblationProbe().run(context, seed=0, limit=limit)
    return {name: score.value for name, score in found.scores.items()}


def summary(plain: Side, reuse: Side, difference: float) -> dict[str, float]:
    ratios = [a / b for a, b in zip(plain.seconds, reuse.seconds, strict=True)]
    return {
        "tokens_without": plain.tokens,
        "tokens_with": reuse.tokens,
        "tokens_ratio": plain.tokens / reuse.tokens,
        "seconds_without": statistics.median(plain.seconds),
        "seconds_with": statistics.median(reuse.seconds),
        "seconds_ratio": statistics.median(ratios),
        "seconds_ratio_low": min(ratios),
        "seconds_ratio_high": max(ratios),
        "largest_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dpg", type=Path, help="long prompts; else captions of scenes")
    parser.add_argument("--prompts", type=int, default=100, help="how many")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    log.setLevel("ERROR")
    device = choose_device(options.device)
    prompts = load_prompts(options.dpg) if options.dpg else scene_prompts_long()
    texts = tuple(p.text for p in prompts.prompts[: options.prompts])
    ids = tuple(p.prompt_id for p in prompts.prompts[: options.prompts])
    chosen = [s for s in settings(OPTIONS) if s.place == "end"]
    lists = [
        [t for t in version if t is not None]
        for setting in chosen
        for version in _versions(texts, ids, setting, 0)
    ]
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        made = checkpoint(Path(folder), texts, options.width, options.layers)
        spec = EncoderSpec.parse(f"causal:{made}")
        encoder = load_encoder(str(spec), device)
        encoder.encode(texts[:8])  # warm up
        result: dict[str, object] = {
            "prompts": len(texts),
            "data": prompts.name,
            "parameters": encoder.card.parameters,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
        }
        for name in ("ends", "probe"):
            plain, reuse = (Side(encoder, spec, device, reuse=r) for r in (False, True))
            for turn in range(options.rounds):
                made_by = {}
                for side in (plain, reuse) if turn % 2 else (reuse, plain):
                    made_by[side.reuse] = (
                        ends(side, texts, lists)
                        if name == "ends"
                        else list(probe(side, prompts, options.prompts).values())
                    )
                print(f"{name}, round {turn + 1} of {options.rounds}", flush=True)
            pairs = zip(made_by[False], made_by[True], strict=True)
            gap = max(float(torch.as_tensor(a - b).abs().max()) for a, b in pairs)
            result[name] = summary(plain, reuse, gap)
    keep("ablation" if device.type == "cpu" else "ablation-cuda", result)


if __name__ == "__main__":
    main()
