"""COCO retrieval: does the text embedding tell images apart? (EMF's discriminability)

As published (arXiv 2604.18168, section 3.3 and Table 1): each caption is encoded and
mean-pooled (Eq. 4), the most similar captions are found by cosine, their images re-encoded by
DINOv3 and compared with the query's own image. The paper is silent on k, on captions per
image and on whether the query's own image is excluded; here k is 1, 2, 5 and 10, one seeded
caption of each image is the gallery, and the own image is excluded, else the score is 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

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
        notes: list[str] = []
        tables: list[pd.DataFrame] = []
        names: dict[str, tuple[str, ...]] = {}
        series: dict[str, Any] = {}
        unscored = 0

        usable = _usable(context)
        several = _with_several(context.captions)
        if several:
            tables.append(
                self._recall(context, context.captions, several, ks, wanted, seed, series, notes)
            )
            names |= {f"recall@{k}": (f"recall@{k}",) for k in ks}
        elif usable:
            notes.append("every image has one caption, so there is no recall of another one")
        else:
            raise DataError(
                f"no image of {context.captions.name} has two captions, which recall needs, and "
                "there are no images to compare; give images, or several captions for each"
            )
        if usable:
            found = self._published(context, usable, ks, wanted, seed, series, notes)
            table, unscored = found
            tables.append(table)
            for k in ks:
                names[f"published@{k}"] = (f"published@{k}",)
                names[f"ceiling@{k}"] = (f"ceiling@{k}",)
                names[f"scaled@{k}"] = (f"published@{k}", "floor", f"ceiling@{k}")
            names["floor"] = ("floor",)
            joint = self._joint(context, usable, ks, wanted, seed)
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
            series=series,
            notes=tuple(notes),
            main_metric="" if usable else f"recall@{PRIMARY_K}",
        )

    def _recall(
        self,
        context: ProbeContext,
        captions: ImageTextDataset,
        images: Sequence[ImageRecord],
        ks: Sequence[int],
        wanted: int,
        seed: int,
        series: dict[str, Any],
        notes: list[str],
    ) -> pd.DataFrame:
        """How often another caption of the query's own image is among the k nearest, in a
        gallery of all captions. Needs no images."""
        owners = np.array([c.image_id for c in captions.captions], np.int64)
        ids = np.array([c.caption_id for c in captions.captions], np.int64)
        sample = draw_queries(captions, images, wanted, seed)
        _check_k(ks, len(ids) - 1, captions.name)
        rows = _rows(context, [c.text for c in captions.captions], notes)
        place = {caption_id: i for i, caption_id in enumerate(ids)}
        own = np.array([place[sample.captions[q].caption_id] for q in sample.queries], np.int64)
        found, cosines = nearest(
            rows[own], rows, max(ks), seed=seed, query_ids=ids[own], gallery_ids=ids, exclude=own
        )
        hits = owners[found] == owners[own][:, None]
        unit = normalize(rows)
        series["similarity"] = _histograms(unit, own, owners, seed)
        if not _usable(context):
            order = hits[:, :5].mean(axis=1)
            series["gallery"] = _examples(
                order, own, found, cosines, None, owners, [c.text for c in captions.captions]
            )
        columns = {f"recall@{k}": v for k, v in recall_at(hits, tuple(ks)).items()}
        return pd.DataFrame({"item": [str(i) for i in owners[own]], **columns})

    def _published(
        self,
        context: ProbeContext,
        usable: list[ImageRecord],
        ks: Sequence[int],
        wanted: int,
        seed: int,
        series: dict[str, Any],
        notes: list[str],
    ) -> tuple[pd.DataFrame, int]:
        """The published score, with its floor and ceiling, for each query."""
        assert context.captions is not None
        vectors = context.reencode(usable).numpy()
        broken = ~np.isfinite(vectors).all(axis=1)
        full = draw_queries(context.captions, usable, wanted, seed)
        unscored = int(broken[full.queries].sum())
        if broken.any():
            notes.append(f"{broken.sum()} images could not be read; they are unscored")
            usable = [image for image, bad in zip(usable, broken, strict=True) if not bad]
            vectors = vectors[~broken]
        sample = draw_queries(context.captions, usable, wanted, seed)
        _check_k(ks, len(usable) - 1, context.captions.name)
        empty = int((np.abs(vectors).sum(axis=1) == 0).sum())
        if empty:
            notes.append(f"{empty} images are zero to the re-encoder; their similarity counts as 0")
        images = normalize(vectors)
        rows = _rows(context, sample.texts, notes)
        queries, ids, most = sample.queries, sample.ids, max(ks)

        def among(gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return nearest(
                gallery[queries], gallery, most, seed=seed,
                query_ids=ids[queries], gallery_ids=ids, exclude=queries,
            )  # fmt: skip

        found, cosines = among(rows)
        similarities = retrieved_similarities(images, queries, found)
        best, _ = among(vectors)
        columns = {"floor": random_similarity(images, queries)}
        ours = mean_similarity_at(similarities, tuple(ks))
        ceiling = mean_similarity_at(retrieved_similarities(images, queries, best), tuple(ks))
        for k in ks:
            columns[f"published@{k}"] = ours[k]
            columns[f"ceiling@{k}"] = ceiling[k]
        series["gallery"] = _examples(
            ours[PRIMARY_K], queries, found, cosines, similarities, ids, sample.texts
        )
        return pd.DataFrame({"item": [str(i) for i in ids[queries]], **columns}), unscored

    def _joint(
        self,
        context: ProbeContext,
        usable: list[ImageRecord],
        ks: Sequence[int],
        wanted: int,
        seed: int,
    ) -> pd.DataFrame | None:
        """True text-to-image retrieval, where the encoder has a joint space and files exist."""
        assert context.captions is not None
        images = [image for image in usable if image.path is not None]
        if not images:
            return None
        sample = draw_queries(context.captions, images, wanted, seed)
        texts = context.embed_joint([sample.captions[q].text for q in sample.queries])
        if texts is None:
            return None
        vectors = context.embed_images(images).numpy()
        whole = np.isfinite(vectors).all(axis=1)
        ids = sample.ids
        found, _ = nearest(
            texts.numpy(), np.nan_to_num(vectors), min(max(ks), len(images)), seed=seed,
            query_ids=ids[sample.queries], gallery_ids=ids,
        )  # fmt: skip
        hits = found == sample.queries[:, None]
        columns = {f"text-to-image@{k}": v for k, v in recall_at(hits, tuple(ks)).items()}
        table = pd.DataFrame({"item": [str(i) for i in ids[sample.queries]], **columns})
        table.loc[~whole[sample.queries], list(columns)] = np.nan
        return table


def _with_several(captions: ImageTextDataset) -> list[ImageRecord]:
    """Images with more than one caption."""
    counts = Counter(caption.image_id for caption in captions.captions)
    return [image for image in captions.images if counts[image.image_id] > 1]


def draw_queries(
    captions: ImageTextDataset, images: Sequence[ImageRecord], wanted: int, seed: int
) -> RetrievalDraw:
    """One seeded caption for each image and up to ``wanted`` seeded queries among the images.

    Which caption an image has depends on the seed and on ids alone, not on the other images.
    """
    of_image: dict[int, list[Caption]] = {}
    for caption in captions.captions:
        of_image.setdefault(caption.image_id, []).append(caption)
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


def _usable(context: ProbeContext) -> list[ImageRecord]:
    """The images that the re-encoder can be asked about."""
    if context.captions is None or context.reencoder is None:
        return []
    captioned = {caption.image_id for caption in context.captions.captions}
    images = [image for image in context.captions.images if image.image_id in captioned]
    if context.reencoder.needs == "instances":
        return [image for image in images if image.instances is not None]
    return [image for image in images if image.path is not None]


def _rows(context: ProbeContext, texts: list[str], notes: list[str]) -> Float[np.ndarray, "N P"]:
    rows = context.embed(texts).numpy()
    zero = int((np.abs(rows).sum(axis=1) == 0).sum())
    note = f"{zero} of {len(rows)} captions have a zero vector; their cosines count as 0"
    if zero and note not in notes:
        notes.append(note)
    return rows


def _check_k(ks: Sequence[int], room: int, name: str) -> None:
    if max(ks) > room:
        raise DataError(
            f"k = {max(ks)} is larger than the gallery of {name}, which has {room} beside the "
            "query; lower --ks or use more images"
        )


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
