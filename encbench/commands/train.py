"""``encbench train``"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from ..flow.config import TrainConfig
from .options import merge, merge_toml

app = typer.Typer(add_completion=False)
_D = TrainConfig()
MODEL, DATA, TRAINING, RUN = "Network and objective", "Data", "Training", "Run"


def _preset(ctx: typer.Context, name: str | None) -> str | None:
    if name is not None:
        from ..flow.presets import training_preset

        merge(ctx, training_preset(name), over=False)
    return name


def _config(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from ..flow.presets import training_preset

        merge_toml(ctx, path, training_preset)
    return path


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


@app.command("train")
def train(
    encoder: Annotated[
        str,
        typer.Option(
            help="The text encoder whose features are the condition, e.g. clip:ViT-L-14/openai, "
            "st:FOLDER or control:word-position. See: encbench list encoders."
        ),
    ] = _D.encoder,
    out: Annotated[
        Path, typer.Option(help="Folder of the training: checkpoints, log, samples.")
    ] = _D.out,
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
        str, _option(DATA, "Embedded scenes: scenes, scenes-easy, scenes-grid.")
    ] = _D.world,
    images: Annotated[
        int, _option(DATA, "How many scenes; of files, at most so many (0: all).")
    ] = _D.images,
    captions: Annotated[int, _option(DATA, "Captions of each scene.")] = _D.captions,
    long_share: Annotated[float, _option(DATA, "Share of them that are long.")] = _D.long_share,
    folder: Annotated[
        Path | None,
        _option(
            DATA,
            "Images with captions: a .txt beside each (one caption a line), or captions.jsonl "
            "with file_name and text.",
        ),
    ] = _D.folder,
    coco: Annotated[Path | None, _option(DATA, "COCO folder.")] = _D.coco,
    coco_split: Annotated[str | None, _option(DATA, "E.g. train2017.")] = _D.coco_split,
    max_broken: Annotated[
        int, _option(DATA, "Unreadable images that are left out before it stops.")
    ] = _D.max_broken,
    side: Annotated[int, _option(DATA, "Of the images, in pixels.")] = _D.side,
    autoencoder: Annotated[
        str | None,
        _option(DATA, "Train in the latents of this AutoencoderDC or AutoencoderKL."),
    ] = _D.autoencoder,
    network: Annotated[
        str,
        _option(
            MODEL,
            "dit-1m, -3m, -10m, -35m, -150m, dit-WIDTHxDEPTHxHEADS, or sana:FOLDER.",
        ),
    ] = _D.network,
    patch: Annotated[
        int | None, _option(MODEL, "Of the DiT; by default at most 64 patches.")
    ] = _D.patch,
    trainable: Annotated[
        str, _option(MODEL, "Of a SANA: all, emf (blocks, time embeddings), connector.")
    ] = _D.trainable,
    prediction: Annotated[
        str, _option(MODEL, "What the network predicts: x or u.")
    ] = _D.prediction,
    objective: Annotated[
        str,
        _option(MODEL, "After flow matching: meanflow, emf, imf, pmf; or flow-matching only."),
    ] = _D.objective,
    derivative: Annotated[
        str, _option(MODEL, "How du/dt is had: jvp (exact), central, forward.")
    ] = _D.derivative,
    derivative_step: Annotated[
        float | None, _option(MODEL, "Of the difference, in units of t.")
    ] = _D.derivative_step,
    omega: Annotated[float, _option(MODEL, "Guidance inside the target; 1 is none.")] = _D.omega,
    kappa: Annotated[float, _option(MODEL, "Its mixing scale; 0 is none.")] = _D.kappa,
    perceptual: Annotated[
        str, _option(MODEL, "Perceptual loss of pmf: none, lpips, convnext, lpips+convnext.")
    ] = _D.perceptual,
    times: Annotated[str, _option(MODEL, "(r, t): uniform, logit-normal, emf.")] = _D.times,
    mu: Annotated[float, _option(MODEL, "Of logit-normal times.")] = _D.mu,
    sigma: Annotated[float, _option(MODEL, "Of logit-normal times.")] = _D.sigma,
    interval_share: Annotated[
        float, _option(MODEL, "Share of r != t (uniform, logit-normal).")
    ] = _D.interval_share,
    flow_matching: Annotated[
        float,
        _option(MODEL, "Share of the training that is flow matching, at its beginning."),
    ] = _D.flow_matching,
    steps: Annotated[int, _option(TRAINING, "Of the optimizer.")] = _D.steps,
    batch: Annotated[int, _option(TRAINING, "Images a step, over all processes.")] = _D.batch,
    accumulate: Annotated[
        int, _option(TRAINING, "Compute a batch in so many parts, to need less memory.")
    ] = _D.accumulate,
    optimizer: Annotated[
        str, _option(TRAINING, "adamw, or muon (for the blocks' matrices).")
    ] = _D.optimizer,
    lr: Annotated[float, _option(TRAINING, "Peak learning rate.")] = _D.lr,
    warmup: Annotated[int, _option(TRAINING, "Steps up to it.")] = _D.warmup,
    lr_end: Annotated[float, _option(TRAINING, "Share of it at the end (cosine).")] = _D.lr_end,
    beta1: Annotated[float, _option(TRAINING, "Of AdamW.")] = _D.beta1,
    beta2: Annotated[float, _option(TRAINING, "Of AdamW.")] = _D.beta2,
    weight_decay: Annotated[float, _option(TRAINING, "Decoupled.")] = _D.weight_decay,
    clip: Annotated[float, _option(TRAINING, "Largest gradient norm; 0: none.")] = _D.clip,
    ema: Annotated[float, _option(TRAINING, "Decay of the mean of the weights.")] = _D.ema,
    condition_dropout: Annotated[
        float, _option(TRAINING, "Share of conditions dropped to zeros.")
    ] = _D.condition_dropout,
    text_tokens: Annotated[
        int, _option(TRAINING, "The most tokens of a caption that are used.")
    ] = _D.text_tokens,
    spike: Annotated[
        float,
        _option(TRAINING, "Skip a step whose gradient is so many times the usual."),
    ] = _D.spike,
    patience: Annotated[
        int, _option(TRAINING, "So many skipped steps in a row end the training.")
    ] = _D.patience,
    precision: Annotated[
        str, _option(TRAINING, "auto (bf16 on CUDA, else fp32), fp32, bf16.")
    ] = _D.precision,
    compile: Annotated[
        bool, _option(TRAINING, "torch.compile for the network.", "--compile/--no-compile")
    ] = _D.compile,
    log_every: Annotated[int, _option(RUN, "Steps.")] = _D.log_every,
    checkpoint_every: Annotated[int, _option(RUN, "Steps.")] = _D.checkpoint_every,
    sample_every: Annotated[int, _option(RUN, "Steps; 0: only at the end.")] = _D.sample_every,
    sample_prompts: Annotated[int, _option(RUN, "Rows of a sample grid.")] = _D.sample_prompts,
    keep: Annotated[int, _option(RUN, "Latest checkpoints kept.")] = _D.keep,
    seed: Annotated[int, _option(RUN, "Of everything random.")] = _D.seed,
    device: Annotated[str, _option(RUN, "auto, cpu or cuda.")] = _D.device,
    store: Annotated[
        Path | None, _option(RUN, "Folder of the embedding store; as for encbench run.")
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
    from ..flow.config import training_config
    from ..progress import show_log

    show_log()
    keys = {field.name for field in dataclasses.fields(TrainConfig)}
    values = {k: v for k, v in locals().items() if k in keys and v is not None}
    values.setdefault("store", default_store())
    chosen = training_config(values)
    if dry_run:
        from ..estimate import matrix_rate
        from ..flow.estimate import plan_training

        typer.echo("\n".join(plan_training(chosen, matrix_rate)))
        return
    from ..flow.train import train as run

    done = run(chosen)
    typer.echo(f"trained {done.steps:,} steps in {done.seconds / 60:.1f} minutes: {done.path}")
    typer.echo(f"sample it by: encbench sample {chosen.out} --prompts 'a red circle' --out FOLDER")
