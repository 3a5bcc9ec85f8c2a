"""encbench ranks text encoders for few-step text-to-image generation, before training.

The functions of :mod:`encbench.api` are the Python interface. Importing this package loads no model
library: they are loaded when they are first used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("encbench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+source"

if TYPE_CHECKING:
    from .api import Ranking, confirm_ranking, run, sample, train

__all__ = ["Ranking", "__version__", "confirm_ranking", "run", "sample", "train"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'encbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
