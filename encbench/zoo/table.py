"""The table of ``encbench zoo list``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ModelError
from ..shipped import TOKENIZER, read_manifest, shipped
from .catalog import NAMES, WEIGHTS, stages_of, zoo_folder


@dataclass(frozen=True)
class ZooRow:
    """A line of the table; ``problem`` says what is wrong with the files, or is empty."""

    cells: tuple[str, ...]
    problem: str = ""


def zoo_rows(root: Path | None = None) -> list[ZooRow]:
    """All members that are in a folder, in the catalog's order; of the shipped ones also those
    that are missing."""
    where = root or WEIGHTS
    return [
        _row(name, stage, where)
        for name in NAMES
        for stage in stages_of(name)
        if root is None or zoo_folder(name, stage, where).is_dir()
    ]


def _row(name: str, stage: str, root: Path) -> ZooRow:
    folder = zoo_folder(name, stage, root)
    problem = ""
    try:
        own = (folder / TOKENIZER[0]).is_file()  # one that was trained here, stage by stage
        shipped(folder, None if own else zoo_folder(name, root=root))
    except ModelError as error:
        problem = str(error)
    try:
        about = read_manifest(folder)["about"]
    except ModelError:
        state = "damaged" if folder.is_dir() else "missing"
        return ZooRow((name, "", stage, "", "", "", "", state), problem)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return ZooRow(
        (
            name,
            str(about["objective"]),
            stage,
            f"{about['steps']:,}",
            f"{about['parameters']:,}",
            f"{size / 1e6:.1f}",
            f"{about['loss']:.3f}",
            "damaged" if problem else "as shipped" if root == WEIGHTS else "whole",
        ),
        problem,
    )
