"""COCO folders as they come, and all the ways in which they come broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from encbench.data.coco import load_coco
from encbench.errors import DataError
from encbench.types import Instance

Change = Callable[[dict[str, Any]], object]


def captions_file() -> dict[str, Any]:
    return {
        "images": [
            {"id": 7, "file_name": "7.jpg", "width": 640, "height": 480, "license": 3},
            {"id": 5, "file_name": "5.jpg", "width": 10, "height": 20, "flickr_url": "http://f/5"},
        ],
        "annotations": [
            {"id": 12, "image_id": 5, "caption": "A cat."},
            {"id": 11, "image_id": 7, "caption": "A dog. "},
            {"id": 13, "image_id": 5, "caption": "A cat on a mat."},
        ],
        "licenses": [{"id": 3, "name": "some license"}],
    }


def instances_file() -> dict[str, Any]:
    return {
        "images": [{"id": 5}],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 18, "area": 6.5, "bbox": [1, 2, 3, 4]}
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}],
    }


def write(
    root: Path,
    captions: object = None,
    instances: object = None,
    images: tuple[str, ...] = ("5.jpg", "7.jpg"),
    split: str = "val2017",
) -> Path:
    folder = root / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    captions = captions_file() if captions is None else captions
    (folder / f"captions_{split}.json").write_text(json.dumps(captions))
    if instances is not None:
        (folder / f"instances_{split}.json").write_text(json.dumps(instances))
    if images:
        (root / split).mkdir(exist_ok=True)
    for name in images:
        (root / split / name).write_bytes(b"not looked at")
    return root


def test_reads_both_files(tmp_path: Path) -> None:
    found = load_coco(write(tmp_path, instances=instances_file()))
    assert found.name == "coco-val2017"
    assert [image.image_id for image in found.images] == [5, 7]
    assert [caption.caption_id for caption in found.captions] == [11, 12, 13]
    assert found.captions[0].text == "A dog. "  # as in the file
    five, seven = found.images
    assert five.path == tmp_path / "val2017" / "5.jpg"
    assert (five.width, five.height, five.url) == (10, 20, "http://f/5")
    assert seven.license == "some license"
    assert five.instances == (Instance("dog", 6.5, (1.0, 2.0, 4.0, 6.0)),)
    assert seven.instances is None  # the file says nothing about it
    assert found.labels == ("cat", "dog")
    assert found.notes == ()


def test_image_without_objects_differs_from_one_without_annotations(tmp_path: Path) -> None:
    instances = instances_file()
    instances["images"].append({"id": 7})
    found = load_coco(write(tmp_path, instances=instances))
    assert found.images[1].instances == ()


def test_pin_follows_the_annotation_files(tmp_path: Path) -> None:
    first = load_coco(write(tmp_path / "a")).pin
    assert load_coco(write(tmp_path / "b")).pin == first
    with_instances = load_coco(write(tmp_path / "b", instances=instances_file())).pin
    changed = captions_file()
    changed["annotations"][0]["caption"] = "A dog."
    assert len({first, with_instances, load_coco(write(tmp_path / "c", changed)).pin}) == 3


def test_missing_images(tmp_path: Path) -> None:
    write(tmp_path, images=("7.jpg",))
    source = r"http://images\.cocodataset\.org/zips/val2017\.zip"
    with pytest.raises(DataError, match=rf"1 of 2 .*5\.jpg.*{source}.*--allow-missing-images"):
        load_coco(tmp_path)
    found = load_coco(tmp_path, allow_missing_images=True)
    assert [image.path is None for image in found.images] == [True, False]
    assert "1 of 2 images are missing" in found.notes[0]


def test_captions_alone(tmp_path: Path) -> None:
    found = load_coco(write(tmp_path, images=()), allow_missing_images=True)
    assert all(image.path is None for image in found.images)
    assert len(found.captions) == 3


@pytest.mark.parametrize("allow", [True, False])
def test_images_of_another_split(tmp_path: Path, allow: bool) -> None:
    write(tmp_path, images=("1.jpg", "2.jpg"))
    with pytest.raises(DataError, match="different splits"):
        load_coco(tmp_path, allow_missing_images=allow)


def test_images_in_subfolders(tmp_path: Path) -> None:
    captions = captions_file()
    captions["images"][0]["file_name"] = "deep/7.jpg"
    write(tmp_path, captions)
    (tmp_path / "val2017" / "deep").mkdir()
    (tmp_path / "val2017" / "deep" / "7.jpg").write_bytes(b"")
    assert load_coco(tmp_path).images[1].path == tmp_path / "val2017" / "deep" / "7.jpg"


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg", "C:\\b.jpg", "a\nb", "a\0b"],
)
@pytest.mark.parametrize("allow", [True, False])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str, allow: bool) -> None:
    captions = captions_file()
    captions["images"][0]["file_name"] = name
    write(tmp_path, captions)
    with pytest.raises(DataError, match="refused") as caught:
        load_coco(tmp_path, allow_missing_images=allow)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("empty", ["", " \t\n"])
def test_empty_captions_are_counted(tmp_path: Path, empty: str) -> None:
    captions = captions_file()
    captions["annotations"][0]["caption"] = empty
    found = load_coco(write(tmp_path, captions))
    assert [caption.caption_id for caption in found.captions] == [11, 13]
    assert "1 empty captions" in found.notes[0]


def test_choosing_a_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_coco(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no captions_<split>\.json.*data fetch coco"):
        load_coco(tmp_path)
    write(tmp_path)
    write(tmp_path, split="train2017")
    with pytest.raises(DataError, match=r"captions_train2017\.json, captions_val2017\.json"):
        load_coco(tmp_path)
    assert load_coco(tmp_path, split="train2017").name == "coco-train2017"
    with pytest.raises(DataError, match=r"no captions_test\.json"):
        load_coco(tmp_path, split="test")
    with pytest.raises(DataError, match="no captions_"):
        load_coco(tmp_path, split="../val2017")


def test_broken_json_is_located(tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "annotations" / "captions_val2017.json"
    whole = json.dumps(captions_file(), indent=1)
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"captions_val2017\.json is not valid JSON .*line \d+"):
        load_coco(tmp_path)
    file.write_bytes(b'{"images": ["\xff"]}')
    with pytest.raises(DataError, match="not UTF-8"):
        load_coco(tmp_path)
    file.write_text("[" * 100_000)
    with pytest.raises(DataError, match="nested too deeply"):
        load_coco(tmp_path)


def _drop(key: str) -> Change:
    return lambda content: content.pop(key)


def _set(list_name: str, key: str, value: object) -> Change:
    return lambda content: content[list_name][0].update({key: value})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop("images"), "not a COCO file: it needs images, annotations"),
        (lambda c: c.update(images={}), "not a COCO file"),
        (lambda c: c["annotations"][1].pop("caption"), "number 1 of its annotations has no 'cap"),
        (lambda c: c["annotations"].append(5), "number 3 of its annotations is not an object"),
        (_set("annotations", "id", 11), "id 11 twice among its annotations"),
        (_set("images", "id", 5), "id 5 twice among its images"),
        (_set("annotations", "image_id", 99), "image 99, which the file does not list"),
        (_set("annotations", "image_id", [5]), "whole number"),
        (_set("images", "id", "7"), "whole number"),
        (_set("annotations", "caption", 3), "must be a text"),
        (_set("annotations", "caption", "\ud83d"), "surrogate"),
        (_set("images", "file_name", None), "has no file_name"),
        (lambda c: c.update(annotations=[]), "holds no captions"),
    ],
)
def test_bad_captions_files(tmp_path: Path, change: Change, words: str) -> None:
    captions = captions_file()
    change(captions)
    with pytest.raises(DataError, match=words) as caught:
        load_coco(write(tmp_path, captions))
    assert "captions_val2017.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop("categories"), "not a COCO file"),
        (
            lambda c: (c.update(images=[{"id": 99}]), c["annotations"][0].update(image_id=98)),
            r"to other images: none of its 2 .*first: 98",
        ),
        (_set("annotations", "area", 10**400), "impossible box or area"),
        (_set("annotations", "bbox", "1234"), "impossible box or area"),
        (_set("annotations", "category_id", 1), "unknown category"),
        (_set("annotations", "bbox", [1, 2, 3]), "impossible box"),
        (_set("annotations", "area", "big"), "impossible box or area"),
        (_set("annotations", "area", float("nan")), "NaN is not a number in JSON"),
        (_set("annotations", "area", -1), "impossible box or area"),
        (_set("annotations", "category_id", []), "whole number"),
    ],
)
def test_bad_instances_files(tmp_path: Path, change: Change, words: str) -> None:
    instances = instances_file()
    change(instances)
    with pytest.raises(DataError, match=words) as caught:
        load_coco(write(tmp_path, instances=instances))
    assert "instances_val2017.json" in str(caught.value)


def test_a_captions_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no 'caption' .*right kind of file"):
        load_coco(write(tmp_path, instances_file()))
    with pytest.raises(DataError, match="has a list"):
        load_coco(write(tmp_path, []))


def test_odd_extras_do_no_harm(tmp_path: Path) -> None:
    captions = captions_file()
    captions["licenses"] = [1, {"id": []}]
    captions["images"][0] |= {"width": "wide", "license": []}
    assert load_coco(write(tmp_path, captions)).images[1].width == 0
    for odd in (None, True, "MIT", {"id": 3}):
        captions["licenses"] = odd
        assert load_coco(write(tmp_path, captions)).images[1].license == ""


def test_reading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_coco(write(tmp_path, instances=instances_file()))
    assert capfd.readouterr() == ("", "")


def test_real_captions(shared: Path) -> None:
    found = load_coco(shared / "coco", allow_missing_images=True)
    assert (len(found.images), len(found.captions)) == (5000, 25_014)
    assert sum(image.path is not None for image in found.images) == 79
    assert sum(image.instances is not None for image in found.images) == 79
    assert len(found.labels) == 80
    assert "4,921 of 5,000" in found.notes[0]
    with pytest.raises(DataError, match=r"4,921 of 5,000 .*000000000285\.jpg"):
        load_coco(shared / "coco")
    for image in found.images:
        for x0, y0, x1, y1 in (instance.box for instance in image.instances or ()):
            assert -1 <= x0 <= x1 <= image.width + 1
            assert -1 <= y0 <= y1 <= image.height + 1


@pytest.mark.parametrize(
    "name",
    ["photo\u30001.jpg", "photo\xa01.jpg", "\U0001f469\u200d\U0001f9b0.jpg", "12:30.jpg", "a:b.jpg",
     "caf\xe9.jpg", "\u202eabc.jpg", "two  spaces .jpg", "quote'\".jpg", "100%.jpg", "#?.jpg"],
)  # fmt: skip
def test_names_inside_the_folder_are_read(tmp_path: Path, name: str) -> None:
    captions = captions_file()
    captions["images"][0]["file_name"] = name
    found = load_coco(write(tmp_path, captions, images=("5.jpg", name)))
    assert found.images[1].path == tmp_path / "val2017" / name


def test_accents_apart_from_their_letters_are_found(tmp_path: Path) -> None:
    captions = captions_file()
    captions["images"][0]["file_name"] = "caf\xe9.jpg"
    found = load_coco(write(tmp_path, captions, images=("5.jpg", "cafe\u0301.jpg")))
    assert found.images[1].path is not None
    assert found.images[1].path.is_file()


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1, 2**64, 10**30, True, 1.0, "1", None, [1]])
@pytest.mark.parametrize(
    "place", [("images", "id"), ("annotations", "id"), ("annotations", "image_id")]
)
def test_ids_are_numbers_of_64_bits(tmp_path: Path, number: object, place: tuple[str, str]) -> None:
    captions = captions_file()
    captions[place[0]][0][place[1]] = number
    with pytest.raises(
        DataError, match=rf"captions_val2017\.json: {place[1]} of number 0 .*64 bits"
    ):
        load_coco(write(tmp_path, captions))


def test_captions_of_a_part_beside_full_instances(tmp_path: Path) -> None:
    instances = instances_file()
    instances["images"] += [{"id": 99}, {"id": 98}]
    instances["annotations"].append(
        {"id": 2, "image_id": 98, "category_id": 1, "area": "?", "bbox": []}
    )
    found = load_coco(write(tmp_path, instances=instances))
    assert found.images[0].instances is not None
    assert found.images[1].instances is None
    assert "2 further images, which have no captions here and were left out" in found.notes[0]
