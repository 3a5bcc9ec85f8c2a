"""Few-step models of small scenes: the MeanFlow recipe against flow matching of the same cost.

    python benchmarks/train_scenes.py [--steps 1800] [--encoder control:word-position]
                                      [--set flow_matching=0.7 network=dit-1m ...]

Trains the preset ``scenes-cpu`` twice with the same data, order, network and seed: flow matching
first and MeanFlow after it, and flow matching alone for as many more steps as cost the same
FLOPs. Both are asked for GenEval prompts of scenes at 1, 2, 4 and 16 steps from the same noise.
Scored are GenEval's tasks, and how often each color that was asked for is there at all. The
time is that of the CPU, summed over threads: two free cores take half of it. Trainings are kept
in ``runs/train-scenes`` and go on where they were.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import RESULTS, keep
from template_judge import TemplateJudge

from encbench.data.scenes.prompts import scene_prompts
from encbench.data.scenes.render import render
from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.world import get_world
from encbench.errors import EncbenchError
from encbench.flow.config import TrainConfig, training_config
from encbench.flow.estimate import cost_of
from encbench.flow.features import PromptFeatures, Widths
from encbench.flow.grids import STEPS, draw_grid
from encbench.flow.networks import build_network
from encbench.flow.presets import scenes_cpu
from encbench.flow.sample import encoder_for, load_checkpoint, sample_images
from encbench.flow.train import train
from encbench.metrics.geneval.generate import sample_seed
from encbench.metrics.geneval.verdict import judge_image as verdict
from encbench.progress import show_log

CPU = torch.device("cpu")
PROMPTS = {"single_object": 4, "two_object": 6, "counting": 12, "colors": 16, "position": 12,
           "color_attr": 40}  # fmt: skip
SHOWN = 8  # rows of the grids
REPEATS = 2  # images of each prompt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", default="control:word-position")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--name", default="train-scenes", help="of the result")
    parser.add_argument("--out", type=Path, default=Path("runs/train-scenes"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    show_log()
    values: dict[str, Any] = {
        **scenes_cpu(),
        "encoder": options.encoder,
        "device": "cpu",
    }
    values |= {key: _value(text) for key, _, text in (one.partition("=") for one in options.set)}
    if options.steps:
        values["steps"] = options.steps
    meanflow = training_config({**values, "out": options.out / "meanflow"})
    plain = replace(meanflow, objective="flow-matching", out=options.out / "flow-matching")
    ratio = _flops(meanflow) / _flops(plain)
    plain = replace(plain, steps=round(meanflow.steps * ratio))

    judge, judge_name, checks = _judge(meanflow)
    prompts = scene_prompts("geneval", world=get_world(meanflow.world), per_task=PROMPTS)
    result: dict[str, Any] = {
        "judge": {"name": judge_name, **checks},
        "prompts": len(prompts),
        "images_per_prompt": REPEATS,
        "cost_ratio": ratio,
        "threads": torch.get_num_threads(),
        "config": meanflow.as_dict(),
        "models": {},
    }
    for name, config in (("meanflow", meanflow), ("flow-matching", plain)):
        cpu, begun = time.process_time(), time.perf_counter()
        done = train(config)
        spent = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - begun}
        note = config.out / "spent.json"
        if note.exists():  # a training that was stopped, or is finished
            held = json.loads(note.read_text())
            spent = {key: held[key] + (value if value > 5 else 0) for key, value in spent.items()}
        note.write_text(json.dumps(spent))
        result["models"][name] = {
            "steps": config.steps,
            **spent,
            **_measure(done.path, prompts, judge, RESULTS / f"{options.name}-{name}.png"),
        }
        if done.parent is not None:
            result["models"]["parent"] = {
                "steps": config.switch, **_measure(done.parent, prompts, judge, None)
            }  # fmt: skip
    keep(options.name, result)


def _measure(path: Path, prompts: list, judge: Any, grid: Path | None) -> dict[str, Any]:
    model = load_checkpoint(path, CPU)
    encoder = encoder_for(model, CPU)
    texts: list[PromptFeatures] = encoder.together([prompt.text for prompt in prompts])
    found: dict[str, Any] = {}
    shown = []
    for steps in STEPS:
        tasks: dict[str, list[bool]] = {}
        colors: list[bool] = []
        for number in range(REPEATS):
            seeds = [sample_seed(0, prompt.prompt_id, number) for prompt in prompts]
            pixels = sample_images(
                model.net, model.space, texts, seeds, steps=steps, device=CPU, batch=64
            )
            if number == 0:
                shown.append(pixels[-SHOWN:].permute(0, 2, 3, 1).numpy())
            for prompt, objects in zip(prompts, judge(pixels.float() / 255), strict=True):
                tasks.setdefault(prompt.task, []).append(verdict(objects, prompt).correct)
                asked = [clause.color for clause in prompt.include if clause.color]
                colors += [any(o.color == color for o in objects) for color in asked]
        means = {task: float(np.mean(rows)) for task, rows in tasks.items()}
        found[f"{steps} steps"] = {
            "overall": float(np.mean(list(means.values()))),
            "asked color is there": float(np.mean(colors)),
            "colors asked for": len(colors),
            **means,
        }
    if grid is not None:
        rows = [prompt.text for prompt in prompts[-SHOWN:]]
        draw_grid(np.stack(shown, 1), rows, [f"{s} steps" for s in STEPS]).save(grid)
    return found


def _judge(config: TrainConfig) -> tuple[Any, str, dict[str, float]]:
    """What finds objects, its name, and how often it is right on true scenes, and on those of
    other prompts' (the share that agrees by chance)."""
    world = get_world(config.world)
    try:
        from encbench.metrics.geneval.judge import load_judge

        one: Any = load_judge("cpu")
        name = one.name
    except (ImportError, EncbenchError):
        one, name = TemplateJudge(world, config.side), "template"
    batch = sample_scenes("probe-test", 200, world=world)
    found = one.detect_tensor(render(batch, config.side))
    true = [sorted((o.shape, o.color) for o in scene.objects) for scene in batch]
    seen = [sorted((o.label, o.color) for o in objects) for objects in found]
    right = float(np.mean([a == b for a, b in zip(true, seen, strict=True)]))
    shifted = [*seen[1:], seen[0]]
    chance = float(np.mean([a == b for a, b in zip(true, shifted, strict=True)]))
    return one.detect_tensor, name, {"right_on_true_scenes": right, "on_others": chance}


def _flops(config: TrainConfig) -> float:
    widths, shape = Widths(512, 0), (3, config.side, config.side)
    return cost_of(config, build_network(config, shape, widths), shape, widths).flops


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
