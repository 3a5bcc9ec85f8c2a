"""Each warning comes when it should, and does not come when it should not."""

from dataclasses import replace
from pathlib import Path

import fake_run
import pytest
from fake_run import CONTROLS, FOUR, Fake

from encbench.records import Prediction
from encbench.reports import words
from encbench.reports.load import Run, load_run
from encbench.types import Estimate, Score


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Run:
    return load_run(fake_run.build(tmp_path_factory.mktemp("words") / "run"))


def built(tmp_path: Path, *encoders: Fake, **options) -> list[str]:
    return words.run_warnings(load_run(fake_run.build(tmp_path / "run", encoders, **options)))


def said(run: Run, part: str) -> list[str]:
    return [line for line in words.run_warnings(run) if part in line]


def predicted(run: Run, **changes) -> Run:
    """The same run with another prediction."""
    return replace(run, prediction=replace(run.prediction, **changes))


def rescored(run: Run, spec: str, probe: str, **scores: Score) -> Run:
    """The same run with other scores of one encoder."""
    records = tuple(
        replace(r, scores={**r.scores, **scores})
        if (r.card.spec, r.probe.name) == (spec, probe)
        else r
        for r in run.records
    )
    return replace(run, records=records)


def entry(value: float, margin: float = 0.001) -> Score:
    return Score(value, 100, value - margin, value + margin)


def test_the_predictions_own_warnings_come_first(base):
    assert words.run_warnings(predicted(base, warnings=["t5:odd failed"]))[0] == "t5:odd failed"


def test_truncation_is_told_above_five_percent(base):
    clip, minilm = FOUR[0].spec, FOUR[1].spec
    (line,) = said(base, "cut off (")
    assert "CLIP ViT-L/14 60%" in line
    assert "MiniLM" not in line
    few = rescored(base, clip, "diagnostics", truncation=entry(0.04))
    whole = replace(entry(0.9), n=1065)
    few = rescored(few, clip, "ablation", **{"published/untruncated": whole})
    assert not said(few, "cut off (")
    assert said(rescored(few, minilm, "diagnostics", truncation=entry(0.06)), "MiniLM-L6 6%")


def test_anisotropy_is_told_for_those_who_have_it(base):
    (line,) = said(base, "Two unrelated texts")
    assert "Gemma-2-2b-it (0.71)" in line
    assert "T5" not in line
    even = base
    for fake in FOUR:
        even = rescored(even, fake.spec, "diagnostics", anisotropy=entry(0.1))
    assert not said(even, "Two unrelated texts")


def test_the_constant_encoder_beats_candidates_as_published(base):
    (line,) = said(base, "ignores its prompt gets")
    assert "1.000 on the published disentanglement, more than 4 of 4 candidates" in line
    assert "calibrated score is 0.000" in line


def test_contradicting_orders_need_intervals_apart(base):
    a, b = FOUR[0].spec, FOUR[1].spec

    def with_scores(gap: float, margin: float) -> Run:
        run = rescored(
            base, a, "ablation", published=entry(0.9, margin), calibrated=entry(0.5, margin)
        )
        higher = {"published": entry(0.9 - gap, margin), "calibrated": entry(0.5 + gap, margin)}
        return rescored(run, b, "ablation", **higher)

    (line,) = said(with_scores(0.2, 0.01), "contradict each other")
    assert "CLIP ViT-L/14 is above MiniLM-L6 as published" in line
    assert not said(with_scores(0.2, 0.15), "contradict each other")
    assert not said(with_scores(-0.2, 0.3), "contradict each other")


def test_candidates_not_above_controls_are_named(base, tmp_path):
    (line,) = [line for line in said(base, "Not clearly above") if "T5 v1.1 XXL" in line]
    assert "the controls bag-of-words and word-position" in line
    assert not any("CLIP" in line for line in said(base, "Not clearly above"))
    useless = Fake("st:useless", "useless", 0.0)
    lines = [w for w in built(tmp_path, FOUR[0], useless) if "know nothing of the prompt" in w]
    assert len(lines) == 1
    assert "its own shuffle" in lines[0]
    assert lines[0].endswith("useless.")


def test_a_random_transformer_is_no_control_without_information(base, tmp_path):
    weak = Fake("st:weak", "weak", 0.33)
    lines = [w for w in built(tmp_path, FOUR[0], weak, n=300) if "weak" in w]
    assert any("random-transformer" in line for line in lines)
    assert not any("know nothing of the prompt" in line for line in lines)


def test_unscored_queries_are_told(base):
    assert said(base, "Up to 3 items could not be scored for every encoder")
    order = [replace(row, unscored=0) for row in base.prediction.order]
    assert not said(predicted(base, order=order), "could not be scored")
    order[0] = replace(order[0], unscored=1)
    assert said(predicted(base, order=order), "Up to 1 item could not be scored for CLIP")


def test_all_intervals_overlapping_is_told(base):
    assert not said(base, "No two candidates")
    pairs = [replace(pair, distinguishable=False) for pair in base.prediction.pairs]
    assert said(predicted(base, pairs=pairs), "No two candidates can be told apart")


def test_flips_are_told_and_clear_ones_apart(base):
    assert said(base, "The order depends on layer and pooling: in 1 of 3")
    calm = [replace(v, flips=[], clear_flips=[]) for v in base.prediction.sensitivity]
    assert not said(predicted(base, sensitivity=calm), "combinations of layer")


def test_a_layer_that_is_clearly_better_is_offered_as_a_candidate(base):
    """Above the encoder's own interval, wherever the others stand."""
    t5 = FOUR[3].spec
    assert not said(base, "Another layer")
    high = Estimate(0.81, 0.75, 0.86)
    sensitivity = [
        replace(v, scores={**v.scores, t5: high}) if v.layer == "penultimate" else v
        for v in base.prediction.sensitivity
    ]
    (line,) = said(predicted(base, sensitivity=sensitivity), "Another layer would clearly help")
    assert "with layer=penultimate (0.521 to 0.810, place 4 to 2)" in line
    assert "MiniLM" not in line  # higher by one pooling, within its interval
    asked = [replace(v, layer="as ranked") for v in sensitivity]
    assert not said(predicted(base, sensitivity=asked), "Another layer")


def test_published_values_are_called_incomparable_unless_the_setting_is_the_papers(base):
    (line,) = said(base, "cannot be compared with ours directly")
    assert "COCO train2017, images re-encoded with DINOv3 and 1,000 queries" in line
    order = [replace(row, n=1000) for row in base.prediction.order]
    run = predicted(base, data={"retrieval": "coco-train2017@ab"}, order=order)
    run = replace(run, config={**run.config, "re_encoder": "dinov3"})
    assert not said(run, "cannot be compared with ours directly")


def test_unknown_licenses_and_dirty_code_are_told(base, tmp_path):
    assert not said(base, "license of")
    assert not said(base, "uncommitted")
    found = built(tmp_path, replace(FOUR[1], license="unknown"), prompts=False)
    assert any("The license of MiniLM-L6 is unknown" in line for line in found)
    dirty = tuple(replace(r, provenance={**r.provenance, "dirty": True}) for r in base.records)
    assert said(replace(base, records=dirty), "uncommitted")


def test_notes_are_told_once_with_the_encoders_they_are_about(base):
    spec = FOUR[1].spec
    assert said(base, "Retrieval: 3 images cannot be read") == [
        "Retrieval: 3 images cannot be read and are unscored."
    ]
    records = tuple(
        replace(r, notes=["7 prompts do not fit"])
        if (r.card.spec, r.probe.name) == (spec, "ablation")
        else r
        for r in base.records
    )
    (line,) = said(replace(base, records=records), "7 prompts do not fit")
    assert line == "Ablation: 7 prompts do not fit (MiniLM-L6)."


def test_notes_that_differ_in_numbers_are_one_line(base):
    count = iter(range(100))
    records = tuple(
        replace(r, notes=[f"{next(count)} of 1065 prompts do not fit"])
        if r.probe.name == "ablation" and not r.card.control
        else r
        for r in base.records
    )
    (line,) = said(replace(base, records=records), "prompts do not fit")
    assert line.startswith("Ablation: 0 of 1065 prompts do not fit (")
    assert "likewise, with other numbers" in line
    assert all(fake.name in line for fake in FOUR)


def test_a_run_without_trouble_has_no_warnings(tmp_path):
    good = (Fake("st:one", "one", 0.95, 10), Fake("st:two", "two", 0.75, 10))
    run = load_run(fake_run.build(tmp_path / "run", good, n=400, prompts=False, variants=False))
    order = [replace(row, unscored=0) for row in run.prediction.order]
    records = tuple(replace(r, notes=[]) for r in run.records)
    assert len(run.prediction.warnings) == 1  # there is no reader, so retrieval ranks
    clean = predicted(run, order=order, warnings=[])
    assert words.run_warnings(replace(clean, records=records)) == []


@pytest.mark.parametrize(
    ("encoders", "controls"), [((), CONTROLS), (FOUR[:1], ()), (FOUR[:1], CONTROLS)]
)
@pytest.mark.parametrize("images", [True, False])
def test_no_rule_stumbles_over_what_is_missing(tmp_path, encoders, controls, images):
    run = load_run(
        fake_run.build(
            tmp_path / "run", encoders, controls=controls, images=images,
            prompts=False, diagnostics=False, variants=False,
        )
    )  # fmt: skip
    assert isinstance(run.prediction, Prediction)
    assert words.run_summary(run)
    assert words.definitions(run)
    words.run_warnings(run)
