"""Flickr30k's captions in Karpathy's layout, on a small file of that layout."""

import json

import pytest
from PIL import Image

from encbench.data.datasets import DatasetUse, load_dataset
from encbench.errors import DataError


def entry(number, split, *texts):
    sentences = [{"tokens": t.split(), "raw": t, "imgid": number} for t in texts]
    return {"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences}


@pytest.fixture
def root(tmp_path):
    entries = [
        entry(3, "train", "A dog.", " A cat. "),
        entry(1, "train", ""),
        entry(2, "test", "B"),
    ]
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
    (tmp_path / "flickr30k-images").mkdir()
    for number in (1, 2, 3):
        Image.new("RGB", (8, 8)).save(tmp_path / "flickr30k-images" / f"{number}.jpg")
    return tmp_path


def test_a_split_with_its_captions(root):
    data = load_dataset(f"flickr30k:{root}", DatasetUse(training=True))
    assert data.name == "flickr30k-train"
    assert [image.path for image in data.images] == [root / "flickr30k-images" / "3.jpg"]
    assert [caption.text for caption in data.captions] == ["A dog.", "A cat."]
    assert data.notes == ("1 images without a caption were left out",)
    assert [c.text for c in load_dataset(f"flickr30k:{root}").captions] == ["B"]


def test_what_is_wrong_is_one_line(root):
    with pytest.raises(DataError, match="has no split 'val'; there: test, train"):
        load_dataset(f"flickr30k:{root}?split=val")
    (root / "flickr30k-images" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 1 images are missing|are not those of"):
        load_dataset(f"flickr30k:{root}")
    path = root / "dataset_flickr30k.json"
    for value, words in (
        ({"images": [{**entry(2, "test", "B"), "filename": "../2.jpg"}]}, "leads out of the image"),
        (
            {"images": [{"split": "test", "filename": "2.jpg"}]},
            "number 0 of its images has no 'se",
        ),
        ({"picture": []}, "has no 'images'"),
    ):
        path.write_text(json.dumps(value))
        with pytest.raises(DataError, match=words):
            load_dataset(f"flickr30k:{root}")
    path.unlink()
    with pytest.raises(DataError, match=r"no dataset_\*\.json in"):
        load_dataset(f"flickr30k:{root}")
