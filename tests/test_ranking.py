"""From records to ranks: planted truths, intervals, advice, flips."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from encbench.errors import EncbenchError, RecordError, UnknownNameError
from encbench.intervals import estimate_scores
from encbench.ranking import holm, predict, rank_values
from encbench.records import (
    RunRecord,
    find_records,
    read_prediction,
    read_record,
    write_prediction,
    write_record,
)
from encbench.rules import Term, load_rule
from encbench.types import Cell, EncoderCard, ProbeSpec

SHUFFLE = "control:shuffle(st:good)"


def write(
    folder: Path,
    spec: str,
    quality: float,
    *,
    parameters: int = 10,
    n: int = 300,
    noise: float = 0.15,
    variant: str = "",
    variant_of: str = "",
    pooling: str = "mean",
    pin: str = "coco@1",
    seed: int = 0,
    probe: str = "retrieval",
    tables: tuple[pd.DataFrame, dict[str, tuple[str, ...]]] | None = None,
) -> Path:
    """A record with known truth: published = quality + noise that all encoders share + own."""
    shared = np.random.default_rng(99).normal(0, 0.3, n)
    own = np.random.default_rng([seed, len(spec), int(quality * 1e6)]).normal(0, noise, n)
    items = pd.DataFrame(
        {
            "item": [str(i) for i in range(n)],
            "published@2": quality + shared + own,
            "floor": 0.2,
            "ceiling@2": 0.9,
        }
    )
    names = {"scaled@2": ("published@2", "floor", "ceiling@2"), "published@2": ("published@2",)}
    if tables is not None:
        items, names = tables
    control = spec.startswith("control:")
    record = RunRecord(
        key=f"{spec}{variant}{probe}{quality}",
        name=spec.split(":", 1)[1],
        card=EncoderCard(
            spec, "st", spec, "", dim=4, max_tokens=None, control=control, parameters=parameters
        ),
        pooling=pooling,
        probe=ProbeSpec(probe, 1, next(iter(names)), probe, dataset=pin, orders=tuple(names)[1:]),
        scores=estimate_scores(items, names, seed=0),
        item_scores={k: list(v) for k, v in names.items()},
        variant=variant,
        variant_of=variant_of,
    )
    slug = "".join(c if c.isalnum() else "-" for c in spec + variant)
    path = folder / "records" / slug / f"{probe}.json"
    write_record(path, record, items)
    return path


def field(folder: Path, qualities: dict[str, float], **more) -> list[Path]:
    paths = [write(folder, spec, quality, **more) for spec, quality in qualities.items()]
    floor = {"control:constant": 0.2, "control:random": 0.2, SHUFFLE: 0.2}
    return paths + [write(folder, spec, quality, **more) for spec, quality in floor.items()]


def write_reader(
    folder: Path, spec: str, seen: float, other: float, *, units: bool = True, n: int = 200
) -> Path:
    """A record of the reader with known truth: a prompt is as hard in both wordings."""
    rng = np.random.default_rng(len(spec))
    hard = np.random.default_rng(5).normal(0, 0.3, n) + rng.normal(0, 0.05, n)
    parts = []
    for question, column, value in (("seen", "everything", seen), ("other", "other-words", other)):
        unit = [f"prompt {i}" for i in range(n)]
        part = pd.DataFrame({"item": [f"{question} {u}" for u in unit], column: value + hard})
        if column == "everything":
            part["readable-entropy"] = 2 * part[column]
        parts.append(part.assign(unit=unit) if units else part)
    items = pd.concat(parts, ignore_index=True)
    names = {name: (name,) for name in ("everything", "other-words", "readable-entropy")}
    return write(folder, spec, seen, probe="reader", tables=(items, names))


def read_field(folder: Path, truth: dict[str, tuple[float, float]], **more) -> list[Path]:
    paths = [write_reader(folder, spec, *values, **more) for spec, values in truth.items()]
    controls = ("control:constant", "control:random", SHUFFLE)
    return paths + [write_reader(folder, spec, 0.05, 0.05, **more) for spec in controls]


READ = {"st:good": (0.6, 0.2), "st:words": (0.5, 0.4), "st:poor": (0.3, 0.1)}


def test_the_reader_ranks_where_it_was_run_on_all(tmp_path):
    """And the other rules have orders of their own: retrieval, and the one for other words."""
    retrieval = field(tmp_path, {"st:poor": 0.8, "st:words": 0.7, "st:good": 0.5})
    found = predict([*retrieval, *read_field(tmp_path, READ)])
    orders = {
        made.rule.name: [r.spec for r in made.order if not r.control]
        for made in (found, *found.others)
    }
    assert orders == {
        "reader": ["st:good", "st:words", "st:poor"],
        "reader-other-words": ["st:words", "st:good", "st:poor"],
        "emf-retrieval": ["st:poor", "st:words", "st:good"],
    }
    assert next(iter(orders)) == "reader"
    assert (found.rule.probe, found.rule.metric) == ("reader", "readable-entropy")
    assert found.rule.cell == Cell("geneval", 4, "A", "seen")
    assert found.rule.trust
    assert found.advice.use == "st:good"
    assert found.others[0].rule.name == "emf-retrieval"
    assert found.others[0].advice.use == "st:poor"
    rivals = {(r.probe, r.score): r.agreement for r in found.rivals}
    assert rivals["retrieval", "scaled@2"] == pytest.approx(-1)
    assert ("reader", "readable-entropy") not in rivals
    assert rivals["reader", "everything"] == pytest.approx(1)
    assert not any("Ranked by" in line for line in found.warnings)


def test_a_sum_is_resampled_by_prompt_over_its_wordings(tmp_path, monkeypatch):
    """A hard prompt is hard in both: the sum's interval is wider than by independent items."""
    terms = (Term("reader", "everything"), Term("reader", "other-words", 2.0))
    rule = dataclasses.replace(load_rule("reader-other-words"), terms=terms)
    monkeypatch.setattr("encbench.ranking.load_rule", lambda name: rule)
    widths = {}
    for units in (True, False):
        paths = read_field(tmp_path / str(units), READ, units=units)
        found = predict(paths, rule="reader-other-words")
        first = found.order[0]
        assert first.spec == "st:words"
        assert first.value == pytest.approx(0.5 + 2 * 0.4, abs=0.1)
        assert found.rule.metric == "reader everything + 2 x reader other-words"
        assert first.n == (200 if units else 400)
        widths[units] = first.high - first.low
    deviation = 0.3 / np.sqrt(200)
    assert widths[True] == pytest.approx(2 * 1.96 * 3 * deviation, rel=0.15)
    assert widths[False] == pytest.approx(2 * 1.96 * np.sqrt(5) * deviation, rel=0.15)


def test_without_the_reader_on_all_the_retrieval_rule_ranks_and_says_so(tmp_path):
    paths = field(tmp_path, {"st:good": 0.8, "st:fair": 0.7})
    found = predict(paths)
    assert found.rule.name == "emf-retrieval"
    assert found.warnings[0] == (
        "Ranked by the rule emf-retrieval, not by reader: the reader probe was not run on any "
        "encoder."
    )
    some = [*paths, write_reader(tmp_path, "st:good", 0.5, 0.2)]
    found = predict(some)
    assert found.rule.name == "emf-retrieval"
    assert "not run on fair, constant, random, shuffle(st:good)." in found.warnings[0]
    assert found.others == []
    found = predict(some, rule="reader")
    assert [row.spec for row in found.order] == ["st:good"]
    assert found.warnings[0].startswith("Not ranked, since the reader probe was not run on them: f")
    with pytest.raises(EncbenchError, match="nothing to rank by: no record of the probe reader"):
        predict(paths, rule="reader")
    with pytest.raises(UnknownNameError, match="emf-retrieval"):
        predict(paths, rule="emf")


def test_the_retrieval_rule_gives_the_golden_numbers(tmp_path):
    """Scores and intervals of version 0.1.0, from the records that it wrote."""
    golden = Path(__file__).parent / "golden" / "run-v1"
    before = {row.spec: row for row in read_prediction(golden / "prediction.json").order}
    found = predict(find_records(golden), rule="emf-retrieval")
    assert found.rule.metric == "recall@2"
    assert len(found.order) == 2
    for row in found.order:
        old = before[row.spec]
        assert (row.value, row.low, row.high, row.n) == (old.value, old.low, old.high, old.n)


def test_planted_order_is_found_with_its_intervals(tmp_path):
    paths = field(tmp_path, {"st:good": 0.8, "st:fair": 0.7, "st:poor": 0.5})
    found = predict(paths)
    assert [r.spec for r in found.order if not r.control] == ["st:good", "st:fair", "st:poor"]
    assert [r.rank for r in found.order if not r.control] == [1, 2, 3]
    assert all(r.rank_low == r.rank == r.rank_high for r in found.order if not r.control)
    assert all(r.low < r.value < r.high for r in found.order)
    assert found.advice.use == "st:good"
    assert found.advice.text == "Use good. It is clearly better than the 2 other encoders."
    assert found.order[0].value == pytest.approx((0.8 - 0.2) / 0.7, abs=0.1)


def test_what_cannot_be_told_apart_is_said_with_the_cheapest(tmp_path):
    paths = field(tmp_path, {"st:poor": 0.4})
    paths += [write(tmp_path, "st:good", 0.8, parameters=900, seed=1)]
    paths += [write(tmp_path, "st:small", 0.7999, parameters=7, seed=2)]
    found = predict(paths)
    first, second = (r for r in found.order[:2])
    assert {first.spec, second.spec} == {"st:good", "st:small"}
    assert (first.rank_low, first.rank_high) == (1, 2)
    assert found.advice.cheapest == "st:small"
    other = second.name
    assert found.advice.text == (
        f"Use {first.name}. The data cannot tell it from {other}; the smallest of these is small."
    )


def test_differences_are_paired(tmp_path):
    """Noise that encoders share makes single intervals overlap, but not the difference."""
    paths = field(tmp_path, {"st:good": 0.75, "st:fair": 0.72}, noise=0.02)
    found = predict(paths)
    a, b = found.order[:2]
    assert a.low < b.high  # overlap
    pair = next(p for p in found.pairs if {p.a, p.b} == {"st:good", "st:fair"})
    assert pair.distinguishable
    assert pair.low > 0


def test_a_control_never_wins(tmp_path):
    paths = field(tmp_path, {"st:good": 0.6})
    paths.append(write(tmp_path, "control:bag-of-words", 0.9))
    found = predict(paths)
    assert found.order[0].spec == "control:bag-of-words"
    assert found.order[0].rank is None
    assert found.advice.use == "st:good"
    assert "bag-of-words" not in found.advice.text
    assert not any(p.a.startswith("control:") for p in found.pairs)


def test_nobody_above_chance_means_no_advice(tmp_path):
    found = predict(field(tmp_path, {"st:good": 0.2001, "st:fair": 0.2}, noise=0.3))
    assert found.advice.use is None
    assert found.advice.text.startswith("Use none of them on this evidence")


def test_without_controls_nothing_is_settled(tmp_path):
    """As after a run that was stopped before its controls."""
    paths = field(tmp_path, {"st:good": 0.75, "st:fair": 0.5})
    found = predict([path for path in paths if "control" not in str(path.relative_to(tmp_path))])
    assert found.order[0].spec == "st:good"
    assert found.advice.use is None
    assert "no control without information was measured" in found.advice.text


def test_only_controls(tmp_path):
    found = predict(field(tmp_path, {}))
    assert found.advice.use is None
    assert found.advice.text == "No encoder to recommend: only controls were ranked."


def test_flips_under_another_pooling_are_flagged(tmp_path):
    paths = field(tmp_path, {"st:good": 0.8, "st:fair": 0.6})
    for spec, quality in (("st:good", 0.5), ("st:fair", 0.7)):
        paths.append(
            write(
                tmp_path,
                spec,
                quality,
                variant="layer=normavg&pool=max",
                variant_of=spec,
                pooling="max",
            )
        )
    found = predict(paths)
    (variant,) = found.sensitivity
    assert (variant.layer, variant.pooling) == ("normavg", "max")
    assert variant.order == ["st:fair", "st:good"]
    assert variant.flips == variant.clear_flips == [["st:good", "st:fair"]]
    assert [r.spec for r in found.order[:2]] == ["st:good", "st:fair"]


def test_rival_orders_are_named_and_not_mixed_in(tmp_path):
    qualities = {"st:good": 0.8, "st:fair": 0.7, "st:poor": 0.5}
    paths = field(tmp_path, qualities)
    for spec, quality in qualities.items():
        paths.append(write(tmp_path, spec, 1 - quality, probe="later"))
    found = predict(paths)
    later = next(r for r in found.rivals if (r.probe, r.score) == ("later", "scaled@2"))
    assert later.order == ["st:poor", "st:fair", "st:good"]
    assert later.agreement == pytest.approx(-1)
    assert [r.spec for r in found.order if not r.control] == list(qualities)
    published = next(r for r in found.rivals if (r.probe, r.score) == ("retrieval", "published@2"))
    assert published.published
    assert ("retrieval", "scaled@2") not in [(r.probe, r.score) for r in found.rivals]


def test_different_data_are_refused(tmp_path):
    paths = field(tmp_path, {"st:good": 0.8})
    paths.append(write(tmp_path, "st:other", 0.7, pin="coco@2"))
    with pytest.raises(EncbenchError, match="records were measured on different data"):
        predict(paths)


def test_prediction_holds_to_its_hash(tmp_path):
    path = tmp_path / "prediction.json"
    made = write_prediction(path, predict(field(tmp_path, {"st:good": 0.8})))
    assert read_prediction(path) == made
    again = dataclasses.replace(predict(field(tmp_path, {"st:good": 0.8})), created="later")
    assert write_prediction(path, again).created == made.created
    path.write_text(path.read_text().replace("Use good", "Use evil"))
    with pytest.raises(RecordError, match="was changed after it was made"):
        read_prediction(path)


def test_holm_and_ranks_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert rank_values(np.array([0.5, 0.9, 0.5])).tolist() == [2, 1, 2]
    assert rank_values(np.array([[1.0, 2.0], [2.0, 1.0]])).tolist() == [[2, 1], [1, 2]]


def test_records_of_another_seed_limit_or_option_are_left_out_by_name(tmp_path):
    paths = field(tmp_path, {"st:good": 0.8, "st:fair": 0.7, "st:poor": 0.5})
    for spec, changes in (
        ("st:late", {"seed": 1}),
        ("st:short", {"config": {"limit": 20}}),
        ("st:few", {"config": {"queries": 50}}),
    ):
        path = write(tmp_path, spec, 0.9)
        write_record(path, dataclasses.replace(read_record(path), **changes))
        paths.append(path)
    found = predict(paths)
    assert [r.spec for r in found.order if not r.control] == ["st:good", "st:fair", "st:poor"]
    left_out = [line for line in found.warnings if "left out of retrieval" in line]
    assert left_out == [
        "late is left out of retrieval: it was measured with seed 1, not 0.",
        "short is left out of retrieval: it was measured with limit 20, not None.",
        "few is left out of retrieval: it was measured with queries 50, not None.",
    ]
