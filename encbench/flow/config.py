"""What a training and its samples depend on: frozen dataclasses with the keys of the flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .. import registry
from ..data.spec import DatasetSpec
from ..device import DEVICE_HELP
from ..errors import UsageError
from ..options import check_options, flag, from_values, option, to_values

DERIVATIVES = ("jvp", "central", "forward")

FREE = (
    "out", "device", "store", "keep", "log_every", "checkpoint_every", "sample_every",
    "sample_prompts", "max_broken", "workers", "report_to",
    "shard", "recompute",
)  # fmt: skip
"""Keys that may differ when a training is resumed: none of them changes a weight."""

LATER: Mapping[str, Any] = {
    "workers": 1, "data": None, "condition_scaling": "rms", "condition_pooled": "own",
    "guidance_span": [0.0, 1.0], "guidance_max": 1.0, "velocity_head": False, "head_depth": 0,
    "head_at": "interval", "head_weight": 1.0, "perceptual_below": 0.8, "weight_power": 1.0,
    "weight_eps": 1e-3, "r_mu": None, "r_sigma": None, "uniform_share": 0.0,
    "tangent_warmup": 0.0, "parent_target": 0.0, "more_ema": [], "sana_times": "scaled",
    "flip": False, "report_to": ["tensorboard"], "shard": False, "recompute": False,
    "lora_rank": 16,
}  # fmt: skip
"""Keys that older files lack, with the value that means what those trainings did. A configuration
with that value is written without the key, so that its hashes stay."""

UNSAID_STEPS = {"jvp": 0.0, "central": 2**-10, "forward": 2**-11}
SANA_STEP = 2**-15
"""Of a difference in SANA's t: at its scale of time du/dt is steeper, and rounding sets the lower
end."""


def with_step(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored values of a training. Those that do not say the step of their difference are from
    when it was one of UNSAID_STEPS."""
    if values.get("derivative_step") is not None:
        return dict(values)
    sana = str(values.get("network", "")).startswith("sana:")
    mode = values.get("derivative", TrainConfig.derivative)
    step = SANA_STEP if sana and mode != "jvp" else UNSAID_STEPS[mode]
    return {**values, "derivative_step": step}


DATA, MODEL, TRAINING, RUN = "Data", "Network and objective", "Training", "Run"


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training depends on. Presets are functions that return values for it.

    Raises:
        UsageError: naming the option, for what can be checked without looking at any file.
    """

    encoder: str = option(
        "control:word-position",
        "Text encoder whose features are the condition, such as clip:ViT-L-14/openai, st:FOLDER "
        "or control:word-position. See: encbench list encoders.",
    )
    out: Path = option(Path("runs/train"), "Folder of the training: checkpoints, log and samples.")
    data: str | None = option(
        None,
        "Dataset to train on, such as coco:FOLDER, folder:FOLDER, scenes:scenes-easy or one of "
        "another package. See: encbench list datasets.",
        DATA, metavar="SPEC",
    )  # fmt: skip
    world: str = option(
        "scenes", "World of the embedded scenes: scenes, scenes-easy or scenes-grid.", DATA
    )
    images: int = option(
        20_000,
        "Number of scenes to draw; with image files, use at most this many (0: all).",
        DATA, least=0,
    )  # fmt: skip
    captions: int = option(2, "Captions of each scene.", DATA, least=1)
    long_share: float = option(
        0.25, "Share of a scene's captions that are long.", DATA, least=0, most=1
    )
    folder: Path | None = option(
        None,
        "Folder of images with captions: a .txt beside each image (one caption a line), or one "
        "captions.jsonl with file_name and text.",
        DATA,
    )
    coco: Path | None = option(None, "COCO folder.", DATA)
    coco_split: str | None = option(None, "Split of COCO, such as train2017.", DATA)
    max_broken: int = option(
        10, "Stop if more images than this cannot be read; fewer are skipped.", DATA, least=0
    )
    workers: int = option(
        1,
        "Processes that read image files ahead of the training; 0: none. The result does not "
        "depend on it. With several training processes, each starts this many.",
        DATA, least=0,
    )  # fmt: skip
    side: int = option(32, "Side of the images, in pixels.", DATA, least=1)
    flip: bool = option(
        False,
        "Mirror each image left to right with probability 1/2 each time it is used; leave it off "
        "where captions say left or right.",
        DATA,
    )
    autoencoder: str | None = option(
        None,
        "Train in the latents of this diffusers AutoencoderDC or AutoencoderKL (folder or hub id) "
        "instead of pixels.",
        DATA,
    )
    network: str = option(
        "dit-3m",
        "dit-1m, dit-3m, dit-10m, dit-35m, dit-150m, dit-WIDTHxDEPTHxHEADS such as dit-96x5x3, or "
        "a pretrained SANA as sana:FOLDER or sana:HUB-ID.",
        MODEL,
    )
    patch: int | None = option(
        None, "Patch size of the DiT; by default at most 64 patches an image.", MODEL, least=1
    )
    trainable: str = option(
        "all",
        "What to train of a pretrained SANA, besides the connector: all, emf (blocks and time "
        "embeddings, as EMF does), lora (low-rank adapters of its attention) or connector (nothing "
        "else).",
        MODEL, choices=("all", "emf", "lora", "connector"),
    )  # fmt: skip
    lora_rank: int = option(16, "Rank of the adapters of --trainable lora.", MODEL, least=1)
    sana_times: str = option(
        "unscaled",
        "How times enter a SANA: unscaled (as in EMF's code), scaled (times 1,000; equals the "
        "parent's network at r = t) or rescaled (an embedding of t in [0, 1], fitted to the "
        "parent's; start with flow matching).",
        MODEL, choices=("unscaled", "scaled", "rescaled"),
    )  # fmt: skip
    prediction: str = option(
        "x", "What the network predicts: x (the image) or u (the average velocity).", MODEL,
        choices=("x", "u"),
    )  # fmt: skip
    objective: str = option(
        "emf",
        "Objective after the initial flow matching: meanflow, emf, imf or pmf; or flow-matching "
        "for the whole training.",
        MODEL, choices=partial(registry.names, "objective"),
    )  # fmt: skip
    derivative: str = option(
        "central",
        "How du/dt is computed: jvp (exact), or a central or forward difference.",
        MODEL, choices=DERIVATIVES,
    )  # fmt: skip
    derivative_step: float | None = option(
        None, "Step of the difference, in units of t.", MODEL, above=0,
        shown="2^-12 central, 2^-13 forward, 2^-15 for a SANA",
    )  # fmt: skip
    omega: float = option(1.0, "Scale of the guidance inside MeanFlow's target; 1: none.", MODEL)
    kappa: float = option(0.0, "Mixing scale of the guidance inside the target; 0: none.", MODEL)
    guidance_span: tuple[float, ...] = option(
        (0.0, 1.0), "The two times t between which the target contains guidance.", MODEL,
        least=0, most=1,
    )  # fmt: skip
    guidance_max: float = option(
        1.0,
        "Draw a guidance scale from 1 to this and a span for each sample, as inputs of the network "
        "(iMF, pMF); 1: none. Sampling then takes any scale and span in one forward pass.",
        MODEL, least=1,
    )  # fmt: skip
    velocity_head: bool = option(
        False,
        "Add a head for the instantaneous velocity to the network of imf; pmf always has one.",
        MODEL,
    )
    head_depth: int = option(
        0, "Blocks used by the velocity head only; it branches off this many before the end.",
        MODEL, least=0,
    )  # fmt: skip
    head_at: str = option(
        "interval",
        "Where the velocity head computes the tangent: interval, at (r, t) in the shared forward "
        "pass; or instant, at r = t in one more forward pass, which also gives the guidance, as "
        "in the authors' code.",
        MODEL, choices=("interval", "instant"),
    )  # fmt: skip
    head_weight: float = option(1.0, "Weight of the velocity head's loss.", MODEL, least=0)
    weight_power: float = option(
        1.0, "Power p of the adaptive weight 1 / (error + eps)^p; 0: none.", MODEL, least=0
    )
    weight_eps: float = option(1e-3, "The adaptive weight's eps.", MODEL, above=0)
    perceptual: str = option(
        "none",
        "Perceptual loss of the objective pmf: none, lpips, convnext or lpips+convnext.",
        MODEL,
    )
    perceptual_below: float = option(
        0.8, "Use the perceptual loss below this time t.", MODEL, least=0, most=1
    )
    times: str = option(
        "emf", "Sampler of (r, t): uniform, logit-normal or emf (a schedule).", MODEL,
        choices=partial(registry.names, "time-sampler"),
    )  # fmt: skip
    mu: float = option(-0.4, "Mean of logit-normal times.", MODEL)
    sigma: float = option(1.0, "Standard deviation of logit-normal times.", MODEL, above=0)
    r_mu: float | None = option(
        None, "Mean of one of the two logit-normal draws, usually that of r.", MODEL, shown="--mu"
    )
    r_sigma: float | None = option(
        None, "Standard deviation of that draw.", MODEL, above=0, shown="--sigma"
    )
    uniform_share: float = option(
        0.0, "Share of samples with uniform times (logit-normal and emf times).", MODEL,
        least=0, most=1,
    )  # fmt: skip
    interval_share: float = option(
        0.5, "Share of samples with r != t (uniform and logit-normal times).", MODEL,
        least=0, most=1,
    )  # fmt: skip
    flow_matching: float = option(
        0.6, "Share of the training that is flow matching, at the start.", MODEL, least=0, most=1
    )
    tangent_warmup: float = option(
        0.0, "Share of the steps after flow matching over which du/dt fades in.", MODEL,
        least=0, most=1,
    )  # fmt: skip
    parent_target: float = option(
        0.0,
        "Share of the steps after flow matching in which the target uses the frozen parent's "
        "velocity instead of the data's where r < t.",
        MODEL, least=0, most=1,
    )  # fmt: skip
    steps: int = option(2000, "Optimizer steps.", TRAINING, least=1)
    batch: int = option(
        128, "Images per step, counting all processes and accumulated parts.", TRAINING, least=1
    )
    accumulate: int = option(
        1, "Compute a batch in this many parts to save memory.", TRAINING, least=1
    )
    optimizer: str = option(
        "adamw", "adamw, or muon for the blocks' matrices with AdamW for the rest.", TRAINING,
        choices=("adamw", "muon"),
    )  # fmt: skip
    lr: float = option(1e-3, "Peak learning rate.", TRAINING, above=0)
    warmup: int = option(100, "Steps of warm-up to the peak learning rate.", TRAINING, least=0)
    lr_end: float = option(
        0.05, "Share of the peak learning rate at the end (cosine).", TRAINING, least=0, most=1
    )
    beta1: float = option(0.9, "Beta 1 of AdamW.", TRAINING, least=0, below=1)
    beta2: float = option(0.95, "Beta 2 of AdamW.", TRAINING, least=0, below=1)
    weight_decay: float = option(0.0, "Decoupled weight decay of AdamW.", TRAINING, least=0)
    clip: float = option(1.0, "Largest gradient norm; 0: no clipping.", TRAINING, least=0)
    ema: float = option(
        0.999, "Decay of the exponential moving average of the weights.", TRAINING,
        least=0, below=1,
    )  # fmt: skip
    more_ema: tuple[float, ...] = option(
        (), "More decays to keep averages for; sample one with --weights ema-0.99.",
        TRAINING, least=0, below=1,
    )  # fmt: skip
    condition_dropout: float = option(
        0.1, "Share of conditions that are replaced by zeros.", TRAINING, least=0, most=1
    )
    condition_scaling: str = option(
        "rms",
        "How the encoder's features are scaled before the connector: none, rms (each dimension to "
        "root mean square 1) or whitened (to a covariance of 1), with statistics of the "
        "training captions.",
        TRAINING, choices=("none", "rms", "whitened"),
    )  # fmt: skip
    condition_pooled: str = option(
        "own",
        "One vector for the whole caption: own (the encoder's pooled vector, where it has one) or "
        "mean (the mean over the connector's tokens).",
        TRAINING, choices=("own", "mean"),
    )  # fmt: skip
    text_tokens: int = option(128, "Use at most this many tokens of a caption.", TRAINING, least=1)
    spike: float = option(
        20.0,
        "Skip a step whose gradient norm is this many times the recent median.",
        TRAINING, above=1,
    )  # fmt: skip
    patience: int = option(
        20, "End the training after this many skipped steps in a row.", TRAINING, least=1
    )
    precision: str = option(
        "auto", "auto (bf16 on CUDA, else fp32), fp32, or bf16 (autocast; weights stay fp32).",
        TRAINING, choices=("auto", "fp32", "bf16"),
    )  # fmt: skip
    shard: bool = option(
        False,
        "Split weights, gradients and optimizer state over the processes of a launch (FSDP2), "
        "for networks too large for one GPU; else each process holds all of them (DDP).",
        TRAINING,
    )  # fmt: skip
    recompute: bool = option(
        False,
        "Compute activations again in the backward pass (activation checkpointing): less memory, "
        "about a third more time.",
        TRAINING,
    )  # fmt: skip
    compile: bool = option(False, "Compile the network with torch.compile.", TRAINING)
    log_every: int = option(50, "Steps between lines of the log; 0: none.", RUN, least=0)
    checkpoint_every: int = option(
        500, "Steps between checkpoints; 0: only at the end.", RUN, least=0
    )
    sample_every: int = option(500, "Steps between sample grids; 0: only at the end.", RUN, least=0)
    sample_prompts: int = option(6, "Prompts of a sample grid.", RUN, least=0)
    report_to: tuple[str, ...] = option(
        ("tensorboard",),
        "Trackers that show the log: tensorboard, wandb, trackio and mlflow (pip install NAME), or "
        "none. log.jsonl is always written.",
        RUN, choices=("tensorboard", "wandb", "trackio", "mlflow", "none"),
    )  # fmt: skip
    keep: int = option(
        1, "Latest checkpoints to keep, beside the parent and the final one.", RUN, least=1
    )
    seed: int = option(0, "Random seed.", RUN, least=0)
    device: str = option("auto", DEVICE_HELP, RUN)
    store: Path | None = option(
        None, "Folder of the embedding store.", RUN, shown="$ENCBENCH_CACHE/store"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if sum(source is not None for source in (self.data, self.coco, self.folder)) > 1:
            raise UsageError(
                "more than one of --data, --coco and --folder is given; a training has one dataset"
            )
        if self.batch % self.accumulate:
            raise UsageError(
                f"--batch {self.batch} is not a multiple of --accumulate {self.accumulate}"
            )

    @property
    def dataset(self) -> DatasetSpec:
        """The dataset that the options name; the embedded scenes if they name none."""
        if self.data is not None:
            return DatasetSpec.parse(self.data)
        if self.folder is not None:
            return DatasetSpec("folder", str(self.folder))
        if self.coco is not None:
            split = (("split", self.coco_split),) if self.coco_split else ()
            return DatasetSpec("coco", str(self.coco), options=split)
        options = (("captions", str(self.captions)), ("long", str(self.long_share)))
        return DatasetSpec("scenes", self.world, options=options)

    @property
    def switch(self) -> int:
        """The step at which flow matching ends; ``steps`` if it never does."""
        if self.objective == "flow-matching":
            return self.steps
        return round(self.flow_matching * self.steps)

    @property
    def difference_step(self) -> float | None:
        """The step of the difference, where it is one."""
        from .derivative import STEPS  # loads torch

        if self.derivative_step is not None or self.derivative == "jvp":
            return self.derivative_step
        steep = self.network.startswith("sana:") and self.sana_times == "scaled"
        return SANA_STEP if steep else STEPS[self.derivative]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, paths as text, the difference's step written out; see :data:`LATER`."""
        values = to_values(self) | {"derivative_step": self.difference_step}
        if not self.network.startswith("sana:"):
            values["sana_times"] = LATER["sana_times"]  # means nothing there
        return {k: v for k, v in values.items() if k not in LATER or v != LATER[k]}

    def same_training(self, other: Mapping[str, Any]) -> list[str]:
        """What differs from the stored values of another one, in words; keys in FREE aside."""
        mine, theirs = (with_step({**LATER, **one}) for one in (self.as_dict(), other))
        return [
            f"{flag(key)} was {theirs.get(key)}, is {mine[key]}"
            for key in mine
            if key not in FREE and mine[key] != theirs.get(key)
        ]


def training_config(values: Mapping[str, Any]) -> TrainConfig:
    """A configuration from plain values; see :func:`~encbench.options.from_values`."""
    return from_values(TrainConfig, values)


@dataclass(frozen=True)
class SampleConfig:
    """What ``encbench sample`` is asked for.

    Raises:
        UsageError: naming the option.
    """

    checkpoint: Path = option(
        MISSING, "Folder of a training, or one checkpoint in it.", argument=True
    )
    prompts: str = option(
        MISSING,
        "A prompt, a .txt file (one prompt a line), or a .jsonl file of GenEval prompts (see: "
        "encbench geneval prompts).",
    )
    out: Path = option(MISSING, "Folder for the images, in GenEval's layout.")
    steps: str = option(
        "4",
        "Number of sampling steps, or times from 1 to 0 such as 1,.8,.4,0; 4@3: four steps with "
        "SANA's shift of 3 towards the noise.",
    )
    guidance: float = option(
        1.0, "Scale of classifier-free guidance, which costs a second forward pass; 1: none."
    )
    images_per_prompt: int = option(4, "Images of each prompt.", least=1)
    weights: str = option(
        "ema", "ema (exponential moving average), model (the last step), or ema-DECAY for one "
        "of the decays of --more-ema.",
    )  # fmt: skip
    encoder: str | None = option(
        None, "Encoder spec, if its files have moved since the training.", shown="the training's"
    )
    seed: int = option(0, "Random seed of all images.", least=0)
    device: str = option("auto", DEVICE_HELP)
    guidance_span: tuple[float, ...] = option(
        (0.0, 1.0), "The two times t between which guidance applies, for a network trained with "
        "--guidance-max.",
        least=0, most=1,
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_options(self)
