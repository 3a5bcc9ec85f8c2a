"""``encbench train``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import merge, merge_toml

app = typer.Typer(add_completion=False)
MODEL, DATA, TRAINING, RUN = "Network and objective", "Data", "Training", "Run"


def _preset(ctx: typer.Context, name: str | None) -> str | None:
    if name is not None:
        from ..flow.presets import preset

        merge(ctx, preset(name), over=False)
    return name


def _config(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from ..flow.presets import preset

        merge_toml(ctx, path, preset)
    return path


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


@app.command("train")
def train(
    encoder: Annotated[
        str | None,
        typer.Option(
            help="The text encoder whose features are the condition, e.g. clip:ViT-L-14/openai, "
            "st:FOLDER or control:word-position. See: encbench list encoders."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the training: checkpoints, log, samples.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="scenes-cpu (32 px, minutes on two cores), scenes-gpu (64 px), latent-256 "
            "(your images; give --folder).",
            callback=_preset,
            is_eager=True,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with the same keys as these flags; flags go over it.",
            callback=_config,
            is_eager=True,
        ),
    ] = None,
    world: Annotated[
        str | None, _option(DATA, "Embedded scenes: scenes, scenes-easy, scenes-grid.")
    ] = None,
    images: Annotated[
        int | None, _option(DATA, "How many scenes; of files, at most so many (0: all).")
    ] = None,
    captions: Annotated[int | None, _option(DATA, "Captions of each scene.")] = None,
    long_share: Annotated[float | None, _option(DATA, "Share of them that are long.")] = None,
    folder: Annotated[
        Path | None,
        _option(
            DATA,
            "Images with captions: a .txt beside each (one caption a line), or captions.jsonl "
            "with file_name and text.",
        ),
    ] = None,
    coco: Annotated[Path | None, _option(DATA, "COCO folder.")] = None,
    coco_split: Annotated[str | None, _option(DATA, "E.g. train2017.")] = None,
    max_broken: Annotated[
        int | None, _option(DATA, "Unreadable images that are left out before it stops.")
    ] = None,
    side: Annotated[int | None, _option(DATA, "Of the images, in pixels.")] = None,
    autoencoder: Annotated[
        str | None,
        _option(DATA, "Train in the latents of this AutoencoderDC or AutoencoderKL."),
    ] = None,
    network: Annotated[
        str | None,
        _option(
            MODEL,
            "dit-1m, -3m, -10m, -35m, -150m, dit-WIDTHxDEPTHxHEADS, or sana:FOLDER.",
        ),
    ] = None,
    patch: Annotated[int | None, _option(MODEL, "Of the DiT [at most 64 patches].")] = None,
    trainable: Annotated[
        str | None, _option(MODEL, "Of a SANA: all, emf (blocks, time embeddings), connector.")
    ] = None,
    prediction: Annotated[str | None, _option(MODEL, "What the network predicts: x or u.")] = None,
    objective: Annotated[
        str | None,
        _option(MODEL, "After flow matching: meanflow, emf, imf, pmf; or flow-matching only."),
    ] = None,
    derivative: Annotated[
        str | None, _option(MODEL, "How du/dt is had: jvp (exact), central, forward.")
    ] = None,
    derivative_step: Annotated[
        float | None, _option(MODEL, "Of the difference, in units of t.")
    ] = None,
    omega: Annotated[float | None, _option(MODEL, "Guidance inside the target; 1 is none.")] = None,
    kappa: Annotated[float | None, _option(MODEL, "Its mixing scale; 0 is none.")] = None,
    perceptual: Annotated[
        str | None, _option(MODEL, "Perceptual loss of pmf: none, lpips, convnext, lpips+convnext.")
    ] = None,
    times: Annotated[str | None, _option(MODEL, "(r, t): uniform, logit-normal, emf.")] = None,
    mu: Annotated[float | None, _option(MODEL, "Of logit-normal times.")] = None,
    sigma: Annotated[float | None, _option(MODEL, "Of logit-normal times.")] = None,
    interval_share: Annotated[
        float | None, _option(MODEL, "Share of r != t (uniform, logit-normal).")
    ] = None,
    flow_matching: Annotated[
        float | None,
        _option(MODEL, "Share of the training that is flow matching, at its beginning."),
    ] = None,
    steps: Annotated[int | None, _option(TRAINING, "Of the optimizer.")] = None,
    batch: Annotated[int | None, _option(TRAINING, "Images a step, over all processes.")] = None,
    accumulate: Annotated[
        int | None, _option(TRAINING, "Compute a batch in so many parts, to need less memory.")
    ] = None,
    optimizer: Annotated[
        str | None, _option(TRAINING, "adamw, or muon (for the blocks' matrices).")
    ] = None,
    lr: Annotated[float | None, _option(TRAINING, "Peak learning rate.")] = None,
    warmup: Annotated[int | None, _option(TRAINING, "Steps up to it.")] = None,
    lr_end: Annotated[float | None, _option(TRAINING, "Share of it at the end (cosine).")] = None,
    beta1: Annotated[float | None, _option(TRAINING, "Of AdamW.")] = None,
    beta2: Annotated[float | None, _option(TRAINING, "Of AdamW.")] = None,
    weight_decay: Annotated[float | None, _option(TRAINING, "Decoupled.")] = None,
    clip: Annotated[float | None, _option(TRAINING, "Largest gradient norm; 0: none.")] = None,
    ema: Annotated[float | None, _option(TRAINING, "Decay of the mean of the weights.")] = None,
    condition_dropout: Annotated[
        float | None, _option(TRAINING, "Share of conditions dropped to zeros.")
    ] = None,
    text_tokens: Annotated[
        int | None, _option(TRAINING, "The most tokens of a caption that are used.")
    ] = None,
    spike: Annotated[
        float | None,
        _option(TRAINING, "Skip a step whose gradient is so many times the usual."),
    ] = None,
    patience: Annotated[
        int | None, _option(TRAINING, "So many skipped steps in a row end the training.")
    ] = None,
    precision: Annotated[
        str | None, _option(TRAINING, "auto (bf16 on CUDA, else fp32), fp32, bf16.")
    ] = None,
    compile: Annotated[
        bool | None, _option(TRAINING, "torch.compile for the network.", "--compile/--no-compile")
    ] = None,
    log_every: Annotated[int | None, _option(RUN, "Steps.")] = None,
    checkpoint_every: Annotated[int | None, _option(RUN, "Steps.")] = None,
    sample_every: Annotated[int | None, _option(RUN, "Steps; 0: only at the end.")] = None,
    sample_prompts: Annotated[int | None, _option(RUN, "Rows of a sample grid.")] = None,
    keep: Annotated[int | None, _option(RUN, "Latest checkpoints kept.")] = None,
    seed: Annotated[int | None, _option(RUN, "Of everything random.")] = None,
    device: Annotated[str | None, _option(RUN, "auto, cpu or cuda.")] = None,
    store: Annotated[
        Path | None, _option(RUN, "Folder of the embedding store [as for encbench run].")
    ] = None,
    dry_run: Annotated[
        bool,
        _option(RUN, "Print parameters, memory, FLOPs and time; train nothing.", "--dry-run"),
    ] = False,
) -> None:
    """Train a few-step text-to-image model with any encoder's features as its condition.

    Flow matching comes first, then MeanFlow; the checkpoint at the switch is kept as the parent.
    Started again with the same settings, it goes on where it was. Several processes:
    accelerate launch --multi_gpu -m encbench train ... Read more in docs/training.md.
    """
    from ..config import default_store
    from ..flow.config import from_values
    from ..progress import show_log

    show_log()
    values = {k: v for k, v in locals().items() if k in _keys() and v is not None}
    values.setdefault("store", default_store())
    chosen = from_values(values)
    if dry_run:
        from ..estimate import matrix_rate
        from ..flow.estimate import plan_training

        typer.echo("\n".join(plan_training(chosen, matrix_rate)))
        return
    from ..flow.train import train as run

    done = run(chosen)
    typer.echo(f"trained {done.steps:,} steps in {done.seconds / 60:.1f} minutes: {done.path}")
    typer.echo(f"sample it by: encbench sample {chosen.out} --prompts 'a red circle' --out FOLDER")


def _keys() -> set[str]:
    import dataclasses

    from ..flow.config import TrainConfig

    return {field.name for field in dataclasses.fields(TrainConfig)}
