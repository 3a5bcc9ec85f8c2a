"""encbench replace: paired differences against a base, costs, the smallest that loses nothing."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from encbench.cli import main
from encbench.config import RunConfig
from encbench.errors import EncbenchError
from encbench.intervals import estimate_scores
from encbench.pipeline import Outcome, find_records, probe_all
from encbench.ranking import Entrant, load
from encbench.records import RunRecord
from encbench.replacement import (
    Change,
    Replaced,
    Replacement,
    _choices,
    compare_with_base,
    page,
    verdict,
)
from encbench.types import EncoderCard, ProbeSpec


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(["replace", *words])
    return done.value.code or 0


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """mini-t5, its own earlier step and mini-clip through two probes, on a few captions."""
    home = tmp_path_factory.mktemp("replace")
    words = ["cat", "dog", "house", "boat", "tree", "bird", "lamp", "road"]
    texts = [(f"{start} {word}", word) for word in words for start in ("a photo of a", "one red")]
    captions = home / "captions.csv"
    captions.write_text("caption,group\n" + "".join(f"{a},{b}\n" for a, b in texts))
    config = RunConfig(
        encoders=("zoo:mini-t5", "zoo:mini-t5?step=3pct", "zoo:mini-clip"),
        captions=captions,
        probes=("retrieval", "diagnostics"),
        ks=(1, 2),
        pools=("max",),
        device="cpu",
        store=home / "store",
        out=home / "run",
    )
    probe_all(config)
    return config


@pytest.fixture
def folder(
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    check_answer: Any,
) -> Path:
    """The folder of that run after the command, with the probes' work done before."""
    done = (find_records(config.out), Outcome(None, config.out, ()))
    monkeypatch.setattr("encbench.pipeline.run_with_records", lambda given: done)
    words = ["zoo:mini-t5", "--with", *config.encoders[1:], "--out", str(config.out)]
    words += ["--captions", str(config.captions), "--device", "cpu", "--json"]
    capsys.readouterr()
    assert run(*words) == 0
    assert check_answer(capsys.readouterr().out)["kind"] == "replacement"
    return config.out


def test_differences_are_those_of_the_records(folder: Path) -> None:
    found = json.loads((folder / "replacement.json").read_text())
    assert found["base"]["name"] == "zoo:mini-t5"
    assert [row["name"] for row in found["candidates"]] == ["mini-t5?step=3pct", "mini-clip"]
    main_records, _ = load(find_records(folder))
    scores = {(e.record.name, e.record.probe.name): e.record.main.value for e in main_records}
    for row in found["candidates"]:
        changes = {change["probe"]: change for change in row["changes"]}
        assert set(changes) == {"retrieval", "diagnostics"}
        change = changes["retrieval"]
        expected = scores[row["name"], "retrieval"] - scores["zoo:mini-t5", "retrieval"]
        assert change["difference"] == pytest.approx(expected, abs=1e-9)
        assert change["low"] <= change["difference"] <= change["high"]
        assert changes["diagnostics"]["outcome"] == "unknown"
        assert row["milliseconds"] > 0
        assert row["parameters"] > 0
    used = {(each["name"], each["use"]): each["change"] for each in found["choices"]}
    assert {use for _, use in used} == {"pool=max"}
    assert {name for name, _ in used} == {"zoo:mini-t5", "mini-t5?step=3pct", "mini-clip"}
    _, variants = load(find_records(folder))
    value = next(e.record.main.value for e in variants if e.record.name == "zoo:mini-t5")
    assert used["zoo:mini-t5", "pool=max"]["difference"] == pytest.approx(
        value - scores["zoo:mini-t5", "retrieval"], abs=1e-9
    )
    text = (folder / "replacement.md").read_text()
    assert "| zoo:mini-t5, pool=max (retrieval) |" in text
    assert re.search(r"## retrieval: recall@2", text)
    assert "not that they are equal" in text


def test_what_was_not_measured_is_one_line(folder: Path) -> None:
    paths = find_records(folder)
    with pytest.raises(EncbenchError, match="nothing was measured of other"):
        compare_with_base("other", ["mini-clip"], paths)
    with pytest.raises(EncbenchError, match="nothing was measured of its candidates"):
        compare_with_base("zoo:mini-t5", ["other"], paths)


def made(name: str, parameters: int, outcome: str) -> Replaced:
    change = Change("retrieval", "scaled@2", 0.5, 0.4, -0.1, -0.2, 0.0, outcome)
    return Replaced(f"st:{name}", name, parameters, 4.0 * parameters, None, "mit", "", (change,))


def test_the_smallest_that_loses_nothing_is_named() -> None:
    base = dataclasses.replace(made("base", 100, "same"), changes=())
    rows = (made("tiny", 10, "worse"), made("small", 30, "same"), made("middle", 60, "better"))
    said = verdict(Replacement(base, rows, "small"))
    assert "small, with 70 % fewer parameters" in said
    assert "is worse than it on at least one" in verdict(Replacement(base, rows[:1], ""))
    assert "| small | 0.400 | -0.100 | -0.200 to +0.000 | same |" in page(
        Replacement(base, rows, "small")
    )


def test_whitened_features_are_a_choice_of_their_own() -> None:
    def entrant(name: str, probe: str, values: list[float]) -> Entrant:
        items = pd.DataFrame({"item": [f"item {n}" for n in range(40)], "everything": values * 20})
        scores = {"everything": ("everything",)}
        record = RunRecord(
            key=name,
            name=name,
            card=EncoderCard(f"st:{name}", "st", name, "", dim=4, max_tokens=None),
            pooling="mean",
            probe=ProbeSpec(probe, 1, "everything", probe),
            scores=estimate_scores(items, scores, seed=0),
            item_scores={"everything": ["everything"]},
        )
        return Entrant(record, items)

    by_probe = {
        "reader": {name: entrant(name, "reader", [0.0, 1.0]) for name in ("base", "small")},
        "reader-whitened": {"small": entrant("small", "reader-whitened", [1.0, 1.0])},
    }
    (choice,) = _choices("base", ["base", "small"], by_probe, [])
    assert (choice.name, choice.use, choice.change.probe) == ("small", "whitened", "reader")
    assert choice.change.difference == pytest.approx(0.5)
    assert choice.change.outcome == "better"


def test_wrong_words_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("zoo:mini-t5", "--with", "zoo:mini-clip", "--encoders", "zoo:mini-t5") == 2
    assert "give the encoders as BASE and --with" in capsys.readouterr().err
    assert run("zoo:mini-t5", "--with", "control:random") == 2
    assert "controls are added automatically" in capsys.readouterr().err
