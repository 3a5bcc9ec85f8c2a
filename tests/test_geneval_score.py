"""Folders of images: sampled, scored, compared, shown; stopped and taken up again."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from encbench.data.geneval import CLASSES, TASKS, Clause, GenevalPrompt, generate_prompts
from encbench.errors import DataError, EncbenchError, RecordError
from encbench.metrics.geneval.folder import read_folder
from encbench.metrics.geneval.gallery import build_image_gallery
from encbench.metrics.geneval.generate import generate_images, sample_seed, write_prompts
from encbench.metrics.geneval.score import load_scoring, score_folder
from encbench.metrics.geneval.tables import agree, breakdown, compare_scorings, task_scores
from encbench.metrics.geneval.text import (
    agreement_lines,
    comparison_lines,
    score_lines,
    write_scores,
)
from encbench.types import Detection

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


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    generate_images(PROMPTS, sample, folder, seed=1, model="noise")
    return folder


def scored(images, out, name="guesser", **options):
    return score_folder(read_folder(images), out, Guesser(name), **options)


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
    with pytest.raises(DataError, match="is of another prompt"):
        write_prompts([GenevalPrompt(0, "colors", "x", (Clause("dog"),))], images)
    with pytest.raises(EncbenchError, match="returned 0 images for"):
        generate_images(PROMPTS, lambda p, s: [], images.parent / "other", seed=1, model="silent")


# ------------------------------------------------------------------------------- scoring


def test_scores_are_what_counting_gives(images, tmp_path):
    scoring = scored(images, tmp_path / "out")
    rows = pd.read_json(tmp_path / "out" / "results.jsonl", lines=True)
    scores = task_scores(scoring.results)
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
    scored(images, tmp_path / "out")
    df = pd.read_json(tmp_path / "out" / "results.jsonl", orient="records", lines=True)
    columns = ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert list(df.columns) == columns
    assert len(df) == 96
    assert len(df.groupby("metadata")) == 24
    assert 0 < df.groupby("metadata")["correct"].any().mean() <= 1
    assert df["correct"].dtype == bool
    assert all(Path(name).is_file() for name in df["filename"])
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
        results = score_folder(read_folder(folder), tmp_path / f"o{images_per_prompt}", One("x"))
        score = task_scores(results.results)["single_object"]
        widths.append(score.high - score.low)
    assert widths[0] == pytest.approx(widths[1])
    assert 0.2 < widths[0] < 0.3  # 2 * 1.96 * sqrt(.5 * .5 / 60) = .253


def test_colors_of_all_images_are_named_together(images, tmp_path):
    reds = Reds()
    detector = Guesser(colors=False)
    scoring = score_folder(
        read_folder(images), tmp_path / "a", detector, lambda: reds, colors_name="reds"
    )
    assert len(reds.calls) == 2  # one for each 64 images, not one for each
    own = scored(images, tmp_path / "b")
    assert task_scores(scoring.results) == task_scores(own.results)
    with pytest.raises(DataError, match="add a color classifier"):
        score_folder(read_folder(images), tmp_path / "c", detector)


def test_scoring_goes_on_where_it_was_stopped(images, tmp_path):
    stopped = Guesser(fail_after=64)
    with pytest.raises(KeyboardInterrupt):
        score_folder(read_folder(images), tmp_path / "a", stopped)
    again = Guesser()
    scoring = score_folder(read_folder(images), tmp_path / "a", again)
    assert again.seen == 32
    idle = Guesser(fail_after=0)
    assert score_folder(read_folder(images), tmp_path / "a", idle).results == scoring.results
    whole = scored(images, tmp_path / "b")
    assert scoring.results == whole.results
    one, two = ((tmp_path / x / "results.jsonl").read_bytes() for x in "ab")
    assert one == two


def test_what_changed_is_scored_again(images, tmp_path):
    scored(images, tmp_path / "a")
    Image.new("RGB", (5, 5)).save(images / "00003" / "samples" / "0001.png")
    (tmp_path / "a" / "prompts" / "00007.json").write_text("{")
    detector = Guesser()
    score_folder(read_folder(images), tmp_path / "a", detector)
    assert detector.seen == 8
    other = Guesser("other")
    score_folder(read_folder(images), tmp_path / "a", other)
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
        image.verdict.correct
        for number, result in enumerate(full.results[:4])
        for place, image in enumerate(result.images)
        if number != 1 and not (number == 0 and place in (1, 2))
    ]
    assert scores["single_object"].value == pytest.approx(np.mean(kept))
    assert scores["counting"] == task_scores(full.results)["counting"]
    lines = "\n".join(score_lines(scores, scoring))
    assert "PARTIAL: 5 of 96 images are missing" in lines
    assert "PARTIAL: 1 images cannot be read (first: cannot read the image" in lines
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
    scores = task_scores(scored(images, tmp_path / "out").results)
    shown = [scores[task].value for task in TASKS if task != "color_attr"]
    assert scores["overall"].value == pytest.approx(np.mean(shown))


def test_whole_folder_is_not_called_partial(images, tmp_path):
    folder = read_folder(images, expected=PROMPTS, images_per_prompt=4)
    assert folder.notes == ()
    scoring = score_folder(folder, tmp_path / "out", Guesser())
    lines = score_lines(task_scores(scoring.results), scoring)
    assert not any("PARTIAL" in line for line in lines)
    assert "these are 24 prompts, not the 553 published ones" in lines


def test_scores_come_back_from_disk(images, tmp_path):
    scoring = scored(images, tmp_path / "out")
    assert load_scoring(tmp_path / "out") == scoring
    with pytest.raises(RecordError, match="holds no scores"):
        load_scoring(tmp_path / "none")
    (tmp_path / "out" / "prompts" / "00003.json").write_text('{"images": 3}')
    with pytest.raises(RecordError, match="damaged"):
        load_scoring(tmp_path / "out")


def test_a_class_that_the_detector_does_not_know(images, tmp_path):
    detector = Guesser()
    detector.labels = CLASSES[:3]
    with pytest.raises(DataError, match=r"prompt 00000 .* which guesser does not know"):
        score_folder(read_folder(images), tmp_path / "out", detector)


def test_a_detector_that_forgets_an_image(images, tmp_path):
    detector = Guesser()
    detector.detect = lambda images: []
    with pytest.raises(EncbenchError, match="guesser returned 0 lists of objects for 64 images"):
        score_folder(read_folder(images), tmp_path / "out", detector)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "00002" / "metadata.jsonl").unlink(), "00002/metadata.jsonl .*expected"),
        (lambda f: (f / "00002" / "metadata.jsonl").write_text("{"), "metadata.jsonl is no JSON"),
        (
            lambda f: (f / "00002" / "metadata.jsonl").write_text(
                '{"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "mauve"}]}'
            ),
            "color 'mauve', not one of red, orange",
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


# ---------------------------------------------------------------------------- comparisons


def test_a_folder_compared_with_itself_differs_by_nothing(images, tmp_path):
    scoring = scored(images, tmp_path / "a")
    found = compare_scorings(scoring, scoring)
    assert {(s.value, s.low, s.high) for s in found.difference.values()} == {(0.0, 0.0, 0.0)}
    assert set(found.difference) == {*TASKS, "overall"}
    assert found.notes == ()


def test_comparison_is_paired_on_prompts(images, tmp_path):
    generate_images(PROMPTS[4:], sample, tmp_path / "two", seed=5, model="noise")
    one, two = scored(images, tmp_path / "a"), scored(tmp_path / "two", tmp_path / "b")
    found = compare_scorings(one, two)
    kept = [r for r in one.results if r.prompt.task != "single_object"]
    assert found.first["overall"].value == task_scores(kept)["overall"].value
    assert "single_object" not in found.difference
    assert found.difference["overall"].value == pytest.approx(
        task_scores(two.results)["overall"].value - task_scores(kept)["overall"].value
    )
    back = compare_scorings(two, one).difference["overall"]
    forth = found.difference["overall"]
    assert (back.value, back.low) == pytest.approx((-forth.value, -forth.high))
    assert "4 of 24 prompts of the first are not in the other and were left out" in found.notes
    text = "\n".join(comparison_lines(found))
    assert "overall" in text
    assert "note: 4 of 24 prompts" in text


def test_agreement_of_detectors(images, tmp_path):
    one = scored(images, tmp_path / "a", "aa")
    same = agree(one, scored(images, tmp_path / "b", "cc"))  # as lucky with every image
    assert (same.share.value, same.kappa) == (1.0, 1.0)
    rows = [image.verdict.correct for r in one.results for image in r.images]
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
    verdicts = [image.verdict for result in scoring.results for image in result.images]
    assert page.figures.count("right") == sum(v is not None and v.correct for v in verdicts)
    assert page.figures.count("unscored") == 1
    assert len(page.images) == 95
    assert all((path.parent / unquote(source)).is_file() for source in page.images)
    assert page.links == []  # nothing is fetched: no script, style or font from elsewhere
    assert "http" not in text
    assert page.boxes > 0
    shares = [r.right / r.scored for r in scoring.results]
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
    page.write_text(path.read_text().replace("</script>", choice))
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    verdicts = [
        image.verdict.correct
        for result in scoring.results
        for image in result.images
        if result.prompt.task == "counting"
    ]
    expected = {"": len(verdicts), "right": sum(verdicts), "wrong": verdicts.count(False)}[wanted]
    prompts = 4 if expected else 0
    assert f">{expected} images of {prompts} prompts</span>" in done.stdout
    hidden = len(re.findall(r"<figure [^>]*hidden", done.stdout))
    assert hidden == 96 - expected
