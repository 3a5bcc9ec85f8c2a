"""The Python interface: the commands as functions, on specs or on Python objects.

The public names are listed in ``encbench.__all__``. Keyword arguments are the flags of the command
with underscores, as in a TOML config (``docs/options.md``).
"""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from .flow.trainer import TrainingResult
    from .metrics.run import ScoreRecord
    from .records import Failure, Prediction, Verdict
    from .types import TextEncoder
    from .validate import Validation


@dataclass(frozen=True)
class Ranking:
    """What ``encbench.run`` returns.

    Attributes:
        prediction: the order of the encoders with intervals; what ``prediction.json`` holds.
        folder: where records and prediction are. Without ``out`` a temporary folder, which is
            removed with this object.
        failed: encoders that could not be measured, with the reason.
    """

    prediction: Prediction
    folder: Path
    failed: tuple[Failure, ...] = ()
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self._temporary:  # frames of a caught error may still refer to it, never to this object
            weakref.finalize(self, self._temporary.cleanup)

    def to_frame(self) -> pd.DataFrame:
        """One row for each encoder and control, best first: spec, value, interval, rank and the
        interval of the rank."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.prediction.order])

    def plot(self) -> Figure:
        """The values of the primary rule with 95 % intervals, best on top."""
        from matplotlib.figure import Figure

        rows = self.prediction.order[::-1]
        figure = Figure(figsize=(6, 0.8 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(rows):
            color = "tab:gray" if row.control else "tab:blue"
            axes.plot([row.low, row.high], [y, y], color=color)
            axes.plot(row.value, y, "o", color=color)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_xlabel(f"{self.prediction.rule.name} (95 % interval; gray: controls)")
        return figure

    def report(self, path: str | Path | None = None) -> Path:
        """Write the report into a folder (the run's ``report`` by default).

        Returns:
            the path of its ``index.html``.
        """
        from . import pipeline

        return pipeline.report(self.folder, Path(path) if path is not None else None)


def run(
    encoders: Sequence[str | TextEncoder] = (),
    *,
    captions: str | Path | Sequence[Sequence[str]] | None = None,
    prompts: str | Path | Sequence[str] | None = None,
    out: str | Path | None = None,
    **options: Any,
) -> Ranking:
    """Measure encoders, rank them, and write what ``encbench run`` writes.

    Args:
        encoders: spec strings, or objects with ``card`` and ``encode`` (a
            :class:`encbench.types.TextEncoder`). The features of an object are kept inside ``out``,
            and encoded again in the next process. If empty and no data are given: the built-in zoo.
        captions: groups of captions that mean the same, such as
            ``[["a cat", "one cat"], ["a red boat", "a boat in red"]]``; or a file of them.
        prompts: long prompts; or a file, or the spec of a prompt set.
        out: folder of the run. None uses a temporary folder, which is removed with the ranking.
        options: fields of :class:`encbench.config.RunConfig`, such as ``coco``, ``dpg``, ``data``,
            ``probes``, ``limit``, ``device``.

    Raises:
        EncbenchError: for a wrong option, or if nothing can be ranked.
    """
    from . import pipeline
    from .config import run_config
    from .encoders.python import add_object

    temporary = tempfile.TemporaryDirectory(prefix="encbench-") if out is None else None
    folder = Path(temporary.name if temporary else str(out))
    if not all(isinstance(encoder, str) for encoder in encoders):
        options = {"store": folder / "store"} | options
    if captions is not None and not isinstance(captions, str | Path):
        rows = [(group, text) for group, texts in enumerate(captions) for text in texts]
        captions = _write_rows(folder / "captions.jsonl", ("group", "caption"), rows)
    if prompts is not None and not isinstance(prompts, str | Path):
        prompts = _write_rows(folder / "prompts.jsonl", ("id", "prompt"), enumerate(prompts, 1))
    options |= {"captions": captions, "prompts": prompts}
    specs = tuple(e if isinstance(e, str) else str(add_object(e)) for e in encoders)
    outcome = pipeline.run(run_config(options | {"encoders": specs, "out": folder}))
    assert outcome.prediction is not None  # otherwise run() raises
    return Ranking(outcome.prediction, folder, outcome.failed, temporary)


def _write_rows(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Write one JSON object a line; returns the path."""
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    write_text(path, "".join(f"{json.dumps(each)}\n" for each in objects))
    return str(path)


def confirm_ranking(ranking: Ranking | str | Path, **options: Any) -> Verdict:
    """Check a ranking by training; see ``encbench confirm``.

    Args:
        ranking: what ``encbench.run`` returned, or the folder of a run that was ranked.
        options: fields of :class:`encbench.confirm.config.ConfirmConfig`.

    Raises:
        EncbenchError: for a wrong option, if the data have changed since the ranking, or if every
            training failed.
    """
    from .confirm.config import ConfirmConfig
    from .confirm.run import run_confirmation
    from .options import from_values

    folder = ranking.folder if isinstance(ranking, Ranking) else Path(ranking)
    return run_confirmation(from_values(ConfirmConfig, options | {"out": folder}))


def score_images(
    images: str | Path, metrics: Sequence[str], *, out: str | Path | None = None, **options: Any
) -> ScoreRecord:
    """Score a folder of generated images by metrics; see ``encbench score``.

    Args:
        images: the folder, in one of the layouts of ``docs/metrics.md``.
        metrics: specs of metrics, such as ``geneval`` or ``clipscore``.
        out: folder for the scores, which lets a stopped scoring resume; none is kept if None.
        options: fields of :class:`encbench.config.ScoreConfig`, such as ``prompts``, ``device``.

    Raises:
        EncbenchError: for a wrong option, a folder in no known layout, or if all metrics fail.
    """
    from .config import ScoreConfig
    from .metrics.run import score_all
    from .options import from_values

    values = options | {"images": Path(images), "metrics": tuple(metrics)}
    with tempfile.TemporaryDirectory(prefix="encbench-") as temporary:
        return score_all(from_values(ScoreConfig, values | {"out": Path(out or temporary)}))


def validate_scores(
    outcomes: str | Path,
    *,
    runs: Sequence[Ranking | str | Path] = (),
    predictions: Sequence[str | Path] = (),
    cell: str = "steps=4&tier=A&combos=seen",
    recipe: str = "",
    controls: bool = False,
    seed: int = 0,
) -> Validation:
    """Measure how well scores from before training rank trained outcomes; see ``encbench
    validate``.

    Args:
        outcomes: a file of outcomes, or the name of a published table.
        runs: rankings or folders of runs, whose records hold scores.
        predictions: files of predictions.
        cell: which score of a bank of outcomes to use.
        recipe: which recipe to use, by the beginning of its hash, if there are several.
        controls: whether control encoders count, too.
        seed: random seed of the bootstrap and of the random orders.

    Raises:
        EncbenchError: if something cannot be read, or fewer than four encoders have both an
            outcome and a score.
    """
    from .validate import validate_files

    folders = [run.folder if isinstance(run, Ranking) else Path(run) for run in runs]
    return validate_files(
        str(outcomes), folders, [Path(path) for path in predictions], cell=cell, recipe=recipe,
        controls=controls, seed=seed,
    )  # fmt: skip


def train(encoder: str, out: str | Path, *, preset: str = "", **options: Any) -> TrainingResult:
    """Train a few-step generator on an encoder's features; see ``encbench train``.

    Args:
        encoder: a spec string.
        out: folder of the training. A training that was stopped is resumed.
        preset: a named set of options that ``options`` override; see ``encbench train --help``.
        options: fields of :class:`encbench.flow.config.TrainConfig`.

    Raises:
        EncbenchError: for a wrong option, or if the folder holds another training.
    """
    from .config import default_store
    from .flow.config import training_config
    from .flow.presets import PRESETS
    from .flow.train import train
    from .presets import preset_values

    values: dict[str, Any] = {"store": default_store()}
    values |= preset_values(PRESETS, preset) if preset else {}
    values |= options | {"encoder": encoder, "out": Path(out)}
    return train(training_config(values))


def sample(
    checkpoint: str | Path,
    prompts: Sequence[str],
    *,
    steps: int | Sequence[float] = 4,
    guidance: float = 1.0,
    guidance_span: Sequence[float] = (0.0, 1.0),
    seed: int = 0,
    weights: str = "ema",
    encoder: str | None = None,
    device: str = "auto",
) -> list[Image]:
    """One image for each prompt from a trained generator.

    They are the first images that ``encbench sample`` writes for the same prompts and seed.

    Args:
        checkpoint: folder of a training, or one checkpoint in it.
        steps: number of sampling steps, or their times from 1 to 0.
        guidance: scale of classifier-free guidance; 1 for none.
        guidance_span: times between which guidance is applied, for a network with guidance as an
            input.
        weights: 'ema' (exponential moving average), 'model' (the last step), or 'ema-DECAY'.
        encoder: its spec, if its files have moved since the training.

    Raises:
        EncbenchError: if there is no sound checkpoint, or the encoder does not fit it.
    """
    from .device import choose_device
    from .flow.sample import load_sampler
    from .metrics.geneval.generate import sample_seed

    sampler = load_sampler(
        Path(checkpoint), choose_device(device), weights=weights, encoder=encoder, steps=steps,
        guidance=guidance, guidance_span=guidance_span,
    )  # fmt: skip
    return sampler(prompts, [sample_seed(seed, number, 0) for number in range(len(prompts))])
