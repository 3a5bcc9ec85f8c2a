"""Marks that say on hover what they are, figures as parts of a page, and colors that are read."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from fake_run import FOUR, build

from encbench.reports import figures, svg
from encbench.reports.build import build_report
from encbench.reports.figure_set import draw_figures
from encbench.reports.load import load_run

EVIL = '</title><script>alert(1)</script> "x" id="y" <!-- --> ]]> & \u202eb'
CSS = Path(figures.__file__).with_name("templates") / "style.css"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build(tmp_path_factory.mktemp("svg") / "run", FOUR[:3], n=30, gallery=False)


def draw(name: str, *facts: str) -> bytes:
    with figures.canvas(1.0) as figure:
        axes = figures.add_axes(figure, 0.5, 0.1, 3, 0.7)
        axes.plot([0, 1], [0, 1], "o", **svg.hover(name, *facts))
        return figures.finish(figure, "A caption.", "Words.").svg


def titles_of(source: bytes | str) -> list[str]:
    return [
        "".join(title.itertext())
        for title in ET.fromstring(source).iter("{http://www.w3.org/2000/svg}title")
    ]


def test_a_mark_has_a_title_with_its_name_and_facts():
    source = draw("MiniLM", "score 0.5 [0.4, 0.6]", "", "rank 1")
    assert titles_of(source) == ["MiniLM\nscore 0.5 [0.4, 0.6]\nrank 1"]
    assert b'data-name="MiniLM"' in source


def test_text_from_data_stays_text():
    source = draw(EVIL, EVIL)
    (title,) = titles_of(source)
    assert title.count("</title><script>alert(1)</script>") == 2
    page = svg.inline_svg(source, EVIL, "figure-evil")
    assert "<script" not in page
    assert page.count("</title>") == 1
    assert "<!--" not in page


def test_a_curve_with_many_points_tells_its_first_highest_and_last():
    words = svg.hover_curve("x", list(range(9)), [0, 1, 2, 9, 2, 1, float("nan"), 0, 0.5], " steps")
    assert words["gid"].split("\n")[1:] == ["0 steps: 0.000", "3 steps: 9.000", "8 steps: 0.500"]
    assert svg.hover_curve("x", [1, 2], [0.1, None])["gid"].split("\n")[1:] == ["1: 0.100"]


def test_every_figure_of_a_run_names_each_candidate_on_hover(folder):
    run = load_run(folder)
    for name, drawing in draw_figures(run).drawings.items():
        shown = "\n".join(titles_of(drawing.svg))
        if name.startswith("similarity"):  # a small plot for each, with its name above
            assert "mean cosine" in shown
        else:
            assert all(row.name in shown for row in run.candidates), name


def test_ids_of_figures_on_a_page_differ_and_their_references_are_met(folder, tmp_path):
    page = build_report(folder, tmp_path / "report").read_text("utf-8")
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'(?:xlink:href|clip-path)="(?:url\()?#([^")]+)', page)
    assert len(wanted) > 100
    assert set(wanted) <= set(ids)


# --------------------------------------------------------------------------------- contrast


def luminance(color: str) -> float:
    digits = color.lstrip("#")
    digits = "".join(2 * c for c in digits) if len(digits) == 3 else digits
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """WCAG 2's ratio."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_computed_as_wcag_does():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


def test_words_stand_out_from_their_background():
    """4.5 to 1, WCAG's AA, in light and dark mode and in print."""
    schemes = re.findall(r":root \{([^}]*)\}", CSS.read_text("utf-8"))
    assert len(schemes) == 3
    for scheme in schemes:
        colors = dict(re.findall(r"--([\w-]+): (#\w+)", scheme))
        for ink in ("ink", "soft", "link", "control"):
            for paper in ("paper", "tint", "use"):
                assert contrast(colors[ink], colors[paper]) >= 4.5, (ink, paper, colors)
    for ink in (figures.INK, figures.DARK, figures.GRAY, figures.RUST, figures.BLUE):
        assert contrast(ink, "#ffffff") >= 4.5, ink
