"""How right the scene judge is, on scenes that it never learned from.

    python benchmarks/judge.py

Scenes of 'probe-test', combinations that the judge has seen and held-out ones apart. An image
counts as recovered if exactly its objects are found with a score above .3, each with its shape,
its color and a box whose overlap with the true one is above .5. Intervals are Wilson's, 95 %.
Writes benchmarks/results/judge.json and docs/figures/judge-*.png.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from provenance import keep
from scipy.stats import binomtest
from torch import Tensor

from encbench.data.scenes.render import render
from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.world import COLORS, EASY, SCENES, SHAPES, Scene, SceneBatch
from encbench.metrics.geneval.judge import BATCH, WEIGHTS, SceneJudge, load_judge
from encbench.metrics.geneval.judge_check import match, recovered, truth
from encbench.metrics.geneval.judge_pixels import box, field, gaussian
from encbench.types import Detection

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
GRID = replace(EASY, name="scenes-easy, 2 x 2 grid", layout="grid")
FULL_GRID = replace(GRID, name="scenes-easy, 2 x 2 grid, 1 to 4 objects", counts=(1, 2, 3, 4))
SEED = 4242  # of everything here
AIM, FALSE_AIM = 0.99, 0.01
SURE = 0.9  # GenEval's threshold for counting

CURVES: dict[str, tuple[str, tuple[float, ...]]] = {
    "blur": ("standard deviation, share of the side", (0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07)),
    "noise": ("standard deviation", (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)),
    "color shift": ("largest change of a channel", (0, 0.05, 0.1, 0.15, 0.2, 0.3)),
    "erasure": ("share of each object's width cut off", (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)),
    "blend": ("weight of a second scene", (0, 0.1, 0.2, 0.3, 0.4, 0.5)),
}


def rate(hits: int, of: int) -> dict[str, float]:
    found = binomtest(hits, of).proportion_ci(method="wilson")
    return {"value": hits / of, "low": found.low, "high": found.high, "n": of}


# ------------------------------------------------------------------------- what is done to it


def blur(images: Tensor, scenes: SceneBatch, by: float, draw: torch.Generator) -> Tensor:
    side = images.shape[-1]
    rows = gaussian(torch.tensor([by * side]), side)[0]
    return rows @ images @ rows.T


def noise(images: Tensor, scenes: SceneBatch, by: float, draw: torch.Generator) -> Tensor:
    return images + by * torch.randn(images.shape, generator=draw)


def color_shift(images: Tensor, scenes: SceneBatch, by: float, draw: torch.Generator) -> Tensor:
    """The same change everywhere in an image, of any direction; its largest part is ``by``."""
    change = torch.rand(len(images), 3, 1, 1, generator=draw) * 2 - 1
    return images + by * change / change.abs().amax(1, keepdim=True)


def erasure(images: Tensor, scenes: SceneBatch, by: float, draw: torch.Generator) -> Tensor:
    """A strip at a random side of each object's box is painted over with the ground."""
    side = images.shape[-1]
    bare = SceneBatch(**{**vars(scenes), "shape": np.full_like(scenes.shape, -1)})
    ground = render(bare, side)
    at = (torch.arange(side) + 0.5) / side
    out = images.clone()
    for i, scene in enumerate(scenes):
        for thing in scene.objects:
            x0, y0, x1, y1 = thing.box
            rim = 0.6 / side  # half covered pixels beyond the box go, too
            ends = [(x0 - rim, x1 + rim), (y0 - rim, y1 + rim)]
            axis, late = torch.randint(2, (2,), generator=draw).tolist()
            low, high = ends[axis]
            width = by * (high - low)
            ends[axis] = (high - width, high) if late else (low, low + width)
            (u0, u1), (v0, v1) = ends
            inside = ((at >= u0) & (at < u1))[None, :] & ((at >= v0) & (at < v1))[:, None]
            out[i] = torch.where(inside, ground[i], out[i])
    return out


def blend(images: Tensor, scenes: SceneBatch, by: float, draw: torch.Generator) -> Tensor:
    return images.lerp(images.roll(1, 0), by)


CHANGES: dict[str, Callable[[Tensor, SceneBatch, float, torch.Generator], Tensor]] = {
    "blur": blur, "noise": noise, "color shift": color_shift, "erasure": erasure, "blend": blend,
}  # fmt: skip


def empties(count: int, side: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Images in which nobody would name an object, by kind."""
    scenes = render(sample_scenes("probe-test", count, seed=SEED + 1, combos="both"), side)
    plain = torch.rand(count, 3, 1, 1, generator=draw).expand_as(scenes)
    strength = torch.rand(count, 1, 1, 1, generator=draw)
    white = torch.randn(scenes.shape, generator=draw)
    length = side * (0.6 + 0.6 * torch.rand(count, generator=draw))
    rows = box(length, side)[:, None]
    lying = torch.arange(count)[:, None, None, None] % 2 == 0
    smeared = torch.where(lying, scenes @ rows.transpose(2, 3), rows @ scenes)
    melted = gaussian(side * (0.15 + 0.1 * torch.rand(count, generator=draw)), side)[:, None]
    mean = torch.stack([scenes.roll(17 * i, 0) for i in range(16)]).mean(0)
    smooth = torch.cat([field(len(part), 3, side, draw) for part in plain.split(20)])
    return {
        "noise": (plain + white * (0.05 + strength)).clamp(0, 1),
        "blank": plain,
        "smeared": smeared,
        "smooth color": (plain + 0.4 * strength * smooth).clamp(0, 1),
        "melted": melted @ scenes @ melted.transpose(2, 3),
        "mean of 16 scenes": mean,
    }


# --------------------------------------------------------------------------------- measuring


def clean(judge: SceneJudge, count: int) -> list[dict[str, Any]]:
    rows = []
    for world, sides in ((SCENES, (64, 32, 128)), (GRID, (32, 64)), (FULL_GRID, (32,))):
        for combos in ("seen", "held-out"):
            scenes = sample_scenes("probe-test", count, seed=SEED, world=world, combos=combos)
            for side in sides:
                found = judge.detect_tensor(render(scenes, side))
                pairs = list(zip(found, scenes, strict=True))
                right = sum(recovered(each, scene, side) for each, scene in pairs)
                sure = sum(recovered(each, s, side, threshold=SURE) for each, s in pairs)
                rows.append(
                    {
                        "world": world.name, "side": side, "combinations": combos,
                        "recovered": rate(right, count), "recovered_above_.9": rate(sure, count),
                        "reached": right >= AIM * count, "errors": errors(pairs, side),
                    }
                )  # fmt: skip
    return rows


def errors(pairs: Sequence[tuple[list[Detection], Scene]], side: int) -> dict[str, int]:
    """What went wrong, most frequent first: 'missed star', 'circle as ring', ..."""
    told: dict[str, int] = {}
    for found, scene in pairs:
        names = []
        for thing in truth(scene, side):
            seen = match(found, thing)
            if seen is None:
                names.append(f"missed {thing.label}")
            elif seen.label != thing.label:
                names.append(f"{thing.label} as {seen.label}")
            elif seen.color != thing.color:
                names.append(f"{thing.color} as {seen.color}")
        names += ["one too many"] * max(0, len(found) - len(scene.objects))
        for name in names:
            told[name] = told.get(name, 0) + 1
    return dict(sorted(told.items(), key=lambda pair: -pair[1]))


def curves(judge: SceneJudge, count: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for world, side in ((SCENES, 64), (GRID, 32)):
        for combos in ("seen", "held-out"):
            scenes = sample_scenes("probe-test", count, seed=SEED + 2, world=world, combos=combos)
            images = render(scenes, side)
            for name, (_, degrees) in CURVES.items():
                draw = torch.Generator().manual_seed(SEED)
                points = []
                for by in degrees:
                    seen = CHANGES[name](images, scenes, by, draw).clamp(0, 1)
                    found = judge.detect_tensor(seen)
                    right = sum(recovered(f, s, side) for f, s in zip(found, scenes, strict=True))
                    points.append({"by": by, **rate(right, count)})
                made.setdefault(name, {})[f"{world.name}, {side} px, {combos}"] = points
    return made


def degraded(scenes: SceneBatch, side: int) -> Tensor:
    """All changes together, each to a middling degree that varies from image to image."""
    draw = torch.Generator().manual_seed(SEED + 3)
    images = render(scenes, side)
    degrees = {"blend": 0.15, "erasure": 0.1, "blur": 0.025, "color shift": 0.1, "noise": 0.12}
    for name, most in degrees.items():
        for start in range(0, len(images), 25):
            part = slice(start, start + 25)
            by = most * float(torch.rand((), generator=draw))
            images[part] = CHANGES[name](images[part], scenes.take(part), by, draw).clamp(0, 1)
    return images


def confusion(found: Sequence[list[Detection]], scenes: SceneBatch, side: int) -> dict[str, Any]:
    shapes = np.zeros((len(SHAPES), len(SHAPES) + 1), int)
    colors = np.zeros((len(COLORS), len(COLORS)), int)
    hues = list(COLORS)
    scored: list[tuple[float, bool]] = []
    for each, scene in zip(found, scenes, strict=True):
        right = []
        for thing in truth(scene, side):
            seen = match(each, thing)
            said = len(SHAPES) if seen is None else SHAPES.index(seen.label)
            shapes[SHAPES.index(thing.label), said] += 1
            if seen is not None:
                colors[hues.index(str(thing.color)), hues.index(str(seen.color))] += 1
                right += [seen] if seen.label == thing.label else []
        scored += [(d.score, any(d is good for good in right)) for d in each]
    bins = []
    for low, high in ((0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 0.99), (0.99, 1.01)):
        part = [(score, good) for score, good in scored if low <= score < high]
        if part:
            mean = sum(score for score, _ in part) / len(part)
            bins.append({"score": mean, "right": rate(sum(good for _, good in part), len(part))})
    return {"shapes": shapes.tolist(), "colors": colors.tolist(), "scores": bins}


def false_detections(judge: SceneJudge, count: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for side in (64, 32):
        draw = torch.Generator().manual_seed(SEED + side)
        for name, images in empties(count, side, draw).items():
            found = judge.detect_tensor(images)
            some = sum(bool(each) for each in found)
            sure = sum(any(d.score > SURE for d in each) for each in found)
            made[f"{name}, {side} px"] = {"any": rate(some, count), "above_.9": rate(sure, count)}
    return made


def speed(judge: SceneJudge, turns: int) -> dict[str, Any]:
    """By the clock on one and two threads, and for a second of one core's own time, which other
    work on the machine changes less."""
    before = torch.get_num_threads()
    rates: dict[str, list[float]] = {}
    for _ in range(turns + 1):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for side in (32, 64):
                images = torch.rand(4 * BATCH, 3, side, side)
                begun, used = time.perf_counter(), time.process_time()
                judge.detect_tensor(images)
                took, spent = time.perf_counter() - begun, time.process_time() - used
                rates.setdefault(f"{side} px, {threads} thread(s)", []).append(len(images) / took)
                if threads == 1:
                    rates.setdefault(f"{side} px, a core", []).append(len(images) / spent)
    torch.set_num_threads(before)
    kept = {name: found[1:] for name, found in rates.items()}  # the first one warms up
    return {
        name: {"median": statistics.median(found), "low": min(found), "high": max(found)}
        for name, found in kept.items()
    }


# ----------------------------------------------------------------------------------- figures


def save(figure: Figure, name: str, dpi: int = 90) -> None:
    FIGURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURES / name, dpi=dpi, bbox_inches="tight")
    plt.close(figure)


def draw_curves(made: dict[str, Any]) -> None:
    figure, axes = plt.subplots(1, len(made), figsize=(16, 3.4), sharey=True)
    styles = {"seen": "-", "held-out": "--"}
    for place, (name, lines) in zip(axes, made.items(), strict=True):
        for label, points in lines.items():
            hue = "tab:blue" if label.startswith("scenes,") else "tab:orange"
            by = [point["by"] for point in points]
            value = [point["value"] for point in points]
            style = styles[label.rpartition(", ")[2]]
            place.plot(by, value, style, color=hue, marker="o", markersize=3, label=label)
            place.fill_between(
                by, [p["low"] for p in points], [p["high"] for p in points], color=hue, alpha=0.12
            )
        place.set(title=name, xlabel=CURVES[name][0], ylim=(0, 1.02))
        place.grid(alpha=0.3)
    axes[0].set_ylabel("images recovered exactly")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=4, bbox_to_anchor=(0.5, 1.1))
    save(figure, "judge-curves.png")


def draw_confusion(made: dict[str, Any]) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 5))
    tables = (("shapes", list(SHAPES), [*SHAPES, "missed"]), ("colors", list(COLORS), list(COLORS)))
    for place, (name, rows, columns) in zip(axes, tables, strict=True):
        counts = np.array(made[name])
        shares = counts / counts.sum(1, keepdims=True).clip(1)
        place.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in zip(*np.nonzero(counts), strict=True):
            dark = "white" if shares[i, j] > 0.5 else "black"
            said = f"{100 * shares[i, j]:.0f}" if shares[i, j] >= 0.005 else "·"
            place.text(j, i, said, ha="center", va="center", fontsize=7, color=dark)
        place.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
        place.set_yticks(range(len(rows)), rows, fontsize=8)
        place.set(title=f"{name}: true (rows), said (columns), %")
    save(figure, "judge-confusion.png")


def draw_hard(
    images: Tensor, found: Sequence[list[Detection]], scenes: SceneBatch, many: int = 18
) -> None:
    side = images.shape[-1]
    wrong = [
        i
        for i, (each, scene) in enumerate(zip(found, scenes, strict=True))
        if not recovered(each, scene, side)
    ]
    figure, axes = plt.subplots(3, 6, figsize=(13, 9.4))
    for place in axes.flat:
        place.axis("off")
    for place, i in zip(axes.flat, wrong[:many], strict=False):
        place.imshow(images[i].permute(1, 2, 0).numpy(), extent=(0, side, side, 0))
        for each in found[i]:
            x0, y0, x1, y1 = each.box
            hue = "lime" if each.score > SURE else "magenta"
            place.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=hue))
        true = sorted(f"{t.color} {t.label}" for t in truth(scenes.scene(i), side))
        said = sorted(f"{d.color} {d.label} {d.score:.2f}" for d in found[i])
        text = "true: " + "\n".join(true) + "\nsaid: " + ("\n".join(said) or "nothing")
        place.set_title(text, fontsize=7, loc="left")
    figure.tight_layout()
    save(figure, "judge-hard.png", dpi=65)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of a judge")
    parser.add_argument(
        "--images", type=int, default=2000, help="for each number; a fifth in curves"
    )
    parser.add_argument("--threads", type=int, default=1, help="more share cores with others")
    parser.add_argument("--turns", type=int, default=5, help="for the speed")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    judge = load_judge(folder=options.weights)
    plain = clean(judge, options.images)
    found_curves = curves(judge, options.images // 5)
    empty = false_detections(judge, options.images)
    scenes = sample_scenes("probe-test", options.images, seed=SEED + 3, combos="both")
    images = degraded(scenes, 64)
    found = judge.detect_tensor(images)
    mixed = confusion(found, scenes, 64)
    right = sum(recovered(f, s, 64) for f, s in zip(found, scenes, strict=True))
    named = ("noise", "blank", "smeared")
    result = {
        "judge": judge.name,
        "parameters": sum(value.numel() for value in judge.net.parameters()),
        "clean": plain,
        "aim": AIM,
        "empty": empty,
        "empty_aim": FALSE_AIM,
        "empty_reached": all(
            row["any"]["value"] < FALSE_AIM
            for name, row in empty.items()
            if name.partition(",")[0] in named
        ),
        "curves": found_curves,
        "hard": {"recovered": rate(right, len(images)), **mixed},
        "images_per_second": speed(judge, options.turns),
    }
    draw_curves(found_curves)
    draw_confusion(mixed)
    draw_hard(images, found, scenes)
    keep("judge", result)


if __name__ == "__main__":
    main()
