"""Verdicts on real photographs, with their annotations as detections."""

import hashlib
import json
import shutil
from collections import Counter

import pytest
from geneval_checkpoints import COCO_NAMES

from encbench.data.coco import load_coco
from encbench.data.geneval import CLASSES, Clause, GenevalPrompt
from encbench.metrics.folder import read_folder
from encbench.metrics.geneval.detect import match_labels
from encbench.metrics.geneval.generate import write_prompts
from encbench.metrics.geneval.metric import SPEC, GenevalMetric
from encbench.metrics.geneval.tables import published_columns
from encbench.metrics.geneval.verdict import MAX_OBJECTS, judge_image
from encbench.metrics.score import score_folder
from encbench.metrics.tables import task_scores
from encbench.types import Detection
from encbench.vision import open_image

NAME = dict(
    zip(COCO_NAMES, match_labels(dict(enumerate(COCO_NAMES)), "COCO").values(), strict=True)
)


@pytest.fixture(scope="module")
def photographs(shared):
    """The 79 images, and their instances as detections."""
    data = load_coco(shared / "coco", allow_missing_images=True)
    images = [image for image in data.images if image.instances and image.path]
    return [
        (image, [Detection(NAME[i.label], i.box, 0.99) for i in image.instances or ()])
        for image in images
    ]


def single(label):
    return GenevalPrompt(0, "single_object", f"a photo of a {label}", (Clause(label),))


def counting(label, count):
    more = (Clause(label, count + 1),)
    return GenevalPrompt(0, "counting", f"{count} {label}", (Clause(label, count),), more)


def test_true_prompts_are_right_and_false_ones_wrong(photographs):
    assert len(photographs) >= 78  # one of the 79 may show no object
    judged = Counter()
    for _, objects in photographs:
        there = Counter(found.label for found in objects)
        for label in CLASSES:
            judged["single"] += 1
            assert judge_image(objects, single(label)).correct == (label in there)
        for label, count in there.items():
            if count < MAX_OBJECTS:
                judged["counting"] += 1
                assert judge_image(objects, counting(label, count)).correct
                verdict = judge_image(objects, counting(label, count + 1))
                assert verdict.reason == f"expected {label}>={count + 1}, found {count}"
                if count > 1:
                    verdict = judge_image(objects, counting(label, count - 1))
                    assert verdict.reason == f"expected {label}<{count}, found {count}"
    assert judged["single"] >= 78 * 80
    assert judged["counting"] > 200


class Annotations:
    """A detector that knows these photographs by heart."""

    name = "annotations"
    labels = CLASSES

    def __init__(self, photographs):
        self.known = {self.key(open_image(image)): found for image, found in photographs}

    def key(self, image):
        return hashlib.sha256(image.tobytes()).hexdigest()

    def detect(self, images):
        return [self.known[self.key(image)] for image in images]


def test_a_folder_of_photographs(photographs, tmp_path):
    """Half of the prompts are true of their photograph; those alone are right."""
    prompts = []
    for number, (_, objects) in enumerate(photographs):
        there = Counter(found.label for found in objects)
        label, count = there.most_common()[-1]
        absent = next(name for name in CLASSES if name not in there)
        chosen = (
            single(label),
            single(absent),
            counting(label, count),
            counting(label, count + 1),
        )[number % 4]
        prompts.append(
            GenevalPrompt(number, chosen.task, chosen.text, chosen.include, chosen.exclude)
        )
    write_prompts(prompts, tmp_path / "images")
    for prompt, (image, _) in zip(prompts, photographs, strict=True):
        target = tmp_path / "images" / f"{prompt.prompt_id:05d}" / "samples" / "0000.jpg"
        shutil.copyfile(image.path, target)
    folder = read_folder(tmp_path / "images")
    scoring = score_folder(folder, tmp_path / "scores", GenevalMetric(Annotations(photographs)))
    right = [bool(image.score.value) for result in scoring.results for image in result.images]
    assert right == [number % 2 == 0 for number in range(len(right))]
    rows = published_columns(scoring).splitlines()
    assert [json.loads(row)["correct"] for row in rows] == right
    assert task_scores(scoring.results, SPEC)["single_object"].value == pytest.approx(0.5, abs=0.02)
