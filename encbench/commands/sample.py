"""``encbench sample``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False)


@app.command("sample")
def sample(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder of a training, or one checkpoint in it.")
    ],
    prompts: Annotated[
        str,
        typer.Option(
            help="A text, a .txt (a prompt a line), or a .jsonl of GenEval prompts (see: encbench "
            "geneval prompts)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for images, in GenEval's layout.")],
    steps: Annotated[
        str, typer.Option(help="How many steps, or times from 1 to 0 such as 1,.8,.4,0.")
    ] = "4",
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance; 1 is none (two forwards else).")
    ] = 1.0,
    images_per_prompt: Annotated[int, typer.Option(min=1, help="Images of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="All images follow from it.")] = 0,
    weights: Annotated[
        str, typer.Option(help="ema (running mean), or model (as trained last).")
    ] = "ema",
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Spec of the encoder, if its files lie elsewhere than when the model was trained."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Sample a trained model into GenEval's folder layout.

    An image depends on its prompt, its number and the seed alone, so that several processes
    (accelerate launch --multi_gpu -m encbench sample ...) share the work and a run that was
    stopped goes on. Score the images by: encbench geneval score OUT.
    """
    from ..data.geneval import load_geneval
    from ..device import choose_device, current_launch
    from ..errors import UsageError
    from ..flow.sample import Sampler, encoder_for, load_checkpoint, parse_steps, text_prompts
    from ..metrics.geneval.generate import generate_images
    from ..progress import show_log

    show_log()
    if weights not in ("ema", "model"):
        raise UsageError(f"--weights {weights}: known are ema, model")
    where, launch = choose_device(device), current_launch()
    grid = parse_steps(steps)
    path = Path(prompts)
    wanted = load_geneval(path) if path.suffix == ".jsonl" else text_prompts(prompts)
    model = load_checkpoint(checkpoint, where, weights)  # type: ignore[arg-type]
    source = encoder_for(model, where, encoder)
    sampler = Sampler(model, where, encode=source.alone, steps=grid, guidance=guidance)
    made = generate_images(
        wanted,
        sampler,
        out,
        seed=seed,
        model=sampler.fingerprint,
        images_per_prompt=images_per_prompt,
        share=(launch.rank, launch.size),
    )
    typer.echo(f"{made:,} images were made; they are in {out}")
