"""Records: round trip, schema, damage; and records of every released schema load for ever."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from encbench.confirm.plan import read_plan
from encbench.errors import RecordError
from encbench.records import (
    RunRecord,
    clean,
    find_records,
    read_items,
    read_prediction,
    read_record,
    read_verdict,
    write_record,
)
from encbench.types import Cell, EncoderCard, ProbeSpec, Score

GOLDEN = Path(__file__).parent / "golden"


def record(**change) -> RunRecord:
    made = RunRecord(
        key="k",
        name="n",
        card=EncoderCard("a:b", "a", "b", "r", dim=4, max_tokens=None),
        pooling="mean",
        probe=ProbeSpec("p", 1, "s", "title"),
        scores={"s": Score(0.5, 2, 0.1, 0.9)},
    )
    return dataclasses.replace(made, **change)


def test_round_trip_with_items_to_the_last_bit(tmp_path):
    items = pd.DataFrame({"item": ["007", "8"], "v": [1 / 3, np.nan]})
    path = tmp_path / "records" / "x" / "p.main.json"
    write_record(path, record(series={"x": np.arange(3), "bad": float("nan")}), items)
    loaded = read_record(path)
    assert loaded.series == {"x": [0, 1, 2], "bad": None}
    assert loaded.main.value == 0.5
    back = read_items(path, loaded)
    assert back["item"].tolist() == ["007", "8"]
    assert back["v"][0] == 1 / 3
    assert np.isnan(back["v"][1])
    assert find_records(tmp_path) == [path]


def test_same_items_same_bytes(tmp_path):
    items = pd.DataFrame({"item": ["a"], "v": [0.1]})
    for name in ("one", "two"):
        write_record(tmp_path / name / "r.json", record(), items)
    one, two = ((tmp_path / n / "r.items.csv.gz").read_bytes() for n in ("one", "two"))
    assert one == two


def test_damage_and_newer_schemas_are_named(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, record(schema=99))
    with pytest.raises(RecordError, match="schema 99, newer than this encbench reads"):
        read_record(path)
    path.write_text("{}")
    with pytest.raises(RecordError, match="is not an encbench run file"):
        read_record(path)
    path.write_text('{"kind": "run", "schema": 1, "key": "k"}')
    with pytest.raises(RecordError, match=r"r\.json has no 'name'; remove it and run again"):
        read_record(path)
    with pytest.raises(RecordError, match="cannot read"):
        read_record(tmp_path / "none.json")
    write_record(path, record(), pd.DataFrame({"item": ["a"]}))
    (tmp_path / "r.items.csv.gz").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(RecordError, match=r"r\.items\.csv\.gz"):
        read_items(path, read_record(path))


def test_unknown_fields_of_a_later_minor_version_are_left_alone(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, record())
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"added_later": 1}))
    assert read_record(path) == record()


def test_what_json_lacks_becomes_null():
    assert clean({"a": np.float64("nan"), "b": (np.int64(3), Path("x"))}) == {
        "a": None,
        "b": [3, "x"],
    }


@pytest.mark.parametrize("folder", sorted(GOLDEN.glob("run-v*")), ids=lambda p: p.name)
def test_old_runs_load_for_ever(folder):
    """Files as released; they are never changed. Add a folder when the schema changes."""
    wanted = json.loads((folder / "expected.json").read_text())
    for path in find_records(folder):
        loaded = read_record(path)
        expected = wanted[path.parent.name]
        assert loaded.scores[expected["score"]].value == expected["value"]
        assert len(read_items(path, loaded)) == expected["items"]
    prediction = read_prediction(folder / "prediction.json")
    assert prediction.hash == wanted["hash"]  # of the file, whose names may be older
    assert prediction.advice.text == wanted["advice"]
    verdict, expected = read_verdict(folder / "verdict.json"), wanted["verdict"]
    assert (verdict.hash, verdict.prediction) == (expected["hash"], expected["prediction"])
    primary = Cell("geneval", 4, "B", "seen")
    assert verdict.primary == primary
    found = {row.name: row.scores[primary].value for row in verdict.encoders}
    assert found == expected["scores"]
    assert read_plan(folder / "confirm" / "plan.json").primary == primary


def test_a_cell_is_read_from_its_key_with_and_without_a_metric():
    cell = Cell("geneval", 4, "B", "held-out")
    assert str(cell) == "metric=geneval&steps=4&tier=B&combos=held-out"
    assert Cell.parse(str(cell)) == cell
    assert Cell.parse("steps=4&tier=B&combos=held-out") == cell
    for key in ("", "steps=4", "steps=many&tier=B&combos=seen", f"{cell}&seed=1"):
        with pytest.raises(ValueError, match=r"is not like|invalid literal"):
            Cell.parse(key)


def test_there_is_a_golden_run():
    assert list(GOLDEN.glob("run-v*/records/*/*.json"))


@pytest.mark.parametrize("name", ["._a.json", ".a.json", ".ipynb_checkpoints/a.json"])
def test_hidden_files_beside_records_are_no_records(tmp_path, name):
    """macOS leaves ._x.json beside x.json on other disks, and Jupyter copies of what it opened."""
    for each in ("b.json", name):
        path = tmp_path / "records" / "x" / each
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x00\x05\x16\x07")
    assert find_records(tmp_path) == [tmp_path / "records" / "x" / "b.json"]
