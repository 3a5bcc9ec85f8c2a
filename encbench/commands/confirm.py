"""``encbench confirm``"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..confirm.plan import ConfirmConfig

app = typer.Typer(add_completion=False)


@app.command("confirm")
def confirm(
    out: Annotated[
        Path, typer.Option(help="Folder of the run whose prediction.json is put to the test.")
    ] = Path("runs/encbench"),
    encoders: Annotated[
        list[str] | None,
        typer.Option(
            help="Encoders to train, by spec or by their name in the prediction; controls too. "
            "Default: the top two, the middle and the last of the stage of training that has "
            "most encoders, and the constant control.",
            metavar="SPEC...",
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="cpu: 32 px, four shapes, 1M parameters, minutes a model on two cores; full: "
            "64 px, all shapes, every ranked encoder, about an hour on a large GPU."
        ),
    ] = "cpu",
    budget: Annotated[
        str | None,
        typer.Option(
            help="Time for everything, such as 12m or 2h: chooses rivals, seeds and steps, and "
            "says what it gave up."
        ),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Trainings of each encoder (2).")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each model.")] = None,
    per_task: Annotated[int | None, typer.Option(help="GenEval prompts of each task.")] = None,
    images: Annotated[int | None, typer.Option(help="Images of each prompt.")] = None,
    from_scratch: Annotated[
        bool,
        typer.Option("--from-scratch", help="Begin with random weights, not with the backbone."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A value of the trainer, as KEY=VALUE with the keys of encbench train, such as "
            "coco=FOLDER, network=sana:FOLDER, autoencoder=FOLDER; may be given several times.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="GenEval prompts in the published form, for other data than scenes."),
    ] = None,
    detector: Annotated[
        str, typer.Option(help="scenes (the scene judge), or as encbench geneval score.")
    ] = "scenes",
    colors: Annotated[
        str, typer.Option(help="Who names colors where the detector does not; or none.")
    ] = "none",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of prompts, noise, the first training.")] = 0,
    store: Annotated[Path | None, typer.Option(help="Folder of the embedding store.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the plan, its cost and which verdicts are within reach."
        ),
    ] = False,
) -> None:
    """Put a prediction to the test: train small few-step models on equal budgets, one for each
    encoder, score them by GenEval, and say whether the prediction held.

    Everything but the encoder is the same: data and order, network, steps, seeds, noise. The
    rules of both verdicts are fixed and printed before training. Started again, the command
    goes on where it was. Under accelerate launch or torchrun each process takes one model at a
    time."""
    from .. import distributed
    from ..config import default_store
    from ..confirm.budget import seconds
    from ..confirm.plan import ConfirmConfig
    from ..confirm.run import plan_lines, prepare
    from ..progress import show_log

    show_log()
    config = ConfirmConfig(
        out=out,
        encoders=tuple(encoders or ()),
        preset=preset,
        seeds=seeds,
        steps=steps,
        per_task=per_task,
        images=images,
        budget=None if budget is None else seconds(budget),
        from_scratch=from_scratch,
        prompts=prompts,
        detector=detector,
        colors=colors,
        train=_values(set_ or []),
        device=device,
        seed=seed,
        store=store or default_store(),
    )

    def work() -> None:
        if dry_run:
            typer.echo("\n".join(plan_lines(prepare(config))))
        else:
            carry_out(config)

    distributed.run_command(work)


def carry_out(config: ConfirmConfig) -> None:
    """Confirm, say what came out, and write the report, the verdicts first."""
    from ..confirm.run import run_confirmation, verdict_lines
    from ..pipeline import report

    verdict = run_confirmation(config)
    typer.echo("\n".join(verdict_lines(verdict)))
    typer.echo(f"report: {report(config.out)}")


def _values(given: list[str]) -> dict[str, object]:
    """KEY=VALUE pairs with numbers and truth values read as in TOML, anything else as text."""
    import tomllib

    from ..errors import UsageError

    found: dict[str, object] = {}
    for pair in given:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair} is not KEY=VALUE")
        try:
            value = tomllib.loads(f"x = {text}")["x"]
        except tomllib.TOMLDecodeError:
            value = text
        found[key.strip().replace("-", "_")] = value
    return found
