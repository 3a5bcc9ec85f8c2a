"""A board: the encoders of several runs, of several people, ranked on one static page.

Runs are merged by their pins: each probe's records must be of the same data, re-encoder, probe
version, seed and settings, else nothing is merged. An encoder that was measured twice counts once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from .errors import DataError, EncbenchError
from .files import read_bytes, slug, write_atomic, write_json, write_text
from .pages import render_page
from .ranking import predict, settings_of
from .records import Prediction, Ranked, RunRecord, clean, find_records, read_record

PAGE, TEMPLATE = "index.html", "board.html"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class BoardRow:
    """One encoder.

    Attributes:
        ranked: its score with interval, and the interval of its rank.
        rank: 1 + the number of encoders that are distinguishably better, so encoders that cannot be
            told apart share a rank; None for a control.
        record: one of its records, with its card.
        run: name of the run that measured it.
        card: address of its model card; '' = not on the hub.
    """

    ranked: Ranked
    rank: int | None
    record: RunRecord
    run: str
    card: str


@dataclass(frozen=True)
class Board:
    """Merged runs: the order over all encoders, a row for each, and the runs' folders by name."""

    prediction: Prediction
    rows: tuple[BoardRow, ...]
    runs: dict[str, Path]


def merge_runs(folders: Sequence[Path], *, rule: str | None = None) -> Board:
    """Rank the encoders of all runs together.

    Args:
        rule: name of the rule; None = the default.

    Raises:
        DataError: if two runs differ in data, versions or settings, naming both.
        EncbenchError: if a folder holds no records, or one is damaged.
    """
    runs = _name_runs(folders)
    paths: dict[tuple[str, str], Path] = {}
    records: dict[str, tuple[RunRecord, str]] = {}
    first: dict[str, tuple[dict[str, str], str]] = {}
    for run, folder in runs.items():
        here = find_records(folder)
        if not here:
            raise EncbenchError(f"no records under {folder}; name the folder of a finished run")
        for path in here:
            record = read_record(path)
            if record.variant:
                continue
            probe, pins = record.probe.name, settings_of(record)
            pins |= {"data": record.probe.dataset, "version": str(record.probe.version)}
            known, other = first.setdefault(probe, (pins, run))
            for name, value in pins.items():
                if value != known[name]:
                    raise DataError(
                        f"{other} and {run} cannot be on one board: {name} of the probe {probe} is "
                        f"{known[name]} in {other} and {value} in {run}"
                    )
            paths.setdefault((record.card.spec, probe), path)
            records.setdefault(record.card.spec, (record, run))
    prediction = predict(sorted(paths.values()), rule=rule)
    better = {row.spec: 0 for row in prediction.order}
    for pair in prediction.pairs:
        if pair.distinguishable:
            better[pair.b if pair.difference > 0 else pair.a] += 1
    rows = []
    for row in prediction.order:
        record, run = records[row.spec]
        rank = None if row.control else 1 + better[row.spec]
        rows.append(BoardRow(row, rank, record, run, _card_address(record)))
    return Board(prediction, tuple(rows), runs)


def _name_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders by their last part; a second folder of the same name gets a plus sign."""
    runs: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        while name in runs:
            name += "+"
        runs[name] = folder
    return runs


def _card_address(record: RunRecord) -> str:
    """Address of an encoder's model card; '' if it is not on the hub."""
    source, pinned = record.card.source, re.fullmatch("[0-9a-f]{40}", record.card.revision)
    return f"https://huggingface.co/{source}" if pinned and HUB_ID.fullmatch(source) else ""


def build_board(board: Board, out: Path) -> Path:
    """Write the page, ``board.json`` beside it, and a copy of each run's report.

    Returns:
        the path of the page, which opens without a server and without a network.

    Raises:
        StoreError: if it cannot be written.
    """
    reports = {}
    for name, folder in board.runs.items():
        report = folder / "report" / PAGE
        if report.is_file():
            reports[name] = f"reports/{slug(name)}.html"
            write_atomic(out / reports[name], read_bytes(report))
    source = files("encbench").joinpath("templates", TEMPLATE).read_bytes().decode()
    shown = [row.ranked for row in board.rows]
    low, high = min(row.low for row in shown), max(row.high for row in shown)
    page = render_page(
        source,
        board=board,
        reports=reports,
        place=lambda value: round(100 * (value - low) / (high - low or 1), 2),
        families=sorted({row.record.card.family for row in board.rows if not row.ranked.control}),
    )
    write_json(out / "board.json", clean(dataclasses.asdict(board.prediction)))
    write_text(out / PAGE, page)
    return out / PAGE
