"""Validation against outcomes: planted orders, one clear line for each damage, published tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from fake_run import FOUR, build
from PIL import Image
from scipy.stats import spearmanr

from encbench.cli import main
from encbench.confirm.bank import PARENT, add_to_bank, rows_of_verdict
from encbench.errors import EncbenchError
from encbench.records import read_verdict
from encbench.reports.published import TABLE
from encbench.types import Cell, Estimate
from encbench.validate import (
    Outcomes,
    load_outcomes,
    load_predictions,
    load_run_scores,
    published_names,
    validate,
)

ROOT = Path(__file__).parents[1]
OUTCOMES = ROOT / "benchmarks" / "outcomes"
GOLDEN = Path(__file__).parent / "golden" / "run-v1" / "verdict.json"
SPECS = [f"zoo:mini-t5?layer={k}" for k in range(8)]


def table(tmp_path: Path, rows: list[str], head: str = "spec,seed,score") -> Path:
    path = tmp_path / "outcomes.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def planted(seed: int = 0, noise: float = 0.0) -> dict[str, dict[str, Estimate]]:
    """Scores that follow the number of the encoder, and their reverse."""
    rng = np.random.default_rng(seed)
    values = [k + noise * rng.normal() for k in range(len(SPECS))]
    up = {s: Estimate(v, v - 1, v + 1) for s, v in zip(SPECS, values, strict=True)}
    down = {s: Estimate(-e.value, -e.high, -e.low) for s, e in up.items()}
    return {"good main": up, "bad main": down}


def rows(seeds: int = 2) -> list[str]:
    return [f"{s},{k},{i / 10 + k / 100}" for i, s in enumerate(SPECS) for k in range(seeds)]


def test_planted_orders_in_every_form(tmp_path):
    outcomes = load_outcomes(table(tmp_path, rows()))
    found = validate(outcomes, planted(), draws=300)
    assert [row.name for row in found.rows] == ["good main", "bad main"]
    assert [row.pooled.value for row in found.rows] == pytest.approx([1, -1])
    assert found.spread == pytest.approx(0.7)
    assert found.ceiling == pytest.approx(1)
    assert found.rank_ceiling == pytest.approx(1)
    found.write(tmp_path / "out")
    written = list(csv.DictReader(io.StringIO((tmp_path / "out" / "validation.csv").read_text())))
    assert [float(row["spearman"]) for row in written] == pytest.approx([1, -1])
    assert "| good main | 1.00 (1.00 to 1.00) | 1.00 |" in found.markdown()
    held = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert held["rows"][1]["pooled"]["value"] == pytest.approx(-1)
    text = (tmp_path / "out" / "validation.md").read_text()
    assert all(spec in text for spec in SPECS)  # the plot's key
    assert Image.open(tmp_path / "out" / "validation.png").size[0] > 900


def test_agreement_is_spearman_s_and_jsonl_is_the_same(tmp_path):
    scores = planted(3, noise=3.0)
    path = tmp_path / "outcomes.jsonl"
    values = [dict(zip(("spec", "seed", "score"), r.split(","), strict=True)) for r in rows(1)]
    path.write_text("\n".join(json.dumps(v | {"score": float(v["score"])}) for v in values))
    found = validate(load_outcomes(path), scores, draws=100)
    expected = spearmanr([e.value for e in scores["good main"].values()], range(8)).statistic
    assert found.rows[0].pooled.value == pytest.approx(expected)
    assert found.ceiling is None  # one seed
    assert found.rows == validate(load_outcomes(table(tmp_path, rows(1))), scores, draws=100).rows


@pytest.mark.parametrize(
    ("lines", "head", "message"),
    [
        (
            [*rows(1), "zoo:mini-clip,0,nan"],
            "",
            "line 10 of outcomes.csv: score of zoo:mini-clip is nan, which is",
        ),
        (
            [*rows(1), "zoo:mini-clip,0,"],
            "",
            "line 10 of outcomes.csv: zoo:mini-clip has no score; give one or",
        ),
        ([*rows(1), "zoo:mini-clip,0,high"], "", "cannot be 'high'; it must be a number"),
        (
            [*rows(1), rows(1)[2]],
            "",
            r"line 10 of outcomes.csv repeats line 4 of .*remove one of them",
        ),
        (
            [*rows(1), "zoo:mini-clip,0"],
            "",
            "line 10 of outcomes.csv has fewer values than its head",
        ),
        ([*rows(1), "a,0,1,2"], "", "line 10 of .*outcomes.csv has more cells than its first"),
        ([*rows(1), "a,1.5,1"], "", "line 10 of outcomes.csv: seed must be a whole number"),
        ([*rows(1), f"a,{2**63},1"], "", "line 10 of outcomes.csv: seed must be a whole number"),
        (["a,0,1,2"], "spec,seed,score,score", "two columns 'score'"),
        (["a,0,1,x", "b,0,1,y"], "spec,seed,score,recipe", "rows of 2 recipes, which cannot be"),
        (["a,0"], "spec,seed", "needs the columns spec and score"),
    ],
)
def test_damage_is_one_clear_line(tmp_path, lines, head, message):
    with pytest.raises(EncbenchError, match=message) as error:
        load_outcomes(table(tmp_path, lines, head or "spec,seed,score"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("row", "said"), [({"score": 1}, "no spec"), ({"spec": "b"}, "no score")])
def test_a_line_of_json_that_lacks_a_key_is_one_line(tmp_path, row, said):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, [{"spec": "a", "score": 1}, row])))
    with pytest.raises(EncbenchError, match=rf"line 2 of .*x\.jsonl.* has {said}"):
        load_outcomes(path)


def test_too_few_encoders_and_missing_ones_are_named(tmp_path):
    outcomes = load_outcomes(table(tmp_path, rows()))
    few = {"good main": dict(list(planted()["good main"].items())[:3])}
    with pytest.raises(EncbenchError, match=r"3 of 8 encoders .*needs 4.*layer=3.*layer=7"):
        validate(outcomes, few)
    most = {"good main": dict(list(planted()["good main"].items())[:6]), "few x": few["good main"]}
    found = validate(outcomes, most, draws=50)
    assert [row.encoders for row in found.rows] == [6]
    assert found.notes == (
        f"No score was given for {SPECS[6]}, {SPECS[7]}.",
        "few x: 3 encoders have it; a rank correlation needs 4.",
    )


def test_controls_count_only_if_asked_for(tmp_path):
    path = table(tmp_path, [*rows(), "control:constant,0,0", "control:constant,1,0.01"])
    scores = planted()
    scores["good main"]["control:constant"] = Estimate(-5.0, -5.0, -5.0)
    assert validate(load_outcomes(path), scores, draws=50).rows[0].encoders == 8
    found = validate(load_outcomes(path), scores, draws=50, controls=True)
    assert found.rows[0].encoders == 9


def test_a_bank_is_read_by_cell_with_its_parents(tmp_path):
    verdict = read_verdict(GOLDEN)
    path, taken = tmp_path / "bank.csv", rows_of_verdict(verdict, "golden")
    add_to_bank(path, taken, verdict.plan)
    cell = Cell("geneval", 4, "B", "seen")
    held = {row.encoder: [] for row in taken if row.cell == cell}
    for row in taken:
        if row.cell == cell:
            held[row.encoder].append(row.score)
    outcomes = load_outcomes(path, cell=cell)
    assert {row.spec: list(row.scores) for row in outcomes.encoders} == held
    assert not outcomes.scores
    with pytest.raises(EncbenchError, match=r"bank\.csv has no score in the cell"):
        load_outcomes(path, cell=Cell("geneval", 3, "B", "seen"))
    text = path.read_text().splitlines()
    parents = [
        row.replace(",seen,", ",seen,", 1) + PARENT for row in text[1:] if ",4,B,seen," in row
    ]
    path.write_text("\n".join([*text, *parents]) + "\n")
    (name,) = load_outcomes(path, cell=cell).scores
    assert name == "parent, flow matching, 4 steps, tier B"


def test_a_run_s_records_and_a_file_of_predictions_give_scores(tmp_path):
    out = build(tmp_path / "run", FOUR)
    scores = load_run_scores(out)
    assert len(scores["retrieval scaled@2"]) >= 4
    assert all(e.low <= e.value <= e.high for values in scores.values() for e in values.values())
    with pytest.raises(EncbenchError, match="has no records; run the probes first"):
        load_run_scores(tmp_path)
    path = OUTCOMES / "predictions-1.json"
    held = json.loads(path.read_text())["encoders"]
    found = load_predictions([path])
    for spec, row in held.items():
        assert found["rule reader"][spec].value == row["rules"]["reader"]
        assert found["reader bits"][spec].value == -row["scores"]["reader"]["bits"][0]
    bad = tmp_path / "bad.json"
    bad.write_text('{"encoders": {"a": {"rules": {}, "scores": {"reader": {"x": [1, "b", 2]}}}}}')
    with pytest.raises(EncbenchError, match=r"bad.json: a: reader x\[1\] must be a finite number"):
        load_predictions([bad])
    for scores in ("null", "true", "[]", '"x"'):
        bad.write_text(
            f'{{"encoders": {{"a": {{"rules": {{}}, "scores": {{"reader": {scores}}}}}}}}}'
        )
        with pytest.raises(EncbenchError, match=r"bad.json: a: scores has no 'reader'"):
            load_predictions([bad])
    bad.write_text("[]")
    with pytest.raises(EncbenchError, match="has no 'encoders'"):
        load_predictions([bad])


# ------------------------------------------------------------------------ published tables


@pytest.mark.parametrize("name", published_names())
def test_published_tables_say_where_they_come_from(name):
    found = load_outcomes(name)
    assert "arXiv" in found.notes[0]
    assert any(note.startswith("Confounded") for note in found.notes)
    assert len(found.encoders) >= 4
    if found.scores:
        said = " ".join(validate(found, draws=50).notes)
        assert "weights not at hand: " in said
    else:
        with pytest.raises(EncbenchError, match="weights not at hand: "):
            validate(found)


def test_emf_s_table_is_the_report_s():
    printed = {row.geneval: row for row in TABLE if row.geneval is not None}
    found = load_outcomes("emf")
    assert {row.mean for row in found.encoders} == set(printed)
    for row in found.encoders:
        for name in ("discriminability", "disentanglement"):
            assert found.scores[name][row.spec].value == getattr(printed[row.mean], name)


def test_ted_s_correlations():
    """Of the video table it is the one that the paper prints; of the other it isn't, which the
    table says."""
    for name, expected in (("ted-6k", 0.9974), ("ted-6k-video", 0.9587)):
        (row,) = validate(load_outcomes(name), draws=50).rows
        assert row.linear == pytest.approx(expected, abs=1e-4)
    assert any(".9914" in note and ".9974" in note for note in load_outcomes("ted-6k").notes)


def test_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as done:
        main(["validate", "--outcomes", "emf", "--out", str(tmp_path)])
    assert done.value.code == 0
    assert "| discriminability | 1.00 (1.00 to 1.00) |" in capsys.readouterr().out
    assert (tmp_path / "validation.png").exists()
    bank = ["--outcomes", str(OUTCOMES / "bank.csv"), "--cell", "steps=4&tier=B&combos=seen"]
    files = [str(OUTCOMES / name) for name in ("predictions-1.json", "rivals-1.json")]
    run = str(build(tmp_path / "run", FOUR))
    with pytest.raises(SystemExit) as done:
        main(["validate", *bank, "--predictions", *files, "--run", run])
    assert done.value.code == 0
    assert "| rule reader-other-words | " in capsys.readouterr().out
    for wrong, message in (
        (["--outcomes", "emv"], "unknown table of outcomes 'emv'; did you mean emf?"),
        (["--outcomes", "emf", "--cell", "A"], "--cell 'A' is not like metric="),
        (["--outcomes", str(tmp_path / "none.csv")], "none.csv"),
    ):
        with pytest.raises(SystemExit) as done:
            main(["validate", *wrong])
        assert done.value.code in (1, 2)
        said = capsys.readouterr().err
        assert message in said
        assert len(said.splitlines()) == 1


def test_outcomes_made_in_python_need_no_file():
    found = validate(
        Outcomes("mine", load_outcomes("ted-6k").encoders, load_outcomes("ted-6k").scores)
    )
    assert found.rows[0].pooled.value == pytest.approx(0.986, abs=1e-3)
