"""The figures and words of minimal pairs and decodability, on planted scores."""

import dataclasses

import fake_run
import pytest

from encbench.probes.decodability import DecodabilityProbe
from encbench.probes.minimal_pairs import MinimalPairsProbe
from encbench.records import find_records, read_items, read_record, write_record
from encbench.reports import curves, words
from encbench.reports.build import build_report
from encbench.reports.figure_set import draw_figures
from encbench.reports.load import load_run
from encbench.types import Score


def entry(value):
    return Score(value, 180, value - 0.02, value + 0.02)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A simulated run in which the new probes turn the published order round."""
    folder = fake_run.build(tmp_path_factory.mktemp("run"))
    for path in find_records(folder):
        record = read_record(path)
        if record.probe.name != "retrieval" or record.variant:
            continue
        published = record.scores["published@2"].value
        content = 0.0 if record.card.control else 1 - published
        for probe in (MinimalPairsProbe.spec, DecodabilityProbe.spec):
            names = [name for group in probe.display.panels.values() for name in group]
            made = dataclasses.replace(
                record, key=record.key + probe.name, probe=probe,
                item_scores={}, series={}, notes=[],
                scores={name: entry(content) for name in (probe.main_metric, *names)},
            )  # fmt: skip
            write_record(path.with_name(f"{probe.name}.main.json"), made, read_items(path, record))
    fake_run.write_prediction(folder / "prediction.json", fake_run.predict(find_records(folder)))
    return folder


def test_figures_are_drawn_and_in_the_page(folder, tmp_path):
    page = build_report(folder, tmp_path).read_text()
    for name in ("minimal-pairs", "decodability"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f'id="figure-{name}"' in page
    assert "No encoder was measured at several stages" in page
    assert "random features" in page


def test_disagreement_is_told_in_words(folder):
    said = " ".join(words.run_warnings(load_run(folder)))
    assert "The published retrieval score and minimal-pairs disagree clearly on" in said
    assert "and below it by decodability tokens" in said


def test_a_run_without_them_says_so(tmp_path):
    run = load_run(fake_run.build(tmp_path, variants=False))
    assert not {"minimal-pairs", "decodability"} & draw_figures(run).drawings.keys()
    assert "disagree clearly" not in " ".join(words.run_warnings(run))


def test_stages(folder):
    run = load_run(folder)
    order = []
    for row in run.prediction.order:
        order.append(row)
        if not row.control:
            early = dataclasses.replace(row, spec=f"{row.spec}&step=3pct", stage="3pct")
            order.append(early)
    assert [curves.stage_share(s) for s in ("final", "3pct", "20pct", "sft")] == [
        1,
        0.03,
        0.2,
        None,
    ]
    staged = dataclasses.replace(run, prediction=dataclasses.replace(run.prediction, order=order))
    lines = curves.rows_by_stage(staged)
    assert len(lines) == len(run.candidates)
    assert all([x for x, _ in rows] == [0.03, 1.0] for rows in lines.values())
    drawn = curves.draw_stages(staged)
    assert not isinstance(drawn, str)
    assert drawn.png.startswith(b"\x89PNG")
