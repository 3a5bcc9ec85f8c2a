"""Ranking rules: registered, frozen, from outside, and how far they can be trusted."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from test_ranking import field

from encbench import registry
from encbench.cli import main
from encbench.errors import EncbenchError, RecordError, UnknownNameError
from encbench.ranking import predict
from encbench.records import TrackRecord, read_prediction, write_prediction
from encbench.rules import (
    DEFAULTS,
    OTHER_WORDING,
    TRAINED_WORDING,
    RankingRule,
    Term,
    describe_cell,
    find_record,
    load_rule,
    load_rules,
    read_records,
    save_record,
)
from encbench.sentences import describe_record
from encbench.types import Cell

OUTSIDE = """
from encbench.rules import RankingRule, Term

RULE = RankingRule(
    "contrary", 3, "what its author hopes for",
    (Term("retrieval", "scaled@2", -1.0), Term("retrieval", "published@2", 0.5)),
)
MISNAMED, TEXT = RULE, "retrieval"
"""
RECORD = TrackRecord(
    rule="reader", version=4, cell=TRAINED_WORDING, recipe="r1", encoders=20, sets=12,
    correlation=0.914, low=0.7, high=0.98, source="table.json", commit="c" * 40,
)  # fmt: skip


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package with one file and its entry points."""
    site = tmp_path / "site"
    about = site / "outside_rule-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "outside_rule.py").write_text(OUTSIDE)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-rule\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[encbench.rules]\ncontrary = outside_rule:RULE\n")
    monkeypatch.syspath_prepend(site)
    registry._entries.cache_clear()
    yield about / "entry_points.txt"
    registry._entries.cache_clear()


def test_a_rule_from_outside_is_listed_and_ranks(outside, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["list", "rules"])
    shown = capsys.readouterr().out
    assert "contrary" in shown
    assert "hopes" in shown
    paths = field(tmp_path, {"st:good": 0.8, "st:fair": 0.7, "st:poor": 0.5})
    found = predict(paths, rule="contrary")
    assert [r.spec for r in found.order if not r.control] == ["st:poor", "st:fair", "st:good"]
    assert (found.rule.name, found.rule.version) == ("contrary", 3)
    assert found.rule.terms == ("-1 x retrieval scaled@2", "0.5 x retrieval published@2")
    for row in found.order:
        assert row.low < row.value < row.high
    assert [other.rule.name for other in found.others] == ["emf-retrieval"]
    beside = [r.spec for r in found.others[0].order if not r.control]
    assert beside == ["st:good", "st:fair", "st:poor"]
    by_default = predict(paths)
    assert [other.rule.name for other in by_default.others] == ["contrary"]
    written = write_prediction(tmp_path / "prediction.json", found)
    assert read_prediction(tmp_path / "prediction.json") == written


def test_what_is_no_rule_is_said_in_one_line(outside):
    outside.write_text("[encbench.rules]\nmine = outside_rule:MISNAMED\n")
    registry._entries.cache_clear()
    with pytest.raises(EncbenchError, match="'mine' names itself 'contrary'"):
        load_rules()
    outside.write_text("[encbench.rules]\nmine = outside_rule:TEXT\n")
    registry._entries.cache_clear()
    with pytest.raises(EncbenchError, match="must be an encbench"):
        load_rules()
    with pytest.raises(UnknownNameError, match="emf-retrieval"):
        load_rule("emf-retrievel")


def test_the_frozen_rules_are_those_that_predicted_the_held_out_encoders():
    """Predictions were committed before any training: a change here needs a new version."""
    folder = Path(__file__).parents[1] / "benchmarks" / "outcomes"
    rounds = [
        json.loads(p.read_text("utf-8"))["rules"] for p in folder.glob("predictions-[0-9]*.json")
    ]
    for name, rule in load_rules().items():
        same = json.loads(json.dumps(dataclasses.asdict(rule)))
        frozen = [kept[name] for kept in rounds if kept[name]["version"] == rule.version]
        assert frozen
        for kept in frozen:
            for key in ("name", "predicts", "terms", "fallback", "fallback_when"):
                assert same[key] == kept[key]


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_reader_s_product_is_what_was_predicted_in_three_rounds(number):
    """Its version 4 is that product, less for encoders of which new combinations are read worse."""
    folder = Path(__file__).parents[1] / "benchmarks" / "outcomes"
    rows = json.loads((folder / f"predictions-{number}.json").read_text("utf-8"))["encoders"]
    assert len(rows) >= 20
    lower = 0
    for row in rows.values():
        said = {name: of[0] for name, of in row["scores"]["reader"].items() if len(of) == 3}
        (rank, _, _) = row["scores"]["effective-rank"]["mean tokens"]
        product = said["everything"] * math.log(rank)
        assert row["rules"]["reader x log effective rank"] == pytest.approx(product, rel=1e-9)
        lower += said["held-out"] < 0.7 * said["everything"]
    assert lower <= 8
    assert [term.score for term in load_rule("reader").terms] == ["readable-entropy"]


def test_a_rule_says_itself_and_falls_back():
    rule = RankingRule(
        "both", 2, "GenEval",
        (Term("reader", "everything", parameters=(("seeds", 4),)),
         Term("reader", "other-words", 2.0)),
        fallback=(Term("retrieval", "recall@2"),), fallback_when="without images",
    )  # fmt: skip
    scores = {("reader", "everything"): 0.5, ("reader", "other-words"): 0.25}
    assert rule.choose_terms(lambda *term: term in scores) == rule.terms
    assert rule.value(lambda probe, score: scores[probe, score]) == 1.0
    del scores["reader", "everything"]
    assert rule.choose_terms(lambda *term: term in scores) == ()
    scores["retrieval", "recall@2"] = 0.125
    assert rule.choose_terms(lambda *term: term in scores) == rule.fallback
    assert rule.value(lambda probe, score: scores[probe, score]) == 0.125
    with pytest.raises(KeyError):
        rule.value(lambda probe, score: {}[probe, score])
    assert rule.sentence == (
        "Encoders are ranked by reader everything + 2 x reader other-words (retrieval recall@2 "
        "without images), with seeds 4, mean pooling over real tokens. This predicts GenEval."
    )
    for name, registered in load_rules().items():
        assert registered.name == name
        assert math.isfinite(registered.value(lambda probe, score: 0.0))
        assert set(registered.probes) <= set(registry.names("probe"))
    assert set(DEFAULTS) <= set(load_rules())


def test_a_track_record_is_kept_by_rule_version_cell_and_recipe(tmp_path):
    path = tmp_path / "records.json"
    reader = load_rule("reader")
    assert read_records(path) == []
    assert find_record(reader, path) is None
    changes = ({}, {"recipe": "r2", "encoders": 8}, {"cell": OTHER_WORDING}, {"version": 1})
    for change in changes:
        save_record(dataclasses.replace(RECORD, **change), path)
    save_record(dataclasses.replace(RECORD, correlation=0.9), path)  # again: replaced
    assert len(read_records(path)) == 4
    found = find_record(reader, path)
    assert (found.cell, found.recipe, found.encoders, found.correlation) == (
        TRAINED_WORDING, "r1", 20, 0.9
    )  # fmt: skip
    save_record(dataclasses.replace(RECORD, rule="emf-retrieval", version=1), path)
    assert find_record(load_rule("emf-retrieval"), path).cell == TRAINED_WORDING
    assert find_record(load_rule("reader-other-words"), path) is None
    path.write_text('[{"rule": "reader"}]')
    with pytest.raises(RecordError, match=r"records\.json.* has no 'version'"):
        find_record(reader, path)


def test_the_worth_of_a_rule_in_a_sentence():
    assert describe_record(RECORD) == (
        "Record of this rule: on 20 held-out encoders its order agreed with models trained "
        "afterwards with a rank correlation of 0.91 (0.70 to 0.98), measured by 4-step GenEval in "
        "the wording that was trained on (tier A)."
    )
    assert "no record yet" in describe_record(None)
    assert (
        describe_cell(Cell("fid", 1, "file", "held-out"))
        == "1-step fid on prompts of file, held-out"
    )


def test_what_is_in_the_package_can_be_read():
    for record in read_records():
        assert record.rule in load_rules()
        assert -1 <= record.low <= record.correlation <= record.high <= 1
