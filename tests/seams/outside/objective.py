"""An objective."""

from dataclasses import dataclass
from typing import ClassVar

from encbench.flow.objectives.base import Objective


@dataclass(frozen=True)
class Halved(Objective):
    """MeanFlow with half of the correction."""

    name: ClassVar[str] = "halved"

    def error(self, u, v, correction):
        return super().error(u, v, correction / 2)
