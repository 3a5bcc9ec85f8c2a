"""Which recipe a small confirmation trains by: equal work, on an encoder that no report scores.

    python benchmarks/confirm_recipes.py [--encoder SPEC] [--work 45000] [--only NAME ...]

Every recipe begins with the shipped backbone, sees as many images (steps x batch), and is asked at
1 and 4 steps for GenEval prompts and noise of a seed of their own, so that what a confirmation
reports is never tuned on. Tier A is worded as the training captions are; tier B is not. One
training each; seconds are those of the CPU.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from provenance import keep

from encbench.confirm.backbone import WEIGHTS, shipped_backbone
from encbench.confirm.config import cpu
from encbench.confirm.experiment import features
from encbench.confirm.plan import groups_for
from encbench.confirm.scoring import PromptGroup, score_network
from encbench.flow.config import TrainConfig, training_config
from encbench.flow.data import load_training_images
from encbench.flow.features import PromptEncoder, PromptFeatures
from encbench.flow.sample import load_checkpoint
from encbench.flow.train import train
from encbench.metrics.geneval.metric import SPEC, build_geneval
from encbench.metrics.tables import average_values
from encbench.progress import show_log

CPU = torch.device("cpu")
SEED = 77  # of prompts and noise
FIRST = {"batch": 64, "lr": 1e-3, "mu": 0.4, "condition_dropout": 0.1}
RECIPES: dict[str, dict[str, Any]] = {
    "first": FIRST,
    "later times": {**FIRST, "condition_dropout": 0.0, "mu": 1.2},
    "smaller batches": {**FIRST, "condition_dropout": 0.0, "batch": 32},
    "the preset's": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="zoo:mini-blip3o?step=20pct")
    parser.add_argument("--work", type=int, default=45_000, help="images of a training")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--name", default="confirm-recipes", help="of the result file")
    parser.add_argument("--out", type=Path, default=Path("runs/confirm-recipes"))
    options = parser.parse_args()
    show_log()
    found = {}
    for name in options.only:
        recipe = {**cpu()["train"], **RECIPES[name]}
        place = options.out / name.replace(" ", "-").replace("'", "")
        config = training_config(
            {
                "times": "emf", **recipe, "steps": options.work // recipe["batch"],
                "encoder": options.encoder, "device": "cpu", "out": place,
                "store": options.out / "store",
            }
        )  # fmt: skip
        found[name] = {**RECIPES[name], "steps": config.steps, **measure(config)}
        print(f"{name:28s} {found[name]}", flush=True)
    keep(options.name, {"encoder": options.encoder, "images": options.work, "recipes": found})


def measure(config: TrainConfig) -> dict[str, Any]:
    """Train, and score the tiers at 1 and 4 steps."""
    groups = [
        group
        for group in groups_for("", config.world, 20, SEED)
        if group.combos == "seen" and group.tier in ("A", "B")
    ]
    data = load_training_images(config)
    encoder = PromptEncoder(config.encoder, config.store, CPU, config.text_tokens)
    bank, texts = features(encoder, data, groups)
    home = shipped_backbone(config.world, config.side, config.network, config.patch)
    assert home is not None
    begun = time.process_time()
    done = train(
        config, data=data, features=bank, revision=encoder.revision, device=CPU, alone=True,
        init_backbone=home / WEIGHTS,
    )  # fmt: skip
    spent = time.process_time() - begun
    scores = {"final": scored(done.path, groups, texts)}
    if done.parent is not None:
        scores["parent"] = scored(done.parent, groups, texts)
    return {"cpu_seconds": spent, **scores}


def scored(
    path: Path, groups: list[PromptGroup], texts: dict[str, PromptFeatures]
) -> dict[str, float]:
    model, judge = load_checkpoint(path, CPU), build_geneval("scenes", "none", CPU)
    return {
        f"tier {group.tier}, {steps} step{'s' * (steps > 1)}": average_values(
            score_network(
                model.net, model.space, texts, group.prompts, [judge], steps=steps, images=2,
                noise=SEED, device=CPU,
            )[0],
            group.prompts,
            SPEC,
        )
        for group in groups
        for steps in (1, 4)
    }  # fmt: skip


if __name__ == "__main__":
    main()
