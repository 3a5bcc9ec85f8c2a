"""A confirmation from start to end, on tiny networks: planned, trained, scored, resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_run
import numpy as np
import pytest

from encbench.cli import main
from encbench.confirm.assemble import _judge
from encbench.confirm.budget import Rates, fit_budget, total_seconds
from encbench.confirm.config import ConfirmConfig, parse_duration
from encbench.confirm.plan import (
    choose_encoders,
    fewer,
    groups_for,
    order_by,
    questions_of,
    reach_of,
)
from encbench.confirm.rules import RULES, OutcomeTable
from encbench.confirm.run import prepare, run_confirmation, verdict_lines
from encbench.confirm.scoring import PromptGroup
from encbench.encoders import EncoderSpec, family_of
from encbench.errors import DataError, RecordError, UsageError
from encbench.files import write_json
from encbench.records import (
    AppliedRule,
    CellVerdict,
    ConfirmPlan,
    PlannedTraining,
    Prediction,
    Ranked,
    RuleOrder,
    find_records,
    read_prediction,
    read_record,
    read_verdict,
    write_record,
)
from encbench.types import Cell, Estimate

OWN = """
import hashlib
import torch
from encbench.types import EncoderCard, TextFeatures

class Words:
    width = {width}

    def __init__(self):
        self.card = EncoderCard("{name}", "own", "own", "own", dim=self.width, max_tokens=40)

    def vector(self, word):
        seed = int(hashlib.sha256(("{name}" + word).encode()).hexdigest()[:8], 16)
        return torch.randn(self.width, generator=torch.Generator().manual_seed(seed))

    def encode(self, prompts):
        {fail}
        rows = [[self.vector(w) for w in (p.split() or [""])[:40]] for p in prompts]
        longest = max(map(len, rows))
        mask = torch.tensor([[i < len(r) for i in range(longest)] for r in rows])
        zero = torch.zeros(self.width)
        tokens = torch.stack([torch.stack(r + [zero] * (longest - len(r))) for r in rows])
        return TextFeatures(tokens, mask, torch.zeros(len(prompts), dtype=torch.bool))
"""
TRAIN = {
    "world": "scenes-grid", "side": 16, "network": "dit-1m", "patch": 8, "images": 48,
    "steps": 6, "batch": 8, "warmup": 1, "checkpoint_every": 2, "flow_matching": 0.5,
    "log_every": 1,
}  # fmt: skip


def encoder(folder: Path, name: str, width: int, fail: str = "pass") -> str:
    path = folder / f"{name}.py"
    path.write_text(OWN.format(name=name, width=width, fail=fail))
    return f"python:{path}:Words"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A ranked run of two encoders of our own, on scenes."""
    specs = [encoder(tmp_path, name, width) for name, width in (("first", 8), ("second", 12))]
    fakes = [
        fake_run.Fake(spec, name, quality)
        for spec, name, quality in zip(specs, ("first", "second"), (0.9, 0.5), strict=True)
    ]
    folder = fake_run.build(tmp_path / "run", fakes, gallery=False, variants=False)
    for path in find_records(folder):  # ranked with the weights that are there
        record = read_record(path)
        if record.card.spec in specs:
            spec = EncoderSpec.parse(record.card.spec)
            revision = family_of(spec).resolve(spec).revision
            card = dataclasses.replace(record.card, revision=revision)
            write_record(path, dataclasses.replace(record, card=card))
    write_json(folder / "config.json", {"encoders": specs, "out": str(folder), "device": "cpu"})
    return folder


def config(run: Path, **more: Any) -> ConfirmConfig:
    values: dict[str, Any] = {
        "out": run, "train": TRAIN, "per_task": 1, "images": 1, "from_scratch": True,
        "device": "cpu", "store": run.parent / "store",
    }  # fmt: skip
    return ConfirmConfig(**{**values, **more})


def told(run: Path) -> dict[str, Any]:
    """What a verdict says, without times."""
    body = json.loads((run / "verdict.json").read_text())
    rows = [
        {k: v for k, v in row.items() if not k.endswith("_seconds")} for row in body["encoders"]
    ]
    return {key: body[key] for key in ("choice", "rule", "exploratory", "control")} | {
        "encoders": rows
    }


def arguments(run: Path) -> list[str]:
    sets = [f"--set={key}={value}" for key, value in TRAIN.items()]
    return [
        "confirm", "--out", str(run), "--per-task", "1", "--images", "1", "--from-scratch",
        "--device", "cpu", "--store", str(run.parent / "store"), *sets,
    ]  # fmt: skip


# ------------------------------------------------------------------------------ planning


def row(name: str, stage: str = "final", control: bool = False) -> Ranked:
    spec = f"control:{name}" if control else f"zoo:{name}"
    return Ranked(spec, name, control, 0.5, 0.4, 0.6, 10, stage=stage)


RANKED = [
    *(row(f"f{i}") for i in range(5)), *(row(f"e{i}", "3pct") for i in range(4)),
    row("constant", control=True), row("random", control=True),
    Ranked("control:shuffle(zoo:f0)", "shuffle(f0)", True, 0.0, 0.0, 0.0, 10),
]  # fmt: skip
RANKING = Prediction(order=RANKED)


def test_by_default_one_stage_and_the_constant_control_are_trained() -> None:
    chosen = [r.name for r in choose_encoders(RANKING, (), False)]
    assert chosen == ["f0", "f1", "f2", "f4", "constant"]


def test_everyone_leaves_only_shuffles_out() -> None:
    chosen = [r.name for r in choose_encoders(RANKING, (), True)]
    assert len(chosen) == 11
    assert "shuffle(f0)" not in chosen


def test_encoders_are_named_by_spec_or_name_best_first_controls_last() -> None:
    chosen = choose_encoders(RANKING, ("random", "zoo:e1", "f0"), False)
    assert [r.name for r in chosen] == ["f0", "e1", "random"]
    with pytest.raises(UsageError, match="'nobody' is not in the prediction"):
        choose_encoders(RANKING, ("nobody",), False)
    with pytest.raises(UsageError, match="shuffles embeddings across prompts"):
        choose_encoders(RANKING, ("shuffle(f0)",), False)


def test_fewer_rivals_keep_the_winner_the_last_and_the_runner_up() -> None:
    rows = choose_encoders(RANKING, (), False)
    assert [r.name for r in fewer(rows, 1)] == ["f0", "f4", "constant"]
    assert [r.name for r in fewer(rows, 2)] == ["f0", "f1", "f4", "constant"]
    assert [r.name for r in fewer(rows, 3)] == ["f0", "f1", "f2", "f4", "constant"]
    assert fewer(rows, 9) == rows


def plan_of(rows: list[Ranked], steps: int = 1000) -> ConfirmPlan:
    return ConfirmPlan(
        prediction="p", preset="cpu", encoders=entries(rows), seeds=(0, 1), per_task=4, images=2,
        train={"world": "scenes-grid", "steps": steps}, prompts="", prompt_pins={},
        primary=Cell("geneval", 4, "B", "seen"), backbone="", detector="scenes", colors="none",
    )  # fmt: skip


def entries(rows: Any) -> tuple[PlannedTraining, ...]:
    return tuple(PlannedTraining(r.spec, r.name, r.stage, r.control, r.score, 0) for r in rows)


def test_a_budget_is_kept_and_what_it_cost_is_told() -> None:
    rows = choose_encoders(RANKING, (), False)
    groups = groups_for("", "scenes-grid", 4, 0)
    rates = Rates(0.05, 0.07, 0.0002)
    whole = total_seconds(plan_of(rows), rates, groups)
    plan = fit_budget(plan_of(rows), rates, groups, rows, whole * 1.01, entries)
    assert plan.gave_up == ()
    assert len(plan.encoders) == 5
    tight = fit_budget(plan_of(rows), rates, groups, rows, whole / 3, entries)
    assert tight.gave_up
    assert total_seconds(tight, rates, groups) <= whole / 3
    longer = fit_budget(plan_of(rows), rates, groups, rows, whole * 3, entries)
    assert longer.train["steps"] > 1000
    with pytest.raises(UsageError, match="too small"):
        fit_budget(plan_of(rows), rates, groups, rows, 30.0, entries)
    two = rates._replace(models=2)  # ten models one by one, or in five rounds of two
    assert total_seconds(plan_of(rows), two, groups) == pytest.approx(whole / 2)
    assert fit_budget(plan_of(rows), two, groups, rows, whole * 0.51, entries).gave_up == ()
    four = rates._replace(models=4)  # in three rounds, the last of them half empty
    assert total_seconds(plan_of(rows), four, groups) == pytest.approx(whole * 3 / 10)


def test_budgets_are_read_and_refused() -> None:
    assert [parse_duration(t) for t in ("12m", "2h", "90s", "1h30m")] == [720, 7200, 90, 5400]
    for text in ("", "12", "soon", "m"):
        with pytest.raises(UsageError, match="--budget"):
            parse_duration(text)


def test_what_a_plan_can_tell_is_said_before() -> None:
    groups = groups_for("", "scenes-grid", 4, 0)
    trained, other = (Cell("geneval", 4, tier, "seen") for tier in "AB")
    assert questions_of(groups, None) == questions_of(groups, trained) == (trained, other)
    assert questions_of(groups, other) == (other, trained)
    file = [PromptGroup("file", "seen", groups[0].prompts)]
    assert questions_of(file, trained) == (Cell("geneval", 4, "file", "seen"), None)
    two = reach_of(plan_of(RANKED[:2]), groups)
    assert two.rule == ("can't tell",)
    assert "confirmed" in two.choice
    five = reach_of(plan_of(RANKED[:5]), groups)
    assert five.smallest_p == pytest.approx(1 / 120)
    assert "not confirmed" in five.rule
    once = reach_of(dataclasses.replace(plan_of(RANKED[:5]), seeds=(0,)), groups)
    assert once.choice == once.rule == ("can't tell",)


def test_seen_and_held_out_prompts_are_the_same_in_every_tier() -> None:
    groups = {(g.tier, g.combos): g for g in groups_for("", "scenes-grid", 4, 0)}
    assert set(groups) == {(t, c) for t in "ABC" for c in ("seen", "held-out")}
    for combos in ("seen", "held-out"):
        asked = [[p.include for p in groups[tier, combos].prompts] for tier in "ABC"]
        assert asked[0] == asked[1] == asked[2]
    texts = {p.text for p in groups["B", "seen"].prompts}
    assert not texts & {p.text for p in groups["A", "seen"].prompts}


def test_each_question_is_judged_on_the_order_of_the_rule_that_predicts_it() -> None:
    """The two rules say the opposite; each cell agrees with its own."""
    rows = [row(f"f{i}") for i in range(5)]
    first = tuple(
        dataclasses.replace(
            e, predicted=Estimate(5.0 - i, 0.0, 9.0), second=Estimate(float(i), 0.0, 9.0)
        )
        for i, e in enumerate(entries(rows))
    )
    other = Cell("geneval", 4, "B", "seen")
    plan = dataclasses.replace(
        plan_of(rows), encoders=first, primary=other._replace(tier="A"), second=other
    )
    noise = np.random.default_rng(0).normal(0, 0.02, (5, 2, 60))

    def judge(cell: Cell, best_first: list[int]) -> CellVerdict:
        truth = 0.8 - 0.15 * np.argsort(best_first)[:, None, None]
        table = OutcomeTable(
            tuple(e.spec for e in first), ("final",) * 5, np.zeros(5), np.arange(60) % 6,
            truth + noise,
        )  # fmt: skip
        return _judge(plan, first, table, cell, "some rule")

    told = judge(plan.primary, [0, 1, 2, 3, 4])
    assert (told.cell, told.ranked_by, told.choice.winner) == (plan.primary, "some rule", "zoo:f0")
    assert (told.choice.verdict, told.rule.verdict) == ("confirmed", "confirmed")
    assert told.control is None
    assert judge(plan.primary, [4, 3, 2, 1, 0]).rule.verdict == "not confirmed"
    told = judge(other, [4, 3, 2, 1, 0])
    assert (told.choice.winner, told.choice.verdict) == ("zoo:f4", "confirmed")
    assert told.rule.verdict == "confirmed"


def test_a_plan_takes_the_orders_of_a_prediction_by_their_rules(run: Path) -> None:
    prediction = read_prediction(run / "prediction.json")
    other = Cell("geneval", 4, "B", "seen")
    upside = [dataclasses.replace(r, value=-r.value) for r in prediction.order]
    upside.sort(key=lambda r: -r.value)
    words = RuleOrder(rule=AppliedRule(name="words", cell=other), order=upside)
    both = dataclasses.replace(prediction, others=[words])
    plan = prepare(config(run), both).plan
    assert (plan.rule, plan.second_rule) == ("emf-retrieval", "words")
    assert (plan.primary.tier, plan.second) == ("A", other)
    by_name = {e.name: e for e in plan.encoders}
    assert by_name["first"].predicted.value == -by_name["first"].second.value
    plan = prepare(config(run, rule="words"), both).plan
    assert (plan.rule, plan.second_rule, plan.primary) == ("words", "words", other)
    assert [e.name for e in plan.trained] == ["second", "first"]
    alone = prepare(config(run), prediction).plan
    assert alone.second_rule == "emf-retrieval"  # no rule for other words: the same order
    assert order_by(both, "") is both
    with pytest.raises(UsageError, match="no order by the rule 'reader', only by emf-retrieval"):
        prepare(config(run, rule="reader"), prediction)


# ---------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_from_prediction_to_verdict(run: Path, check_answer: Any) -> None:
    verdict = run_confirmation(config(run))
    check_answer((run / "verdict.json").read_text())
    assert read_verdict(run / "verdict.json") == verdict
    assert verdict.prediction == read_prediction(run / "prediction.json").hash
    assert [row.name for row in verdict.encoders] == ["first", "second", "constant"]
    keys = {
        Cell("geneval", steps, tier, combos)
        for steps in (1, 2, 4, 16)
        for tier in "ABC"
        for combos in ("seen", "held-out")
    }
    for row in verdict.encoders:
        assert set(row.scores) == keys
        assert len(row.by_seed[verdict.primary]) == 2
        assert row.scores[verdict.primary].value == pytest.approx(
            np.mean(row.by_seed[verdict.primary])
        )
        assert row.parent
        assert row.gap
        assert {p.stage for p in row.curve} == {"flow-matching", "meanflow"}
        assert (run / row.grid).read_bytes().startswith(b"\x89PNG")
    assert verdict.rule.verdict == "can't tell"
    assert "4 needed" in verdict.rule.why
    assert {row.p <= row.p_holm for row in verdict.exploratory} == {True}
    assert verdict.second.cell == verdict.primary._replace(tier="B")
    assert verdict.primary.tier == "A"
    lines = verdict_lines(verdict)
    assert sum("choice: " in line for line in lines) == 2
    assert lines[-1].startswith("Not settled: is first the best choice?")
    assert verdict.rules == RULES.sentences(verdict.primary, verdict.second.cell)

    kept = {p: p.stat().st_mtime_ns for p in (run / "confirm").rglob("result.json")}
    assert len(kept) == 6
    again = run_confirmation(config(run))  # everything is there: nothing is trained again
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert again.hash == verdict.hash

    with pytest.raises(UsageError, match="confirmation with another"):
        run_confirmation(config(run, images=2))


@pytest.mark.slow
def test_one_failed_encoder_loses_nothing_and_is_tried_again(run: Path) -> None:
    whole = encoder(run.parent, "second", 12)
    encoder(run.parent, "second", 12, fail="raise RuntimeError('no such luck')")
    # the file's hash is its revision: a broken one is not what was ranked
    verdict = run_confirmation(config(run, seeds=1))
    assert [row.name for row in verdict.encoders] == ["first", "constant"]
    assert [row.spec for row in verdict.failed] == [whole]
    assert "have changed since it was ranked" in verdict.failed[0].error
    before = {p: p.stat().st_mtime_ns for p in (run / "confirm").rglob("result.json")}
    encoder(run.parent, "second", 12)
    mended = run_confirmation(config(run, seeds=1))
    assert [row.name for row in mended.encoders] == ["first", "second", "constant"]
    assert not mended.failed
    assert all(p.stat().st_mtime_ns == at for p, at in before.items())


@pytest.mark.slow
def test_two_processes_and_a_kill_give_the_verdict_of_one(run: Path, tmp_path: Path) -> None:
    alone = run_confirmation(config(run, seeds=1))
    expected = told(run)
    assert alone.encoders
    rng = random.Random(3)
    other = tmp_path / "other"
    subprocess.run(["cp", "-r", str(run), str(other)], check=True)
    subprocess.run(["rm", "-r", str(other / "confirm"), str(other / "verdict.json")], check=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    given = ["-m", "encbench", *arguments(other), "--seeds", "1"]
    command = [sys.executable, *given]
    for _ in range(2):  # killed while it trains, each time after some progress
        done = len(list((other / "confirm").rglob("*.safetensors")))
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                time.sleep(0.05)
                if len(list((other / "confirm").rglob("*.safetensors"))) > done:
                    time.sleep(rng.uniform(0, 1))
                    process.send_signal(signal.SIGKILL)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    finished = subprocess.run(
        [*launch, *given], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert told(other) == expected


# ----------------------------------------------------------------------------- bad input


def test_a_missing_or_tampered_prediction_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="rank encoders first"):
        prepare(config(tmp_path / "nothing"))
    path = run / "prediction.json"
    path.write_text(path.read_text().replace('"first"', '"worst"', 1))
    with pytest.raises(RecordError, match="changed after it was made"):
        prepare(config(run))


def test_data_that_changed_since_the_ranking_are_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = read_prediction(run / "prediction.json").data["retrieval"]
    name, _, pin = was.rpartition("@")
    for now, same in ((pin, True), ("ef" * 32, False)):
        data = SimpleNamespace(captions=SimpleNamespace(name=name, pin=now), prompts=None)
        monkeypatch.setattr("encbench.confirm.run.load_run_data", lambda config, data=data: data)
        with (
            nullcontext()
            if same
            else pytest.raises(
                DataError, match=rf"{name} is not what the encoders were ranked on \(it was abab"
            )
        ):
            prepare(config(run))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--encoders", "nobody"], "is not in the prediction"),
        (["--budget", "soon"], "--budget must be like 12m"),
        (["--set", "objective=flow-matching"], "trains no few-step model"),
        (["--set", "nonsense=1"], "unknown configuration key 'nonsense'"),
        (["--set", "encoder=t5:x"], "has an option of its own"),
        (["--preset", "huge"], "huge"),
        (["--encoders", "constant"], "only controls were named"),
        (["--seeds", "0"], "--seeds must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["confirm", "--out", str(run), "--device", "cpu", *more])
    assert stopped.value.code in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], check_answer: Any
) -> None:
    before = sorted(run.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main([*arguments(run), "--dry-run"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for word in ("prediction", "training", "time", "smallest p", "\nchoice ", "\nrule "):
        assert word in printed
    with pytest.raises(SystemExit):
        main([*arguments(run), "--dry-run", "--json"])
    assert len(check_answer(capsys.readouterr().out)["encoders"]) == 3
    assert sorted(run.rglob("*")) == before
