"""Figures: the same bytes for the same run, nothing on top of anything, reasons for gaps."""

import io
import xml.etree.ElementTree as ET

import fake_run
import matplotlib as mpl
import pytest
from fake_run import FOUR, Fake
from PIL import Image

from encbench.reports import labels, rows, scatter
from encbench.reports.figure_set import FigureSet, draw_figures
from encbench.reports.figures import Drawing, add_axes, canvas
from encbench.reports.load import load_run
from encbench.reports.published import LABEL, TABLE

ALL = {
    "ranking", "cost", "plane-published", "plane-calibrated", "ablation", "ablation-places",
    "sensitivity", "similarity-retrieval", "similarity-ablation",
}  # fmt: skip


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return load_run(fake_run.build(tmp_path_factory.mktemp("figures") / "full"))


@pytest.fixture(scope="module")
def drawn(full):
    return draw_figures(full)


def test_a_full_run_has_every_figure(drawn):
    assert drawn.drawings.keys() == ALL
    assert reasons_of(drawn) == ["No encoder was measured at several stages of its training."]
    assert all(drawing.name == name for name, drawing in drawn.drawings.items())


def reasons_of(figures: FigureSet) -> list[str]:
    return [r for items in figures.sections.values() for r in items if isinstance(r, str)]


def test_figures_are_readable_files_with_words(drawn):
    for drawing in drawn.drawings.values():
        with Image.open(io.BytesIO(drawing.png)) as image:
            assert image.width == 1080  # a page's width at 150 dpi
            assert round(image.info["dpi"][0]) == 150
        assert ET.fromstring(drawing.svg).tag.endswith("svg")
        assert b"<dc:date>" not in drawing.svg
        assert b"mathdefault" not in drawing.svg  # a tick that escaped our formatter
        assert len(drawing.alt) > 20
        assert len(drawing.caption) > 40


def test_the_same_run_gives_the_same_bytes(full, drawn):
    for name, draw in (
        ("ranking", rows.draw_ranking),
        ("cost", scatter.draw_cost),
        ("sensitivity", rows.draw_sensitivity),
    ):
        again = draw(full)
        assert isinstance(again, Drawing)
        assert again.png == drawn.drawings[name].png
        assert again.svg == drawn.drawings[name].svg


def test_drawing_leaves_matplotlibs_settings_alone(full):
    before = dict(mpl.rcParams)
    rows.draw_ranking(full)
    assert dict(mpl.rcParams) == before


def text_of(svg: bytes) -> str:
    """The labels of a figure: matplotlib writes each as a comment above its outlines."""
    return svg.decode()


def test_published_points_are_named_as_published(drawn):
    svg = text_of(drawn.drawings["plane-published"].svg)
    for row in TABLE:
        assert f"<!-- {row.name} -->" in svg
    assert f"<!-- {LABEL} -->" in svg
    assert LABEL not in text_of(drawn.drawings["plane-calibrated"].svg)


def test_controls_are_never_numbered(full, drawn):
    """As many numbers in the rank column as there are candidates."""
    svg = text_of(drawn.drawings["ranking"].svg)
    ranks = {f"<!-- {row.rank} -->" for row in full.candidates}
    assert all(rank in svg for rank in ranks)
    assert f"<!-- {len(full.candidates) + 1} -->" not in svg
    assert all(f"<!-- {row.name} -->" in svg for row in full.rows)


def test_names_are_not_read_as_formulas(tmp_path):
    odd = Fake("st:$x^2$_a%b#", r"$x^2$_a%b# \frac{1}{2}", 0.8, 10**7)
    run = load_run(fake_run.build(tmp_path / "run", (odd, FOUR[1]), n=30))
    drawings = draw_figures(run).drawings
    assert r"$x^2$_a%b# \frac{1}{2}" in text_of(drawings["ranking"].svg)


def test_figures_that_lack_data_say_so(tmp_path):
    run = load_run(
        fake_run.build(tmp_path / "run", FOUR[:1], prompts=False, diagnostics=False, variants=False)
    )
    figures = draw_figures(run)
    assert figures.drawings.keys() == {"ranking", "similarity-retrieval"}
    reasons = reasons_of(figures)
    assert any("missing: ablation score published" in reason for reason in reasons)
    assert any("Neither the memory nor the speed" in reason for reason in reasons)
    assert any("two candidates" in reason for reason in reasons)
    assert all(reason.endswith(".") for reason in reasons)


def test_one_layer_and_pooling_has_no_sensitivity(tmp_path):
    run = load_run(fake_run.build(tmp_path / "run", FOUR[:2], prompts=False, variants=False))
    assert "unknown" in str(rows.draw_sensitivity(run))


def test_close_costs_have_plain_ticks(tmp_path):
    run = load_run(fake_run.build(tmp_path / "run", FOUR[1:2], n=30, prompts=False, variants=False))
    drawing = scatter.draw_cost(run)
    assert isinstance(drawing, Drawing)
    assert "mathdefault" not in text_of(drawing.svg)
    assert "<!-- 50M -->" in text_of(drawing.svg)


def test_text_only_run_has_no_published_points(tmp_path):
    """Recall is not the published score, so there is no plane to put its points in."""
    run = load_run(fake_run.build(tmp_path / "run", images=False))
    assert "published@2" in str(scatter.draw_published_plane(run))
    assert isinstance(scatter.draw_calibrated_plane(run), Drawing)


# --------------------------------------------------------------------------------- labels


def crowded(points: list[labels.Point]):
    """Where labels went in an ordinary plot, the points in pixels, and the plot's frame."""
    with canvas(4.0) as figure:
        axes = add_axes(figure, 0.6, 0.4, 6.4, 3.2)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        boxes = labels.place_labels(axes, points, 7)
        centers = axes.transData.transform([(p.x, p.y) for p in points])
        return boxes, centers, axes.get_window_extent()


def overlapping(boxes) -> list[tuple[int, int]]:
    return [
        (i, j)
        for i, a in enumerate(boxes)
        for j, b in enumerate(boxes[:i])
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
    ]


def test_overlapping_boxes_would_be_seen():
    assert overlapping([(0, 0, 2, 2), (1, 1, 3, 3), (5, 5, 6, 6)]) == [(1, 0)]


@pytest.mark.parametrize("count", [1, 5, 12, 25])
def test_labels_lie_on_nothing(count):
    """In a plot as crowded as a real one: no label on a label, a point or the frame."""
    points = [
        labels.Point((i * 0.37 + 0.04) % 1, (i * 0.61 + 0.07) % 1, f"encoder {i}")
        for i in range(count)
    ]
    boxes, centers, window = crowded(points)
    assert len(boxes) == count
    assert overlapping(boxes) == []
    assert (boxes[:, :2] >= (window.x0, window.y0)).all()
    assert (boxes[:, 2:] <= (window.x1, window.y1)).all()
    for x0, y0, x1, y1 in boxes:
        assert not any(x0 < x < x1 and y0 < y < y1 for x, y in centers)


def test_labels_of_points_on_one_spot_come_apart():
    boxes, *_ = crowded([labels.Point(0.5, 0.5, f"a long encoder name {i}") for i in range(6)])
    assert overlapping(boxes) == []


def test_many_candidates_are_numbered_in_scatter_plots(tmp_path):
    run = load_run(fake_run.build(tmp_path / "run", fake_run.many(10), n=30, prompts=False))
    drawing = scatter.draw_cost(run)
    assert isinstance(drawing, Drawing)
    assert all(f"<!-- {i} -->" in text_of(drawing.svg) for i in range(1, 11))
