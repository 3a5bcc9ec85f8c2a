"""``encbench replace``"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from ..config import RunConfig
from ..presets import PRESETS
from .answers import PrintJson, print_json
from .options import DryRun, add_command

app = typer.Typer(add_completion=False)


@add_command(app, "replace", RunConfig, PRESETS)
def replace(
    config: RunConfig,
    base: Annotated[str, typer.Argument(help="Current encoder.", metavar="BASE")],
    candidates: Annotated[
        list[str],
        typer.Option(
            "--with",
            help="Encoders that could take its place, several after one flag. A layer or another "
            "dtype of the base is a candidate of its own: BASE?layer=penultimate.",
            metavar="SPEC...",
        ),
    ],
    dry_run: DryRun = False,
    json: PrintJson = False,
) -> None:
    """Compare candidates with the current encoder: what each loses and saves.

    Measures all of them as encbench run does, then compares each candidate with BASE on every
    probe, by paired differences with intervals. Writes replacement.md and replacement.json.
    """
    from .. import distributed
    from ..errors import UsageError
    from .run import plan_only

    if config.encoders:
        raise UsageError("--encoders: give the encoders as BASE and --with")
    config = dataclasses.replace(config, encoders=(base, *candidates))
    distributed.run_command(lambda: (plan_only if dry_run else _carry_out)(config, json))


def _carry_out(config: RunConfig, json: bool) -> None:
    from ..errors import UsageError
    from ..pipeline import names_of, run_with_records, specs_of
    from ..replacement import compare_with_base, page, write_replacement
    from . import show

    specs = specs_of(config)
    names = names_of(specs)
    base, *others = specs[: len(config.encoders)]
    if any(spec.family == "control" for spec in (base, *others)):
        raise UsageError("controls are added automatically; name encoders")
    records, outcome = run_with_records(config)
    found = compare_with_base(names[base], [names[spec] for spec in others], records)
    written = write_replacement(config.out, found)
    if json:
        print_json("replacement", found)
    else:
        typer.echo(page(found))
        typer.echo(f"written: {written}; report: {outcome.report}")
    show.failures(outcome.failed)
