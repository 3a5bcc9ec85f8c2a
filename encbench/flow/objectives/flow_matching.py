"""Flow matching (arXiv 2210.02747): no interval, so the average velocity is the instantaneous."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import Objective


@dataclass(frozen=True)
class FlowMatching(Objective):
    """Plain flow matching: u(z, t, t) is regressed to v."""

    name: ClassVar[str] = "flow-matching"
    intervals: ClassVar[bool] = False
