"""``encbench sample``"""

from __future__ import annotations

from pathlib import Path

import typer

from ..flow.config import SampleConfig
from .options import add_command

app = typer.Typer(add_completion=False)


@add_command(app, "sample", SampleConfig, toml=False)
def sample(config: SampleConfig) -> None:
    """Sample images from a trained model, in GenEval's folder layout.

    An image depends only on its prompt, its number and the seed, so several processes (accelerate
    launch --multi_gpu -m encbench sample ...) can share the work. To resume after a stop, run the
    same command again. Score the images: encbench geneval score OUT.
    """
    from ..data.geneval import load_geneval
    from ..device import choose_device, current_launch
    from ..flow.sample import load_sampler, parse_steps, text_prompts
    from ..metrics.geneval.generate import generate_images

    launch, steps = current_launch(), parse_steps(config.steps)
    path = Path(config.prompts)
    prompts = load_geneval(path) if path.suffix == ".jsonl" else text_prompts(config.prompts)
    sampler = load_sampler(
        config.checkpoint, choose_device(config.device), encoder=config.encoder, steps=steps,
        guidance=config.guidance, guidance_span=config.guidance_span,
        weights=config.weights,
    )  # fmt: skip
    made = generate_images(
        prompts,
        sampler,
        config.out,
        seed=config.seed,
        model=sampler.fingerprint,
        images_per_prompt=config.images_per_prompt,
        share=(launch.rank, launch.size),
    )
    typer.echo(f"{made:,} new images are in {config.out}")
