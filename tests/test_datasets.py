"""Data sets and prompt sets of another package, and what is checked of them."""

import os
import subprocess
import sys

import pytest

from encbench.data.datasets import DatasetUse, check_dataset, load_dataset, load_prompt_set
from encbench.data.spec import DatasetSpec
from encbench.errors import DataError, UsageError
from encbench.types import Caption, CaptionSet, ImageRecord, ImageTextDataset

OUTSIDE = '''
from pathlib import Path

from PIL import Image

from encbench.data.datasets import DatasetFamily, PromptFamily
from encbench.types import Caption, ImageRecord, Prompt, PromptSet


class Stripes:
    """Not a CaptionSet: any class with these attributes will do."""

    name, pin, labels, notes = "stripes", "0" * 64, (), ("made up",)

    def __init__(self, folder):
        self.images, self.captions = [], []
        for i in range(12):
            path = Path(folder) / f"{i}.png"
            Image.new("RGB", (20, 20), (20 * i, 0, 255 - 20 * i)).save(path)
            self.images.append(ImageRecord(i, path.name, path, 20, 20))
            self.captions += [Caption(2 * i + k, i, f"stripe {i} told {k}") for k in range(2)]


DATA = DatasetFamily("stripes", "Stripes.", ("stripes:FOLDER",), lambda spec, use: Stripes(spec.source))
PROMPTS = PromptFamily(
    "lines", "Lines.", ("lines",),
    lambda spec: PromptSet("lines", "1" * 64, (Prompt("a", "one two three"), Prompt("b", "four five"))),
)
'''  # noqa: E501  the file of somebody else
ENTRY_POINTS = (
    "[encbench.datasets]\nstripes = outside_data:DATA\n"
    "[encbench.prompts]\nlines = outside_data:PROMPTS\n"
)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """``encbench`` with another package installed beside it."""
    site = tmp_path_factory.mktemp("site")
    (site / "outside_data.py").write_text(OUTSIDE)
    about = site / "outside_data-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-data\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}

    def run(*arguments):
        command = [sys.executable, "-m", "encbench", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=site
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_data_of_another_package_are_listed_probed_and_trained_on(outside, tmp_path):
    assert "stripes:FOLDER" in outside("list", "datasets")
    assert "lines" in outside("list", "prompt-sets")
    data = tmp_path / "data"
    data.mkdir()
    outside(
        "run", "--encoders", "control:bag-of-words", "--data", f"stripes:{data}", "--re-encoder",
        "pixels", "--probes", "retrieval", "--prompts", "lines", "--out", tmp_path / "run",
        "--store", tmp_path / "store", "--ks", 1,
    )  # fmt: skip
    assert '"stripes@0000' in (tmp_path / "run" / "prediction.json").read_text()
    outside(
        "train", "--preset", "scenes-cpu", "--data", f"stripes:{data}", "--side", 16, "--network",
        "dit-32x2x2", "--steps", 2, "--batch", 4, "--sample-every", 0, "--checkpoint-every", 0,
        "--out", tmp_path / "train", "--store", tmp_path / "store",
    )  # fmt: skip
    assert '"stripes"' in (tmp_path / "train" / "final" / "state.json").read_text()


@pytest.mark.parametrize(
    ("images", "captions", "words"),
    [
        ([1, 1], [(1, 1)], "an id stands twice"),
        ([1], [(1, 1), (1, 1)], "an id stands twice"),
        ([1], [(1, 2)], "caption 1 belongs to image 2, which is not there"),
        ([2**63], [(1, 2**63)], "at most 64 bits"),
        (["a"], [(1, "a")], "at most 64 bits"),
    ],
)
def test_a_data_set_that_breaks_the_contract_is_one_line(images, captions, words):
    records = [ImageRecord.__new__(ImageRecord) for _ in images]
    for record, number in zip(records, images, strict=True):
        object.__setattr__(record, "image_id", number)
    texts = [Caption.__new__(Caption) for _ in captions]
    for text, (number, image) in zip(texts, captions, strict=True):
        for key, value in (("caption_id", number), ("image_id", image), ("text", "a")):
            object.__setattr__(text, key, value)

    class Theirs:
        name, pin, labels, notes = "theirs", "0", (), ()

    theirs = Theirs()
    theirs.images, theirs.captions = records, texts
    with pytest.raises(DataError, match=words):
        check_dataset(theirs, "theirs")


def test_a_caption_set_is_a_data_set():
    assert isinstance(CaptionSet("a", "0", (), ()), ImageTextDataset)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cocoo:x", "unknown dataset 'cocoo'; did you mean coco"),
        ("coco:x?splt=a", "unknown option of the dataset 'coco' 'splt'"),
        ("folder:x?split=a", "the dataset 'folder' has no options"),
        ("scenes:scenes-hard", "unknown world 'scenes-hard'"),
        ("scenes?captions=many", "captions and long must be numbers"),
        ("scenes?long=2", "long from 0 to 1"),
        (":x", "':x' names no family"),
        ("coco:x@main", "has no revision"),
    ],
)
def test_specs_that_make_no_sense(text, words):
    with pytest.raises(UsageError, match=words):
        load_dataset(text, DatasetUse(training=True, count=2))


def test_prompt_sets_are_read_by_spec(shared):
    assert load_prompt_set(f"dpg:{shared / 'dpg' / 'prompts.jsonl'}").name == "dpg-bench"
    assert len(load_prompt_set(DatasetSpec("geneval", str(shared / "geneval"))).prompts) == 553
    assert load_prompt_set("scenes").name == "scenes-long"
