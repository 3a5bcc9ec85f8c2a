"""Which way of feeding r and t to a pretrained SANA is best: a small one, trained on scenes.

    OMP_NUM_THREADS=1 python benchmarks/sana_times.py [--seeds 0 1] [--out runs/sana-times]

A SANA of 1.5M parameters is trained by flow matching on scenes and written as diffusers writes it.
From that folder each of ``--sana-times`` goes on by EMF's objective at equal cost; ``rescaled``
spends a part of it on flow matching, as SANA-Sprint does (arXiv 2503.09641). The connector goes on
from the parent's. Scored is GenEval on scenes, worded as in training, at one and at four steps.
Encoder, images and prompts are those of ``one_step.py``. Started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from one_step import CPU, Bench
from provenance import keep
from safetensors.torch import save_file

from encbench.files import read_json, write_json
from encbench.flow.sample import load_checkpoint
from encbench.flow.sana import diffusers, load_sana
from encbench.progress import show_log

PARENT_STEPS, STEPS = 1500, 400
WIDTH, DEPTH, HEADS = 128, 4, 4
MODES: dict[str, dict[str, Any]] = {
    "scaled": {},
    "unscaled": {},
    "rescaled": {"flow_matching": 0.3},
}
"""Settings beside ``sana_times``. A step of flow matching costs 3 forwards, one of EMF 3.5."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/sana-times"))
    options = parser.parse_args()
    show_log()
    bench = SanaBench(options.out)
    for seed in options.seeds:
        for times in MODES:
            bench.run(times, seed)
            publish(options.out)


class SanaBench(Bench):
    """Small SANAs with a trained parent."""

    def sana(self, place: str, seed: int, steps: int, source: Path, **more: Any) -> Any:
        return self.config(
            place, seed, steps, network=f"sana:{source}", prediction="u", patch=None, **more
        )

    def parent(self, seed: int) -> tuple[Path, Path]:
        """The folder that diffusers loads, and the training that made it."""
        folder, note = self.out / f"sana-{seed}", self.out / f"sana-parent-{seed}.json"
        place = f"sana-parent-{seed}"
        if not note.exists():
            random = write_random(self.out / f"sana-random-{seed}", seed)
            config = self.sana(place, seed, PARENT_STEPS, random, objective="flow-matching")
            found = self.train(config)
            write_transformer(load_checkpoint(config.out / "final", CPU).net, random, folder)
            write_json(note, found)
        return folder, self.out / place / "final"

    def run(self, times: str, seed: int) -> None:
        note = self.out / f"sana-{times}-{seed}.json"
        if note.exists():
            return
        source, trained = self.parent(seed)
        settings = MODES[times]
        share = settings.get("flow_matching", 0.0)
        steps = round(STEPS * 3.5 / (3 * share + 3.5 * (1 - share)))
        net: Any = load_checkpoint(trained, CPU).net
        net = getattr(net, "net", net)
        begun = load_sana(str(source), net.connector.cond_dim, times=times)
        begun.connector.load_state_dict(net.connector.state_dict())
        start = self.out / f"sana-start-{times}-{seed}"
        start.mkdir(exist_ok=True)
        tensors = {name: tensor.contiguous() for name, tensor in begun.state_dict().items()}
        for part in ("model", "ema"):
            save_file(tensors, start / f"{part}.safetensors")
        config = self.sana(
            f"sana-{times}-{seed}", seed, steps, source, sana_times=times, lr=3e-4,
            **{"flow_matching": 0.0, **settings},
        )  # fmt: skip
        write_json(note, {"times": times, "seed": seed, **self.train(config, init=start)})


def write_random(folder: Path, seed: int) -> Path:
    """A small SANA with random weights, on images of 32 x 32 pixels."""
    torch.manual_seed(seed)
    model = diffusers("The small SANA").SanaTransformer2DModel(
        in_channels=3, out_channels=3, num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS, num_layers=DEPTH, num_cross_attention_heads=HEADS,
        cross_attention_head_dim=WIDTH // HEADS, cross_attention_dim=WIDTH, caption_channels=WIDTH,
        mlp_ratio=2.5, sample_size=32, patch_size=4, qk_norm="rms_norm_across_heads",
    )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def write_transformer(net: Any, random: Path, folder: Path) -> None:
    """The trained transformer as diffusers loads it, its embedding of t where SANA has it."""
    net = getattr(net, "net", net)
    model = diffusers("The small SANA").SanaTransformer2DModel.from_pretrained(random)
    trained = copy.deepcopy(net.transformer)
    model.time_embed.emb = trained.time_embed.end
    model.time_embed.linear = trained.time_embed.linear
    state = trained.state_dict()
    known = {name for name in model.state_dict() if not name.startswith("time_embed.")}
    model.load_state_dict({name: state[name] for name in known}, strict=False)
    model.save_pretrained(folder)


def publish(out: Path) -> None:
    notes = [read_json(note) for note in sorted(out.glob("sana-*scaled-?.json"))]
    keep(
        "sana-times",
        {
            "unit": "GenEval on scenes, tier A, 120 prompts, 4 images each",
            "parents": {p.stem: read_json(p) for p in sorted(out.glob("sana-parent-?.json"))},
            "trainings": notes,
            "mean": {
                times: {
                    key: float(np.mean([note[key] for note in notes if note["times"] == times]))
                    for key in ("1 step", "4 steps")
                }
                for times in {note["times"] for note in notes}
            },
        },
    )


if __name__ == "__main__":
    main()
