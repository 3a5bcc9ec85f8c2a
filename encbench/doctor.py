"""Is this machine ready? Each check says what it found and, if something is wrong, what to do."""

from __future__ import annotations

import importlib
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version

import psutil

from . import registry
from .data.hub import cache_dir
from .errors import EncbenchError
from .store import Store

LIBRARIES = {
    "torch": "torch", "torchvision": "torchvision", "transformers": "transformers",
    "open_clip": "open-clip-torch", "sentence_transformers": "sentence-transformers",
    "faiss": "faiss-cpu", "pycocotools": "pycocotools", "timm": "timm", "sklearn": "scikit-learn",
}  # fmt: skip


@dataclass(frozen=True)
class Check:
    what: str
    found: str
    good: bool = True


@dataclass(frozen=True)
class Checks:
    """All checks, whether all are good, and what to do ``next``."""

    checks: tuple[Check, ...]
    good: bool
    next: str


def examine() -> Checks:
    """All checks, in the order in which a reader wants them."""
    checks = [*_libraries(), _faiss(), _device(), _machine(), _cache(), _token(), *_registered()]
    wrong = [check.what for check in checks if not check.good]
    if wrong:
        text = f"Next: fix {', '.join(wrong)} as described above, then run encbench doctor again."
    else:
        text = "Next: encbench run --dry-run shows what a first ranking does and how long it takes."
    return Checks(tuple(checks), not wrong, text)


def _libraries() -> list[Check]:
    found = []
    for module, package in LIBRARIES.items():
        try:
            importlib.import_module(module)
            found.append(Check(package, _version(package, module)))
        except Exception as error:
            line = " ".join(str(error).split())[:120]
            found.append(Check(package, f"does not import ({line}); reinstall it", False))
    return found


def _version(package: str, module: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # another package brings the module, as faiss-gpu does
        return str(getattr(importlib.import_module(module), "__version__", "unknown version"))


def _faiss() -> Check:
    wheels = []
    for name in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cu11"):
        try:
            distribution(name)
            wheels.append(name)
        except PackageNotFoundError:
            continue
    if len(wheels) > 1:
        names = " and ".join(wheels)
        text = f"{names} both own the module 'faiss'; uninstall both, then install one"
        return Check("faiss wheel", text, False)
    return Check("faiss wheel", wheels[0] if wheels else "none", bool(wheels))


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Check("device", f"{card.name}, {card.total_memory / 2**30:.0f} GiB")
    return Check("device", "CPU only: small encoders take minutes, large ones hours")


def _machine() -> Check:
    memory = psutil.virtual_memory()
    return Check(
        "machine", f"{os.cpu_count()} cores, {memory.available / 2**30:.1f} GiB of memory free"
    )


def _cache() -> Check:
    try:
        Store(cache_dir() / "store")
    except EncbenchError as error:
        return Check("cache", f"{error}; set ENCBENCH_CACHE", False)
    free = shutil.disk_usage(cache_dir()).free / 1e9
    text = f"{cache_dir()}, {free:.0f} GB free"
    if free <= 1:
        text += "; free some space, or set ENCBENCH_CACHE to a folder on another disk"
    return Check("cache", text, free > 1)


def _token() -> Check:
    from huggingface_hub import constants, get_token

    offline = " (HF_HUB_OFFLINE is set: nothing is downloaded)" if constants.HF_HUB_OFFLINE else ""
    state = "signed in" if get_token() else "no token; gated models need one (hf auth login)"
    return Check("hub", state + offline)


def _registered() -> list[Check]:
    found = []
    for kind in registry.GROUPS:
        names = registry.names(kind)
        broken = []
        for name in names:
            try:
                registry.get(kind, name)
            except EncbenchError as error:
                broken.append(str(error))
        text = ", ".join(names) if not broken else "; ".join(broken)
        found.append(
            Check(f"{kind}s", text or "none; reinstall encbench", bool(names and not broken))
        )
    return found
