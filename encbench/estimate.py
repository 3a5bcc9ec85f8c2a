"""What a run will do and cost, computed before it starts. For a hub id without a family the config
is downloaded; otherwise the hub is asked only for sizes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .bench import load_probes, read_images
from .config import RunConfig
from .context import Data, load_run_data
from .data.fetch import fetch_plan
from .data.hub import download_plan, parameters_in
from .data.hub_facts import facts_of
from .device import choose_device
from .encode import estimated_tokens
from .encoders import EncoderFamily, EncoderSpec, family_of
from .encoders.recipes import added_tokens
from .errors import DataError, EncbenchError, describe_error
from .pipeline import specs_of
from .presets import CAPTION_COUNTS
from .records import ConfirmPlan
from .vision import ReEncoderFamily, reencoder_family

CAPTION_TOKENS = 16  # a COCO caption with special tokens
PROMPT_TOKENS = 90  # a DPG-Bench prompt
DPG_PROMPTS = 1065
IMAGE_TOKENS = 200  # of a 224-pixel image at patch 16, registers included


@dataclass(frozen=True)
class PlannedEncoder:
    """One line of the plan.

    ``download`` in bytes (0 = at hand, None = unknown), ``seconds`` of computing (None where
    the number of parameters is not known before loading), ``problem`` in words.
    """

    spec: str
    download: int | None = 0
    parameters: int | None = None
    seconds: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class RunPlan:
    """What ``--dry-run`` prints.

    Attributes:
        tokens: to encode by each encoder, about.
        rate: measured floating-point operations a second of matrix products.
        download: bytes, as far as they are known.
        unknown_download: whether something of unknown size is to be downloaded, too.
        seconds: of computing at the measured rate, as far as they are known; the least.
        confirmation: the plan of the confirmation after it, if one was asked for.
    """

    encoders: tuple[PlannedEncoder, ...]
    reencoder: PlannedEncoder | None
    controls: tuple[str, ...]
    captions: int
    images: int
    long_prompts: int
    tokens: int
    device: str
    rate: float
    notes: tuple[str, ...]
    download: int
    unknown_download: bool
    seconds: float
    confirmation: ConfirmPlan | None = None


def plan_run(config: RunConfig) -> RunPlan:
    """Plan a run from its configuration, the data on disk and the cache; no model is loaded.

    Raises:
        UsageError: for a configuration that makes no sense. Missing adapters and missing data
            are part of the plan.
    """
    device = choose_device(config.device)
    notes: list[str] = []
    data = _data(config, notes)
    to_fetch = 0
    if data is not None and data.captions is not None:
        captions = [c.text for c in data.captions.captions]
        count = len(captions)
        images = sum(i.path is not None for i in data.captions.images)
        tokens = sum(map(estimated_tokens, captions))
        notes += [f"{data.captions.name}: {note}" for note in data.captions.notes]
    elif data is not None:
        count = images = tokens = 0
    else:
        count, images = CAPTION_COUNTS.get(config.coco_split or "", (0, 0))
        tokens = count * CAPTION_TOKENS
        if config.dataset is None and config.coco_split is not None:
            to_fetch = fetch_plan("coco", config.coco_split).bytes or 0
    if data is not None and data.prompts is not None:
        long_prompts = len(data.prompts.prompts)
        length = sum(estimated_tokens(p.text) for p in data.prompts.prompts)
    else:
        long_prompts = 0 if data is not None and config.dataset else DPG_PROMPTS
        length = long_prompts * PROMPT_TOKENS
    probes = load_probes(config)
    try:
        config.probe_options("reader")
    except DataError as error:
        notes.append(str(error))
    own = [int(getattr(probe, "own_texts", 0)) for probe in probes]  # and no others
    reads = {k for probe, n in zip(probes, own, strict=True) if not n for k in probe.spec.reads}
    count, tokens, images = (
        value if "captions" in reads else 0 for value in (count, tokens, images)
    )
    long_prompts, length = (value if "prompts" in reads else 0 for value in (long_prompts, length))
    # each long prompt itself; for the ablation its distractor, and every shortened version
    ablates = any(probe.spec.name == "ablation" for probe in probes)
    removed = [0.0, *_removed(config)] if ablates else []
    tokens += int(length * (1 + sum(1 - share for share in removed)))
    texts = count + long_prompts * (1 + len(removed))
    texts += sum(own)
    tokens += sum(own) * CAPTION_TOKENS
    rate = matrix_rate(device)
    specs = specs_of(config, known=False)
    controls = tuple(str(spec) for spec in specs if spec.family == "control")
    encoders = tuple(_encoder(s, tokens, texts, rate) for s in specs if s.family != "control")
    if any((spec.shuffled or spec).family == "python" for spec in specs):
        notes.append("python: encoders run the code that they name, with your permissions")
    shown = config.chosen_re_encoder != "none" and read_images(probes)
    reencoder = _reencoder(config, images, rate) if shown else None
    models = [*encoders, *([reencoder] if reencoder else [])]
    return RunPlan(
        encoders, reencoder, controls, count, images, long_prompts, tokens,
        device.type, rate, tuple(notes),
        download=to_fetch + sum(row.download or 0 for row in models),
        unknown_download=any(row.download is None for row in models),
        seconds=sum((row.seconds or 0.0 for row in models), 0.0),
    )  # fmt: skip


def matrix_rate(
    device: torch.device, size: int = 1024, clock: Callable[[], float] | None = None
) -> float:
    """Measured floating-point operations a second of a square matrix product, in the dtype
    that encoders use on the device by default (fp32 on a CPU, bf16 on a GPU).

    On a CPU it is computed from CPU time, so that other work on the machine matters little: the
    result is the rate of all threads on an idle machine.
    """
    on_cpu = device.type == "cpu"
    clock = clock or (time.process_time if on_cpu else time.perf_counter)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    size = 8192 if device.type == "cuda" else size
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        started = clock()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - started)
    return 2 * size**3 / best * (torch.get_num_threads() if on_cpu else 1)


def _data(config: RunConfig, notes: list[str]) -> Data | None:
    """The data, or None with a note that says how to get it."""
    wanted = config.coco_split if config.dataset is None else None
    if wanted is not None:  # a preset names a split, but its folder is not given yet
        notes.append(
            f"COCO {wanted} is needed and counted in: encbench data fetch coco --split {wanted} "
            "--to FOLDER, then --coco FOLDER"
        )
        if config.prompt_set is None:
            notes.append(
                "DPG-Bench is needed (some MB): encbench data fetch dpg --to FOLDER, then "
                "--dpg FOLDER/prompts"
            )
        return None
    try:
        return load_run_data(config)
    except DataError as error:
        notes.append(str(error))
        return None


def _removed(config: RunConfig) -> list[float]:
    """The share that is left out of each shortened version of a long prompt."""
    few = [s for s in config.shares if 0.25 <= s <= 0.75]
    settings = [0.5] * config.draws + [s for s in config.shares if s != 0.5]
    settings += few * len([p for p in config.places if p != "anywhere"])
    return settings + few * len([u for u in config.units if u != "words"])


def _encoder(spec: EncoderSpec, tokens: int, texts: int, rate: float) -> PlannedEncoder:
    try:
        family = family_of(spec)
        needed = family.requires(spec)
        tokens += texts * added_tokens(spec)
    except (Exception, SystemExit) as error:  # an encoder's code raises anything
        return PlannedEncoder(str(spec), download=None, problem=describe_error(error))
    known = facts_of(spec.source).parameters or _parameters_here(family, spec, needed)
    return _planned(str(spec), needed, tokens / rate, known)


def _reencoder(config: RunConfig, images: int, rate: float) -> PlannedEncoder | None:
    family, spec = reencoder_family(config.chosen_re_encoder)
    if not images and family.needs == "pixels":
        return None
    needed = family.requires(spec)
    known = _parameters_here(family, spec, needed)
    return _planned(str(spec), needed, IMAGE_TOKENS * images / rate, known)


def _parameters_here(
    family: EncoderFamily | ReEncoderFamily, spec: Any, needed: list[tuple[str, str | None]]
) -> int | None:
    """Parameters of a model that comes with encbench; None of any other."""
    if needed:
        return None
    try:
        folder = family.resolve(spec).path
    except (EncbenchError, SystemExit):
        return None  # the run tells why
    return None if folder is None else parameters_in(folder)


def _planned(
    spec: str, needed: list[tuple[str, str | None]], work: float, parameters: int | None = None
) -> PlannedEncoder:
    """
    Args:
        work: tokens over floating-point operations a second.
        parameters: that are used, if that is known; else all that its weights have.
    """
    plan = download_plan(needed, ask=True)
    rows = [row for row in plan if not row.cached]
    if parameters is None and all(row.parameters for row in plan):
        parameters = sum(row.parameters or 0 for row in plan) or None
    seconds = 2 * parameters * work if parameters else None
    unknown = [row.repo for row in rows if row.bytes is None]
    size = sum(row.bytes or 0 for row in rows)
    if unknown:
        problem = f"size of {', '.join(unknown)} is not known: the hub cannot be asked"
        return PlannedEncoder(spec, size or None, parameters, seconds, problem)
    return PlannedEncoder(spec, size, parameters, seconds)
