"""Folders of images: sampled, scored, compared, shown; stopped and taken up again."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from encbench.data.geneval import CLASSES, TASKS, Clause, GenevalPrompt, generate_prompts
from encbench.errors import DataError, EncbenchError, RecordError
from encbench.files import TEMPORARY, _origin
from encbench.lock import lock_folder
from encbench.metrics.folder import read_folder
from encbench.metrics.geneval.gallery import build_image_gallery
from encbench.metrics.geneval.generate import generate_images, sample_seed, write_prompts
from encbench.metrics.geneval.metric import SPEC, GenevalMetric, Judgment
from encbench.metrics.geneval.tables import agree, breakdown
from encbench.metrics.geneval.text import (
    agreement_lines,
    comparison_lines,
    score_lines,
    write_scores,
)
from encbench.metrics.score import ImageResult, PromptResult, load_scoring, score_folder
from encbench.metrics.tables import compare_scorings, task_scores
from encbench.types import Detection, ImageScore

PROMPTS = generate_prompts(CLASSES, seed=0, per_task=dict.fromkeys(TASKS, 4))


def sample(prompts, seeds):
    """Noise from each image's own generator."""
    return [
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8))
        for seed in seeds
    ]


class Guesser:
    """Finds what the prompts ask for in about half of all images, told by one pixel of them."""

    labels = CLASSES

    def __init__(self, name="guesser", *, colors=True, fail_after=None):
        self.name, self.colors, self.fail_after = name, colors, fail_after
        self.seen = 0
        self.salt = sum(map(ord, name))

    def detect(self, images):
        self.seen += len(images)
        if self.fail_after is not None and self.seen > self.fail_after:
            raise KeyboardInterrupt
        return [self.one(image) for image in images]

    def one(self, image):
        lucky = (sum(image.getpixel((0, 0))) + self.salt) % 2
        color = "red" if self.colors else None
        wanted = dict.fromkeys(c.label for p in PROMPTS for c in p.include)
        return [
            Detection(label, (2.0 * i, 1.0, 2.0 * i + 3, 6.0), 0.95, color=color)
            for i, label in enumerate(wanted)
            if lucky
        ]


class Reds:
    name = "reds"

    def __init__(self):
        self.calls = []

    def classify(self, objects):
        self.calls.append(len(objects))
        return ["red" for _ in objects]


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise") / "images"
    generate_images(PROMPTS, sample, folder, seed=1, model="noise")
    return folder


@pytest.fixture
def images(noise, tmp_path):
    """A test's own copy, which it may damage."""
    return shutil.copytree(noise, tmp_path / "images")


def scored(images, out, name="guesser", detector=None, **options):
    metric = GenevalMetric(detector or Guesser(name), **options)
    return score_folder(read_folder(images), out, metric, Judgment)


# ------------------------------------------------------------------------------ sampling


def bytes_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def test_images_depend_on_nothing_but_their_seed(tmp_path):
    made = generate_images(PROMPTS, sample, tmp_path / "a", seed=1, model="m", batch=7)
    assert made == len(PROMPTS) * 4
    generate_images(PROMPTS, sample, tmp_path / "b", seed=1, model="m", batch=64)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert len(set(bytes_of(tmp_path / "a").values())) == made
    generate_images(PROMPTS[:2], sample, tmp_path / "c", seed=2, model="m")
    assert not set(bytes_of(tmp_path / "c").values()) & set(bytes_of(tmp_path / "a").values())
    assert 0 <= sample_seed(0, 1, 2) < 2**63


def test_sampling_goes_on_where_it_was_stopped(tmp_path):
    calls = []

    def stopped(prompts, seeds):
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(prompts, seeds)

    with pytest.raises(KeyboardInterrupt):
        generate_images(PROMPTS, stopped, tmp_path / "a", seed=1, model="m", batch=10)
    assert len(bytes_of(tmp_path / "a")) == 20
    assert generate_images(PROMPTS, sample, tmp_path / "a", seed=1, model="m") == 76
    assert generate_images(PROMPTS, sample, tmp_path / "a", seed=1, model="m") == 0
    generate_images(PROMPTS, sample, tmp_path / "b", seed=1, model="m")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_folders_of_two_models_never_mix(images):
    with pytest.raises(DataError, match="images of another seed"):
        generate_images(PROMPTS, sample, images, seed=2, model="noise")
    with pytest.raises(DataError, match="images of another model"):
        generate_images(PROMPTS, sample, images, seed=1, model="other")
    with pytest.raises(DataError, match="images of another prompts"):
        generate_images(PROMPTS[::-1], sample, images, seed=1, model="noise")
    with pytest.raises(DataError, match="belongs to another prompt"):
        write_prompts([GenevalPrompt(0, "colors", "x", (Clause("dog"),))], images)
    with pytest.raises(EncbenchError, match="returned 0 images for"):
        generate_images(PROMPTS, lambda p, s: [], images.parent / "other", seed=1, model="silent")


# ------------------------------------------------------------------------------- scoring


def test_scores_are_what_counting_gives(images, tmp_path):
    scoring = scored(images, tmp_path / "out")
    write_scores(scoring, tmp_path / "out")
    rows = pd.read_json(tmp_path / "out" / "results.jsonl", lines=True)
    scores = task_scores(scoring.results, SPEC)
    means = rows.groupby("tag")["correct"].mean()
    for task in TASKS:
        score = scores[task]
        assert score.value == pytest.approx(means[task])
        assert score.low <= score.value <= score.high
        assert (score.n, score.unscored) == (4, 0)
    assert scores["overall"].value == pytest.approx(means.mean())
    assert 0.1 < scores["overall"].value < 0.9
    assert scores["overall"].n == 24


def test_the_published_summary_reads_our_results(images, tmp_path):
    """Its way through the file, column by column."""
    write_scores(scored(images, tmp_path / "out"), tmp_path / "out")
    df = pd.read_json(tmp_path / "out" / "results.jsonl", orient="records", lines=True)
    columns = ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert list(df.columns) == columns
    assert len(df) == 96
    assert len(df.groupby("metadata")) == 24
    assert 0 < df.groupby("metadata")["correct"].any().mean() <= 1
    assert df["correct"].dtype == bool
    assert all((images.parent / name).is_file() for name in df["filename"])
    details = json.loads(df[df["correct"]]["details"].iloc[0])
    assert all(len(box) == 5 for boxes in details.values() for box in boxes)


def test_interval_is_clustered_on_prompts(tmp_path):
    """Four equal images a prompt must not look like four times the evidence."""
    many = generate_prompts(CLASSES, seed=0, per_task={"single_object": 60})

    def repeated(prompts, seeds):
        pixel = [sample_seed(9, many.index(p), 0) % 2 for p in known(prompts)]
        return [Image.new("RGB", (8, 8), (v, 0, 0)) for v in pixel]

    def known(prompts):
        by_text = {p.text: p for p in many}
        return [by_text[text] for text in prompts]

    class One(Guesser):
        def one(self, image):
            if image.getpixel((0, 0))[0]:
                return [Detection(c, (0.0, 0.0, 2.0, 2.0), 0.9) for c in CLASSES]
            return []

    widths = []
    for images_per_prompt in (1, 4):
        folder = tmp_path / f"i{images_per_prompt}"
        generate_images(
            many, repeated, folder, seed=0, model="m", images_per_prompt=images_per_prompt
        )
        results = scored(folder, tmp_path / f"o{images_per_prompt}", detector=One("x"))
        score = task_scores(results.results, SPEC)["single_object"]
        widths.append(score.high - score.low)
    assert widths[0] == pytest.approx(widths[1])
    assert 0.2 < widths[0] < 0.3  # 2 * 1.96 * sqrt(.5 * .5 / 60) = .253


def test_colors_of_all_images_are_named_together(images, tmp_path):
    reds = Reds()
    detector = Guesser(colors=False)
    scoring = scored(
        images, tmp_path / "a", detector=detector, colors=lambda: reds, colors_name="reds"
    )
    assert len(reds.calls) == 2  # one for each 64 images, not one for each
    own = scored(images, tmp_path / "b")
    assert task_scores(scoring.results, SPEC) == task_scores(own.results, SPEC)
    with pytest.raises(DataError, match="add a color classifier"):
        scored(images, tmp_path / "c", detector=detector)


def test_scoring_goes_on_where_it_was_stopped(images, tmp_path):
    stopped = Guesser(fail_after=64)
    with pytest.raises(KeyboardInterrupt):
        scored(images, tmp_path / "a", detector=stopped)
    again = Guesser()
    scoring = scored(images, tmp_path / "a", detector=again)
    assert again.seen == 32
    idle = Guesser(fail_after=0)
    assert scored(images, tmp_path / "a", detector=idle).results == scoring.results
    whole = scored(images, tmp_path / "b")
    assert scoring.results == whole.results


class Leaky(Guesser):
    """Its last bits depend on what is given together, as those of real models do."""

    def detect(self, images):
        found = super().detect(images)
        shift = sum(image.getpixel((0, 0))[0] for image in images) * 1e-12
        return [[replace(each, score=each.score + shift) for each in row] for row in found]


def files_of(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("lost", [[3], [0, 15], [16, 23], range(10), [15, 16], range(24)])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(images, tmp_path, lost):
    write_scores(scored(images, tmp_path / "a", detector=Leaky("x")), tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for number in lost:
        (tmp_path / "b" / "prompts" / f"{number:05d}.json").unlink()
    (tmp_path / "b" / "prompts" / f"{TEMPORARY}{_origin()}-{2**22 + 1}-abcd").write_text("half")
    with lock_folder(tmp_path / "b"):  # as the command does: what a kill left is swept
        write_scores(scored(images, tmp_path / "b", detector=Leaky("x")), tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_large_images_are_scored_a_few_at_a_time(tmp_path, monkeypatch):
    """The same chunks whatever was scored before, by the pixels in the files' headers."""
    monkeypatch.setattr("encbench.metrics.score.PIXELS", 12 * 16 * 10)
    folder = tmp_path / "images"
    generate_images(PROMPTS[:6], sample, folder, seed=1, model="noise")
    calls = []

    class Counter(Guesser):
        def detect(self, images):
            calls.append(len(images))
            return super().detect(images)

    scored(folder, tmp_path / "a", detector=Counter())
    assert calls == [8, 8, 8]
    (tmp_path / "a" / "prompts" / "00004.json").unlink()
    scored(folder, tmp_path / "a", detector=Counter())
    assert calls == [8, 8, 8, 8]


def test_what_changed_is_scored_again(images, tmp_path):
    scored(images, tmp_path / "a")
    Image.new("RGB", (5, 5)).save(images / "00003" / "samples" / "0001.png")
    (tmp_path / "a" / "prompts" / "00007.json").write_text("{")
    detector = Guesser()
    scored(images, tmp_path / "a", detector=detector)
    assert detector.seen == 64  # the whole chunk, as an uninterrupted run gives it
    other = Guesser("other")
    scored(images, tmp_path / "a", detector=other)
    assert other.seen == 96


def test_broken_and_missing_images_are_named_and_unscored(images, tmp_path):
    full = scored(images, tmp_path / "full")
    path = images / "00000" / "samples"
    (path / "0001.png").unlink()
    content = (path / "0002.png").read_bytes()
    (path / "0002.png").write_bytes(content[: len(content) // 2])
    for image in (images / "00001" / "samples").iterdir():
        image.unlink()
    scoring = scored(images, tmp_path / "out")
    scores = write_scores(scoring, tmp_path / "out")
    assert scores["single_object"].unscored == 6
    assert scores["single_object"].n == 3  # prompts with a scored image
    assert scores["overall"].unscored == 6
    kept = [
        image.score.verdict.correct
        for number, result in enumerate(full.results[:4])
        for place, image in enumerate(result.images)
        if number != 1 and not (number == 0 and place in (1, 2))
    ]
    assert scores["single_object"].value == pytest.approx(np.mean(kept))
    assert scores["counting"] == task_scores(full.results, SPEC)["counting"]
    lines = "\n".join(score_lines(scores, scoring))
    assert "PARTIAL: 5 of 96 images are missing" in lines
    assert "PARTIAL: 1 images have no score (first: cannot read the image 00000/samples" in lines
    assert "unscored: 00000/samples/0001.png is missing" in lines
    body = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert body["partial"]
    assert len(body["unscored"]) == 6
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 90


def test_partial_folders_say_so(images, tmp_path):
    shutil.rmtree(images / "00005")
    assert read_folder(images).notes == ("1 of 24 prompts are missing (first: 00005)",)
    for number in range(20, 24):
        shutil.rmtree(images / f"{number:05d}")
    notes = read_folder(images, expected=PROMPTS).notes
    assert notes[0].startswith("5 of 24 prompts are missing (first: a photo of")
    assert notes[1] == "no prompt of color_attr: the mean is over the other tasks"
    assert read_folder(images, images_per_prompt=5).notes[-1] == "19 of 95 images are missing"
    scores = task_scores(scored(images, tmp_path / "out").results, SPEC)
    shown = [scores[task].value for task in TASKS if task != "color_attr"]
    assert scores["overall"].value == pytest.approx(np.mean(shown))


def test_whole_folder_is_not_called_partial(images, tmp_path):
    folder = read_folder(images, expected=PROMPTS, images_per_prompt=4)
    assert folder.notes == ()
    scoring = score_folder(folder, tmp_path / "out", GenevalMetric(Guesser()), Judgment)
    lines = score_lines(task_scores(scoring.results, SPEC), scoring)
    assert not any("PARTIAL" in line for line in lines)
    assert "these are 24 prompts, not the 553 published ones" in lines


def test_scores_come_back_from_disk(images, tmp_path):
    scoring = scored(images, tmp_path / "out")
    assert load_scoring(tmp_path / "out", Judgment) == scoring
    with pytest.raises(RecordError, match="holds no scores"):
        load_scoring(tmp_path / "none", Judgment)
    (tmp_path / "out" / "prompts" / "00003.json").write_text('{"images": 3}')
    with pytest.raises(RecordError, match="damaged"):
        load_scoring(tmp_path / "out", Judgment)


def test_a_class_that_the_detector_does_not_know(images, tmp_path):
    detector = Guesser()
    detector.labels = CLASSES[:3]
    with pytest.raises(DataError, match=r"prompt 00000 .* which guesser does not know"):
        scored(images, tmp_path / "out", detector=detector)


def test_a_detector_that_forgets_an_image(images, tmp_path):
    detector = Guesser()
    detector.detect = lambda images: []
    with pytest.raises(EncbenchError, match="guesser returned 0 lists of objects for 64 images"):
        scored(images, tmp_path / "out", detector=detector)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "00002" / "metadata.jsonl").unlink(), "00002/metadata.jsonl: .*; expected"),
        (
            lambda f: (f / "00002" / "metadata.jsonl").write_text("{"),
            "metadata.jsonl is not valid JSON",
        ),
        (
            lambda f: (f / "00002" / "metadata.jsonl").write_text(
                '{"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "mauve"}]}'
            ),
            "color the text 'mauve', not one of red, orange",
        ),
        (lambda f: [p.unlink() for p in f.rglob("*.png")], "holds no images"),
        (lambda f: f.rename(f.with_name("elsewhere")), "there is no folder"),
        (lambda f: [p.rename(f / f"p{p.name}") for p in f.glob("0*")], "not in GenEval's layout"),
    ],
)
def test_wrong_folders_are_told_in_one_line(images, spoil, said):
    spoil(images)
    with pytest.raises(DataError, match=said) as caught:
        read_folder(images)
    assert "\n" not in str(caught.value)


def picture(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (["00003/samples/0001.jpg"], ["0001.jpg", "0001.png"]),
        (["00003/samples/1.png"], ["0001.png", "1.png"]),
        (["00003/samples/0001.WEBP"], ["0001.WEBP", "0001.png"]),
        (["00007/samples/0.jpeg", "00003/samples/00000.jpg"], ["00000.jpg", "0000.png"]),
        (["1/samples/0000.png"], ["00001", "1"]),
        (["000002/samples/0000.png"], ["000002", "00002"]),
    ],
)
def test_two_names_of_one_number_are_refused(images, more, names):
    for name in more:
        (images / name).parent.parent.mkdir(exist_ok=True)
        line = (images / "00001" / "metadata.jsonl").read_bytes()
        (images / name).parent.parent.joinpath("metadata.jsonl").write_bytes(line)
        picture(images / name)
    with pytest.raises(DataError, match="stand for the same item; remove one") as caught:
        read_folder(images)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    ("more", "note"),
    [
        (["00003/samples/grid.png"], "1 files are not images named by a number"),
        (
            ["00003/samples/0004.heic", "00004/samples/0000_seed7.png"],
            "2 files are not images named by",
        ),
        (["00003/samples/notes.txt"], "left out (first: 00003/samples/notes.txt)"),
        (["old/samples/0000.png", "00003 copy/samples/0000.png"], "2 folders are not named by a"),
        ([f"00003/samples/{'9' * 20}.png"], "1 files are not images named by a number"),
    ],
)
def test_what_is_left_out_is_counted_and_named(images, more, note):
    for name in more:
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"x")
    folder = read_folder(images)
    assert [found for found in folder.notes if note in found], folder.notes
    assert {len(row) for row in folder.samples.values()} == {4}


def test_hidden_files_folders_and_pipes_are_no_images(images):
    samples = images / "00003" / "samples"
    for name in ("._0000.png", ".0005.png", ".DS_Store"):
        (samples / name).write_bytes(b"x")
    (samples / ".ipynb_checkpoints").mkdir()
    (samples / "0009.png").mkdir()
    os.mkfifo(samples / "0008.png")
    (images / ".ipynb_checkpoints").mkdir()
    folder = read_folder(images)
    assert folder.notes == ()
    assert {len(row) for row in folder.samples.values()} == {4}


@pytest.mark.parametrize(
    "name", ["sample_0000_seed42.png", "0000.heic", "image.png", "0000", "0000.txt"]
)
def test_images_that_are_named_otherwise_are_named_in_the_message(tmp_path, name):
    write_prompts(PROMPTS[:1], tmp_path)
    (tmp_path / "00000" / "samples" / name).write_bytes(b"x")
    with pytest.raises(DataError, match="holds no images that can be used: 1 files are not") as e:
        read_folder(tmp_path)
    assert f"first: 00000/samples/{name}" in str(e.value)


def test_more_images_than_asked_for_are_counted(images):
    folder = read_folder(images, images_per_prompt=3)
    assert folder.notes == (
        "24 images come after the first 3 of their prompt, and are left out (first: "
        "00000/samples/0003.png)",
    )


# ------------------------------------------------------------------------ damaged results

WRONG = [
    ("scoring.json", ["version"], "x", "version must be a whole number"),
    ("scoring.json", ["prompts"], "0,1", "prompts must be a list"),
    ("scoring.json", ["prompts"], [10**30], "prompts[0] must be a whole number of at most 64"),
    ("scoring.json", ["prompts"], [77], "00077.json"),
    ("scoring.json", ["notes"], [1], "notes[0] must be a text"),
    ("scoring.json", ["path"], None, "path must be a path"),
    ("scoring.json", ["metric"], 5, "metric must be a text"),
    ("prompts/00003.json", ["prompt_id"], True, "prompt_id must be a whole number"),
    (
        "prompts/00003.json",
        ["metadata"],
        3,
        "metadata: expected an object with tag and include",
    ),
    ("prompts/00003.json", ["metadata", "include", 0, "count"], 1.5, "has the count 1.5"),
    ("prompts/00003.json", ["images"], {}, "images must be a list"),
    ("prompts/00003.json", ["images", 0], 7, "images[0] must be an object"),
    ("prompts/00003.json", ["images", 0, "size"], [1], "size must hold 2 values"),
    ("prompts/00003.json", ["images", 0, "verdict", "correct"], 1, "correct must be true or"),
    ("prompts/00003.json", ["images", 0, "verdict", "clauses"], 1, "clauses must be a list"),
    ("prompts/00003.json", ["images", 0, "objects"], [{"label": "dog"}], "objects[0] has no 'box'"),
    ("prompts/00003.json", ["images", 0, "value"], float("nan"), "NaN"),
]


@pytest.mark.parametrize(("file", "keys", "value", "said"), WRONG)
def test_damaged_results_are_one_line_and_made_again(images, tmp_path, file, keys, value, said):
    whole = scored(images, tmp_path / "out")
    path = tmp_path / "out" / file
    record = json.loads(path.read_text())
    inside = record
    for key in keys[:-1]:
        inside = inside[key]
    inside[keys[-1]] = value
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError) as caught:
        load_scoring(tmp_path / "out", Judgment)
    message = str(caught.value)
    assert said in message
    assert path.parent.name in message
    assert "\n" not in message
    assert scored(images, tmp_path / "out") == whole
    assert load_scoring(tmp_path / "out", Judgment) == whole


def test_results_of_an_earlier_version_still_load(images, tmp_path):
    """The layout before there were other metrics: settings in scoring.json, no 'value'."""
    whole = scored(images, tmp_path / "out")
    path = tmp_path / "out" / "scoring.json"
    about = json.loads(path.read_text())
    settings = {"detector": "guesser", "colors": "", "overlap_limit": 1.0, "images": str(images)}
    path.write_text(json.dumps({k: about[k] for k in ("version", "notes", "prompts")} | settings))
    for file in (tmp_path / "out" / "prompts").iterdir():
        record = json.loads(file.read_text())
        for image in record["images"]:
            del image["value"]
        file.write_text(json.dumps(record))
    assert load_scoring(tmp_path / "out", Judgment) == whole


def test_what_can_be_shared_names_no_folder_of_this_machine(images, tmp_path):
    (images / "00002" / "samples" / "0000.png").write_bytes(b"broken")
    scoring = scored(images, tmp_path / "out")
    write_scores(scoring, tmp_path / "out")
    build_image_gallery(scoring, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert str(tmp_path) not in path.read_text()


# ---------------------------------------------------------------------------- comparisons


def test_a_folder_compared_with_itself_differs_by_nothing(images, tmp_path):
    scoring = scored(images, tmp_path / "a")
    found = compare_scorings(scoring, scoring, SPEC)
    assert {(s.value, s.low, s.high) for s in found.difference.values()} == {(0.0, 0.0, 0.0)}
    assert set(found.difference) == {*TASKS, "overall"}
    assert found.notes == ()


def test_comparison_is_paired_on_prompts(images, tmp_path):
    generate_images(PROMPTS[4:], sample, tmp_path / "two", seed=5, model="noise")
    one, two = scored(images, tmp_path / "a"), scored(tmp_path / "two", tmp_path / "b")
    found = compare_scorings(one, two, SPEC)
    kept = [r for r in one.results if r.prompt.task != "single_object"]
    assert found.first["overall"].value == task_scores(kept, SPEC)["overall"].value
    assert "single_object" not in found.difference
    assert found.difference["overall"].value == pytest.approx(
        task_scores(two.results, SPEC)["overall"].value - task_scores(kept, SPEC)["overall"].value
    )
    back = compare_scorings(two, one, SPEC).difference["overall"]
    forth = found.difference["overall"]
    assert (back.value, back.low) == pytest.approx((-forth.value, -forth.high))
    assert "4 of 24 prompts of the first are not in the other and were left out" in found.notes
    text = "\n".join(comparison_lines(found))
    assert "overall" in text
    assert "note: 4 of 24 prompts" in text


REPEATS = {
    "two folders each": [0, 0, 1, 1, 4, 4],
    "one repeated": [0, 0, 0, 0, 4],
    "apart": [0, 4, 0, 5, 0, 4],
    "all one": [2, 2, 2],
}


def repeated_folder(path, prompts, lucky):
    """Images of prompts of which some stand in several folders, and whether each is right."""
    for number, (prompt, right) in enumerate(zip(prompts, lucky, strict=True)):
        write_prompts([replace(PROMPTS[prompt], prompt_id=number)], path)
        value = (right - sum(map(ord, "guesser"))) % 2
        name = path / f"{number:05d}" / "samples" / "0000.png"
        Image.new("RGB", (8, 8), (0, 0, int(value))).save(name)
    return path


@pytest.mark.parametrize("prompts", REPEATS.values(), ids=REPEATS)
def test_every_folder_of_a_prompt_counts_in_a_comparison(tmp_path, prompts):
    """As many right, though not in the same of a prompt's folders: the same score."""
    first = [int(n % 2) for n in range(len(prompts))]
    where = sorted(range(len(prompts)), key=lambda n: prompts[n])
    second = [0] * len(prompts)
    for prompt in set(prompts):
        places = [n for n in where if prompts[n] == prompt]
        for n, right in zip(places, sorted((first[n] for n in places), reverse=True), strict=True):
            second[n] = right
    one = scored(repeated_folder(tmp_path / "i1", prompts, first), tmp_path / "a")
    two = scored(repeated_folder(tmp_path / "i2", prompts, second), tmp_path / "b")
    found = compare_scorings(one, two, SPEC)
    for side, scoring in ((found.first, one), (found.second, two)):
        for name, score in task_scores(scoring.results, SPEC).items():
            assert side[name].value == score.value
    assert {(s.value, s.low, s.high) for s in found.difference.values()} == {(0.0, 0.0, 0.0)}
    assert found.difference["overall"].n == len(set(prompts))
    same = agree(one, one)
    assert same.share.n == len(prompts)
    assert same.both == sum(first)


def test_a_prompt_in_several_folders_is_no_more_evidence_than_in_one(tmp_path):
    many = generate_prompts(CLASSES, seed=0, per_task={"single_object": 40})
    scorings = []
    for folders, images_each in ((1, 4), (4, 1)):
        results = []
        for prompt in many:
            for copy in range(folders):
                values = [float(prompt.prompt_id % 2)] * images_each
                images_ = tuple(
                    ImageResult(f"{copy}-{i}.png", (1, 1), "x", ImageScore(v))
                    for i, v in enumerate(values)
                )
                results.append(PromptResult(replace(prompt, prompt_id=len(results)), images_))
        scorings.append(task_scores(results, SPEC)["single_object"])
    assert scorings[0] == scorings[1]


def test_missing_prompts_are_counted_as_often_as_they_are_expected(tmp_path):
    folder = repeated_folder(tmp_path / "i", [0, 4], [1, 1])
    expected = [PROMPTS[0], PROMPTS[0], PROMPTS[4], PROMPTS[4], PROMPTS[4]]
    notes = read_folder(folder, expected=expected).notes
    assert notes[0].startswith("3 of 5 prompts are missing (first: ")


def test_agreement_of_detectors(images, tmp_path):
    one = scored(images, tmp_path / "a", "aa")
    same = agree(one, scored(images, tmp_path / "b", "cc"))  # as lucky with every image
    assert (same.share.value, same.kappa) == (1.0, 1.0)
    rows = [image.score.verdict.correct for r in one.results for image in r.images]
    assert (same.both, same.neither) == (sum(rows), 96 - sum(rows))
    other = agree(one, scored(images, tmp_path / "c", "ab"))  # lucky where the first is not
    assert other.both == 0
    assert other.kappa < 0
    total = other.both + other.first_only + other.second_only + other.neither
    assert total == other.share.n == 96
    assert other.share.value == pytest.approx((other.both + other.neither) / 96)
    assert "Cohen's kappa -" in "\n".join(agreement_lines(other))


def test_agreement_is_about_the_same_images(images, tmp_path):
    generate_images(PROMPTS, sample, tmp_path / "two", seed=5, model="noise")
    one, two = scored(images, tmp_path / "a"), scored(tmp_path / "two", tmp_path / "b")
    with pytest.raises(DataError, match="no scored image in common"):
        agree(one, two)


def test_breakdown_counts_clauses(images, tmp_path):
    scoring = scored(images, tmp_path / "a")
    table = breakdown(scoring.results)
    assert set(table["by"]) == {"class", "count", "color", "relation"}
    clauses = sum(len(p.include) for p in PROMPTS)
    assert table[table["by"] == "class"]["images"].sum() == clauses * 4
    assert table[table["by"] == "relation"]["images"].sum() == 16
    assert ((table["low"] <= table["share"]) & (table["share"] <= table["high"])).all()
    one = table[(table["by"] == "count") & (table["value"] != "1")]
    assert (one["share"] == 0).all()  # it never finds two of a class


# -------------------------------------------------------------------------------- gallery


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.figures, self.sections, self.images, self.boxes, self.links = [], [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "figure":
            self.figures.append(values["data-state"])
        elif tag == "section":
            self.sections.append(values["data-task"])
        elif tag == "image":
            self.images.append(values["href"])
        self.boxes += tag == "rect"
        self.links += [v for k, v in attrs if k in ("src", "href") and tag != "image"]


def test_gallery_shows_everything_and_needs_nothing_else(images, tmp_path):
    (images / "00002" / "samples" / "0000.png").unlink()
    scoring = scored(images, tmp_path / "out")
    path = build_image_gallery(scoring, tmp_path / "pages" / "deep")
    text = path.read_text()
    page = Page(text)
    assert len(page.sections) == 24
    verdicts = [image.score.verdict for result in scoring.results for image in result.images]
    assert page.figures.count("right") == sum(v is not None and v.correct for v in verdicts)
    assert page.figures.count("unscored") == 1
    assert len(page.images) == 95
    assert all((path.parent / unquote(source)).is_file() for source in page.images)
    assert page.links == ["data:,"]  # no icon, and nothing is fetched: no script, style or font
    assert "://" not in text
    assert "default-src 'none'" in text
    assert str(images.parent) not in text
    assert page.boxes > 0
    shares = [np.mean(r.values) for r in scoring.results]
    assert text.index(f", {np.argmin(shares):05d}:") < text.index(f", {np.argmax(shares):05d}:")
    assert "Partial: 1 of 96 images are missing" in text


def test_gallery_shows_text_as_text(tmp_path):
    nasty = '<script>alert(1)</script> & "quotes"'
    prompt = GenevalPrompt(0, "single_object", nasty, (Clause("dog"),))
    folder = tmp_path / "a b#c"
    generate_images([prompt], sample, folder, seed=0, model="m")
    path = build_image_gallery(scored(folder, tmp_path / "out"), tmp_path / "out")
    text = path.read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "a%20b%23c/00000" in text


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome is installed")
@pytest.mark.parametrize("wanted", ["", "right", "wrong"])
def test_gallery_filters_in_a_browser(images, tmp_path, wanted):
    """The page from a file, one choice made in it before its script first runs."""
    scoring = scored(images, tmp_path / "out")
    path = build_image_gallery(scoring, tmp_path / "out")
    choice = f'state.value = "{wanted}"; task.value = "counting"; show();\n</script>'
    page = path.with_name("chosen.html")
    chosen = path.read_text().replace("</script>", choice)
    script = chosen.split("<script>")[1].split("</script>")[0]
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page.write_text(re.sub(r"'sha256-[^']+'", f"'sha256-{allowed}'", chosen))
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    verdicts = [
        image.score.verdict.correct
        for result in scoring.results
        for image in result.images
        if result.prompt.task == "counting"
    ]
    expected = {"": len(verdicts), "right": sum(verdicts), "wrong": verdicts.count(False)}[wanted]
    prompts = 4 if expected else 0
    assert f">{expected} images of {prompts} prompts</span>" in done.stdout
    hidden = len(re.findall(r"<figure [^>]*hidden", done.stdout))
    assert hidden == 96 - expected
