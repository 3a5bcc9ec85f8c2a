"""Decodability: what can a linear read-out recover from an encoder's features?

In one step from pure noise a model can show only what its condition determines. Content that a
small head cannot read from the features is lost. A ridge regression is fitted on captions of
'probe-fit' scenes and tested on captions of 'probe-test' scenes. It predicts the content of a
caption: objects, colors, count, relation, and which color goes with which object, from the pooled
vector and from the tokens. A second part measures how much of the re-encoded images follows
linearly from their captions. (Linear probes: Alain and Bengio, arXiv 1610.01644.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from encbench.data.datasets import captions_by_image
from encbench.data.scenes.captions import CaptionContent, describe_scene
from encbench.data.scenes.default import is_default, scene_batch
from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.splits import Tier, held_out_pairs
from encbench.data.scenes.world import COLORS, OPPOSITE, RELATIONS, SCENES, SHAPES, SceneBatch
from encbench.intervals import estimate_scores, mean_of
from encbench.retrieval.search import normalize
from encbench.types import ImageTextDataset, Measurement, ProbeContext, ProbeDisplay, ProbeSpec

from .perturb import rng_for
from .retrieval import usable_images

FIT, TEST = 800, 400  # captions, one of each scene
WORLD = replace(SCENES, counts=(2, 3, 4))  # one object has no relation, and nothing to mix up
TIERS: tuple[Tier, ...] = ("A", "B")  # by turns; C is told apart, since nothing is fitted on it
IMAGES, EACH = 800, 3  # at most so many images, with so many captions, for the image part
FIT_SHARE = 0.6  # of the images
ATTRIBUTES = ("objects", "colors", "count", "relation", "binding")
VIEWS = ("pooled", "tokens")
ALPHAS = (0.03, 0.3, 3.0)  # ridge penalties, where rows have a length of about 1
RANDOM = 256  # random features of a token
_COLORS = tuple(COLORS)

Rows = Float[np.ndarray, "N D"]


class DecodabilityProbe:
    """No options. ``limit`` is the number of test captions; twice as many are fitted on."""

    spec = ProbeSpec(
        name="decodability",
        version=1,
        main_metric="tokens",
        title="linear read-out of what the prompt says",
        dataset="scene captions, version 1",
        orders=(
            "pooled", *(f"{a}/{view}" for view in VIEWS for a in ATTRIBUTES), "image/pooled",
            "image/tokens",
        ),
        reads=("captions", "images"),
        display=ProbeDisplay(
            section="What the prompt says",
            scores={
                "tokens": "read from the tokens; 0: what is most frequent, 1: everything",
                "pooled": "read from the pooled vector; 0: what is most frequent, 1: everything",
                **{f"{attribute}/tokens": "" for attribute in ATTRIBUTES},
                "image/tokens": "share of the images' variance that is read from the tokens",
                "image/pooled": "the same from the pooled vector",
            },
            panels={a: tuple(f"{a}/{view}" for view in VIEWS) for a in ATTRIBUTES},
            caption="0 is a read-out that always answers what is most frequent, 1 one that "
            "recovers everything, with 95 % intervals: from the pooled vector, and from the "
            "tokens. Binding is which color goes with which object.",
            chance=0.0,
            definitions={
                "Decodability": "A ridge regression is fitted on captions of some scenes and "
                "tested on captions of others: which objects, colors, count and relation they "
                "tell, and which color goes with which object. 0 is a read-out of nothing (what is "
                "most frequent), 1 is one of the true attributes; the mean over the five. Once "
                "from the pooled vector, once from the tokens (their mean, maximum and mean random "
                "features).",
                "image": "Share of the variance of re-encoded images that the same read-out "
                "predicts from their captions, on images it was not fitted on (R²; below 0 is "
                "worse than the mean image).",
            },
        ),
    )  # fmt: skip

    def run(self, context: ProbeContext, *, seed: int, limit: int | None = None) -> Measurement:
        """Measure one encoder."""
        size = TEST if limit is None else min(limit, TEST)
        fit, test = (probe_captions(split, seed, n) for split, n in _sizes(size))
        views = _views(context, [c.text for c in (*fit, *test)])
        won = dict(_ends(seed, size))
        for view, rows in views.items():
            outputs = fit_ridge(rows[: len(fit)], _targets(fit), rows[len(fit) :])
            won[view] = answers(outputs, test)
        items = pd.DataFrame({"item": [f"scene {i}" for i in range(len(test))]})
        names: dict[str, tuple[str, ...]] = {}
        for view in VIEWS:
            parts = []
            for a in ATTRIBUTES:
                part = {name: won[name][a] for name in ("floor", "ceiling", view)}
                for name, column in part.items():
                    items[f"{a}/{name}/raw"] = column
                    names[f"{a}/{name}/raw"] = (f"{a}/{name}/raw",)
                names[f"{a}/{view}"] = tuple(f"{a}/{n}/raw" for n in (view, "floor", "ceiling"))
                parts.append((part[view], part["floor"], part["ceiling"]))
            items[view] = mean_of(parts)
            names[view] = (view,)
        notes: list[str] = []
        image_items, image_names = _image_part(context, seed, limit, notes)
        items = pd.concat([items, image_items], ignore_index=True)
        return Measurement(
            scores=estimate_scores(items, names | image_names, seed=seed),
            items=items,
            item_scores=names | image_names,
            notes=tuple(notes),
        )


@lru_cache(maxsize=4)
def _ends(seed: int, size: int) -> dict[str, dict[str, Float[np.ndarray, " N"]]]:
    """Answers of a read-out without information, and of a perfect one."""
    fit, test = (probe_captions(split, seed, n) for split, n in _sizes(size))
    targets, nothing = _targets(fit), np.zeros((len(fit), 1))
    return {
        "floor": answers(fit_ridge(nothing, targets, np.zeros((len(test), 1))), test),
        "ceiling": answers(fit_ridge(targets, targets, _targets(test)), test),
    }


def _sizes(test: int) -> tuple[tuple[str, int], tuple[str, int]]:
    return ("probe-fit", max(2, test * FIT // TEST)), ("probe-test", test)


@lru_cache(maxsize=4)
def probe_captions(split: str, seed: int, count: int) -> tuple[CaptionContent, ...]:
    """One short caption of each of ``count`` scenes, in tiers A and B by turns."""
    batch = sample_scenes(split, count, seed=seed, world=WORLD)
    return tuple(
        describe_scene(scene, TIERS[i % len(TIERS)], seed=seed) for i, scene in enumerate(batch)
    )


# ------------------------------------------------------------------------------- features


def _views(context: ProbeContext, texts: list[str]) -> dict[str, np.ndarray]:
    """Features by view; tokens first, since vectors are stored in the same pass."""
    tokens = pool_tokens(context.tokens(texts))
    return {"tokens": tokens, "pooled": context.embed(texts).numpy()}


def pool_tokens(tokens: Sequence[Float[Tensor, "_ D"]]) -> Float[np.ndarray, "N F"]:
    """One row of fixed width for any number of tokens: their mean, their maximum, and the mean
    of random features relu(W x), |x| = 1, of each.

    The random features make the read-out linear in what *single* tokens hold together (a
    'circle' that knows it is red), which a mean of the tokens themselves washes out. They are
    the same for every encoder of a width. Source: Rahimi and Recht 2007, with the mean over a
    set as in kernel mean embeddings; nothing in them is fitted.
    """
    width = tokens[0].shape[1]
    weight = np.random.default_rng([width, RANDOM]).standard_normal((width, RANDOM))
    rows = np.concatenate([t.numpy() for t in tokens]).astype(np.float32)
    lengths = np.array([len(t) for t in tokens])
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    features = np.maximum(normalize(rows) @ weight.astype(np.float32), 0)
    means = [np.add.reduceat(x, starts) / lengths[:, None] for x in (rows, features)]
    return np.concatenate([means[0], np.maximum.reduceat(rows, starts), means[1]], axis=1)


def fit_ridge(
    fit: Float[np.ndarray, "M D"],
    targets: Float[np.ndarray, "M T"],
    test: Rows,
    groups: Int[np.ndarray, " M"] | None = None,
) -> Float[np.ndarray, "N T"]:
    """Ridge regression on standardized features. One penalty for all targets, chosen among
    :data:`ALPHAS` by the squared error on every fifth row (of every fifth group, where rows of
    a group belong together) when the others are fitted; then fitted on all rows.

    Columns that do not vary beyond float noise are left out; without any the answer is the
    targets' mean, so an encoder that says nothing answers with what is most frequent.
    """
    from sklearn.linear_model import Ridge

    mean, spread = fit.mean(axis=0, dtype=np.float64), fit.std(axis=0, dtype=np.float64)
    varies = spread > 1e-5 * np.abs(mean) + 1e-12
    if not varies.any():
        return np.repeat(targets.mean(axis=0, keepdims=True), len(test), axis=0)
    scale = spread[varies] * np.sqrt(varies.sum())

    def ready(rows: np.ndarray) -> np.ndarray:
        scaled: np.ndarray = ((rows[:, varies] - mean[varies]) / scale).astype(np.float32)
        return scaled

    rows, inner = ready(fit), (np.arange(len(fit)) if groups is None else groups) % 5 == 0

    def error(alpha: float) -> float:
        model = Ridge(alpha, solver="cholesky").fit(rows[~inner], wanted[~inner])
        return float(((model.predict(rows[inner]) - wanted[inner]) ** 2).sum())

    wanted = targets.astype(np.float32)
    best = Ridge(min(ALPHAS, key=error), solver="cholesky").fit(rows, wanted)
    return np.reshape(best.predict(ready(test)), (len(test), -1)).astype(np.float64)


# -------------------------------------------------------------------------------- targets


class Columns:
    """Where each kind of target stands among a read-out's outputs."""

    objects = slice(0, 12)
    colors = slice(12, 22)
    count = slice(22, 26)
    relation = slice(26, 26 + 48)
    binding = slice(74, 74 + 120)


COLUMNS = Columns()
WIDTH = 194


def _targets(said: Sequence[CaptionContent]) -> Float[np.ndarray, "N T"]:
    """What captions say as ones and zeros: shapes, colors, number of things in all, (shape,
    relation it stands in), (color, shape)."""
    rows = np.zeros((len(said), WIDTH))
    for row, caption in zip(rows, said, strict=True):
        for group in caption.groups:
            shape = SHAPES.index(group.shape)
            row[COLUMNS.objects][shape] = 1
            if group.color:
                row[COLUMNS.colors][_COLORS.index(group.color)] = 1
                row[COLUMNS.binding][_pair(group.color, group.shape)] = 1
        row[COLUMNS.count][sum(group.count for group in caption.groups) - 1] = 1
        if caption.relation:
            one, other = caption.groups
            row[COLUMNS.relation][_stands(one.shape, caption.relation)] = 1
            row[COLUMNS.relation][_stands(other.shape, OPPOSITE[caption.relation])] = 1
    return rows


def _pair(color: str, shape: str) -> int:
    return _COLORS.index(color) * len(SHAPES) + SHAPES.index(shape)


def _stands(shape: str, relation: str) -> int:
    return RELATIONS.index(relation) * len(SHAPES) + SHAPES.index(shape)


def answers(
    outputs: Float[np.ndarray, "N T"], test: Sequence[CaptionContent]
) -> dict[str, Float[np.ndarray, " N"]]:
    """How right a read-out is on each caption, 0 to 1, NaN where a caption does not ask.

    objects, colors: of the n that are named, how many are among the n highest outputs.
    count: whether the number of things is the highest output. relation: of two different
    shapes, whether the told one of the four relations fits best, with the shapes' order.
    binding: of two things that differ in color and shape, whether their colors fit better
    as told than exchanged; only where all four pairs can occur in what was fitted on. Ties
    count their share.
    """
    found = {a: np.full(len(test), np.nan) for a in ATTRIBUTES}
    for i, (row, caption) in enumerate(zip(outputs, test, strict=True)):
        groups = caption.groups
        shapes = {SHAPES.index(group.shape) for group in groups}
        found["objects"][i] = _among_best(row[COLUMNS.objects], shapes)
        colors = {_COLORS.index(group.color) for group in groups if group.color}
        if colors:
            found["colors"][i] = _among_best(row[COLUMNS.colors], colors)
        number = sum(group.count for group in groups) - 1
        found["count"][i] = _among_best(row[COLUMNS.count], {number})
        if caption.relation and len(shapes) == 2:
            one, other = (group.shape for group in groups)
            fits = np.array(
                [
                    row[COLUMNS.relation][_stands(one, relation)]
                    + row[COLUMNS.relation][_stands(other, OPPOSITE[relation])]
                    for relation in RELATIONS
                ]
            )
            found["relation"][i] = _among_best(fits, {RELATIONS.index(caption.relation)})
        pair = _contrast(caption)
        if pair:
            pairs = row[COLUMNS.binding]
            (c, s), (d, t) = pair
            fits = np.array(
                [pairs[_pair(c, s)] + pairs[_pair(d, t)], pairs[_pair(c, t)] + pairs[_pair(d, s)]]
            )
            found["binding"][i] = _among_best(fits, {0})
    return found


def _contrast(caption: CaptionContent) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """The first two things told whose colors could be exchanged."""
    things = [(g.color, g.shape) for g in caption.groups if g.color]
    for i, (c, s) in enumerate(things):
        for d, t in things[:i]:
            swapped = {(c, t), (d, s)}
            if c != d and s != t and not swapped & {*held_out_pairs(), *things}:
                return (c, s), (d, t)
    return None


def _among_best(values: Float[np.ndarray, " T"], right: set[int]) -> float:
    """The share of ``right`` among as many highest values; ties at the edge share its places."""
    n = len(right)
    edge = np.sort(values)[-n]
    above, level = values > edge + 1e-9, np.abs(values - edge) <= 1e-9
    places = (n - above.sum()) / max(1, level.sum())
    hits = sum(1.0 if above[i] else places if level[i] else 0.0 for i in right)
    return float(hits / n)


# --------------------------------------------------------------------------------- images


def _image_part(
    context: ProbeContext, seed: int, limit: int | None, notes: list[str]
) -> tuple[pd.DataFrame, dict[str, tuple[str, ...]]]:
    """Test R² of the re-encoded images from their captions, one caption of each image: 0 is the
    mean image, 1 every image exactly. With true attributes at hand, also on their scale."""
    nothing: tuple[pd.DataFrame, dict[str, tuple[str, ...]]] = (pd.DataFrame({"item": []}), {})
    if context.captions is None or context.reencoder is None:
        notes.append("no images were given, so how much of them the text determines is unknown")
        return nothing
    ids, texts, vectors = _image_data(context, context.captions, seed, limit)
    known = np.isfinite(vectors).all(axis=1)
    if known.sum() < 10:
        notes.append(f"{known.sum()} readable images are too few to be predicted from text")
        return nothing
    half = np.array([rng_for(seed, "image", i).random() < FIT_SHARE for i in ids])
    fit, test = half & known, ~half & known
    y = vectors.astype(np.float64)
    mean = y[fit].mean(axis=0)
    owner = np.repeat(np.arange(len(ids)), [len(said) for said in texts])  # of each caption
    readers: dict[str, Any] = {**_views(context, [t for said in texts for t in said])}
    truth = _attributes(context.captions, ids)
    if truth is not None:
        readers["attributes"] = truth[owner]
    items = pd.DataFrame({"item": [f"image {ids[i]}" for i in np.flatnonzero(test)]})
    items["image/floor/raw"] = -((y[test] - mean) ** 2).sum(axis=1)
    items["image/exact/raw"] = 0.0
    names: dict[str, tuple[str, ...]] = {}
    for name, rows in readers.items():
        of_fit, of_test = owner[fit[owner]], owner[test[owner]]
        guess = fit_ridge(rows[fit[owner]], y[of_fit], rows[test[owner]], of_fit)
        errors = pd.Series(((y[of_test] - guess) ** 2).sum(axis=1)).groupby(of_test).mean()
        items[f"image/{name}/raw"] = -errors.to_numpy()
        names[f"image/{name}"] = (f"image/{name}/raw", "image/floor/raw", "image/exact/raw")
    if truth is not None:
        for view in VIEWS:
            columns = (f"image/{view}/raw", "image/floor/raw", "image/attributes/raw")
            names[f"image-scaled/{view}"] = columns
    return items, names


def _image_data(
    context: ProbeContext, captions: ImageTextDataset, seed: int, limit: int | None
) -> tuple[list[int], list[list[str]], Rows]:
    """Seeded images with seeded captions of each, and their re-encoded vectors."""
    of_image = captions_by_image(captions)
    usable = usable_images(context)
    most = IMAGES if limit is None else min(IMAGES, max(20, limit))
    order = np.random.default_rng([seed, 5]).permutation(len(usable))[:most]
    images = [usable[i] for i in np.sort(order)]
    ids = [image.image_id for image in images]
    texts = []
    for i in ids:
        mixed = rng_for(seed, "caption", i).permutation(len(of_image[i]))[:EACH]
        texts.append([of_image[i][j].text for j in mixed])
    return ids, texts, context.reencode(images).numpy()


def _attributes(captions: ImageTextDataset, ids: Sequence[int]) -> Rows | None:
    """What is in each image, as features; None where that is not known exactly."""
    if not is_default(captions):
        return None
    return _scene_attributes(scene_batch(len(captions.images)).take(np.array(ids) - 1))


def _scene_attributes(batch: SceneBatch) -> Rows:
    """Ground, number of objects, and for every shape, color and size how many there are, where
    and how large."""
    there = batch.shape >= 0
    place = np.stack([there, batch.x * there, batch.y * there, batch.radius * there], -1)
    parts = [np.eye(5)[batch.ground], there.sum(axis=1, keepdims=True)]
    for index, width in ((batch.shape, len(SHAPES)), (batch.color, len(COLORS)), (batch.size, 3)):
        hot = np.eye(width + 1)[index][..., :width]  # -1, no object, is the last column
        parts.append(np.einsum("nkw,nkp->nwp", hot, place).reshape(len(batch), -1))
    return np.concatenate(parts, axis=1)
