"""encbench ranks text encoders for few-step text-to-image generation, before training.

``__all__`` lists the Python interface, which :mod:`encbench.api` holds. Importing this package
loads no model library: each is loaded when it is first used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("encbench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+source"

if TYPE_CHECKING:
    from .api import Ranking, confirm_ranking, run, sample, score_images, train, validate_scores

__all__ = [
    "Ranking", "__version__", "confirm_ranking", "run", "sample", "score_images", "train",
    "validate_scores",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module 'encbench' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
