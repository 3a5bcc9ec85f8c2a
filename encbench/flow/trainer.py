"""The state of a training and its loop; use :func:`encbench.flow.train.train`.

Everything random in a step follows from (seed, step) and is drawn for the whole batch, of which
each process takes its part. So a training that was stopped goes on exactly, and several
processes do what one does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint, load_weights, read_part, read_tensors, write_checkpoint
from ..distributed import Team, share_batch
from ..errors import DataError, EncbenchError, ModelError
from ..files import write_json
from ..images import is_whole
from ..progress import bar, log
from ..training import (
    load_state_tensors,
    set_learning_rate,
    state_tensors,
    trainable,
    warmup_cosine,
)
from . import checkpoint as files
from .config import TrainConfig
from .data import ImageSet, ImagesInMemory, Pairs, load_batches, picks
from .dit import DiT
from .ema import EMA
from .features import Bank, Features, check_fits
from .grids import write_grid
from .latents import LatentsInMemory, with_latents
from .lora import frozen_weights, pin_frozen
from .loss import LossModule, LossTerms
from .meanflow import Condition
from .meters import LOG, Log, Meters, Spikes
from .networks import (
    build_network,
    build_objective,
    build_optimizers,
    build_space,
    build_time_sampler,
    calibrate,
    sana_config,
    statistics_pin,
)
from .objectives.base import UNIFORM
from .objectives.flow_matching import FlowMatching
from .sample import Instantaneous
from .sharding import clip, recompute_activations, shard, spread, whole
from .trackers import Trackers

CALIBRATION = 1024  # captions whose features even out the connector's input
WHITENING = 4096  # captions that whiten it: more than a pooled vector has dimensions


@dataclass(frozen=True)
class TrainingResult:
    """A finished training: its final checkpoint, the parent from the switch, and its speed."""

    path: Path
    parent: Path | None
    steps: int
    seconds: float


class Moment(NamedTuple):
    """What a callback gets after a step: networks to look at, not to change.

    ``instantaneous`` is True while only r = t has been trained: sample a
    :class:`~encbench.flow.sample.Instantaneous` network then.
    """

    step: int
    net: nn.Module
    ema: nn.Module
    space: Any
    instantaneous: bool

    @property
    def network(self) -> nn.Module:
        """The network to sample: the running mean, asked for what has been trained so far."""
        return Instantaneous(self.ema) if self.instantaneous else self.ema


class Trainer:
    """The state of a training. Use :func:`train`."""

    def __init__(
        self,
        config: TrainConfig,
        team: Team,
        data: ImageSet,
        features: Features,
        revision: str = "",
        init_backbone: Path | None = None,
        init: Path | None = None,
    ) -> None:
        self.config, self.team = config, team
        self.ancestor = init or config.out / files.PARENT
        self.device = team.device
        self.part = share_batch(config.batch, config.accumulate, team.size)
        self.space = build_space(config, self.device)
        self.data, self.features = data, features
        if self.device.type == "cuda" and isinstance(features, Bank):
            self.features = features.to(self.device)
        net = build_network(config, tuple(self.space.shape), features.widths)
        if init_backbone is not None:
            net.load_backbone(read_tensors(init_backbone))  # type: ignore[operator]
        self.sharded = config.shard and team.size > 1
        # what is sharded need not fit one device: it goes there in parts
        self.net = net if self.sharded else net.to(self.device)
        self._calibrate()
        if init is not None:
            _load_averaged(self.net, init)
        self.encoder = files.EncoderState(
            config.encoder, revision, *features.widths, statistics_pin(self.net)
        )
        self.frozen = pin_frozen(self.net)
        decays = {"ema": config.ema} | {f"ema-{decay:g}": decay for decay in config.more_ema}
        self.means = {name: EMA(self.net, decay) for name, decay in decays.items()}
        self.ema = self.means["ema"]
        plain = FlowMatching(weight_power=config.weight_power, weight_eps=config.weight_eps)
        self.objectives = (plain, build_objective(config, self.device))
        self.times = build_time_sampler(config)
        self.meters = Meters(self.device, team.size)
        self.spikes = Spikes(config.spike)
        self.step, self.seconds = 0, 0.0
        self.batches: Generator[Pairs, None, None]
        self.resumed = self._resume()
        team.check_same(self.step, f"checkpoints in {config.out}")
        if self.sharded:
            for part in (self.net, *(mean.module for mean in self.means.values())):
                shard(part, self.device)
        if config.recompute:
            recompute_activations(self.net)
        self.named = trainable(self.net)
        self.optimizers = build_optimizers(config, self.net)
        if self.resumed is not None and self.resumed.name != files.FINAL:
            self._load_optimizers(self.resumed)
        compiled: Any = torch.compile(self.net) if config.compile else self.net
        self.loss = LossModule(compiled, self.objectives[0])
        self.loss.same_calls = self.sharded
        unused = bool(getattr(net, "velocity_head", False))
        self.wrapped: nn.Module = self.loss
        if not self.sharded:
            self.wrapped = team.wrap(self.loss, unused=unused)
        self.bf16 = config.precision == "bf16" or (
            config.precision == "auto" and self.device.type == "cuda"
        )

    # ------------------------------------------------------------------------- the loop

    def run(self, callback: Callable[[Moment], None] | None, at: frozenset[int]) -> TrainingResult:
        config = self.config
        writer = self._open_log() if self.team.leads else None
        self.data = with_latents(config, self.data, self.space)
        cuda = self.device.type == "cuda"
        if cuda and isinstance(self.data, ImagesInMemory | LatentsInMemory):
            self.data = self.data.to(self.device)  # so that no step waits for a copy
        logged, begun = self.step, time.perf_counter()
        steps = range(self.step, config.steps)
        chosen = (picks(self.data, n, config.batch, config.seed, config.flip) for n in steps)
        mine = (picked.part(part) for picked in chosen for part in self._parts())
        self.batches = load_batches(self.data, mine, config.workers, pin=cuda)
        try:
            with bar(f"training {config.out.name}", config.steps) as advance:
                advance(self.step)
                while self.step < config.steps:
                    problem = self._step()
                    self.step += 1
                    advance(1)
                    if problem is not None:
                        self._skipped(problem, writer)
                    if self._due(config.log_every):
                        now = time.perf_counter()
                        self._log(writer, self.step - logged, now - begun)
                        self.seconds += now - begun
                        logged, begun = self.step, now
                    if self.step == config.switch and self.step < config.steps:
                        self.save(config.out / files.PARENT, resumable=False)
                    if self._looks and self._due(config.sample_every):
                        self._samples(writer)
                    if callback is not None and self._looks and self.step in at:
                        callback(self._moment())
                    # after all else of this step, which a training that goes on from here lacks
                    if self._due(config.checkpoint_every):
                        spent = time.perf_counter() - begun
                        self.save(config.out / files.FOLDER / f"{self.step:08d}", spent)
                        if self.team.leads:
                            files.remove_old(config.out, config.keep)
            self.seconds += time.perf_counter() - begun
            if self._looks and not is_whole(grid_path(config, self.step)):
                self._samples(writer)
            path = config.out / files.FINAL
            if self.resumed != path:
                self.save(path, resumable=False)
                if self.team.leads:
                    files.remove_old(config.out, config.keep)
        finally:
            self.batches.close()
            if writer is not None:
                writer.close()
        return result_of(config.out, self.step, self.seconds)

    def _parts(self) -> list[slice]:
        """This process's part of each part of a batch."""
        firsts = (
            (part * self.team.size + self.team.rank) * self.part
            for part in range(self.config.accumulate)
        )
        return [slice(first, first + self.part) for first in firsts]

    def _step(self) -> str | None:
        """One step of the optimizer; or why it was skipped, in words."""
        config, number = self.config, self.step
        if number == config.switch:
            self.spikes.norms = []  # what is usual is another thing from here on
        self.loss.objective = self.objectives[number >= config.switch]
        later = (number - config.switch) / max(config.steps - config.switch, 1)
        self.loss.warmth = min(1.0, later / config.tangent_warmup) if config.tangent_warmup else 1.0
        self.loss.parent = self._parent if 0 <= later < config.parent_target else None
        set_learning_rate(self.optimizers, config.lr * self._rate_share(number))
        draw = torch.Generator().manual_seed(_mixed(config.seed, number, 0))
        on_device = torch.Generator(self.device).manual_seed(_mixed(config.seed, number, 1))
        r, t = self.times.sample(config.batch, number / config.steps, draw)
        drop = torch.rand(config.batch, generator=draw) < config.condition_dropout
        uniform = torch.rand(config.batch, UNIFORM, generator=draw)
        noise = torch.randn(
            (config.batch, *self.space.shape), generator=on_device, device=self.device
        )
        total = torch.zeros((), device=self.device)
        for part, mine in enumerate(self._parts()):
            pixels, texts = next(self.batches)
            x = self._encoded(pixels)
            cond = self.features.conditions(texts, self.device)
            rows = [each[mine].to(self.device) for each in (r, t, drop, uniform)]
            with self.team.quiet(self.wrapped, when=part + 1 < config.accumulate):
                terms = self._forward(x, cond, noise[mine], *rows)
                self.team.backward(terms.loss / config.accumulate)
            total += terms.loss.detach() / config.accumulate
            self.meters.add(terms, rows[1], 1 / config.accumulate)
        norm = clip(self.named.values(), config.clip or math.inf)
        loss = self.team.total(total) / self.team.size
        found = torch.stack([loss.double(), norm.double()]).tolist()
        problem = self.spikes.judge(*found)
        if problem is None:
            for optimizer in self.optimizers:
                optimizer.step()
            for mean in self.means.values():
                mean.update(self.net)
        for p in self.named.values():
            p.grad = None
        self.meters.end_step(found[1])
        return problem

    def _forward(self, x: Tensor, cond: Condition, *rows: Tensor) -> LossTerms:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            terms: LossTerms = self.wrapped(x, cond, *rows)
            return terms

    @cached_property
    def _frozen(self) -> nn.Module:
        shape, widths = tuple(self.space.shape), self.features.widths
        net = build_network(self.config, shape, widths, sana_config(self.net))
        _load_averaged(net, self.ancestor)
        net = net.eval().requires_grad_(False)
        if self.sharded:
            shard(net, self.device)
        return net.to(self.device)

    def _parent(self) -> nn.Module:
        """The running mean at the switch, from its checkpoint."""
        return self._frozen

    def _encoded(self, pixels: Tensor) -> Tensor:
        """Pixels as the network takes them; latents that were made before are so already."""
        here = pixels.to(self.device, non_blocking=True)
        encoded: Tensor = here if here.is_floating_point() else self.space.encode(here / 255)
        return encoded

    @property
    def _looks(self) -> bool:
        """Whether this process runs the network to look at it. One that is sharded runs in all."""
        return self.team.leads or self.sharded

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _rate_share(self, step: int) -> float:
        config = self.config
        return warmup_cosine(step, config.steps, config.warmup, config.lr_end)

    # --------------------------------------------------------------- what is written down

    def _open_log(self) -> Log:
        config, values = self.config, self.config.as_dict()
        write_json(config.out / "config.json", values)
        cpu = self.device.type == "cpu"
        trackers = Trackers(config.report_to, config.out, self.step, values, cpu=cpu)
        return Log(config.out, self.step, self.resumed, trackers)

    def _log(self, writer: Log | None, steps: int, seconds: float) -> None:
        config = self.config
        row = self.meters.row(self.team.total)
        speed = steps / max(seconds, 1e-9)
        row = {
            "step": self.step,
            "stage": "flow-matching" if self.step <= config.switch else config.objective,
            **row,
            "lr": config.lr * self._rate_share(self.step - 1),
            "skipped": self.spikes.skipped,
            "images_per_second": speed * config.batch,
            "seconds_left": (config.steps - self.step) / speed,
        }
        if writer is not None:
            writer.write(row)

    def _skipped(self, problem: str, writer: Log | None) -> None:
        config = self.config
        log.warning("step %d is skipped: %s", self.step, problem)
        if writer is not None:
            writer.write({"step": self.step, "skipped_because": problem})
        if self.spikes.in_a_row >= config.patience:
            kept = files.latest(config.out)
            raise EncbenchError(
                f"the training does not recover: {self.spikes.in_a_row} steps in a row were "
                f"skipped up to step {self.step} ({problem}); train into another --out with a "
                f"lower --lr (now {config.lr:g}) or more --flow-matching (now "
                f"{config.flow_matching:g})"
                + (f"; the last good checkpoint is {kept}" if kept else "")
            )

    def save(self, path: Path, spent: float = 0.0, *, resumable: bool = True) -> Path:
        """Write a checkpoint with the log up to it, in the first process; one that is only kept
        for its weights holds no state of the optimizer."""
        meters = self.meters.state(self.team.total)
        if self._looks:
            left_out = frozen_weights(self.net).keys()
            held = self.net.state_dict()
            tensors = {"model": {n: held[n] for n in held if n not in left_out}}
            tensors |= {name: mean.state_dict() for name, mean in self.means.items()}
            if resumable:
                tensors["optimizer"] = state_tensors(self.optimizers, self.named)
            if self.sharded:
                tensors = {part: whole(held, self.team.leads) for part, held in tensors.items()}
        if self.team.leads:
            state = files.TrainingState(
                self.step, self.step <= self.config.switch, self.config.as_dict(), self.encoder,
                files.DataState(self.data.name, self.data.pin), self.seconds + spent, meters,
                self.spikes.state(), sana_config(self.net), self.frozen,
            )  # fmt: skip
            logged = {LOG: (self.config.out / LOG).read_bytes()}
            write_checkpoint(path, Checkpoint(tensors, asdict(state), logged))
        self.team.wait()
        return path

    def _resume(self) -> Path | None:
        """Go on from the newest whole checkpoint, if there is one; its path. Optimizers follow
        in :meth:`_load_optimizers`, once there are some."""
        path = files.latest_whole(self.config.out)
        if path is None:
            return None
        state = files.read_state(path)
        self._check(state)
        files.check_frozen(path, state, self.frozen)
        tensors = frozen_weights(self.net) | read_part(path, "model")
        load_weights(self.net, tensors, path / "model.safetensors")
        files.check_statistics(path, state, statistics_pin(self.net))
        self.encoder = replace(self.encoder, statistics=state.encoder.statistics)
        for name, mean in self.means.items():
            mean.load_state_dict(read_part(path, name), path / f"{name}.safetensors")
        self.step, self.seconds = state.step, state.seconds
        if self.team.leads:
            self.meters.load(state.meters)
        self.spikes.load(state.spikes)
        log.info("resuming at step %d of %d", self.step, self.config.steps)
        return path

    def _load_optimizers(self, path: Path) -> None:
        tensors = read_part(path, "optimizer")
        if self.sharded:
            like = {key: self.named.get(key.rpartition("|")[0], tensors[key]) for key in tensors}
            tensors = {key: spread(tensor, like[key]) for key, tensor in tensors.items()}
        load_state_tensors(self.optimizers, self.named, tensors, path / "optimizer.safetensors")

    def _check(self, state: files.TrainingState) -> None:
        """Raise unless a checkpoint is of this very training."""
        out, encoder = self.config.out, state.encoder
        if state.data.pin != self.data.pin:
            raise DataError(
                f"the images or captions are not those that {out} was started with "
                f"({state.data.name}); choose another --out"
            )
        widths = self.features.widths
        check_fits(widths, encoder.tokens, encoder.pooled, self.config.encoder, str(out))
        if encoder.revision != self.encoder.revision:
            raise ModelError(
                f"the weights of {self.config.encoder} are not those that {out} was started with "
                f"(revision {encoder.revision[:12]}); choose another --out"
            )

    # ---------------------------------------------------------------------------- samples

    def _moment(self) -> Moment:
        ema = self.ema.network(self.net)
        early = self.step <= self.config.switch
        return Moment(self.step, self.net, ema, self.space, early)

    def _samples(self, writer: Log | None) -> None:
        if not self.config.sample_prompts:
            return
        numbers = np.linspace(0, len(self.data.of) - 1, self.config.sample_prompts).astype(int)
        texts = np.array([self.data.of[i][0] for i in numbers])
        pixels = write_grid(
            grid_path(self.config, self.step) if self.team.leads else None,
            self._moment().network,
            self.space,
            self.features.conditions(texts, self.device),
            [self.data.texts[i] for i in texts],
            seed=self.config.seed,
        )
        if writer is not None:
            writer.image("samples", pixels, self.step)

    def _calibrate(self) -> None:
        """Even out the connector's input over captions spread over the set."""
        scaling, count = self.config.condition_scaling, len(self.data.texts)
        if scaling != "none":
            wanted = min(count, WHITENING if scaling == "whitened" else CALIBRATION)
            numbers = np.linspace(0, count - 1, wanted).astype(np.int64)
            here = next(self.net.parameters()).device
            cond = self.features.conditions(numbers, self.device).to(here)
            calibrate(self.net, cond, self.config.encoder)


def _load_averaged(net: nn.Module, path: Path) -> None:
    state = frozen_weights(net) | read_part(path, "model") | EMA.weights(read_part(path, "ema"))
    state = net.with_head(state) if isinstance(net, DiT) else state
    load_weights(net, state, path / "ema.safetensors")


def grid_path(config: TrainConfig, step: int) -> Path:
    """The sample grid of a step."""
    return config.out / "samples" / f"{step:08d}.png"


def result_of(out: Path, steps: int, seconds: float) -> TrainingResult:
    """A finished training, from its folder."""
    parent = out / files.PARENT
    return TrainingResult(out / files.FINAL, parent if parent.is_dir() else None, steps, seconds)


def _mixed(seed: int, step: int, stream: int) -> int:
    """One seed for a step's draws of one kind."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0] >> 1)
