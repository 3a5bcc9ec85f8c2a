"""The report says what whitening would change: places, gains, losses, and the advice."""

from dataclasses import replace

import fake_run
import pytest

from encbench.probes.reader import ReaderProbe, WhitenedReaderProbe
from encbench.reports.figures import Drawing
from encbench.reports.load import Run, load_run
from encbench.reports.whitening import changes, draw_whitening, whitening_advice
from encbench.reports.words import run_warnings
from encbench.types import Score


def read_both_ways(run: Run, scores: dict[int, tuple[float, float]], margin: float = 0.02) -> Run:
    """The run with reader records: candidate's number -> score as it is and whitened."""
    specs = [row.spec for row in run.candidates]
    added = []
    for number, pair in scores.items():
        base = next(r for r in run.records if r.card.spec == specs[number] and not r.variant)
        for probe, value in zip((ReaderProbe, WhitenedReaderProbe), pair, strict=True):
            score = Score(value, 100, value - margin, value + margin)
            added.append(replace(base, probe=probe.spec, scores={"everything": score}))
    return replace(run, records=(*run.records, *added))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Run:
    return load_run(fake_run.build(tmp_path_factory.mktemp("white") / "run"))


def test_places_and_gains(base):
    run = read_both_ways(base, {0: (0.8, 0.7), 1: (0.3, 0.85), 2: (0.5, 0.51)})
    found = changes(run)
    names = [row.spec for row in run.candidates]
    assert [c.row.spec for c in found] == [names[0], names[2], names[1]]
    assert [(c.place, c.whitened_place) for c in found] == [(1, 1), (2, 2), (3, 1)]
    assert found[2].gain.value == pytest.approx(0.55)
    assert found[2].gain.low == pytest.approx(0.55 - 0.02 * 2**0.5)
    brief = [run.brief[row.spec] for row in run.candidates]
    choice, gains, losses = whitening_advice(run)
    assert choice == (
        f"By the reader, use {brief[0]} as it is (0.800), or {brief[1]} with whitened features "
        "(0.850; train with --condition-scaling whitened)."
    )
    assert gains.endswith(f"clearly help, by the reader: {brief[1]} (+0.55, from place 3 to 1).")
    assert losses.endswith(f"clearly harm, by the reader: {brief[0]} (−0.10).")
    assert choice in run_warnings(run)
    assert isinstance(draw_whitening(run), Drawing)


def test_the_reader_s_first_as_it_is_does_not_depend_on_the_rule_of_the_run(base):
    run = read_both_ways(base, {0: (0.8, 0.7), 1: (0.7, 0.85)})
    named = run.candidates[1].spec
    records = tuple(
        replace(record, scores={**record.scores, "readable-entropy": Score(2.0, 100, 1.9, 2.1)})
        if record.card.spec == named and record.probe.name == "reader"
        else record
        for record in run.records
    )
    choice, *_ = whitening_advice(replace(run, records=records))
    assert choice.startswith(f"By the reader, use {run.brief[named]} as it is (0.700)")


def test_an_encoder_as_it_is_stays_the_best_choice(base):
    run = read_both_ways(base, {0: (0.9, 0.88), 1: (0.4, 0.41)}, margin=0.1)
    (choice,) = whitening_advice(run)
    assert "as it is (0.900); the best other choice would be" in choice


def test_nothing_is_said_where_encoders_were_not_read_both_ways(base):
    assert draw_whitening(base) == ""
    assert list(whitening_advice(base)) == []
    assert list(whitening_advice(read_both_ways(base, {0: (0.5, 0.6)}))) == []
