"""All figures of a run or of a confirmation, by their section."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from encbench import registry
from encbench.files import slug

from . import words
from .confirmation import Confirmation
from .figures import Drawing, ReportFigure
from .load import Run
from .rows import draw_scores
from .text import clean_text

PLACED = (
    "Ranking", "Score and cost", "Sensitivity to layer and pooling", "Predicted and actual",
    "By steps, wording and task", "Through training", "Actual score and cost",
    "The published evidence",
)  # fmt: skip
"""Sections that stand in the templates with more than figures in them."""
FIGURE_SECTIONS = ("Two probes", "Prompt ablation", words.CONTENT, "Similarity")
"""Sections of figures alone, in their order; others follow."""


@dataclass
class FigureSet:
    """Figures by section; in place of a figure that cannot be drawn, the reason."""

    sections: dict[str, list[Drawing | str]] = field(default_factory=dict)

    def add(self, section: str, result: Drawing | str) -> None:
        if result:
            self.sections.setdefault(section, []).append(result)

    @property
    def drawings(self) -> dict[str, Drawing]:
        everything = (item for items in self.sections.values() for item in items)
        return {item.name: item for item in everything if isinstance(item, Drawing)}

    @property
    def free(self) -> list[tuple[str, str, list[Drawing | str]]]:
        """Sections that the templates do not name: id, heading and figures."""
        titles = [title for title in self.sections if title not in PLACED]
        known = [title for title in FIGURE_SECTIONS if title in titles]
        order = dict.fromkeys([*known, *titles])
        return [(slug(title).lower(), title, self.sections[title]) for title in order]


def draw_figures(
    subject: Run | Confirmation, needs: Literal["ranking", "confirmation"] = "ranking"
) -> FigureSet:
    """All registered figures of a run or of a confirmation; in a run, also the scores of each
    probe that no figure is registered for."""
    figures = FigureSet()
    covered: set[str] = set()
    for name in registry.names("figure"):
        figure: ReportFigure = registry.get("figure", name)
        if figure.needs == needs:
            covered |= set(figure.probes)
            results = figure.draw(subject)
            for result in [results] if isinstance(results, Drawing | str) else results:
                figures.add(figure.section, _name(result, name, figure.title))
    if isinstance(subject, Confirmation):
        return figures
    for probe in subject.probes.values():
        if probe.name not in covered:
            section = probe.display.section or clean_text(probe.name)
            taken = {*figures.drawings, *registry.names("figure")}
            name = slug(probe.name).lower()
            while name in taken:
                name += "-scores"
            figures.add(section, _name(draw_scores(subject, probe), name, ""))
    return figures


def _name(result: Drawing | str, name: str, title: str) -> Drawing | str:
    """A drawing with the name and title that it was registered under."""
    if isinstance(result, str):
        return result
    full = f"{name}-{result.name}" if result.name else name
    return dataclasses.replace(result, name=full, title=result.title or title)
