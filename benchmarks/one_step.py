"""Which recipe gives the best image in one step: equal work from one parent, on one encoder.

    OMP_NUM_THREADS=1 python benchmarks/one_step.py [--only NAME ...] [--seeds 0 1] [--print-only]

A parent is trained by flow matching for each seed, from the shipped backbone. Every recipe goes on
from it for as many steps as cost the same: a step's cost counts a forward of the batch as 1, one
with a gradient as 3, and the forwards without a gradient over the samples with r != t by their
share. Scored is GenEval on scenes, worded as in training (tier A), at one and at four steps. The
encoder is in no confirmation and in no row of the bank of outcomes, so nothing that is reported
elsewhere was chosen by it.

Trainings and scores are kept in ``--out``: started again, it goes on where it was. The result holds
whatever is finished.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from provenance import keep

from encbench import registry
from encbench.confirm.backbone import WEIGHTS, shipped_backbone
from encbench.confirm.config import cpu
from encbench.confirm.experiment import features
from encbench.confirm.plan import groups_for
from encbench.confirm.scoring import PromptGroup, score_network
from encbench.errors import EncbenchError
from encbench.files import read_json, write_json
from encbench.flow.config import TrainConfig, training_config
from encbench.flow.data import load_training_images
from encbench.flow.features import PromptEncoder
from encbench.flow.meanflow import average_velocity, displaced
from encbench.flow.objectives.base import GUIDANCE, Batch, Velocities
from encbench.flow.objectives.emf import EMF
from encbench.flow.sample import load_checkpoint
from encbench.flow.train import train
from encbench.metrics.geneval.metric import SPEC, build_geneval
from encbench.metrics.tables import average_values
from encbench.progress import show_log

CPU = torch.device("cpu")
RESULT = Path(__file__).parent / "results" / "one-step.json"
CONSISTENT = 0.25  # of a batch, begins at t = 1
ENCODER = "zoo:mini-t5?step=20pct&layer=1"
PROMPTS = 101  # seed of prompts and noise
PARENT_STEPS, WORK = 400, 250  # optimizer steps: of the parent, and of the first recipe
SHARE = 0.5  # of samples with r != t: the mean of EMF's schedule, and logit-normal's here
FORWARDS = {"imf": 2, "pmf": 2}  # without a gradient on those samples: du/dt, and the tangent
NORMAL = {"times": "logit-normal", "mu": 0.4, "interval_share": SHARE}
MORE = {"emf-consistent": 5 * CONSISTENT}  # a forward with a gradient and two without
RECIPES: dict[str, dict[str, Any]] = {
    "EMF": {},
    "iMF": {"objective": "imf"},
    "parent's velocity in the target": {"parent_target": 1.0},
    "weight power .5 (tangent normalization)": {"weight_power": 0.5},
    "parent's velocity, weight power .5": {"parent_target": 1.0, "weight_power": 0.5},
    "no adaptive weight": {"weight_power": 0.0},
    "logit-normal times": NORMAL,
    "r and t drawn apart": {**NORMAL, "r_mu": -1.2},
    "tangent warm-up": {"tangent_warmup": 0.3},
    "10 % uniform times": {"uniform_share": 0.1},
    "parent's velocity at first": {"parent_target": 0.5},
    "iMF, weight power .5": {"objective": "imf", "weight_power": 0.5},
    "EMF with a consistency term at t = 1": {"objective": "emf-consistent"},
    "iMF with a velocity head": {"objective": "imf", "velocity_head": True},
    "iMF, the authors' head": {
        "objective": "imf", "velocity_head": True, "head_at": "instant", "head_depth": 1
    },
}  # fmt: skip
"""In the order in which they are tried."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("runs/one-step"))
    parser.add_argument("--print-only", action="store_true", help="only gather what is finished")
    options = parser.parse_args()
    show_log()
    if not options.print_only:
        bench = Bench(options.out)
        for name in options.only:
            for seed in options.seeds:
                bench.run(name, seed)
                publish(options.out)
    publish(options.out)


@dataclass(frozen=True)
class ConsistentEMF(EMF):
    """EMF, and one step from noise must give what two steps give.

    u(e, 0, 1) = sg((1 - s) u(e, s, 1) + s u(z_s, 0, s)), s uniform: average velocities add up over
    parts of an interval (MeanFlow, Eq. 5, at t = 1; SplitMeanFlow, arXiv 2507.16884).
    """

    name: ClassVar[str] = "emf-consistent"

    def further_terms(
        self, batch: Batch, v: torch.Tensor, velocities: Velocities
    ) -> Iterator[torch.Tensor]:
        rows = torch.arange(max(1, round(CONSISTENT * len(batch.t))), device=batch.t.device)
        part = batch.rows(rows)
        assert part.uniform is not None
        middle = part.uniform[:, GUIDANCE.start].to(part.t)
        start, end = torch.ones_like(part.t), torch.zeros_like(part.t)
        with torch.no_grad():
            first = average_velocity(batch.net, part.noise, middle, start, part.cond)
            between = displaced(part.noise, first, middle, start)
            second = average_velocity(batch.net, between, end, middle, part.cond)
            share = middle.reshape(-1, *[1] * (first.dim() - 1))
            wanted = (1 - share) * first + share * second
        u = average_velocity(batch.net, part.noise, end, start, part.cond)
        yield CONSISTENT * self.weigh(u - wanted)


registry._entries("objective")["emf-consistent"] = EntryPoint(
    "emf-consistent", "one_step:ConsistentEMF", registry.GROUPS["objective"]
)


class Bench:
    """What all trainings share: images, features, prompts."""

    def __init__(self, out: Path) -> None:
        self.out, self.store = out, out / "store"
        config = self.config("data", 0, 1)
        groups = groups_for("", config.world, 20, PROMPTS)
        self.group = next(g for g in groups if g.combos == "seen" and g.tier == "A")
        self.data = load_training_images(config)
        encoder = PromptEncoder(ENCODER, self.store, CPU, config.text_tokens)
        self.revision = encoder.revision
        self.bank, self.texts = features(encoder, self.data, [self.group])
        home = shipped_backbone(config.world, config.side, config.network, config.patch)
        assert home is not None
        self.backbone = home / WEIGHTS

    def config(self, place: str, seed: int, steps: int, **recipe: Any) -> TrainConfig:
        values = {
            **cpu()["train"], "times": "emf", "derivative_step": None, "checkpoint_every": 100,
            "steps": steps, "seed": seed, "encoder": ENCODER, "device": "cpu", "sample_prompts": 0,
            "out": self.out / place, "store": self.store,
        }  # fmt: skip
        return training_config({**values, **recipe})

    def train(self, config: TrainConfig, **more: Any) -> dict[str, Any]:
        begun = time.process_time()
        done = train(
            config, data=self.data, features=self.bank, revision=self.revision, device=CPU,
            alone=True, **more,
        )  # fmt: skip
        seconds = time.process_time() - begun
        scores = scored(done.path, self.group, self.texts)
        return {"steps": config.steps, "cpu_seconds": seconds, **scores}

    def run(self, name: str, seed: int) -> None:
        parent = self.config(f"parent-{seed}", seed, PARENT_STEPS, objective="flow-matching")
        note = self.out / f"parent-{seed}.json"
        if not note.exists():
            write_json(note, self.train(parent, init_backbone=self.backbone))
        number = list(RECIPES).index(name)
        note = self.out / f"recipe-{number:02}-{seed}.json"
        if note.exists():
            return
        recipe = RECIPES[name]
        config = self.config(
            f"recipe-{number:02}-{seed}", seed, steps_of(recipe), flow_matching=0.0, lr=1e-3,
            **recipe,
        )  # fmt: skip
        try:
            found = self.train(config, init=parent.out / "final")
        except EncbenchError as error:
            found = {"failed": str(error)}
        write_json(note, {"name": name, "seed": seed, **found})


def steps_of(recipe: dict[str, Any]) -> int:
    """As many as cost what the first recipe's WORK steps do."""

    def cost(one: dict[str, Any]) -> float:
        own = FORWARDS.get(one.get("objective", "emf"), 1)
        if one.get("velocity_head") and one.get("head_at") != "instant":
            own -= 1
        more = MORE.get(one.get("objective", "emf"), 0.0)
        return 3 + SHARE * (own + one.get("parent_target", 0.0)) + more

    return round(WORK * cost({}) / cost(recipe))


def scored(path: Path, group: PromptGroup, texts: Any) -> dict[str, float]:
    model, judge = load_checkpoint(path, CPU), build_geneval("scenes", "none", CPU)
    found = {}
    for steps in (1, 4):
        values = score_network(
            model.net, model.space, texts, group.prompts, [judge], steps=steps, images=4,
            noise=PROMPTS, device=CPU,
        )[0]  # fmt: skip
        found[f"{steps} step{'s' * (steps > 1)}"] = average_values(values, group.prompts, SPEC)
    return found


def finished(out: Path) -> Iterator[dict[str, Any]]:
    for name, recipe in RECIPES.items():
        number = list(RECIPES).index(name)
        rows = [read_json(note) for note in sorted(out.glob(f"recipe-{number:02}-?.json"))]
        sound = [row for row in rows if "failed" not in row]
        yield {
            "name": name, "settings": recipe, "steps": steps_of(recipe), "seeds": rows,
            "mean": {
                key: float(np.mean([row[key] for row in sound])) for key in ("1 step", "4 steps")
            } if sound else None,
        }  # fmt: skip


def publish(out: Path) -> None:
    """Write the result. Recipes that were not run in ``out`` stay as an earlier result has them."""
    earlier = {}
    if RESULT.exists():
        earlier = {row["name"]: row for row in read_json(RESULT)["recipes"]}
    rows = [row if row["seeds"] else earlier.get(row["name"], row) for row in finished(out)]
    keep(
        "one-step",
        {
            "encoder": ENCODER,
            "unit": "GenEval on scenes, tier A, 120 prompts, 4 images each",
            "parents": {p.stem: read_json(p) for p in sorted(out.glob("parent-?.json"))},
            "recipes": [row for row in rows if row["seeds"]],
            "not_reached": [row["name"] for row in rows if not row["seeds"]],
        },
    )


if __name__ == "__main__":
    main()
