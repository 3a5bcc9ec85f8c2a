"""Images of prompts from a checkpoint: any number of steps, each image from its own seed.

An image depends on its prompt and seed alone. Its noise comes from a generator of its own, on
the CPU. Networks are run on batches of one size, filled up where there are fewer images, and
only prompts whose features are padded to the same length share one, so that no product has
another shape because of an image's neighbors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ..checkpoint import STATE, load_weights, read_part
from ..data.geneval import FREE, GenevalPrompt
from ..errors import DataError, EncbenchError, ModelError, UnknownNameError, UsageError
from ..files import digest, digest_files, read_lines
from . import checkpoint as files
from .checkpoint import EncoderState
from .config import TrainConfig, training_config
from .connector import connectors
from .ema import EMA
from .features import PAD, Bank, PromptEncoder, PromptFeatures, Widths, check_fits
from .lora import frozen_weights, merge_adapters, pin_frozen
from .meanflow import Condition, sample_flow, time_grid
from .networks import build_network, build_space, statistics_pin
from .objectives.guidance import check_span

BATCH = {"cpu": 16, "cuda": 64}
Encode = Callable[[Sequence[str]], Sequence[PromptFeatures]]


class Instantaneous(nn.Module):
    """A network evaluated at r = t, whatever the interval: the field that flow matching trains.
    Sample this one while only r = t has been trained."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.prediction = net.prediction

    def forward(self, z: Tensor, r: Tensor, t: Tensor, cond: Condition) -> Tensor:
        out: Tensor = self.net(z, t, t, cond)
        return out


class Guided(nn.Module):
    """A network that was trained with guidance as an input, with one guidance for all images."""

    def __init__(self, net: nn.Module, scale: float, span: Sequence[float]) -> None:
        super().__init__()
        self.net, self.guidance = net, (1 - 1 / scale, *span)
        self.prediction = net.prediction

    def forward(self, z: Tensor, r: Tensor, t: Tensor, cond: Condition) -> Tensor:
        out: Tensor = self.net(z, r, t, cond.guided(self.guidance))
        return out


@dataclass(frozen=True)
class Loaded:
    """A checkpoint ready to sample.

    Attributes:
        net: in evaluation mode; if ``instantaneous``, only its velocity at r = t is used.
        space: of its images or latents.
        config: of its training.
        step: of the training.
        fingerprint: sha256 over the weights and how they are used.
    """

    net: nn.Module
    space: Any
    config: TrainConfig
    encoder: EncoderState
    step: int
    instantaneous: bool
    fingerprint: str


def load_checkpoint(path: Path, device: torch.device, weights: str = "ema") -> Loaded:
    """Load a checkpoint, the newest one of a training's folder, or an exported DiT.

    Args:
        weights: 'ema', 'model', or 'ema-DECAY' for a further mean.

    Raises:
        UsageError: if it has no such weights.
        ModelError: if there is none, it is damaged, pickled or of another version.
    """
    from .export import is_export, load_export  # which loads checkpoints, too

    if is_export(path):
        if weights != "ema":
            raise UsageError(f"{path} was exported with one set of weights: leave out --weights")
        return load_export(path, device)
    path = files.find_checkpoint(path)
    state = files.read_state(path)
    try:
        config = training_config(state.config)
    except UsageError as error:
        raise ModelError(f"{path / STATE}: config: {error}") from error
    known = ("ema", "model", *(f"ema-{decay:g}" for decay in config.more_ema))
    if weights not in known:
        raise UnknownNameError("--weights", weights, known)
    space = build_space(config, device)
    widths = Widths(state.encoder.tokens, state.encoder.pooled)
    net = build_network(config, tuple(space.shape), widths, state.sana)
    files.check_frozen(path, state, pin_frozen(net))
    tensors, file = frozen_weights(net) | read_part(path, "model"), path / f"{weights}.safetensors"
    if weights != "model":
        tensors |= EMA.weights(read_part(path, weights))
    load_weights(net, tensors, file)
    files.check_statistics(path, state, statistics_pin(net))
    for connector in connectors(net):
        connector.fold_whitening()
    merge_adapters(net)
    net = net.to(device).eval().requires_grad_(False)
    if state.instantaneous:
        net = Instantaneous(net)
    fingerprint = digest([digest_files([file]), state.instantaneous])
    return Loaded(net, space, config, state.encoder, state.step, state.instantaneous, fingerprint)


@torch.no_grad()
def sample_images(
    net: nn.Module,
    space: Any,
    texts: Sequence[PromptFeatures],
    seeds: Sequence[int],
    *,
    steps: int | Sequence[float] = 4,
    guidance: float = 1.0,
    device: torch.device,
    batch: int | None = None,
) -> UInt8[Tensor, "N 3 H W"]:
    """One image for each text, from the noise of its seed.

    Args:
        texts: features of the prompts.
        steps: how many, or the times from 1 to 0.
        guidance: u(none) + guidance (u(c) - u(none)), both in one forward; 1 is none.
        batch: images that are computed together. Another number may change the last bits.
    """
    velocity: Any = net  # a module with what VelocityNet asks for
    size = batch or BATCH.get(device.type, 16)
    order = sorted(range(len(texts)), key=lambda i: _padded(texts[i]))
    images: list[Tensor | None] = [None] * len(texts)
    while order:
        length = _padded(texts[order[0]])
        rows = [i for i in order[:size] if _padded(texts[i]) == length]
        order = order[len(rows) :]
        filled = rows + [rows[-1]] * (size - len(rows))
        cond = Bank.of([texts[i] for i in filled]).conditions(np.arange(size), device)
        noise = torch.stack([noise_of(seeds[i], space.shape) for i in filled]).to(device)
        made = space.decode(sample_flow(velocity, cond, noise, steps, guidance=guidance))
        pixels = (made.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        for i, image in zip(rows, pixels[: len(rows)], strict=True):
            images[i] = image
    held = [image for image in images if image is not None]
    return torch.stack(held) if held else torch.zeros(0, 3, *space.shape[1:], dtype=torch.uint8)


def noise_of(seed: int, shape: Sequence[int]) -> Float[Tensor, "C H W"]:
    """The noise of one image: the same on every device."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def _padded(text: PromptFeatures) -> int:
    return -(-len(text.tokens) // PAD) * PAD


class Sampler:
    """``sampler(prompts, seeds)`` gives images, for :mod:`encbench.metrics.geneval.generate`.

    Args:
        model: a checkpoint.
        encode: prompts to features; by default the encoder that the model was trained with,
            one prompt at a time.
        steps, guidance: see :func:`sample_images`.

    Raises:
        EncbenchError: if the encoder does not fit the model.
    """

    def __init__(
        self,
        model: Loaded,
        device: torch.device,
        *,
        encode: Encode,
        steps: int | Sequence[float] = 4,
        guidance: float = 1.0,
    ) -> None:
        self.model, self.device, self.encode = model, device, encode
        self.steps, self.guidance = steps, guidance
        self._texts: dict[str, PromptFeatures] = {}

    @property
    def fingerprint(self) -> str:
        """Hash of everything that its images depend on: weights, encoder, steps and guidance."""
        steps = self.steps if isinstance(self.steps, int) else list(self.steps)
        return digest([self.model.fingerprint, asdict(self.model.encoder), steps, self.guidance])

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        new = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if new:
            self._texts |= dict(zip(new, self.encode(new), strict=True))
        pixels = sample_images(
            self.model.net,
            self.model.space,
            [self._texts[p] for p in prompts],
            seeds,
            steps=self.steps,
            guidance=self.guidance,
            device=self.device,
        )
        return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]


def load_sampler(
    path: Path,
    device: torch.device,
    *,
    weights: str = "ema",
    encoder: str | None = None,
    steps: int | Sequence[float] = 4,
    guidance: float = 1.0,
    guidance_span: Sequence[float] = (0.0, 1.0),
) -> Sampler:
    """A sampler from a training's folder or one checkpoint in it, with its own encoder.

    Args:
        encoder: its spec, if its files have moved since the training.
        weights, steps, guidance: see :func:`load_checkpoint` and :func:`sample_images`; a network
            with guidance as an input needs one forward, not two, and has a span of it.

    Raises:
        UsageError: if there is a span and no such input.
        EncbenchError: if there is no sound checkpoint, or the encoder does not fit it.
    """
    model = load_checkpoint(path, device, weights)
    check_span(tuple(guidance_span))
    if getattr(model.net, "guided", False) and guidance != 1:
        fingerprint = digest([model.fingerprint, guidance, list(guidance_span)])
        net = Guided(model.net, guidance, guidance_span)
        model, guidance = replace(model, net=net, fingerprint=fingerprint), 1.0
    elif tuple(guidance_span) != (0, 1):
        raise UsageError(
            "--guidance-span needs a network with guidance as an input (train --guidance-max) and "
            "a --guidance other than 1"
        )
    encode = encoder_for(model, device, encoder).alone
    return Sampler(model, device, encode=encode, steps=steps, guidance=guidance)


def encoder_for(model: Loaded, device: torch.device, spec: str | None = None) -> PromptEncoder:
    """The encoder that a model was trained with, or another one of the same spec and weights.

    Args:
        spec: in place of the training's, e.g. where its files lie elsewhere now.

    Raises:
        EncbenchError: if it gives other features than the model takes.
    """
    wanted = model.encoder
    encoder = PromptEncoder(spec or wanted.spec, None, device, model.config.text_tokens)
    what = "this checkpoint"
    check_fits(encoder.widths, wanted.tokens, wanted.pooled, encoder.spec, what)
    if wanted.revision and encoder.revision != wanted.revision:
        raise EncbenchError(
            f"the encoder {encoder.spec} has other weights (revision {encoder.revision[:12]}) than "
            f"the one that this checkpoint was trained with ({wanted.spec}, revision "
            f"{wanted.revision[:12]})"
        )
    return encoder


def text_prompts(given: str) -> list[GenevalPrompt]:
    """A text, or the lines of a .txt file, as prompts that ask for nothing that is scored.

    Raises:
        DataError: if the file cannot be read or holds no prompt.
    """
    path = Path(given)
    lines = [given]
    if path.suffix == ".txt":
        lines = read_lines(path, DataError)
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{given or '--prompts'} holds no prompt")
    return [GenevalPrompt(number, FREE, text, ()) for number, text in enumerate(texts)]


def parse_steps(text: str) -> int | tuple[float, ...]:
    """'4', times such as '1,.8,.4,0', or '4@3': four steps at times s t / (1 + (s - 1) t) with
    the shift s = 3 (SANA, arXiv 2410.10629; SD3, arXiv 2403.03206, Eq. 23).

    Raises:
        UsageError: if it is none of these.
    """
    try:
        count, at, shift = text.partition("@")
        if at and (s := float(shift)) > 0:
            return tuple(s * t / (1 + (s - 1) * t) for t in time_grid(int(count)))
        if "," not in text:
            return int(text)
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            "--steps must be a number of steps, times from 1 to 0 (1,.8,.4,0) or a number of steps "
            f"with a shift (4@3), not '{text}'"
        ) from None
