"""Metrics and detectors by their names: listed, loaded, refused; averaging; from outside."""

import numpy as np
import outside_metric
import pytest
from PIL import Image

from encbench import cli, registry
from encbench.confirm.scoring import metric_specs
from encbench.data.geneval import TASKS, Clause, GenevalPrompt
from encbench.errors import DataError, EncbenchError, UnknownNameError, UsageError
from encbench.metrics import find_family, load_metric
from encbench.metrics.geneval.detect import load_detector
from encbench.metrics.geneval.metric import SPEC, GenevalMetric
from encbench.metrics.score import ImageResult, PromptResult, score_images
from encbench.metrics.tables import average_values, task_scores
from encbench.records import ConfirmPlan
from encbench.types import Cell, Detector, ImageMetric, ImageScore, MetricSpec

PROMPTS = [GenevalPrompt(i, "colors", f"dog {i}", (Clause("dog", color="red"),)) for i in range(3)]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(outside_metric.install(tmp_path / "site"))
    registry._entries.cache_clear()
    yield
    registry._entries.cache_clear()


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


def test_a_metric_and_a_detector_from_outside(outside, capsys):
    metric = load_metric("brightness?floor=.1", "cpu")
    assert isinstance(metric, ImageMetric)
    scores = score_images(metric, PROMPTS, [gray(255), gray(51), gray(0)])
    assert [score.value for score in scores] == [1.0, pytest.approx(0.2), None]
    assert scores[2].problem == "too dark"
    detector = load_detector("dogs", "cpu")
    assert isinstance(detector, Detector)
    judged = GenevalMetric(detector).score(PROMPTS, [gray(9)] * 3)
    assert [score.value for score in judged] == [1.0] * 3
    for kind, words in (("metrics", "How bright images are."), ("detectors", "Sees dogs")):
        with pytest.raises(SystemExit):
            cli.main(["list", kind])
        assert words in " ".join(capsys.readouterr().out.split())


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
        with pytest.raises(UsageError, match="each image is scored by it already"):
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
    assert set(scores) == ({"colors", "counting", "overall"} if tasks else {"overall"})
    values[2] = np.nan
    rest = (0.15 + 0.9) / 2 if tasks else 0.4
    assert average_values(values, prompts, spec) == pytest.approx(rest)
    lost = PromptResult(prompts[2], (ImageResult("x", (1, 1), "x", ImageScore(problem="bad")),))
    again = task_scores([*results[:2], lost, results[3]], spec)["overall"]
    assert (again.value, again.n, again.unscored) == (pytest.approx(rest), 3, 1)
    assert np.isnan(average_values(np.full(4, np.nan), prompts, spec))


def test_the_mean_of_task_means_is_geneval_s():
    assert SPEC.tasks == TASKS
