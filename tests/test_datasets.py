"""What is checked of data sets and prompt sets, whoever brings them."""

import pytest

from encbench.data.datasets import DatasetUse, check_dataset, load_dataset, load_prompt_set
from encbench.data.spec import DatasetSpec
from encbench.errors import DataError, UsageError
from encbench.types import Caption, CaptionSet, ImageRecord, ImageTextDataset


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
