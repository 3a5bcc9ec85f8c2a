"""``encbench report``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import option
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class ReportConfig:
    out: Path = option(MISSING, "Folder of a run, with prediction.json in it.", argument=True)
    to: Path | None = option(None, "Folder to write the report to.", shown="OUT/report")


@add_command(app, "report", ReportConfig, toml=False)
def report(config: ReportConfig) -> None:
    """Write the report of a run: HTML, Markdown, CSV, TeX and figures."""
    from ..pipeline import report

    typer.echo(f"report: {report(config.out, config.to)}")
