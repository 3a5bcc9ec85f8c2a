"""Train a few-step model: flow matching first, then MeanFlow, with any encoder's features as
condition."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from pathlib import Path

import torch

from ..device import choose_device, is_out_of_memory
from ..distributed import Team
from ..errors import EncbenchError, ProcessError, UsageError
from ..group import LOST, is_lost
from ..images import is_whole
from ..lock import lock_folder
from ..progress import log
from . import checkpoint as files
from .config import TrainConfig
from .data import ImageSet, load_training_images
from .features import Encoded, Features, PromptEncoder
from .meters import read_log
from .networks import check_objective
from .sharding import check_sharding
from .trackers import check_trackers
from .trainer import Moment, Trainer, TrainingResult, grid_path, result_of

IN_MEMORY = 4 << 30  # bytes of text features above which they are encoded as they are needed
TOKEN_GUESS = 24  # tokens of a caption, before any was encoded

__all__ = ["Moment", "Trainer", "TrainingResult", "train"]


def train(
    config: TrainConfig,
    *,
    data: ImageSet | None = None,
    features: Features | None = None,
    revision: str = "",
    device: torch.device | None = None,
    alone: bool = False,
    init_backbone: Path | None = None,
    init: Path | None = None,
    callback: Callable[[Moment], None] | None = None,
    at: Collection[int] = (),
) -> TrainingResult:
    """Train; resume a training that was stopped; return at once if it is finished.

    Args:
        config: everything that the weights depend on.
        data: images with captions; read as the configuration says if None.
        features: of ``data.texts`` by their numbers; encoded if None.
        revision: of the encoder, where ``features`` are given.
        device: where to compute, in place of the configuration's.
        alone: in this process only, even under ``accelerate launch``.
        init_backbone: safetensors file of :meth:`DiT.backbone_state` to begin with.
        init: checkpoint whose averaged weights to begin with, all of them; the parent of
            ``parent_target`` is then this one.
        callback: called in the first process after the steps in ``at`` (counted from 1), again
            after those that are repeated because the training was stopped; in every process if
            the network is sharded.

    Raises:
        UsageError: if the folder holds a training with other settings, or a setting is wrong.
        MissingLibraryError: if a tracker is not installed.
        FolderInUseError: if another process trains in the folder.
        DataError: if images are not there or too many cannot be read.
        StoreError: if the disk is full; the last checkpoint stays.
        ProcessError: if another process is lost, or sees other files.
        EncbenchError: if the loss is not finite or the gradient too large for
            ``config.patience`` steps in a row, or there is too little memory.
    """
    check_objective(config)
    check_sharding(config)
    check_trackers(config.report_to)
    with (
        Team(device or choose_device(config.device), alone=alone) as team,
        lock_folder(config.out) if team.leads else nullcontext(),
    ):
        finished = _find_finished(config)
        if finished is not None:
            if team.leads:  # a kill may have come after the last checkpoint was written
                files.remove_old(config.out, config.keep)
            return finished
        data = data or load_training_images(config)
        for note in data.notes:
            log.info("%s: %s", data.name, note)
        encoder: PromptEncoder | None = None
        if features is None:
            encoder = PromptEncoder(config.encoder, config.store, team.device, config.text_tokens)
            revision = encoder.revision
            with team.leader_first():
                features = _encode(encoder, data)
        trainer = Trainer(config, team, data, features, revision, init_backbone, init)
        try:
            return trainer.run(callback, frozenset(at))
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise EncbenchError(_too_large(config, team)) from error
            if is_lost(error):
                raise ProcessError(LOST) from error
            raise


def _find_finished(config: TrainConfig) -> TrainingResult | None:
    """The finished training in the folder, or None; raises if the folder holds one with other
    settings. If its log or last sample grid is lost, it is resumed at its end, which writes them
    again.
    """
    path = files.latest_whole(config.out)
    if path is None:
        return None
    state = files.read_state(path)
    differing = config.same_training(state.config)
    if differing:
        raise UsageError(
            f"{config.out} holds a training with other settings ({'; '.join(differing)}); choose "
            "another --out, or give the same settings to go on with it"
        )
    grid = grid_path(config, state.step)
    whole = (
        read_log(config.out) == (read_log(path) or read_log(config.out))
        and (config.out / "config.json").is_file()
        and (not config.sample_prompts or is_whole(grid))
    )
    if path.name != files.FINAL or not whole:
        return None
    log.info("%s is finished", config.out)
    return result_of(config.out, state.step, state.seconds)


def _encode(encoder: PromptEncoder, data: ImageSet) -> Features:
    size = 2 * len(data.texts) * TOKEN_GUESS * encoder.widths.tokens
    if size > IN_MEMORY:
        log.info(
            "%s texts are too many to keep in memory: encoding each batch when it is needed",
            f"{len(data.texts):,}",
        )
        return Encoded(encoder, data.texts)
    bank = encoder.bank(data.texts)
    encoder.release()
    return bank


def _too_large(config: TrainConfig, team: Team) -> str:
    parts = config.accumulate * 2
    while config.batch % (parts * team.size) and parts < config.batch:
        parts += 1
    return (
        f"out of memory on {team.device}: a part of a batch is "
        f"{config.batch // (config.accumulate * team.size)} images; take --accumulate {parts}, "
        f"which gives the same weights, or a lower --batch (now {config.batch}), a smaller "
        f"--network (now {config.network}) or --side (now {config.side})"
    )
