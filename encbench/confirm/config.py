"""The configuration of a confirmation: a frozen dataclass with the keys of the flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..device import DEVICE_HELP
from ..errors import UsageError
from ..files import parse_toml
from ..options import check_options, option


def cpu() -> dict[str, Any]:
    """32 px, four shapes and six colors, 1M parameters from the shipped backbone: about three
    minutes of a core for a training. More time at high noise than usual, where the text decides,
    and no dropped conditions, since nothing is guided."""
    return {
        "train": {
            "world": "scenes-grid", "side": 32, "network": "dit-1m", "patch": 8, "images": 8000,
            "captions": 2, "long_share": 0.0, "steps": 1600, "batch": 32, "lr": 2e-3,
            "warmup": 50, "mu": 1.2, "condition_dropout": 0.0, "objective": "emf",
            "derivative": "forward", "derivative_step": 2**-11, "ema": 0.99,
            "checkpoint_every": 200, "sample_every": 0,
        },
        "seeds": 2, "per_task": 20, "images": 2,
    }  # fmt: skip


def full() -> dict[str, Any]:
    """64 px, all shapes and colors, 10M parameters, every ranked encoder and control, two
    seeds: about an hour on a large GPU."""
    return {
        "train": {
            "world": "scenes", "side": 64, "network": "dit-10m", "images": 100_000,
            "captions": 2, "long_share": 0.1, "steps": 6000, "batch": 256, "lr": 1e-3,
            "warmup": 200, "mu": 0.4, "condition_dropout": 0.0, "objective": "emf",
            "derivative": "central", "derivative_step": 2**-10, "ema": 0.999, "compile": True,
            "checkpoint_every": 1000, "sample_every": 0,
        },
        "seeds": 2, "per_task": 50, "images": 4, "everyone": True,
    }  # fmt: skip


def bank() -> dict[str, Any]:
    """The recipe of the bank of outcomes (`benchmarks/outcomes`): the cpu preset as it was at
    1,000 steps, with every value written out, so that it stays when a default changes."""
    return {
        "train": {
            "world": "scenes-grid", "images": 8000, "captions": 2, "long_share": 0.0, "side": 32,
            "network": "dit-1m", "patch": 8, "trainable": "all", "prediction": "x",
            "objective": "emf", "derivative": "forward", "derivative_step": 0.00048828125,
            "omega": 1.0, "kappa": 0.0, "perceptual": "none", "times": "emf", "mu": 1.2,
            "sigma": 1.0, "interval_share": 0.5, "flow_matching": 0.6, "steps": 1000,
            "batch": 32, "accumulate": 1, "optimizer": "adamw", "lr": 0.002, "warmup": 50,
            "lr_end": 0.05, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.0, "clip": 1.0,
            "ema": 0.99, "condition_dropout": 0.0, "text_tokens": 128, "spike": 20.0,
            "patience": 20, "precision": "auto", "compile": False,
            "checkpoint_every": 200, "sample_every": 0,
        },
        "seeds": 2, "per_task": 20, "images": 2,
    }  # fmt: skip


PRESETS = {"cpu": cpu, "full": full, "bank": bank}


def parse_duration(text: str | float) -> float:
    """'12m', '2h', '90s' or '1h30m' in seconds; a number is seconds already.

    Raises:
        UsageError: if it is none of these.
    """
    if not isinstance(text, str):
        return text
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip())
    if not parts or not text.strip():
        raise UsageError(f"--budget must be like 12m, 2h or 1h30m, not '{text}'")
    hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return 3600.0 * hours + 60 * minutes + seconds


def parse_settings(given: Mapping[str, Any] | list[str]) -> Mapping[str, Any]:
    """KEY=VALUE pairs, with numbers and truth values read as in TOML and anything else as text.

    Raises:
        UsageError: for a pair without '='.
    """
    if isinstance(given, Mapping):
        return given
    settings: dict[str, Any] = {}
    for pair in given:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair} is not KEY=VALUE")
        try:
            value = parse_toml(f"x = {text}", f"--set {key}")["x"]
        except UsageError:
            value = text
        settings[key.strip().replace("-", "_")] = value
    return settings


@dataclass(frozen=True)
class ConfirmConfig:
    """The configuration of a confirmation.

    Raises:
        UsageError: naming the option.
    """

    out: Path = option(
        Path("runs/encbench"), "Folder of the run whose prediction.json is put to the test."
    )
    encoders: tuple[str, ...] = option(
        (),
        "Encoders to train, by spec or by their name in the prediction; may include controls. "
        "Default: the first two, the middle one and the last of the largest group of encoders of "
        "one stage of training, and the constant control.",
        metavar="SPEC...",
    )
    preset: str = option(
        "cpu",
        "cpu (32 px, four shapes, 1M parameters: minutes a model on two cores), full (64 px, all "
        "shapes, every ranked encoder: about an hour on a large GPU) or bank (cpu as it was when "
        "the bank of outcomes began; it never changes).",
        choices=PRESETS,
    )
    rule: str | None = option(
        None,
        "Rule whose order is put to the test; it must be among the prediction's. See: encbench "
        "list rules.",
        shown="the prediction's primary rule",
    )
    budget: float | None = option(
        None,
        "Time for everything, such as 12m or 2h. It chooses rivals, seeds and steps, and reports "
        "what it gave up.",
        parse=parse_duration,
    )
    seeds: int | None = option(None, "Trainings of each encoder.", least=1, shown="the preset's: 2")
    steps: int | None = option(None, "Training steps of each model.", least=1, shown="the preset's")
    per_task: int | None = option(
        None, "GenEval prompts of each task.", least=1, shown="the preset's"
    )
    images: int | None = option(None, "Images of each prompt.", least=1, shown="the preset's")
    from_scratch: bool = option(False, "Start from random weights instead of the shipped backbone.")
    train: Mapping[str, Any] = option(
        dict,
        "Set an option of the trainer, as KEY=VALUE with the keys of encbench train, such as "
        "coco=FOLDER, network=sana:FOLDER or autoencoder=FOLDER; may be repeated.",
        flag="--set", metavar="KEY=VALUE", parse=parse_settings,
    )  # fmt: skip
    scaling: str = option(
        "rms",
        "How encoders' features are scaled before the connector: none, rms or whitened.",
        choices=("none", "rms", "whitened"),
    )
    prompts: Path | None = option(
        None, "GenEval prompts in the published form, for other data than scenes."
    )
    detector: str = option(
        "scenes", "Detector: scenes (the scene judge), or as in encbench geneval score."
    )
    colors: str = option("none", "Color classifier, if the detector names no colors; or none.")
    bank: Path | None = option(
        None, "CSV of outcomes to add a row to for each finished training and cell."
    )
    metrics: tuple[str, ...] = option(
        (),
        "Further metrics to score the images by (see encbench list metrics); the verdict stays on "
        "GenEval.",
        metavar="SPEC...",
    )
    seed: int = option(
        0, "Random seed of prompts, noise, bootstrap and the first training.", least=0
    )
    device: str = option("auto", DEVICE_HELP)
    store: Path | None = option(
        None, "Folder of the embedding store.", shown="$ENCBENCH_CACHE/store"
    )

    def __post_init__(self) -> None:
        check_options(self)
