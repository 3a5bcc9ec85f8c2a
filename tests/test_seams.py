"""A toy of each kind of extension, from another package: listed, used and shown in the results.

The package is ``tests/seams``: one file and one entry point for each kind. docs/layout.md points
to its files.
"""

import json
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from encbench import cli, registry
from encbench.confirm.config import PRESETS
from encbench.data.geneval import Clause, GenevalPrompt
from encbench.metrics import load_metric
from encbench.metrics.geneval.detect import load_detector
from encbench.metrics.geneval.metric import GenevalMetric
from encbench.metrics.score import score_images
from encbench.records import find_records, read_prediction, read_record, read_verdict
from encbench.types import Cell, Detector, ImageMetric

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tests" / "seams"
TOYS = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
TINY = {
    "world": "scenes-grid", "side": 16, "network": "dit-16x1x1", "patch": 8, "images": 32,
    "captions": 1, "steps": 4, "batch": 4, "warmup": 1, "checkpoint_every": 2, "log_every": 1,
    "sample_every": 0, "objective": "halved", "times": "ends", "flow_matching": 0.5,
}  # fmt: skip


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(outside, capsys, monkeypatch):
    """Run a command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in words])
        out, err = (" ".join(text.split()) for text in capsys.readouterr())
        return Done(ended.value.code or 0, out, err)

    return call


def test_there_is_a_toy_of_each_kind():
    assert set(TOYS) == set(registry.GROUPS.values())
    places = [place.split(":")[0] for group in TOYS.values() for place in group.values()]
    assert {f"outside.{path.stem}" for path in PACKAGE.glob("outside/[a-z]*.py")} == set(places)


@pytest.mark.parametrize("kind", registry.GROUPS)
def test_each_is_listed(kind, run):
    shown = run("list", f"{kind}s").out
    for name in TOYS[registry.GROUPS[kind]]:
        assert name in shown
        thing = registry.get(kind, name)
        text = getattr(thing, "summary", "") or getattr(thing, "title", "")
        assert text in shown
        assert all(example in shown for example in getattr(thing, "examples", ()))


@pytest.fixture(scope="module")
def ranked(outside, tmp_path_factory):
    """A run of the toys: encoders, a probe with its figure, a rule by it, data, prompts, a
    re-encoder."""
    base = tmp_path_factory.mktemp("ranked")
    (base / "data").mkdir()
    with pytest.raises(SystemExit) as ended:
        cli.main([
            "run", "--encoders", "letters:16", "letters:32", "--data", f"stripes:{base / 'data'}",
            "--prompts", "lines", "--re-encoder", "mean-color", "--probes", "retrieval", "siblings",
            "--rule", "sibling-hits", "--pools", "max", "--ks", "1", "--out", str(base / "run"),
            "--store", str(base / "store"), "--device", "cpu",
        ])  # fmt: skip
    assert not ended.value.code
    return base


def test_encoder_probe_data_and_re_encoder_are_used_and_shown(ranked):
    out = ranked / "run"
    records = [read_record(path) for path in find_records(out)]
    of_probe = {r.card.spec: r for r in records if r.probe.name == "siblings"}
    assert {"letters:16", "letters:32"} < set(of_probe)
    assert of_probe["letters:16"].card.license == "MIT"
    assert of_probe["letters:16"].scores["hits"].value > 0.3
    assert of_probe["control:constant"].scores["hits"].value < 0.1  # 2 of 24: the first image's
    retrieval = next(r for r in records if r.probe.name == "retrieval")
    assert "stripes@" in retrieval.probe.dataset
    assert "mean-color@mean-color-1" in retrieval.probe.dataset
    prediction = read_prediction(out / "prediction.json")
    assert prediction.rule.name == "sibling-hits"
    assert {row.spec for row in prediction.order if row.rank} == {"letters:16", "letters:32"}
    for row in prediction.order:
        assert row.value == of_probe[row.spec].scores["hits"].value
    page = (out / "report" / "index.html").read_text("utf-8")
    for words in ("letters:32", "Captions beside a sibling", "Drawn by another package.",
                  "Another caption of the same image.", "captions next to one of their own image",
                  "sibling-hits", "stripes", "mean-color"):  # fmt: skip
        assert words in page
    assert (out / "report" / "figures" / "siblings.svg").is_file()
    assert "16\n" in (out / "report" / "list.txt").read_text()


def test_prompts_are_probed(run, ranked, tmp_path):
    done = run(
        "probe", "--encoders", "letters:16", "--prompts", "lines", "--probes", "diagnostics",
        "--out", tmp_path, "--store", ranked / "store", "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    (path,) = tmp_path.glob("records/letters-16-*/diagnostics.main.json")
    record = read_record(path)
    assert "lines@" in record.probe.dataset
    assert record.scores["effective-rank"].n == 2


@pytest.mark.slow
def test_metric_detector_objective_and_times_confirm(run, ranked, monkeypatch):
    monkeypatch.setitem(
        PRESETS, "cpu", lambda: {"train": TINY, "seeds": 1, "per_task": 1, "images": 1}
    )
    out = ranked / "run"
    done = run(
        "confirm", "--out", out, "--encoders", "letters:16", "letters:32", "--detector", "circles",
        "--metrics", "brightness?floor=0", "spread?reference=128", "--from-scratch", "--store",
        ranked / "store", "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    verdict = read_verdict(out / "verdict.json")
    assert verdict.primary.metric == "geneval"
    assert verdict.plan.metrics == ("brightness?floor=0", "spread?reference=128")
    assert verdict.plan.detector == "circles"
    assert {row.spec for row in verdict.encoders} == {"letters:16", "letters:32"}
    for row in verdict.encoders:
        assert {p.stage for p in row.curve} == {"flow-matching", "meanflow"}
        cells = [cell for cell in row.scores if cell.metric == "brightness"]
        assert len(cells) == len(row.scores) / 3 > 0
        assert all(0 < row.scores[cell].value < 1 for cell in cells)
        assert all(set(row.tasks[cell]) == {"overall"} for cell in cells)
        sets = [row.scores[cell].value for cell in row.scores if cell.metric == "spread"]
        assert len(sets) == len(cells)
        assert all(0 < value < 128 for value in sets)
    # the detector sees one red circle in whatever is drawn: one object is right, two never are
    tasks = verdict.encoders[0].tasks[Cell("geneval", 4, "A", "seen")]
    assert tasks["two_object"] == tasks["position"] == 0
    page = (out / "report" / "index.html").read_text("utf-8")
    for words in ("circles", "halved", "Brightness", "Spread"):
        assert words in page, words


def test_data_objective_and_times_train(run, ranked, tmp_path):
    done = run(
        "train", "--preset", "scenes-cpu", "--data", f"stripes:{ranked / 'data'}", "--side", 16,
        "--network", "dit-32x2x2", "--steps", 4, "--batch", 4, "--log-every", 1,
        "--flow-matching", 0.5, "--objective", "halved", "--times", "ends", "--encoder",
        "letters:16", "--sample-every", 0, "--checkpoint-every", 0, "--out", tmp_path, "--store",
        ranked / "store", "--device", "cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert '"stripes"' in (tmp_path / "final" / "state.json").read_text()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["flow-matching"] * 2 + ["halved"] * 2
    assert [row["interval_share"] for row in rows] == [0, 0, 1, 1]
    assert all(part is None for part in rows[-1]["error_by_t"][:-1])  # t = 1 only


def test_what_objectives_and_times_lack_is_one_line(run, tmp_path):
    for arguments, words in (
        (["--objective", "halved", "--omega", 2], "--omega 2.0: objective halved has no such"),
        (["--objective", "halfed"], "unknown --objective 'halfed'; did you mean halved?"),
        (
            ["--times", "middle"],
            "unknown --times 'middle'; known: emf, ends, logit-normal, uniform",
        ),
        (["--objective", "emf", "--kappa", 0.5], "only imf, meanflow, pmf; guide when sampling"),
        (["--objective", "imf", "--perceptual", "lpips"], "no such setting, only pmf"),
        (["--objective", "pmf", "--prediction", "u"], "pmf needs a network that predicts x"),
    ):
        done = run("train", *arguments, "--out", tmp_path, "--device", "cpu")
        assert (done.code, words in done.err) == (2, True), done.err
        assert not list(tmp_path.iterdir())


def gray(value):
    return Image.new("RGB", (10, 10), (value,) * 3)


def test_a_metric_refuses_and_a_detector_judges(outside):
    prompts = [
        GenevalPrompt(i, "colors", f"circle {i}", (Clause("circle", color="red"),))
        for i in range(3)
    ]
    metric = load_metric("brightness?floor=.1", "cpu")
    assert isinstance(metric, ImageMetric)
    scores = score_images(metric, prompts, [gray(255), gray(51), gray(0)])
    assert [score.value for score in scores] == [1.0, pytest.approx(0.2), None]
    assert scores[2].problem == "too dark"
    detector = load_detector("circles", "cpu")
    assert isinstance(detector, Detector)
    judged = GenevalMetric(detector).score(prompts, [gray(9)] * 3)
    assert [score.value for score in judged] == [1.0] * 3


def test_the_docs_name_file_and_line_of_each_kind():
    page = (ROOT / "docs" / "layout.md").read_text()
    for group, toys in TOYS.items():
        for name, place in toys.items():
            (row,) = [r for r in page.splitlines() if f'`{group}`: `{name} = "{place}"`' in r]
            assert f"`tests/seams/{place.split(':')[0].replace('.', '/')}.py`" in row
