"""What a training depends on: a frozen dataclass with the keys of the flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import UsageError

DERIVATIVES = ("jvp", "central", "forward")
OPTIMIZERS = ("adamw", "muon")
PRECISIONS = ("auto", "fp32", "bf16")

FREE = (
    "out", "device", "store", "keep", "log_every", "checkpoint_every", "sample_every",
    "sample_prompts", "max_broken",
)  # fmt: skip
"""Keys that may differ when a training is resumed: none of them changes a weight."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training depends on. Presets are functions that return values for it.

    Attributes:
        encoder: spec of the text encoder whose features are the condition.
        out: folder of the training: checkpoints, log, samples.
        world: of the embedded scenes, where neither ``coco`` nor ``folder`` is given.
        images: how many scenes there are (a finite set, drawn by ``seed``); of a folder or
            COCO, at most so many images, 0 for all.
        captions: of each scene.
        long_share: share of a scene's captions that are long.
        coco: COCO folder; ``coco_split`` as for ``encbench run``.
        folder: images with captions, a .txt beside each or one captions.jsonl.
        max_broken: images that cannot be read before the training stops.
        side: of the images, in pixels.
        autoencoder: folder or hub id of a diffusers AutoencoderDC or AutoencoderKL, for
            training in its latents; None for pixels.
        network: of the DiT its size ('dit-1m', '-3m', '-10m', '-35m', '-150m') or width, depth and
            heads ('dit-96x5x3'); or 'sana:FOLDER or hub id'.
        patch: of the DiT; None as the preset has it.
        trainable: of a pretrained SANA, beside the connector: 'all', 'emf' (blocks and time
            embeddings, as EMF does) or 'connector' (nothing else).
        prediction: what the network's output means: 'x' or 'u'.
        objective: after the switch; before it, it is flow matching.
        derivative: how du/dt is had.
        derivative_step: of the finite difference; None as :data:`.derivative.STEPS` has it, and
            for a SANA :data:`.sana.DIFFERENCE_STEP`.
        omega, kappa: guidance inside the target (MeanFlow), off at 1 and 0.
        perceptual: 'none', 'lpips', 'convnext' or 'lpips+convnext', for objective pmf.
        times: sampler of (r, t); 'emf' is its schedule.
        mu, sigma: of 'logit-normal'.
        interval_share: share of r != t, of 'uniform' and 'logit-normal'.
        flow_matching: share of the training that is flow matching, at its beginning.
        steps: of the optimizer.
        batch: images a step, over all processes and accumulated parts.
        accumulate: parts of a batch that are computed one after another.
        optimizer: 'muon' is torch's for the blocks' matrices, with AdamW for the rest.
        lr, warmup, lr_end: the peak, the steps up to it, and the share of it at the end.
        beta1, beta2, weight_decay: of AdamW (the momentum of Muon is its own).
        clip: largest gradient norm; 0 for none.
        ema: decay of the running mean of the weights, approached as it begins.
        condition_dropout: share of conditions that are dropped to zeros.
        text_tokens: the most of a caption's tokens that are used.
        spike: a step whose gradient norm is so many times the recent median is skipped.
        patience: so many skipped steps in a row end the training.
        seed: of everything random.
        precision: 'bf16' computes under autocast; weights are fp32 always. 'auto' is bf16 on
            CUDA, fp32 on a CPU.
        compile: torch.compile for the network.
        log_every, checkpoint_every, sample_every: in steps; 0 for never (checkpoints and
            samples are made at the end, too).
        keep: so many of the latest checkpoints, beside the parent and the final one.
        sample_prompts: prompts of a sample grid.
        device: 'auto', 'cpu' or 'cuda'.
        store: folder of the embedding store; None for the default.
    """

    encoder: str = "control:word-position"
    out: Path = Path("runs/train")
    world: str = "scenes"
    images: int = 20_000
    captions: int = 2
    long_share: float = 0.25
    coco: Path | None = None
    coco_split: str | None = None
    folder: Path | None = None
    max_broken: int = 10
    side: int = 32
    autoencoder: str | None = None
    network: str = "dit-3m"
    patch: int | None = None
    trainable: str = "all"
    prediction: str = "x"
    objective: str = "emf"
    derivative: str = "central"
    derivative_step: float | None = None
    omega: float = 1.0
    kappa: float = 0.0
    perceptual: str = "none"
    times: str = "emf"
    mu: float = -0.4
    sigma: float = 1.0
    interval_share: float = 0.5
    flow_matching: float = 0.6
    steps: int = 2000
    batch: int = 128
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    warmup: int = 100
    lr_end: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    condition_dropout: float = 0.1
    text_tokens: int = 128
    spike: float = 20.0
    patience: int = 20
    seed: int = 0
    precision: str = "auto"
    compile: bool = False
    log_every: int = 50
    checkpoint_every: int = 500
    sample_every: int = 500
    keep: int = 1
    sample_prompts: int = 6
    device: str = "auto"
    store: Path | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without looking at any file.

        Raises:
            UsageError: naming the option.
        """

        def need(holds: bool, text: str) -> None:
            if not holds:
                raise UsageError(text)

        for name, known in (
            ("objective", registry.names("objective")), ("derivative", DERIVATIVES),
            ("times", registry.names("time-sampler")),
            ("optimizer", OPTIMIZERS), ("precision", PRECISIONS), ("prediction", ("x", "u")),
            ("trainable", ("all", "emf", "connector")),
        ):  # fmt: skip
            value = getattr(self, name)
            need(value in known, f"{flag(name)} {value}: known are {', '.join(known)}")
        for name in (
            "images", "max_broken", "warmup", "clip", "seed", "log_every", "checkpoint_every",
            "sample_every", "weight_decay", "sample_prompts",
        ):  # fmt: skip
            value = getattr(self, name)
            need(value >= 0, f"{flag(name)} must not be negative: {value}")
        for name in (
            "captions", "steps", "batch", "accumulate", "patience", "side", "text_tokens", "keep",
        ):  # fmt: skip
            value = getattr(self, name)
            need(value >= 1, f"{flag(name)} must be at least 1, not {value}")
        for name in (
            "long_share", "interval_share", "flow_matching", "condition_dropout", "lr_end",
        ):  # fmt: skip
            value = getattr(self, name)
            need(0 <= value <= 1, f"{flag(name)} must lie from 0 to 1: {value}")
        for name in ("beta1", "beta2", "ema"):
            value = getattr(self, name)
            need(0 <= value < 1, f"{flag(name)} must be at least 0 and below 1: {value}")
        for name in ("lr", "sigma", "derivative_step"):
            value = getattr(self, name)
            need(value is None or value > 0, f"{flag(name)} must be above 0: {value}")
        need(self.spike > 1, f"--spike must be above 1: {self.spike}")
        need(
            self.coco is None or self.folder is None,
            "--coco and --folder are both given; a training has one source of images",
        )
        need(
            self.batch % self.accumulate == 0,
            f"--batch {self.batch} is no multiple of --accumulate {self.accumulate}",
        )

    @property
    def switch(self) -> int:
        """The step at which flow matching ends; ``steps`` if it never does."""
        if self.objective == "flow-matching":
            return self.steps
        return round(self.flow_matching * self.steps)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, paths as text."""
        return {
            key: str(value) if isinstance(value, Path) else value
            for key, value in dataclasses.asdict(self).items()
        }

    def same_training(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from the stored values of another one, in words; keys in FREE aside."""
        mine = self.as_dict()
        return [
            f"{flag(key)} was {other.get(key)}, is {mine[key]}"
            for key in mine
            if key not in FREE and mine[key] != other.get(key)
        ]


def flag(name: str) -> str:
    """The flag of a key."""
    return "--" + name.replace("_", "-")


def training_config(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration from plain values (flags, TOML, JSON); None means the default.

    Raises:
        UsageError: for an unknown key or a value of the wrong type, by name.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    made: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UsageError(f"unknown configuration key '{key}'; known: {', '.join(fields)}")
        if value is None:
            continue
        made[key] = _typed(key, str(fields[key].type), value)
    return TrainConfig(**made)


def _typed(key: str, annotation: str, value: Any) -> Any:
    wrong = UsageError(f"the value of '{key}' is not of the right type: {value!r}")
    if annotation.startswith("Path"):
        if not isinstance(value, str | Path):
            raise wrong
        return Path(value).expanduser()
    if annotation == "bool" or isinstance(value, bool):
        if annotation != "bool" or not isinstance(value, bool):
            raise wrong
        return value
    kind = {"int": int, "float": float}.get(annotation.partition(" ")[0], str)
    if kind is str and not isinstance(value, str):
        raise wrong
    try:
        made = kind(value)
    except (TypeError, ValueError):
        raise wrong from None
    if kind is int and made != float(value):
        raise wrong
    return made
