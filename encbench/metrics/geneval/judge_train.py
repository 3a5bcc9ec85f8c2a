"""The scene judge's recipe: scenes of 'judge-train', disturbed in every batch, never the same.

    python -m encbench.metrics.geneval.judge_train --out DIR [--steps 3000] [--seed 0] [--from DIR]

writes ``model.safetensors``, ``config.json``, ``loss.csv`` and the manifest. At the end the
second look is fitted on a seed that was not learned from, so that scores are probabilities. With
``--from`` a judge goes on learning, without the batch normalization that it began with.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss

from ...data.scenes.sampler import sample_scenes
from ...data.scenes.world import EASY, SCENES, SHAPES, SceneBatch
from ...files import to_csv, write_text
from ...progress import bar, log, show_log
from ...shipped import write_manifest
from ...training import descend
from .judge import (
    SIDE,
    STRIDE,
    JudgeConfig,
    Maps,
    SceneJudge,
    SceneNet,
    folded,
    load_judge,
    peaks,
    resize_for_judge,
    save_judge,
)
from .judge_layers import disturb, layers, paint
from .judge_look import SecondLook, measure_objects
from .judge_pixels import CLEAR, GONE, Pictures, degrade, nothing

NEAR, FAR = 0.75, 1.6  # cells: an object's center is named by those nearer, and by none farther
NOTHING = len(SHAPES)
HELD = 1_000_003  # added to the seed for the pictures of the second look
WORLDS = (
    (SCENES, 0.5), (replace(SCENES, layout="grid"), 0.15), (EASY, 0.15),
    (replace(EASY, layout="grid"), 0.2),
)  # fmt: skip
SIDES = ((64, 0.65), (32, 0.35))
CLIP = 2.0  # the gradient's largest norm
ROUND = 4  # batches drawn at a time


@dataclass(frozen=True)
class JudgeRecipe:
    """How a judge is made.

    Attributes:
        clean, empty: shares of pictures that are left as rendered, and that hold nothing.
        start: the revision of the judge that goes on learning; '' = a new one.
        looks: batches that the second look is fitted on, in ``look_steps`` steps.
    """

    steps: int = 3000
    batch: int = 48
    rate: float = 3e-3
    decay: float = 0.02
    clean: float = 0.15
    empty: float = 0.15
    looks: int = 36
    look_steps: int = 1500
    seed: int = 0
    start: str = ""
    net: JudgeConfig = field(default_factory=JudgeConfig)


class Targets(NamedTuple):
    """Training targets of each cell; ``counts``: it is part of the loss; ``named``: it is a center.
    ``hue`` is -1 where the color has no name."""

    shape: Int[Tensor, "N h w"]
    counts: Bool[Tensor, "N h w"]
    named: Bool[Tensor, "N h w"]
    hue: Int[Tensor, "N h w"]
    box: Float[Tensor, "N 4 h w"]


def targets(seen: Pictures) -> Targets:
    """Targets: cells around the centers of clear objects name them. Cells around these, and in the
    boxes of objects that are only partly visible, are ignored. All others are background."""
    cells = SIDE // STRIDE
    box = seen.box * cells
    at = torch.arange(cells) + 0.5
    dx = box[:, :, 0, None, None] - at
    dy = box[:, :, 1, None, None] - at[:, None]
    clear = (seen.shape >= 0) & (seen.share >= CLEAR)
    vague = (seen.shape >= 0) & (seen.share > GONE) & ~clear
    away = (dx**2 + dy**2).sqrt().masked_fill(~clear[:, :, None, None], 1e6)
    nearest, owner = away.min(1)
    named = nearest <= NEAR
    half = box[:, :, 2:].clamp(min=2) / 2
    inside = (dx.abs() <= half[:, :, 0, None, None]) & (dy.abs() <= half[:, :, 1, None, None])
    skipped = (inside & vague[:, :, None, None]).any(1) | (nearest <= FAR)

    def of_owner(values: Tensor) -> Tensor:
        rows = torch.arange(len(values))[:, None, None]
        return values[rows, owner]

    offset = [d.expand_as(away).gather(1, owner[:, None])[:, 0] for d in (dx, dy)]
    size = of_owner(box[:, :, 2:].clamp(min=1e-3).log()).permute(0, 3, 1, 2)
    return Targets(
        shape=torch.where(named, of_owner(seen.shape), NOTHING),
        counts=named | ~skipped,
        named=named,
        hue=torch.where(named, of_owner(seen.hue), -1),
        box=torch.cat([torch.stack(offset, 1), size], 1),
    )


def judge_loss(maps: Maps, want: Targets) -> Float[Tensor, " 3"]:
    """Of the shapes, the colors and the boxes, each for one named cell."""
    many = want.named.sum().clamp(min=1)
    shape = cross_entropy(maps.shape, want.shape, reduction="none")
    color = cross_entropy(maps.color, want.hue, ignore_index=-1, reduction="sum")
    box = smooth_l1_loss(maps.box, want.box, beta=0.1, reduction="none").sum(1)
    parts = [(shape * want.counts).sum(), color, (box * want.named).sum()]
    return torch.stack(parts) / many


def pictures(recipe: JudgeRecipe, step: int, draw: Generator) -> Pictures:
    """One batch: scenes of all worlds, rendered at all sides, as they share it."""
    n = recipe.batch
    parts = [
        sample_scenes(
            "judge-train", math.ceil(n * share), seed=recipe.seed, start=step * n, world=world
        )
        for world, share in WORLDS
    ]
    batch = _joined(parts)
    batch = batch.take(torch.randperm(len(batch), generator=draw)[:n].numpy())
    made, start = [], 0
    for side, share in SIDES:
        end = start + round(n * share)
        part = batch.take(slice(start, end))
        made.append(disturbed(part, side, draw, clean=recipe.clean, empty=recipe.empty))
        start = end
    whole = _together(made)
    return whole.take(torch.randperm(n, generator=draw))


def _joined(parts: list[SceneBatch]) -> SceneBatch:
    names = SceneBatch.__dataclass_fields__
    return SceneBatch(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def disturbed(
    batch: SceneBatch, side: int, draw: Generator, *, clean: float, empty: float
) -> Pictures:
    """Training images, rendered at one size and resized to the judge's: some clean, some degraded,
    and some without objects."""
    plain = paint(layers(batch, side))
    untouched, none = round(len(batch) * clean), round(len(batch) * empty)
    rest = torch.arange(untouched, len(batch) - none)
    part = batch.take(rest.numpy())
    rough = degrade(paint(disturb(layers(part, side), part, draw)), draw)
    parts = [plain.take(torch.arange(untouched)), rough, nothing(plain.images, none, draw)]
    return _together([replace(each, images=resize_for_judge(each.images)) for each in parts])


def _together(parts: list[Pictures]) -> Pictures:
    """One batch of several, with places for as many objects as the fullest has."""
    most = max(part.shape.shape[1] for part in parts)

    def joined(name: str, fill: int) -> Tensor:
        all_of = [getattr(part, name) for part in parts]
        if name == "images":
            return torch.cat(all_of)
        wide = [
            torch.cat([v, v.new_full((len(v), most - v.shape[1], *v.shape[2:]), fill)], 1)
            for v in all_of
        ]
        return torch.cat(wide)

    fills = {"images": 0, "shape": -1, "hue": -1, "box": 0, "share": 0}
    return Pictures(**{name: joined(name, fill) for name, fill in fills.items()})


def new_net(recipe: JudgeRecipe) -> SceneNet:
    """A network with batch normalization and random weights."""
    torch.manual_seed(recipe.seed)
    net = SceneNet(recipe.net, norm=True)
    with torch.no_grad():  # almost all cells hold nothing: say so from the start
        assert net.head.bias is not None
        net.head.bias.zero_()
        net.head.bias[NOTHING] = 5.0
    return net


def train(
    recipe: JudgeRecipe, start: SceneNet | None = None
) -> tuple[SceneNet, list[tuple[float, float, float]]]:
    """A network, and the three losses of each step; a new one if ``start`` is None."""
    draw = Generator().manual_seed(recipe.seed)
    moved: Any = (start or new_net(recipe)).requires_grad_(True).train()
    net: SceneNet = moved.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=recipe.steps, pct_start=0.1
    )
    weights = torch.tensor([1.0, 0.5, 0.5])
    curve = []
    begun = time.perf_counter()
    with bar("training the scene judge", recipe.steps) as advance:
        for step in range(recipe.steps):
            if step % ROUND == 0:  # many at a time are drawn faster
                seen = pictures(replace(recipe, batch=ROUND * recipe.batch), step // ROUND, draw)
            few = seen.take(torch.arange(recipe.batch) + step % ROUND * recipe.batch)
            parts = judge_loss(net(few.images), targets(few))
            what = f"the judge's loss at step {step}"
            descend((parts * weights).sum(), optimizer, net.parameters(), CLIP, what)
            schedule.step()
            one, two, three = parts.tolist()
            curve.append((one, two, three))
            advance(1)
            if (step + 1) % 250 == 0:
                mean = torch.tensor(curve[-250:]).mean(0).tolist()
                rate = (step + 1) * recipe.batch / (time.perf_counter() - begun)
                said = " ".join(f"{value:.4f}" for value in mean)
                log.info("step %d: shape, color, box %s; %.0f images/s", step + 1, said, rate)
    return net.eval(), curve


def second_look(net: SceneNet, recipe: JudgeRecipe) -> SecondLook:
    """Fitted on what a folded network finds in pictures of a seed of their own, a third of which
    hold nothing. What lies on an object that is only partly there is left out."""
    draw = Generator().manual_seed(recipe.seed + HELD)
    held = replace(recipe, seed=recipe.seed + HELD, batch=192, empty=0.35)
    rows = [_looks(net, pictures(held, number, draw)) for number in range(recipe.looks)]
    seen, likely, right, hue = (torch.cat(column) for column in zip(*rows, strict=True))
    torch.manual_seed(recipe.seed)
    second = SecondLook()
    if not len(seen):
        return second
    optimizer = torch.optim.AdamW(second.parameters(), lr=1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=recipe.look_steps)
    for _ in range(recipe.look_steps):
        rows_ = torch.randint(len(seen), (512,), generator=draw)
        colors, odds = second(seen[rows_], likely[rows_])
        named = hue[rows_] >= 0
        color = cross_entropy(colors[named], hue[rows_][named], reduction="sum") / len(rows_)
        score = binary_cross_entropy_with_logits(odds, right[rows_].float())
        descend(color + score, optimizer, second.parameters(), None, "the second look's loss")
        schedule.step()
    return second.eval()


def _looks(net: SceneNet, seen: Pictures) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each object found: what a look says, the network's probability, whether it is right,
    and its true color (-1 for none)."""
    with torch.no_grad():
        at = peaks(net(seen.images))
        numbers = measure_objects(seen.images, at.image, at.shape, at.box)
    center = (at.box[:, None, :2] + at.box[:, None, 2:]) / 2
    shape, share, box = seen.shape[at.image], seen.share[at.image], seen.box[at.image]
    away = (box[:, :, :2] - center).abs()
    clear = (shape >= 0) & (share >= CLEAR)
    vague = (shape >= 0) & (share > GONE) & ~clear
    cells = (away.amax(2) * (SIDE // STRIDE)).masked_fill(~clear, math.inf)
    nearest, owner = cells.min(1)
    one = torch.arange(len(owner))
    right = (nearest <= 1) & (shape[one, owner] == at.shape)
    inside = (away <= box[:, :, 2:].clamp(min=2 * STRIDE / SIDE) / 2).all(2)
    kept = (nearest <= 1) | ~(inside & vague).any(1)
    hue = torch.where(right, seen.hue[at.image][one, owner], -1)
    return numbers[kept], at.likely[kept], right[kept], hue[kept]


def train_judge(recipe: JudgeRecipe, out: Path, start: SceneJudge | None = None) -> SceneJudge:
    """Train, fold, fit the second look, and write.

    Args:
        start: a judge to go on with; its widths are taken.

    Raises:
        StoreError: if it cannot be written.
    """
    begun = time.perf_counter()
    if start is not None:
        recipe = replace(recipe, start=start.name, net=start.net.config)
    net, curve = train(recipe, start.net if start else None)
    plain = folded(net)
    second = second_look(plain, recipe)
    save_judge(plain, second, out)
    every = max(1, recipe.steps // 300)
    rows = []
    for first in range(0, recipe.steps, every):
        part = torch.tensor(curve[first : first + every]).mean(0).tolist()
        rows.append((first + 1, *(f"{loss:.5f}" for loss in part)))
    write_text(out / "loss.csv", to_csv(("step", "shape", "color", "box"), rows, line_end="\n"))
    about = {
        "what": "the scene judge, a detector of colored shapes",
        "command": "python -m encbench.metrics.geneval.judge_train",
        "recipe": asdict(recipe),
        "images": recipe.steps * recipe.batch,
        "parameters": sum(value.numel() for part in (plain, second) for value in part.parameters()),
        "seconds": round(time.perf_counter() - begun),
        "torch": torch.__version__,
    }
    write_manifest(out, about)
    return load_judge(folder=out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=JudgeRecipe.steps)
    parser.add_argument("--rate", type=float, default=JudgeRecipe.rate)
    parser.add_argument("--widths", type=int, nargs=3, default=JudgeConfig.widths)
    parser.add_argument("--blocks", type=int, nargs=3, default=JudgeConfig.blocks)
    parser.add_argument("--seed", type=int, default=JudgeRecipe.seed)
    parser.add_argument("--from", dest="start", type=Path, help="folder of a judge to go on with")
    options = parser.parse_args()
    show_log()
    config = JudgeConfig(tuple(options.widths), tuple(options.blocks))
    recipe = JudgeRecipe(steps=options.steps, rate=options.rate, seed=options.seed, net=config)
    train_judge(recipe, options.out, load_judge(folder=options.start) if options.start else None)
    log.info("the judge is in %s", options.out)


if __name__ == "__main__":
    main()
