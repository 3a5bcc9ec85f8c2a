"""Geometry and cost of an encoder.

Over captions and long prompts alike: anisotropy (mean cosine of random pairs), effective rank
(Roy and Vetterli 2007; as a predictor without labels RankMe, Garrido et al. 2023), spread of
the norms, and the share of texts that are cut off. Speed was measured while the texts were encoded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from encbench.errors import DataError
from encbench.intervals import estimate_scores
from encbench.retrieval.metrics import random_similarity
from encbench.retrieval.search import normalize
from encbench.types import Measurement, ProbeContext, ProbeDisplay, ProbeSpec, Score

SAMPLE = 500  # texts behind the effective rank
RESAMPLES = 50


class DiagnosticsProbe:
    """No options."""

    spec = ProbeSpec(
        name="diagnostics",
        version=1,
        main_metric="effective-rank",
        title="effective rank",
        reads=("captions", "prompts"),
        display=ProbeDisplay(
            section="Score and cost",
            scores={
                "anisotropy": "mean cosine of random pairs",
                "norm-spread": "mean deviation of a vector's length from the mean length",
                "truncation": "share of texts that do not fit the encoder",
            },
        ),
    )

    def run(self, context: ProbeContext, *, seed: int, limit: int | None = None) -> Measurement:
        """Measure one encoder.

        Raises:
            DataError: without any text.
        """
        lists: list[tuple[list[str], list[str]]] = []
        if context.captions is not None:
            chosen = context.captions.captions
            lists.append(([f"caption {c.caption_id}" for c in chosen], [c.text for c in chosen]))
        if context.prompts is not None:
            kept = [p for p in context.prompts.prompts if p.text.strip()]
            lists.append(([f"prompt {p.prompt_id}" for p in kept], [p.text for p in kept]))
        lists = [(ids, texts) for ids, texts in lists if len(texts) > 1]
        if not lists:
            raise DataError("diagnostics need texts; give --coco FOLDER or --dpg PATH")

        tables = []
        speeds: list[dict[str, float]] = []
        for ids, texts in lists:
            rows = context.embed(texts).numpy()
            norms = np.linalg.norm(rows.astype(np.float64), axis=1)
            mean = norms.mean()
            tables.append(
                pd.DataFrame(
                    {
                        "item": ids,
                        "anisotropy": random_similarity(normalize(rows), np.arange(len(rows))),
                        "norm-deviation": np.abs(norms / mean - 1) if mean else 0.0,
                        "truncation": context.truncated(texts).numpy().astype(float),
                    }
                )
            )
            speeds.append(dict(context.throughput(texts)))
        items = pd.concat(tables, ignore_index=True)
        names = {
            "anisotropy": ("anisotropy",),
            "norm-spread": ("norm-deviation",),
            "truncation": ("truncation",),
        }
        found = estimate_scores(items, names, seed=seed)
        found["effective-rank"] = _rank_score(rows=context.embed(lists[0][1]).numpy(), seed=seed)
        cost: dict[str, Any] = dict(speeds[0])
        cost |= {"parameters": context.card.parameters, "license": context.card.license}
        return Measurement(scores=found, items=items, item_scores=names, series={"cost": cost})


def effective_rank(rows: Float[np.ndarray, "N P"]) -> float:
    """exp of the entropy of the normalized singular values of the centered rows, 1 to min(N, P).

    0 where all rows are the same. Source: Roy and Vetterli 2007, definition 1.
    """
    rest = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    gram = rest @ rest.T if rest.shape[0] <= rest.shape[1] else rest.T @ rest
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    if values.max(initial=0) <= 1e-5 * np.linalg.norm(rows.astype(np.float64)):
        return 0.0
    share = values / values.sum()
    share = share[share > 1e-12]
    return float(np.exp(-(share * np.log(share)).sum()))


def _rank_score(rows: Float[np.ndarray, "N P"], seed: int) -> Score:
    """Effective rank of a seeded sample. A resample with replacement holds fewer distinct rows
    and so has a lower rank; its spread, not its center, makes the interval."""
    rng = np.random.default_rng([seed, 4])
    sample = rows[np.sort(rng.permutation(len(rows))[:SAMPLE])]
    value = effective_rank(sample)
    again = [
        effective_rank(sample[rng.integers(len(sample), size=len(sample))])
        for _ in range(RESAMPLES)
    ]
    margin = 1.96 * float(np.std(again, ddof=1))
    return Score(value, len(sample), max(0.0, value - margin), value + margin)
