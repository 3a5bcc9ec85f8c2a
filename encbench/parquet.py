"""A run's records as parquet tables, which viewers of data hubs read."""

from __future__ import annotations

import io
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import EncbenchError, MissingLibraryError
from .files import slug, write_atomic
from .records import find_records, read_items, read_record

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "parquet"
CARD = (
    "spec", "family", "source", "revision", "license", "parameters", "dim", "layer", "recipe",
    "dtype", "stage", "control",
)  # fmt: skip
"""Columns about the encoder in a row of scores."""


def require_parquet() -> None:
    """Check before a long run that parquet can be written after it.

    Raises:
        MissingLibraryError: naming the extra.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingLibraryError("pyarrow", "encbench[data]", "--parquet") from error


def write_tables(run: Path) -> list[Path]:
    """Write a run's records to ``parquet/`` in its folder.

    ``scores.parquet`` has a row for each encoder, probe and score. ``items-PROBE.parquet`` has a
    row for each encoder and item (a query or a prompt) of a probe.

    Raises:
        MissingLibraryError: without pyarrow.
        EncbenchError: if there are no records, or one is damaged.
    """
    require_parquet()
    import pandas as pd

    scores: list[dict[str, Any]] = []
    items: dict[str, list[pd.DataFrame]] = {}
    for path in find_records(run):
        record = read_record(path)
        card = {name: getattr(record.card, name) for name in CARD}
        about = {"probe_version": record.probe.version, "dataset": record.probe.dataset}
        who = {"name": record.name, "pooling": record.pooling, "variant": record.variant}
        for name, score in record.scores.items():
            row = who | card | {"probe": record.probe.name} | about | {"seed": record.seed}
            scores.append(row | {"score": name} | asdict(score))
        if record.items:
            table = read_items(path, record)
            table.insert(0, "spec", record.card.spec)
            table.insert(1, "variant", record.variant)
            items.setdefault(record.probe.name, []).append(table)
    if not scores:
        raise EncbenchError(f"no records under {run}; run 'encbench probe --out {run}' first")
    tables = {"scores": pd.DataFrame(scores)}
    tables |= {f"items-{slug(probe)}": pd.concat(found) for probe, found in items.items()}
    return [_write(run / FOLDER / f"{name}.parquet", table) for name, table in tables.items()]


def _write(path: Path, table: pd.DataFrame) -> Path:
    buffer = io.BytesIO()
    table.to_parquet(buffer, engine="pyarrow", index=False)
    write_atomic(path, buffer.getvalue())
    return path
