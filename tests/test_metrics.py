"""Metrics and detectors by their names: listed, loaded, refused; averaging; from outside."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from encbench import registry
from encbench.confirm.assemble import _intervals, kinds_of
from encbench.confirm.rules import OutcomeTable
from encbench.confirm.scoring import PromptGroup, _values, metric_specs
from encbench.data.geneval import TASKS, Clause, GenevalPrompt, to_metadata
from encbench.errors import DataError, EncbenchError, UnknownNameError, UsageError
from encbench.files import digest
from encbench.flow.sample import text_prompts
from encbench.metrics import find_family, load_metric
from encbench.metrics.folder import read_folder
from encbench.metrics.geneval.metric import SPEC
from encbench.metrics.prompts import TextPrompt, meaning
from encbench.metrics.score import (
    ImageResult,
    PromptResult,
    load_features,
    score_folder,
    score_images,
)
from encbench.metrics.tables import (
    average_values,
    compare_sets,
    part_scores,
    set_value,
    task_scores,
)
from encbench.records import ConfirmPlan
from encbench.types import Cell, ImageScore, MetricSpec
from encbench.vision import ReEncoderSpec

PROMPTS = [GenevalPrompt(i, "colors", f"dog {i}", (Clause("dog", color="red"),)) for i in range(3)]


def gray(value):
    return Image.new("RGB", (10, 10), (value,) * 3)


@pytest.mark.parametrize("kind", ["metric", "detector"])
def test_every_registered_one_says_what_it_is(kind):
    for name in registry.names(kind):
        family = registry.get(kind, name)
        assert len(family.summary) > 10
        assert callable(family.load)
        for example in family.examples:
            assert find_family(kind, example)[0] is family
        if kind == "metric":
            assert family.spec.name == name
            assert family.spec.unit


def plan(*metrics):
    cell = Cell("geneval", 4, "A", "seen")
    return ConfirmPlan(
        "", "cpu", (), (0,), {}, 1, 1, "", {}, cell, "", "scenes", "none", metrics=metrics
    )


def test_a_confirmation_names_its_metrics_and_refuses_unknown_ones(outside):
    assert [spec.name for spec in metric_specs(plan("brightness?floor=.1"))] == [
        "geneval", "brightness",
    ]  # fmt: skip
    with pytest.raises(UnknownNameError, match="unknown metric 'brightnes'; did you mean"):
        metric_specs(plan("brightnes"))
    for twice in (("geneval",), ("brightness", "brightness?floor=.2")):
        with pytest.raises(UsageError, match="already scores every image"):
            metric_specs(plan(*twice))


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("genevall", UnknownNameError, "did you mean geneval"),
        ("geneval?speed=3", UnknownNameError, "option of the metric 'geneval' 'speed'"),
        ("geneval?overlap_limit=2", UsageError, "must be a number from 0 to 1"),
        ("geneval?overlap_limit=x", UsageError, "must be a number from 0 to 1"),
        ("geneval:x?detector=scenes", UsageError, "takes options only"),
        ("geneval?detector=yolo", UnknownNameError, "unknown detector 'yolo'"),
        ("geneval?detector=scenes&colors=clipp:x", UnknownNameError, "unknown encoder 'clipp'"),
    ],
)
def test_bad_specs_are_one_line(text, error, said):
    with pytest.raises(error, match=said) as caught:
        load_metric(text, "cpu")
    assert "\n" not in str(caught.value)


def test_geneval_by_its_spec_says_what_it_was_made_from():
    metric = load_metric("geneval?detector=scenes&colors=none&overlap_limit=0.5", "cpu")
    assert metric.name.startswith("geneval?detector=scenes%40")
    assert metric.name.endswith("&overlap_limit=0.5")
    with pytest.raises(DataError, match="needs the class 'dog', which scenes@"):
        metric.score(PROMPTS, [gray(0)] * 3)


def test_a_metric_that_forgets_an_image():
    class Forgets:
        spec, name = MetricSpec("forgets", "x", "x"), "forgets"

        def score(self, prompts, images):
            return []

    with pytest.raises(EncbenchError, match="forgets returned 0 scores for 3 images"):
        score_images(Forgets(), PROMPTS, [gray(0)] * 3)


@pytest.mark.parametrize("tasks", [(), TASKS])
def test_values_are_averaged_as_the_metric_says(tasks):
    """Three color prompts and one of counting: one mean over all, or the mean of task means."""
    spec = MetricSpec("x", "x", "x", tasks=tasks)
    prompts = [*PROMPTS, GenevalPrompt(3, "counting", "dogs", (Clause("dog", 2),))]
    values = np.array([0.1, 0.2, 0.6, 0.9])
    expected = (0.3 + 0.9) / 2 if tasks else 0.45
    assert average_values(values, prompts, spec) == pytest.approx(expected)
    results = [
        PromptResult(prompt, (ImageResult("x", (1, 1), "x", ImageScore(value)),))
        for prompt, value in zip(prompts, values.tolist(), strict=True)
    ]
    scores = task_scores(results, spec)
    assert scores["overall"].value == pytest.approx(expected)
    assert set(scores) == {"colors", "counting", "overall"}
    assert scores["colors"].value == pytest.approx(0.3)
    values[2] = np.nan
    rest = (0.15 + 0.9) / 2 if tasks else 0.4
    assert average_values(values, prompts, spec) == pytest.approx(rest)
    lost = PromptResult(prompts[2], (ImageResult("x", (1, 1), "x", ImageScore(problem="bad")),))
    again = task_scores([*results[:2], lost, results[3]], spec)["overall"]
    assert (again.value, again.n, again.unscored) == (pytest.approx(rest), 3, 1)
    assert np.isnan(average_values(np.full(4, np.nan), prompts, spec))


def test_the_mean_of_task_means_is_geneval_s():
    assert SPEC.tasks == TASKS


def layout(folder, values):
    """A folder in GenEval's layout: for each prompt one image of each gray level."""
    for number, row in enumerate(values):
        prompt = GenevalPrompt(number, "colors", f"dog {number}", (Clause("dog", color="red"),))
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(json.dumps(to_metadata(prompt)))
        for i, value in enumerate(row):
            gray(value).save(place / "samples" / f"{i:04d}.png")
    return read_folder(folder)


def test_images_sampled_from_a_text_have_a_prompt_without_clauses(tmp_path):
    (prompt,) = text_prompts("a red circle")
    (tmp_path / "00000" / "samples").mkdir(parents=True)
    (tmp_path / "00000" / "metadata.jsonl").write_text(json.dumps(to_metadata(prompt)))
    gray(9).save(tmp_path / "00000" / "samples" / "0000.png")
    folder = read_folder(tmp_path)
    assert (folder.prompts, folder.notes) == ((TextPrompt(0, "a red circle"),), ())


def test_a_metric_of_whole_sets(outside, tmp_path):
    """Features are kept and read back; what is missing is left out of them; the interval is the
    jackknife's over groups of prompts, worked out by hand."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 255, (60, 2))
    folder = layout(tmp_path / "images", values.tolist())
    metric = load_metric("spread?reference=100", "cpu")
    scoring = score_folder(folder, tmp_path / "out", metric)
    features = load_features(tmp_path / "out")
    assert features[:, 0].tolist() == values.ravel().tolist()
    found = set_value(metric, features, scoring.results)
    assert found.value == pytest.approx(abs(values.mean() - 100))
    assert (found.prompts, found.unscored) == (60, 0)
    groups = np.array(
        [int(digest(meaning(r.prompt).decode())[:8], 16) % 20 for r in scoring.results]
    )
    left = np.array([abs(values[groups != g].mean() - 100) for g in np.unique(groups)])
    count = len(left)
    error = np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum())
    half = error * stats.t.ppf(0.975, count - 1)
    assert found.score().high - found.value == pytest.approx(half)

    calls = []
    monkey = type("Counted", (), dict(vars(type(metric))))(registry_spec(metric), None)
    monkey.extract = lambda prompts, images: (
        calls.append(len(images)) or metric.extract(prompts, images)
    )
    score_folder(folder, tmp_path / "out", monkey)
    assert calls == []  # everything is kept
    (tmp_path / "images" / "00003" / "samples" / "0001.png").write_bytes(b"no image")
    (tmp_path / "out" / "prompts" / "00050.npy").write_bytes(b"damaged")
    again = score_folder(folder, tmp_path / "out", monkey)
    assert sum(calls) < 120
    assert len(load_features(tmp_path / "out")) == 119
    assert [image.file for image in again.unscored] == ["00003/samples/0001.png"]
    assert set_value(metric, load_features(tmp_path / "out"), again.results).unscored == 1


def registry_spec(metric):
    return ReEncoderSpec.parse(metric.name)


def test_sets_are_compared_by_the_same_groups_of_prompts(outside, tmp_path):
    """A shift of all images alike has an interval of no width; other prompts are refused."""
    values = np.random.default_rng(1).integers(120, 200, (40, 2))
    metric = load_metric("spread?reference=100", "cpu")
    sets = []
    for name, table in (("a", values), ("b", values + 7), ("c", values[:30])):
        scoring = score_folder(
            layout(tmp_path / name, table.tolist()), tmp_path / f"{name}o", metric
        )
        sets.append(set_value(metric, load_features(tmp_path / f"{name}o"), scoring.results))
    change = compare_sets(sets[0], sets[1])
    assert (change.value, change.low, change.high) == pytest.approx((7, 7, 7))
    with pytest.raises(DataError, match="different prompts"):
        compare_sets(sets[0], sets[2])


def test_a_confirmation_takes_a_metric_of_whole_sets(outside):
    """One value for each training; with one seed nothing says how far it is off."""
    metrics = [load_metric("brightness", "cpu"), load_metric("spread", "cpu")]
    pictures = [gray(value) for value in (0, 51, 102, 255, 255, 0)]
    asked = [prompt for prompt in PROMPTS for _ in range(2)]
    rows = [_values(metric, asked, pictures, 2) for metric in metrics]
    assert rows[0].tolist() == pytest.approx([0.1, 0.7, 0.5])
    assert rows[1].tolist() == pytest.approx([sum((0, 51, 102, 255, 255, 0)) / 6])
    spec = metrics[1].spec
    assert average_values(rows[1], PROMPTS, spec) == rows[1][0]
    assert kinds_of(spec, PromptGroup("A", "seen", tuple(PROMPTS))) == ["overall"]

    def table(values):
        specs = tuple("abc")
        return OutcomeTable(
            specs, ("final",) * 3, np.zeros(3), np.array([0]), np.array(values, float)[:, :, None]
        )

    alone = _intervals(table([[3.0], [4.0], [6.0]]), 0)
    assert [score.value for score in alone] == [3, 4, 6]
    assert all(np.isnan(score.low) and np.isnan(score.high) for score in alone)
    twice = _intervals(table([[3.0, 3.2], [4.0, 4.1], [6.0, 5.5]]), 0)
    assert all(score.low < score.value < score.high for score in twice)


def test_a_value_that_is_no_number_is_unscored_and_says_so():
    class Odd:
        spec, name = MetricSpec("odd", "x", "x"), "odd"

        def score(self, prompts, images):
            return [ImageScore(float("nan")), ImageScore(), ImageScore(0.0)]

    scores = score_images(Odd(), PROMPTS, [gray(0)] * 3)
    assert [score.value for score in scores] == [None, None, 0.0]
    assert [score.problem for score in scores] == ["odd gave nan", "odd gave None", ""]


def test_parts_of_a_group_are_averaged_over_all_images():
    """Two images answer different things in one group: both count, each question once."""
    rows = [{"color/1": 1.0, "color/2": 0.0, "count/3": 1.0, "alone": 5.0}, {"color/1": 0.0}]
    images = tuple(ImageResult("x", (1, 1), "x", ImageScore(1.0, parts=row)) for row in rows)
    found = part_scores([PromptResult(PROMPTS[0], images)])
    assert {name: score.value for name, score in found.items()} == {
        "color": pytest.approx(1 / 3), "count": 1.0,
    }  # fmt: skip
