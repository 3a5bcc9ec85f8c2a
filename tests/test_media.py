"""The pictures of a run: whatever was lost or damaged is made again, to the same bytes."""

from pathlib import Path

import pytest
from PIL import Image

from encbench.errors import RecordError
from encbench.files import read_json
from encbench.media import write_gallery
from encbench.types import Caption, CaptionSet, ImageRecord

SPECS = ("st:one", "st:two")


@pytest.fixture
def captions(tmp_path) -> CaptionSet:
    images = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (300, 200), (40 * i, 90, 120)).save(path)
        images.append(ImageRecord(i, path.name, path, 300, 200, license="CC BY", url="https://x.y"))
    texts = tuple(Caption(10 + i, i, f"picture {i}") for i in range(4))
    return CaptionSet("four", "ab" * 32, tuple(images), texts)


def example(query: int, *others: int) -> dict:
    retrieved = [{"image_id": i, "caption": "", "cosine": 0.5} for i in others]
    return {"query": {"image_id": query, "caption": ""}, "score": 0.5, "retrieved": retrieved}


def written(folder: Path, captions: CaptionSet) -> dict[str, bytes]:
    """The media of a run of two encoders."""
    for spec, cases in zip(SPECS, ((0, 1, 2), (3, 0, 1)), strict=True):
        write_gallery(folder, spec, {"best": [example(*cases)], "worst": []}, captions)
    return {path.name: path.read_bytes() for path in sorted((folder / "media").iterdir())}


def test_each_image_has_a_thumbnail_and_each_encoder_its_examples(captions, tmp_path):
    files = written(tmp_path / "run", captions)
    assert files.keys() == {"gallery.json", "0.jpg", "1.jpg", "2.jpg", "3.jpg"}
    gallery = read_json(tmp_path / "run" / "media" / "gallery.json")
    assert gallery["encoders"].keys() == set(SPECS)
    assert gallery["images"]["3"] == {
        "thumb": "media/3.jpg", "caption": "picture 3", "license": "CC BY", "url": "https://x.y",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gallery.json", "1.jpg"])
@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[1]", b"\xff\xd8\xff", b'{"images": 3}', b'{"images": {"0": []}}',
     b'{"images": {"0": {"thumb": 1}}, "encoders": {}}', b'{"encoders": {"st:one": NaN}}'],
)  # fmt: skip
def test_what_was_lost_or_damaged_is_made_again(captions, tmp_path, name, content):
    folder = tmp_path / "run"
    before = written(folder, captions)
    path = folder / "media" / name
    path.unlink() if content is None else path.write_bytes(content)
    assert written(folder, captions) == before


def test_examples_of_the_wrong_shape_are_refused_by_name(captions, tmp_path):
    for examples in ({"best": 3}, {"best": [{}]}, {"best": [example(0) | {"retrieved": ["x"]}]}):
        with pytest.raises(RecordError, match="examples of st:one"):
            write_gallery(tmp_path, "st:one", examples, captions)
    assert not (tmp_path / "media").exists()


def test_an_image_that_is_gone_has_no_thumbnail(captions, tmp_path):
    captions.images[0].path.unlink()
    files = written(tmp_path / "run", captions)
    assert "0.jpg" not in files
    gallery = read_json(tmp_path / "run" / "media" / "gallery.json")
    assert gallery["images"]["0"]["thumb"] is None
