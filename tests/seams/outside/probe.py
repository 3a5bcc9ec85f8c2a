"""A probe and its figure: is a caption's nearest neighbor another caption of the same image?"""

import pandas as pd

from encbench.intervals import estimate_scores
from encbench.reports.figures import ReportFigure, canvas, finish
from encbench.types import Measurement, ProbeDisplay, ProbeSpec


class SiblingsProbe:
    spec = ProbeSpec(
        name="siblings",
        version=1,
        main_metric="hits",
        title="captions next to one of their own image",
        reads=("captions",),
        needs=("captions",),
        display=ProbeDisplay(definitions={"Sibling": "Another caption of the same image."}),
    )

    def run(self, context, *, seed, limit=None):
        captions = context.captions.captions[:limit]
        vectors = context.embed([caption.text for caption in captions])
        distances = (vectors[:, None] - vectors).norm(dim=-1).fill_diagonal_(float("inf"))
        nearest = [captions[row].image_id for row in distances.argmin(1).tolist()]
        hits = [float(c.image_id == n) for c, n in zip(captions, nearest, strict=True)]
        items = pd.DataFrame({"item": [str(c.caption_id) for c in captions], "hits": hits})
        names = {"hits": ("hits",)}
        scores = estimate_scores(items, names, seed=seed)
        return Measurement(scores=scores, items=items, item_scores=names)


def draw(run):
    rows = [(row.name, run.score(row.spec, "siblings", "hits")) for row in run.candidates]
    with canvas(1.5) as figure:
        axes = figure.subplots()
        axes.barh([name for name, _ in rows], [score.value for _, score in rows])
        return finish(figure, "Drawn by another package.", "A bar for each encoder.")


FIGURE = ReportFigure("Siblings", "Captions beside a sibling", draw, probes=("siblings",))
