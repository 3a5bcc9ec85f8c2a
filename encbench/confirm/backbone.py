"""The small pretrained backbone that every training of a confirmation starts from.

As EMF starts from SANA, a confirmation starts from a network that can draw already. It is trained
by flow matching on ground-truth attributes (see ``attributes``); its connector is dropped. Make it
with ``python -m encbench.confirm.backbone --out FOLDER``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from ..data.scenes.world import get_world
from ..errors import ModelError
from ..files import digest, write_atomic, write_json
from ..flow.config import TrainConfig
from ..flow.sample import load_checkpoint
from ..flow.train import train
from ..shipped import read_manifest, shipped, write_manifest
from .attributes import SPEC, attribute_scenes

WEIGHTS = "backbone.safetensors"
SHIPPED = Path(__file__).parent / "weights"
SCENES = 40_000


def backbone_config(
    out: Path, *, world: str = "scenes-grid", side: int = 32, network: str = "dit-1m",
    patch: int | None = 8, steps: int = 3000, batch: int = 128, seed: int = 0, device: str = "auto",
) -> TrainConfig:  # fmt: skip
    """The recipe: plain flow matching, more time at high noise, where layout is decided."""
    return TrainConfig(
        encoder=SPEC, out=out, world=world, side=side, network=network, patch=patch,
        images=SCENES, objective="flow-matching", mu=0.4, steps=steps, batch=batch, lr=1.5e-3,
        warmup=200, ema=0.999, seed=seed, device=device, checkpoint_every=250, sample_every=500,
    )  # fmt: skip


def train_backbone(config: TrainConfig, folder: Path) -> Path:
    """Train or resume, and write the backbone with its manifest to ``folder``.

    Raises:
        EncbenchError: see :func:`encbench.flow.train.train`.
    """
    data, features = attribute_scenes(
        get_world(config.world), config.images, config.side, seed=config.seed
    )
    trained = train(config, data=data, features=features, revision=data.pin)
    device = torch.device("cpu")
    loaded = load_checkpoint(trained.path, device)
    net: Any = getattr(loaded.net, "net", loaded.net)
    state = {name: tensor.contiguous() for name, tensor in net.backbone_state().items()}
    write_atomic(folder / WEIGHTS, save(state))
    write_json(folder / "config.json", recipe(config))
    write_manifest(
        folder,
        {
            "what": "backbone of confirmations: flow matching on scenes' ground-truth attributes",
            "license": "Apache-2.0",
            "steps": trained.steps,
            "seconds": trained.seconds,
            "data": data.pin,
        },
    )
    return folder


def recipe(config: TrainConfig) -> dict[str, Any]:
    """The settings that a backbone depends on, JSON-ready, without those that differ between
    machines."""
    from ..flow.config import FREE

    return {key: value for key, value in config.as_dict().items() if key not in FREE}


def shipped_backbone(world: str, side: int, network: str, patch: int | None) -> Path | None:
    """The folder of the backbone that comes with encbench for this world and network, verified;
    None if there is none.

    Raises:
        ModelError: naming the file that is missing or not as it was shipped.
    """
    folder = SHIPPED / f"{world}-{side}-{network}-p{patch}"
    return shipped(folder) if folder.is_dir() else None


def backbone_id(folder: Path) -> str:
    """A hash over the files of a backbone, which identifies it.

    Raises:
        ModelError: if its manifest is missing or damaged.
    """
    sums = read_manifest(folder)["files"]
    if WEIGHTS not in sums:
        raise ModelError(f"{folder} is not a backbone: its manifest lacks {WEIGHTS}")
    return digest(sums)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m encbench.confirm.backbone", description=__doc__
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the training")
    parser.add_argument("--world", default="scenes-grid")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--network", default="dit-1m")
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args(arguments)
    from ..progress import show_log

    show_log()
    config = backbone_config(
        given.out, world=given.world, side=given.side, network=given.network, patch=given.patch,
        steps=given.steps, seed=given.seed, device=given.device,
    )  # fmt: skip
    folder = given.out / f"{given.world}-{given.side}-{given.network}-p{given.patch}"
    print(f"the backbone is in {train_backbone(config, folder)}")


if __name__ == "__main__":
    main()
