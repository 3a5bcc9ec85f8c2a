"""MeanFlow (arXiv 2505.13447)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .guidance import GuidedObjective


@dataclass(frozen=True)
class MeanFlow(GuidedObjective):
    """u is regressed to v - (t - r) du/dt, with du/dt along v; v may hold guidance."""

    name: ClassVar[str] = "meanflow"
