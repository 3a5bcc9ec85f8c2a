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

from ..progress import format_duration

if TYPE_CHECKING:
    from ..config import RunConfig
    from ..confirm.config import ConfirmConfig
    from ..confirm.run import Ready
    from ..estimate import PlannedEncoder, RunPlan
    from ..pipeline import Outcome
    from ..records import Failure, Prediction

console = Console(soft_wrap=False)


def ranking(prediction: Prediction) -> None:
    """Print the record of the rule, the order with intervals, and which encoder to use."""
    metric = prediction.rule.metric
    console.print(escape(prediction.rule.trust))
    table = Table(title=prediction.rule.text, title_justify="left", box=None)
    for name, side in (("rank", "right"), ("encoder", "left"), (metric, "right"), ("95 %", "left")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    table.add_column("rank 95 %")
    table.add_column("items", justify="right")
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
    console.print(f"\n[bold]{escape(prediction.advice.text)}[/bold]")


def outcome(out: Path, result: Outcome) -> None:
    """Print the result of a run, without the encoders that failed."""
    if result.prediction is not None:
        ranking(result.prediction)
        typer.echo(f"prediction: {out / 'prediction.json'}")
    if result.report is not None:
        typer.echo(f"report: {result.report}")


def check_parquet(wanted: bool) -> None:
    """Raise before the work starts if --parquet lacks its extra."""
    if wanted:
        from ..parquet import require_parquet

        require_parquet()


def write_parquet(run: Path, wanted: bool) -> None:
    """Write the records of a run as parquet tables if --parquet was given."""
    if wanted:
        from ..parquet import write_tables

        tables = write_tables(run)
        typer.echo(f"{len(tables)} parquet tables: {tables[0].parent}", err=True)


def failures(failed: Sequence[Failure]) -> None:
    """Print one line for each encoder that failed; exit with 1 if there is one."""
    for row in failed:
        typer.secho(f"encbench: {row.spec} failed: {row.error}", fg="red", err=True)
    if failed:
        raise typer.Exit(1)


def plan(made: RunPlan) -> None:
    """Print what a run would do."""
    lines = [_line(row, made.device) for row in made.encoders]
    console.print("[bold]encoders[/bold]")
    console.print("\n".join(lines) or "  none given: --encoders SPEC...", soft_wrap=True)
    console.print("[bold]re-encoder[/bold]")
    none = "  none: no images, or no probe that reads them"
    console.print(_line(made.reencoder, made.device) if made.reencoder else none, soft_wrap=True)
    console.print("[bold]controls[/bold]")
    console.print("  " + ", ".join(map(escape, made.controls)), soft_wrap=True)
    console.print("[bold]data[/bold]")
    console.print(
        f"  {made.captions:,} captions, {made.images:,} images, {made.long_prompts:,} long "
        f"prompts; about {made.tokens:,} tokens for each encoder",
        soft_wrap=True,
    )
    for note in made.notes:
        console.print(f"  [yellow]note:[/yellow] {escape(note)}", soft_wrap=True)
    console.print("[bold]in all[/bold]")
    more = " and what is of unknown size" if made.unknown_download else ""
    console.print(f"  to download: about {decimal(made.download)}{more}")
    console.print(
        f"  computing: {format_duration(made.seconds)} to {format_duration(4 * made.seconds)} on "
        f"this {made.device} (matrix products run at {_speed(made.rate)} here; the "
        "lower figure assumes all of that)",
        soft_wrap=True,
    )


def _speed(rate: float) -> str:
    """Floating-point operations a second."""
    return f"{rate / 1e12:.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.3g} GFLOP/s"


def plan_confirmation(config: RunConfig, asked: ConfirmConfig) -> Ready:
    """Print what the confirmation after a run would do, from the prediction on disk, else by ranks
    in the prediction to come."""
    from ..confirm.run import PREDICTION, prepare, unranked
    from ..pipeline import specs_of

    ranked = (asked.out / PREDICTION).exists()
    return prepare(asked, None if ranked else unranked(specs_of(config)))


def confirmation(ready: Ready) -> None:
    """Print the plan of a confirmation."""
    from ..confirm.run import plan_lines

    console.print("[bold]confirmation[/bold]")
    console.print("\n".join(f"  {escape(line)}" for line in plan_lines(ready)), soft_wrap=True)


def _line(row: PlannedEncoder, device: str) -> str:
    if row.problem and row.download is None and row.parameters is None:
        return f"  {escape(row.spec)}\n    [red]{escape(row.problem)}[/red]"
    unknown = "of unknown size"
    size = unknown if row.download is None else decimal(row.download)
    facts = ["at hand" if row.download == 0 else f"to download: {size}"]
    if row.parameters:
        facts.append(f"{row.parameters / 1e6:,.0f}M parameters")
    facts.append(
        "time unknown before loading"
        if row.seconds is None
        else f"at least {format_duration(row.seconds)} on this {device}"
    )
    if row.problem:
        facts.append(escape(row.problem))
    return f"  {escape(row.spec)}\n    {', '.join(facts)}"
