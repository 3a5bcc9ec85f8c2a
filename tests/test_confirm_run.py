"""``encbench run --confirm``: from encoders to a verdict by one command."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
from hosts import finish, two_hosts

from encbench.cli import main
from encbench.confirm.config import PRESETS
from encbench.data.scenes.world import SHAPES
from encbench.files import write_json
from encbench.records import read_prediction, read_verdict

TINY = {
    "train": {
        "world": "scenes-grid", "side": 32, "network": "dit-1m", "patch": 8, "images": 32,
        "captions": 1, "steps": 4, "batch": 4, "warmup": 1, "checkpoint_every": 2, "log_every": 1,
        "sample_every": 0, "derivative": "forward",
    },
    "seeds": 1, "per_task": 1, "images": 1,
}  # fmt: skip
SCRIPT = f"""
from encbench.cli import main
from encbench.confirm.config import PRESETS
PRESETS["cpu"] = lambda: {TINY!r}
main()
"""


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "cpu", lambda: TINY)


def arguments(folder: Path) -> list[str]:
    """Ranked by a few captions, so that the test is short; confirmed on scenes."""
    (folder / "coco" / "annotations").mkdir(parents=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 8, "height": 8} for i in range(8)]
    told = [
        {"id": 10 * i + k, "image_id": i, "caption": f"{SHAPES[i % 4]} number {i}, worded {k}"}
        for i in range(8)
        for k in range(2)
    ]
    body = {"images": images, "annotations": told, "info": {}, "licenses": []}
    write_json(folder / "coco" / "annotations" / "captions_val2017.json", body)
    return [
        "run", "--confirm", "--encoders", "zoo:mini-clip", "zoo:mini-clip?step=3pct", "--probes",
        "retrieval", "--pools", "max", "--device", "cpu", "--coco", str(folder / "coco"),
        "--re-encoder", "none", "--out", str(folder / "run"), "--store", str(folder / "store"),
    ]  # fmt: skip


def exit_code(given: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(given)
    return int(stopped.value.code or 0)


@pytest.mark.slow
def test_one_command_ranks_and_confirms_on_two_hosts_as_in_one_process(
    tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(tmp_path)
    script = tmp_path / "tiny.py"
    script.write_text(SCRIPT)
    with two_hosts() as hosts:
        (status, said), (other, more) = finish(hosts.launch(str(script), *given))
    assert (status, other) == (0, 0), said[-2000:] + more[-2000:]
    assert "choice:" in said + more
    prediction = read_prediction(tmp_path / "run" / "prediction.json")
    verdict = read_verdict(tmp_path / "run" / "verdict.json")
    assert verdict.prediction == prediction.hash
    assert verdict.plan.preset == "cpu"
    assert verdict.plan.train["flow_matching"] == 0.6
    assert verdict.plan.backbone  # the one that comes with encbench
    finished = [r.spec for r in prediction.order if not r.control and r.stage == "final"]
    assert [row.spec for row in verdict.encoders] == [*finished, "control:constant"]
    page = (tmp_path / "run" / "report" / "index.html").read_text("utf-8")
    assert 0 < page.index("The choice") < page.index('<section id="ranking">')

    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "confirm").rglob("*.safetensors")}
    assert exit_code(given) == 0  # alone, again: everything is there
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    again = read_verdict(tmp_path / "run" / "verdict.json")
    assert (again.encoders, again.choice, again.rule) == (
        verdict.encoders, verdict.choice, verdict.rule
    )  # fmt: skip

    own = [word.replace(str(tmp_path / "run"), str(tmp_path / "alone")) for word in given]
    assert exit_code(own) == 0
    alone = read_verdict(tmp_path / "alone" / "verdict.json")
    assert [
        asdict(row) for row in read_prediction(tmp_path / "alone" / "prediction.json").order
    ] == [asdict(row) for row in prediction.order]
    assert [row.scores for row in alone.encoders] == [row.scores for row in verdict.encoders]

    capsys.readouterr()
    assert exit_code([*given, "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"prediction {prediction.hash[:12]}, kept" in printed


def test_a_dry_run_before_any_ranking_plans_by_places(
    tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"zoo:{name}" for name in ("mini-clip", "mini-t5", "mini-gemma")]
    given = arguments(tmp_path)
    given[given.index("--probes") : given.index("--probes")] = names[1:]
    assert exit_code([*given, "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "zoo:mini-t5" in printed
    assert "prediction still to be made" in printed
    assert "rank 1 (final), rank 2 (final), rank 3 (final); controls: constant" in printed
    assert "4 models, 1 seeds, 4 steps" in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["run", "--budget", "12m"], "give --confirm with it"),
        (["run", "--confirm", "--budget", "soon"], "--budget must be like 12m"),
        (["probe", "--confirm"], "No such option: --confirm"),
        (["probe", "--budget", "12m"], "No such option: --budget"),
    ],
)
def test_what_belongs_to_a_confirmation_is_refused_elsewhere(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code([*given, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert said in error[0]
    assert not (tmp_path / "run").exists()
