"""The bank of outcomes: rows of verdicts, only added to, refused in one line; its fixed recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from encbench.confirm.bank import (
    PARENT,
    BankError,
    add_to_bank,
    one_recipe,
    read_bank,
    recipe_hash,
    rows_of_verdict,
)
from encbench.confirm.config import PRESETS
from encbench.errors import UsageError
from encbench.files import read_json
from encbench.flow.config import training_config
from encbench.records import read_verdict

ROOT = Path(__file__).parents[1]
BANK = ROOT / "benchmarks" / "outcomes" / "bank.csv"
GOLDEN = Path(__file__).parent / "golden" / "run-v1" / "verdict.json"


@pytest.fixture
def verdict():
    return read_verdict(GOLDEN)


def test_a_bank_has_a_row_for_each_training_and_cell_and_only_grows(verdict, tmp_path):
    path, rows = tmp_path / "bank.csv", rows_of_verdict(verdict, "golden")
    assert len(rows) == 2 * 2 * 24  # encoders, seeds, cells
    assert add_to_bank(path, rows[:50], verdict.plan) == 50
    before = path.read_text()
    assert add_to_bank(path, rows, verdict.plan) == len(rows) - 50
    assert path.read_text().startswith(before)
    assert read_bank(path) == rows
    assert add_to_bank(path, rows, verdict.plan) == 0
    again = rows_of_verdict(verdict, "trained again")
    assert add_to_bank(path, again, verdict.plan) == len(rows)
    assert {row.repeat for row in read_bank(path)} == {0, 1}
    assert not any("/" in row.encoder for row in rows)  # no folder of this machine


def test_a_bank_of_the_first_version_is_read_and_added_to(verdict, tmp_path):
    path, rows = tmp_path / "bank.csv", rows_of_verdict(verdict, "golden")
    add_to_bank(path, rows[:3], verdict.plan)
    lines = path.read_text().splitlines()
    assert lines[0].endswith(",created,phase")
    path.write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    assert read_bank(path) == rows[:3]
    parent = replace(rows[0], phase=PARENT, score=0.5)
    assert add_to_bank(path, [*rows[:3], parent], verdict.plan) == 1
    assert read_bank(path) == [*rows[:3], parent]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",geneval,1,", ",geneval,one,", "line 2: steps cannot be 'one'"),
        ("final,False", "final,maybe", "line 2: control cannot be 'maybe'"),
        (",seen,0.0,", ",seen,nan,", "score is nan, which is not a number"),
        ("encoder,", "name,", "has no column encoder"),
    ],
)
def test_damage_is_named_with_its_line(verdict, tmp_path, old, new, message):
    path = tmp_path / "bank.csv"
    add_to_bank(path, rows_of_verdict(verdict, "golden"), verdict.plan)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(BankError, match=message):
        read_bank(path)


def test_a_repeated_row_and_two_recipes_are_refused(verdict, tmp_path):
    path, rows = tmp_path / "bank.csv", rows_of_verdict(verdict, "golden")
    add_to_bank(path, rows, verdict.plan)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[5]]))
    with pytest.raises(BankError, match=r"line 98 repeats line 6 .*remove one of them"):
        read_bank(path)
    both = [*rows, *read_bank(BANK)]
    with pytest.raises(UsageError, match="rows of 2 recipes, which cannot be compared"):
        one_recipe(both)
    assert one_recipe(both, recipe_hash(verdict.plan)) == rows


def test_the_bank_preset_is_the_recipe_of_the_bank():
    (recipe,) = {row.recipe for row in read_bank(BANK)}
    held = read_json(BANK.parent / "recipes" / f"{recipe}.json")
    preset = PRESETS["bank"]()
    config = training_config(preset["train"]).as_dict()
    assert {name: config[name] for name in held["train"]} == held["train"]
    assert [preset[name] for name in ("per_task", "images")] == [
        held["scoring"][name] for name in ("per_task", "images")
    ]
    nine = read_verdict(ROOT / "benchmarks" / "results" / "confirm-cpu-nine.json")
    assert recipe_hash(nine.plan) == recipe
