"""``encbench report``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..errors import UsageError
from ..options import option
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class ReportConfig:
    runs: tuple[str, ...] = option(
        MISSING, "Folder of a run, with prediction.json in it. Two folders: compare both runs.",
        argument=True,
    )  # fmt: skip
    to: Path | None = option(
        None, "Folder to write to.", shown="RUN/report; of two runs FIRST/compare-SECOND"
    )

    def __post_init__(self) -> None:
        if len(self.runs) > 2:
            raise UsageError(
                f"name one run, or two to compare, not {len(self.runs)}; "
                "'encbench board' ranks the encoders of more"
            )


@add_command(app, "report", ReportConfig, toml=False)
def report(config: ReportConfig) -> None:
    """Write the report of a run: HTML, Markdown, CSV, TeX and figures.

    With two runs, write one page that shows them side by side: both orders, what differs between
    the runs, and each figure next to the same figure of the other run.
    """
    from ..pipeline import report

    first, *others = map(Path, config.runs)
    page = report(first, config.to, beside=others[0] if others else None)
    typer.echo(f"{'comparison' if others else 'report'}: {page}")
