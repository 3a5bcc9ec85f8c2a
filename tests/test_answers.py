"""What ``--json`` prints fits the schema in the docs, and nothing else is on standard output."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from encbench.cli import main
from encbench.commands.answers import KINDS, json_schema

SCHEMA = Path(__file__).parents[1] / "docs" / "schema.json"


@pytest.fixture
def small(tmp_path):
    """The words of a run of a second: one encoder, eight captions."""
    captions = tmp_path / "captions.txt"
    captions.write_text("a cat\none cat\n\na dog\none dog\n\na red boat\none boat\n\na tree\noak\n")
    words = ["--captions", captions, "--probes", "retrieval", "--ks", "1", "--device", "cpu"]
    return [*words, "--pools", "own", "--out", tmp_path / "run", "--encoders", "zoo:mini-clip"]


@pytest.fixture
def answer(capsys, check_answer):
    """Exit status and JSON of a command."""

    def call(*words: object) -> tuple[int, dict]:
        with pytest.raises(SystemExit) as caught:
            main([*map(str, words), "--json"])
        return caught.value.code or 0, check_answer(capsys.readouterr().out)

    return call


def test_the_schema_in_the_docs_is_that_of_the_code():
    schema = json.loads(SCHEMA.read_text())
    assert schema == json_schema(), "its description in docs/json.md says how it is made"
    Draft202012Validator.check_schema(schema)
    page = SCHEMA.with_name("json.md").read_text()
    assert all(f"`{kind}`" in page for kind in KINDS)


def test_the_schema_refuses_what_is_wrong(answer):
    _, value = answer("list", "rules")
    validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
    for broken in ({"kind": "plan"}, {"schema": 2}, {"extensions": [{"name": 1}]}, {"options": 3}):
        assert not validator.is_valid(value | broken), broken


def test_list_and_doctor(answer):
    code, value = answer("list")
    assert (code, value["kind"]) == (0, "extensions")
    names = {(row["kind"], row["name"]) for row in value["extensions"]}
    assert names >= {("encoder", "clip"), ("probe", "reader"), ("preset", "run --preset emf")}
    assert "layer" in value["options"]
    assert {row["kind"] for row in answer("list", "detectors")[1]["extensions"]} == {"detector"}
    code, value = answer("doctor")
    assert (code, value["good"]) == (0, True)
    assert "encbench run" in value["next"]


def test_plans(answer, small):
    code, plan = answer("probe", *small, "--dry-run")
    assert (code, plan["kind"], plan["download"], plan["confirmation"]) == (0, "plan", 0, None)
    assert plan["captions"] == 8
    plan = answer("run", "--preset", "emf", "--dry-run")[1]
    assert plan["download"] > 1e9
    plan = answer("train", "--encoder", "control:constant", "--network", "dit-1m", "--dry-run")[1]
    assert plan["kind"] == "training plan"
    assert plan["parameters"] == plan["trained"] > 1e5


def test_a_run_and_what_is_made_of_it(answer, small, tmp_path):
    out = tmp_path / "run"
    code, records = answer("probe", *small)
    assert (code, records["kind"]) == (0, "records")
    assert all(Path(path).is_file() for path in records["records"])
    code, ranked = answer("rank", out)
    assert code == 0
    assert ranked == json.loads((out / "prediction.json").read_text())
    code, run = answer("run", *small)
    assert (code, run["hash"]) == (0, ranked["hash"])


def test_an_encoder_that_fails_is_in_the_answer_and_in_the_exit_status(answer, small):
    code, value = answer("run", *small, "st:/nowhere")
    assert code == 1
    assert value["failed"][0]["spec"].startswith("st:")


def test_validate(answer):
    code, value = answer("validate", "--outcomes", "emf")
    assert (code, value["kind"]) == (0, "validation")
    assert value["rows"]


def test_an_error_prints_no_json(tmp_path):
    command = [sys.executable, "-m", "encbench", "rank", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("encbench: no records under")
