"""How plans, rankings and outcomes are printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..estimate import PlannedEncoder, RunPlan
    from ..pipeline import Outcome
    from ..records import Prediction

console = Console(soft_wrap=False)


def ranking(prediction: Prediction) -> None:
    """The order with intervals, then what to use."""
    metric = prediction.rule["metric"]
    table = Table(title=f"{prediction.rule['text']}", title_justify="left", box=None)
    for name, side in (("rank", "right"), ("encoder", "left"), (metric, "right"), ("95 %", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("rank 95 %")
    table.add_column("queries", justify="right")
    for row in prediction.order:
        table.add_row(
            "" if row.control else str(row.rank),
            escape(row.name) + (" [dim](control)[/dim]" if row.control else ""),
            f"{row.value:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            "" if row.control else f"{row.rank_low} to {row.rank_high}",
            str(row.n),
        )
    console.print(table)
    for warning in prediction.warnings:
        console.print(f"[yellow]note:[/yellow] {escape(warning)}")
    console.print(f"\n[bold]{escape(prediction.advice['text'])}[/bold]")


def outcome(out: Path, result: Outcome) -> None:
    """What a run ended with; exits with 1 if an encoder failed."""
    if result.prediction is not None:
        ranking(result.prediction)
        typer.echo(f"prediction: {out / 'prediction.json'}")
    if result.report is not None:
        typer.echo(f"report: {result.report}")
    failures(result.failed)


def failures(failed: Sequence[dict[str, str]]) -> None:
    """One line for each encoder that failed; exits with 1 if there is one."""
    for row in failed:
        typer.secho(f"encbench: {row['spec']} failed: {row['error']}", fg="red", err=True)
    if failed:
        raise typer.Exit(1)


def plan(made: RunPlan) -> None:
    """What a run would do."""
    table = Table(title="Encoders", title_justify="left", box=None)
    for name in ("spec", "download", "parameters", "time", "problem"):
        table.add_column(name, overflow="fold")
    for row in made.encoders:
        table.add_row(*_cells(row))
    if made.reencoder:
        table.add_row(*_cells(made.reencoder, "re-encoder "))
    console.print(table)
    console.print(f"controls: {', '.join(map(escape, made.controls)) or 'the usual'}")
    console.print(
        f"data: {made.captions:,} captions, {made.images:,} images, {made.long_prompts:,} long "
        f"prompts; about {made.tokens:,} tokens for each encoder"
    )
    for note in made.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    console.print(
        f"to download: about {decimal(made.download)}; computing: about {_time(made.seconds)} on "
        f"this {made.device} ({made.rate / 1e12:.2f} TFLOP/s measured, all of it assumed to be "
        "used: expect two to four times that)"
    )


def _cells(row: PlannedEncoder, prefix: str = "") -> list[str]:
    unknown = "unknown"
    size = unknown if row.download is None else decimal(row.download) if row.download else "at hand"
    return [
        prefix + escape(row.spec),
        size,
        f"{row.parameters / 1e6:,.0f}M" if row.parameters else unknown,
        unknown if row.seconds is None else _time(row.seconds),
        escape(row.problem),
    ]


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
