"""Presets of trainings: functions that return values for a :class:`TrainConfig`."""

from __future__ import annotations

from typing import Any

from ..presets import Presets


def scenes_cpu() -> dict[str, Any]:
    """32 px scenes of four shapes and six colors: minutes on two CPU cores, in fp32."""
    return {
        "world": "scenes-grid",
        "images": 20_000,
        "captions": 4,
        "long_share": 0.0,
        "side": 32,
        "network": "dit-1m",
        "patch": 8,
        "mu": 0.4,
        "derivative_step": 2**-10,
        "steps": 2800,
        "batch": 64,
        "lr": 1.5e-3,
        "ema": 0.998,
        "precision": "fp32",
        "checkpoint_every": 200,
        "sample_every": 700,
    }


def scenes_gpu() -> dict[str, Any]:
    """64 px scenes of all shapes, colors and sizes: under twenty minutes on a large GPU."""
    return {
        "world": "scenes",
        "images": 200_000,
        "side": 64,
        "network": "dit-35m",
        "steps": 20_000,
        "batch": 256,
        "ema": 0.9995,
        "warmup": 500,
        "log_every": 100,
        "checkpoint_every": 2500,
        "sample_every": 2500,
    }


def latent_256() -> dict[str, Any]:
    """256 px images of a folder, in the latents of SANA's autoencoder; any encoder. Give
    --folder, and --network sana:... to begin with a pretrained backbone as EMF does."""
    return {
        "side": 256,
        "autoencoder": "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers",
        "network": "dit-150m",
        "patch": 1,
        "prediction": "u",
        "images": 0,
        "steps": 200_000,
        "batch": 256,
        "lr": 2e-4,
        "warmup": 2000,
        "ema": 0.9999,
        "text_tokens": 300,
        "log_every": 100,
        "checkpoint_every": 2000,
        "sample_every": 10_000,
    }


PRESETS: Presets = {
    "scenes-cpu": scenes_cpu,
    "scenes-gpu": scenes_gpu,
    "latent-256": latent_256,
}
