"""``encbench export``"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

import typer

from ..options import check_options, option
from .options import add_command

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class ExportConfig:
    checkpoint: Path = option(
        MISSING, "Folder of a training, or one checkpoint in it.", argument=True
    )
    to: Path = option(MISSING, "New folder to write.")
    steps: int = option(
        4, "Equal sampling steps that it is made for; a SANA can be sampled in no other number.",
        least=1,
    )  # fmt: skip
    weights: str = option("ema", "ema, model, or ema-DECAY; see: encbench sample --help.")

    def __post_init__(self) -> None:
        check_options(self)


@add_command(app, "export", ExportConfig, toml=False)
def export(config: ExportConfig) -> None:
    """Export a trained model: for diffusers (SANA), or as safetensors with its config (DiT).

    The folder holds the averaged weights, a model card and example.py, which samples it. The text
    encoder and the autoencoder are named, not copied. Upload it with: encbench push FOLDER.
    """
    from ..flow.export import export_model

    made = export_model(config.checkpoint, config.to, weights=config.weights, steps=config.steps)
    typer.echo(f"exported to {made}; try it: python {made}/example.py 'a red circle'")
