"""EMF (arXiv 2604.18168, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Objective


@dataclass(frozen=True)
class EMF(Objective):
    """MeanFlow without guidance; EMF guides when sampling and has its own schedule of times."""

    name: ClassVar[str] = "emf"
