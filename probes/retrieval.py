"""Retrieval: do nearest captions belong to similar images? (EMF's discriminability)

As published (arXiv 2604.18168, section 3.3 and Table 1): each caption is encoded and
mean-pooled (Eq. 4), the most similar captions are found by cosine, their images re-encoded by
DINOv3 and compared with the query's own image. The paper does not say k, the captions per image, or
whether the query's own image is excluded. Here k is 1, 2, 5 and 10, the gallery has one seeded
caption of each image, and the own image is excluded (otherwise the score is 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from encbench.data.datasets import captions_by_image
from encbench.errors import DataError
from encbench.intervals import estimate_scores
from encbench.retrieval.metrics import (
    mean_similarity_at,
    random_similarity,
    recall_at,
    retrieved_similarities,
)
from encbench.retrieval.search import nearest, normalize, tie_keys
from encbench.types import (
    Caption,
    ImageRecord,
    ImageTextDataset,
    Measurement,
    ProbeContext,
    ProbeDisplay,
    ProbeSpec,
)

from .histograms import similarity

PRIMARY_K = 2
EXAMPLES = 4  # queries shown in the report, best and worst, for each encoder


@dataclass(frozen=True)
class RetrievalDraw:
    """One caption of each image, and which of them are queries (indices into both)."""

    images: tuple[ImageRecord, ...]
    captions: tuple[Caption, ...]
    queries: Int[np.ndarray, " Q"]

    @property
    def texts(self) -> list[str]:
        return [caption.text for caption in self.captions]

    @property
    def ids(self) -> Int[np.ndarray, " N"]:
        return np.array([image.image_id for image in self.images], np.int64)


class RetrievalProbe:
    """Options: ``ks`` (sequence of k; 2 is always among them) and ``queries`` (how many)."""

    spec = ProbeSpec(
        name="retrieval",
        version=1,
        main_metric=f"scaled@{PRIMARY_K}",
        title="caption retrieval, images compared",
        orders=(
            "published@1", "published@2", "published@5", "published@10", "recall@1", "recall@2",
            "recall@5", "recall@10", "text-to-image@1", "text-to-image@5",
        ),
        reads=("captions", "images"),
        needs=("captions",),
        display=ProbeDisplay(
            section="Similarity",
            scores={
                "scaled@2": "0: random images, 1: the re-encoder's own nearest neighbors",
                "published@2": "mean cosine of re-encoded images, as published",
                "floor": "random images",
                "ceiling@2": "the re-encoder's own nearest neighbors",
                "recall@1": "share of queries that find another caption of their image",
                "recall@2": "share of queries that find another caption of their image",
                "recall@10": "share of queries that find another caption of their image",
                "text-to-image@1": "share of queries that find their image",
            },
            definitions={
                "Retrieval (discriminability)": "A query's caption is encoded and its tokens are "
                "pooled to one vector. The captions of other images are ordered by their cosine "
                "with it. The query's own image is excluded, since it would score 1. Equal cosines "
                "are put in a random order, so an encoder that ignores its prompt retrieves at "
                "random.",
                "published@k": "The mean cosine between the query's own image and the images of "
                "the k nearest captions, all re-encoded by the image model that the provenance "
                "names. The gallery holds one caption of each image.",
                "floor, ceiling@k, scaled@k": "The same mean for random images (floor) and for the "
                "re-encoder's own k nearest images (ceiling). scaled@k = (published − floor) / "
                "(ceiling − floor): 0 is chance, 1 is as good as seeing the images.",
                "recall@k": "Share of queries that have another caption of their own image among "
                "the k nearest of all captions. Needs no images.",
            },
            similarity=("Captions", "captions of the same image", "random captions"),
        ),
    )  # fmt: skip

    def run(self, context: ProbeContext, *, seed: int, limit: int | None = None) -> Measurement:
        """Measure one encoder.

        Raises:
            DataError: without captions, or if a k is larger than the gallery.
        """
        if context.captions is None or not context.captions.captions:
            raise DataError("the retrieval probe needs captions; give --coco FOLDER")
        ks = tuple(sorted({PRIMARY_K, *context.options.get("ks", (1, 2, 5, 10))}))
        wanted = context.options.get("queries", 1000)
        wanted = wanted if limit is None else min(limit, wanted)
        tables: list[pd.DataFrame] = []
        names: dict[str, tuple[str, ...]] = {}
        unscored = 0

        run = _Run(context, context.captions, ks, wanted, seed)
        usable = usable_images(context)
        several = _with_several(context.captions)
        if several:
            tables.append(run.recall(several))
            names |= {f"recall@{k}": (f"recall@{k}",) for k in ks}
        elif usable:
            run.notes.append("every image has one caption, so there is no recall of another one")
        else:
            raise DataError(
                f"no image of {context.captions.name} has two captions, which recall needs, and "
                "there are no images to compare; give images, or several captions for each"
            )
        if usable:
            table, unscored = run.published(usable)
            tables.append(table)
            for k in ks:
                names[f"published@{k}"] = (f"published@{k}",)
                names[f"ceiling@{k}"] = (f"ceiling@{k}",)
                names[f"scaled@{k}"] = (f"published@{k}", "floor", f"ceiling@{k}")
            names["floor"] = ("floor",)
            joint = run.joint(usable)
            if joint is not None:
                tables.append(joint)
                names |= {f"text-to-image@{k}": (f"text-to-image@{k}",) for k in ks}

        items = tables[0]
        for table in tables[1:]:
            items = items.merge(table, on="item", how="outer")
        items = items.sort_values("item", ignore_index=True)
        return Measurement(
            scores=estimate_scores(items, names, seed=seed, unscored=unscored),
            items=items,
            item_scores=names,
            series=run.series,
            notes=tuple(run.notes),
            main_metric="" if usable else f"recall@{PRIMARY_K}",
        )


@dataclass(frozen=True)
class _Run:
    """One run of the probe, with its scores and notes."""

    context: ProbeContext
    captions: ImageTextDataset
    ks: tuple[int, ...]
    wanted: int
    seed: int
    series: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def recall(self, images: Sequence[ImageRecord]) -> pd.DataFrame:
        """How often another caption of the query's own image is among the k nearest, in a
        gallery of all captions. Needs no images."""
        owners = np.array([c.image_id for c in self.captions.captions], np.int64)
        ids = np.array([c.caption_id for c in self.captions.captions], np.int64)
        sample = self._draw(images)
        self._check_k(len(ids) - 1)
        rows = self._rows([c.text for c in self.captions.captions])
        place = {caption_id: i for i, caption_id in enumerate(ids)}
        own = np.array([place[sample.captions[q].caption_id] for q in sample.queries], np.int64)
        found, cosines = nearest(
            rows[own], rows, max(self.ks), seed=self.seed,
            query_ids=ids[own], gallery_ids=ids, exclude=own,
        )  # fmt: skip
        hits = owners[found] == owners[own][:, None]
        unit = normalize(rows)
        self.series["similarity"] = _histograms(unit, own, owners, self.seed)
        if not usable_images(self.context):
            order = hits[:, :5].mean(axis=1)
            self.series["gallery"] = _examples(
                order, own, found, cosines, None, owners, [c.text for c in self.captions.captions]
            )
        columns = {f"recall@{k}": v for k, v in recall_at(hits, self.ks).items()}
        return pd.DataFrame({"item": [str(i) for i in owners[own]], **columns})

    def published(self, usable: list[ImageRecord]) -> tuple[pd.DataFrame, int]:
        """The published score, with its floor and ceiling, for each query."""
        vectors = self.context.reencode(usable).numpy()
        broken = ~np.isfinite(vectors).all(axis=1)
        full = self._draw(usable)
        unscored = int(broken[full.queries].sum())
        if broken.any():
            self.notes.append(f"{broken.sum()} images could not be read; they are unscored")
            usable = [image for image, bad in zip(usable, broken, strict=True) if not bad]
            vectors = vectors[~broken]
        sample = self._draw(usable)
        self._check_k(len(usable) - 1)
        empty = int((np.abs(vectors).sum(axis=1) == 0).sum())
        if empty:
            self.notes.append(
                f"{empty} images are zero to the re-encoder; their similarity counts as 0"
            )
        images = normalize(vectors)
        rows = self._rows(sample.texts)
        queries, ids, most = sample.queries, sample.ids, max(self.ks)

        def among(gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return nearest(
                gallery[queries], gallery, most, seed=self.seed,
                query_ids=ids[queries], gallery_ids=ids, exclude=queries,
            )  # fmt: skip

        found, cosines = among(rows)
        similarities = retrieved_similarities(images, queries, found)
        best, _ = among(vectors)
        columns = {"floor": random_similarity(images, queries)}
        ours = mean_similarity_at(similarities, self.ks)
        ceiling = mean_similarity_at(retrieved_similarities(images, queries, best), self.ks)
        for k in self.ks:
            columns[f"published@{k}"] = ours[k]
            columns[f"ceiling@{k}"] = ceiling[k]
        self.series["gallery"] = _examples(
            ours[PRIMARY_K], queries, found, cosines, similarities, ids, sample.texts
        )
        return pd.DataFrame({"item": [str(i) for i in ids[queries]], **columns}), unscored

    def joint(self, usable: list[ImageRecord]) -> pd.DataFrame | None:
        """True text-to-image retrieval, where the encoder has a joint space and files exist."""
        images = [image for image in usable if image.path is not None]
        if not images:
            return None
        sample = self._draw(images)
        texts = self.context.embed_joint([sample.captions[q].text for q in sample.queries])
        if texts is None:
            return None
        vectors = self.context.embed_images(images).numpy()
        whole = np.isfinite(vectors).all(axis=1)
        ids = sample.ids
        found, _ = nearest(
            texts.numpy(), np.nan_to_num(vectors), min(max(self.ks), len(images)), seed=self.seed,
            query_ids=ids[sample.queries], gallery_ids=ids,
        )  # fmt: skip
        hits = found == sample.queries[:, None]
        columns = {f"text-to-image@{k}": v for k, v in recall_at(hits, self.ks).items()}
        table = pd.DataFrame({"item": [str(i) for i in ids[sample.queries]], **columns})
        table.loc[~whole[sample.queries], list(columns)] = np.nan
        return table

    def _draw(self, images: Sequence[ImageRecord]) -> RetrievalDraw:
        return draw_queries(self.captions, images, self.wanted, self.seed)

    def _rows(self, texts: list[str]) -> Float[np.ndarray, "N P"]:
        rows = self.context.embed(texts).numpy()
        zero = int((np.abs(rows).sum(axis=1) == 0).sum())
        note = f"{zero} of {len(rows)} captions have a zero vector; their cosines count as 0"
        if zero and note not in self.notes:
            self.notes.append(note)
        return rows

    def _check_k(self, room: int) -> None:
        if max(self.ks) > room:
            raise DataError(
                f"k = {max(self.ks)} is larger than the gallery of {self.captions.name}, which has "
                f"{room} beside the query; lower --ks or use more images"
            )


def _with_several(captions: ImageTextDataset) -> list[ImageRecord]:
    """Images with more than one caption."""
    counts = {image_id: len(listed) for image_id, listed in captions_by_image(captions).items()}
    return [image for image in captions.images if counts.get(image.image_id, 0) > 1]


def draw_queries(
    captions: ImageTextDataset, images: Sequence[ImageRecord], wanted: int, seed: int
) -> RetrievalDraw:
    """One seeded caption for each image and up to ``wanted`` seeded queries among the images.

    Which caption an image has depends on the seed and on ids alone, not on the other images.
    """
    of_image = captions_by_image(captions)
    kept = [image for image in images if image.image_id in of_image]
    chosen = []
    for image in kept:
        options = of_image[image.image_id]
        ids = np.array([[c.caption_id for c in options]], np.int64)
        keys = tie_keys(seed, np.array([image.image_id], np.int64), ids)
        chosen.append(options[int(keys[0].argmin())])
    ids = np.array([image.image_id for image in kept], np.int64)
    order = tie_keys(seed + 1, np.zeros(1, np.int64), ids[None])[0].argsort(kind="stable")
    return RetrievalDraw(tuple(kept), tuple(chosen), np.sort(order[:wanted]))


def usable_images(context: ProbeContext) -> list[ImageRecord]:
    """The images that the re-encoder can read."""
    if context.captions is None or context.reencoder is None:
        return []
    captioned = captions_by_image(context.captions)
    images = [image for image in context.captions.images if image.image_id in captioned]
    if context.reencoder.needs == "instances":
        return [image for image in images if image.instances is not None]
    return [image for image in images if image.path is not None]


def _histograms(
    unit: np.ndarray, own: np.ndarray, owners: np.ndarray, seed: int
) -> dict[str, list[float]]:
    """Cosines of queries with other captions of their image, and with random captions."""
    rng = np.random.default_rng([seed, 2])
    others = rng.integers(len(unit), size=(len(own), 20))
    random = np.einsum("qp,qkp->qk", unit[own], unit[others])[others != own[:, None]]
    order = np.argsort(owners, kind="stable")
    starts = np.searchsorted(owners[order], owners[own])
    ends = np.searchsorted(owners[order], owners[own], side="right")
    same = [
        unit[order[a:b]][order[a:b] != q] @ unit[q]
        for q, a, b in zip(own, starts, ends, strict=True)
    ]
    return similarity(np.concatenate(same), random)


def _examples(
    order: np.ndarray,
    queries: np.ndarray,
    found: np.ndarray,
    cosines: np.ndarray,
    similarities: np.ndarray | None,
    image_ids: np.ndarray,
    texts: list[str],
) -> dict[str, Any]:
    """The best and the worst queries with what was retrieved for them, JSON-ready."""

    def one(row: int) -> dict[str, Any]:
        query = int(queries[row])
        return {
            "query": {"image_id": int(image_ids[query]), "caption": texts[query]},
            "score": float(order[row]),
            "retrieved": [
                {
                    "image_id": int(image_ids[index]),
                    "caption": texts[index],
                    "cosine": float(cosines[row, place]),
                    "similarity": None if similarities is None else float(similarities[row, place]),
                }
                for place, index in enumerate(found[row, :3].tolist())
            ],
        }

    ranks = np.argsort(order, kind="stable")
    worst, best = ranks[:EXAMPLES], ranks[::-1][: min(EXAMPLES, max(0, len(ranks) - EXAMPLES))]
    return {"best": [one(int(r)) for r in best], "worst": [one(int(r)) for r in worst]}
