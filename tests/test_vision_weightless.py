"""The re-encoders without weights: annotated labels, and plain pixels."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from encbench.data.coco import load_coco
from encbench.errors import DataError, ImageError
from encbench.types import ImageRecord, Instance, ReEncoder
from encbench.vision import load_reencoder
from encbench.vision.labels import COCO

BOX = (0.0, 0.0, 1.0, 1.0)


def shown(*objects: tuple[str, float], number: int = 1) -> ImageRecord:
    instances = tuple(Instance(label, float(area), BOX) for label, area in objects)
    return ImageRecord(number, "x.jpg", None, 10, 10, instances)


def labels() -> ReEncoder:
    return load_reencoder("labels", "cpu")


# --------------------------------------------------------------------------------- labels


def test_columns_hold_the_roots_of_area_shares() -> None:
    rows = labels().encode([shown(("cat", 30), ("dog", 10), ("cat", 60)), shown(("tv", 5))])
    assert rows.shape == (2, 80)
    assert rows[0, COCO.index("cat")] == pytest.approx(math.sqrt(0.9))
    assert rows[0, COCO.index("dog")] == pytest.approx(math.sqrt(0.1))
    assert torch.count_nonzero(rows[0]) == 2
    assert rows[1, COCO.index("tv")] == 1


def test_image_without_objects_is_a_zero_vector() -> None:
    assert not labels().encode([shown()]).any()


def test_objects_without_area_share_alike() -> None:
    (row,) = labels().encode([shown(("cat", 0), ("dog", 0), ("dog", 0), ("car", 0))])
    assert row[COCO.index("dog")] == pytest.approx(math.sqrt(0.5))


areas = st.lists(
    st.tuples(st.sampled_from(COCO), st.floats(0, 1e6, allow_subnormal=False)), max_size=8
)


@given(areas, areas, st.floats(1e-3, 1e3))
def test_laws_of_area_shares(
    one: list[tuple[str, float]], other: list[tuple[str, float]], scale: float
) -> None:
    a, b, larger = labels().encode(
        [shown(*one), shown(*other), shown(*((label, area * scale) for label, area in one))]
    )
    assert torch.allclose(a, larger, atol=1e-4)  # shares, so the size of the image is no matter
    for row, objects in ((a, one), (b, other)):
        assert float(row.norm()) == pytest.approx(1.0 if objects else 0.0, abs=1e-5)
    together = {label for label, _ in one} & {label for label, _ in other}
    assert -1e-6 <= float(a @ b) <= 1 + 1e-5
    if not together:
        assert float(a @ b) == 0


def test_labels_of_another_data_set() -> None:
    known = labels()
    image = shown(("teapot", 1))
    with pytest.raises(DataError, match="'teapot'"):
        known.encode([image])
    other = known.with_labels(["sphere", "teapot"])
    assert other.encode([image]).tolist() == [[0, 1]]
    assert other.card.dim == 2
    assert other.card.revision != known.card.revision
    assert known.with_labels(COCO).card == known.card
    assert known.with_labels(()) is known


def test_images_without_annotations_are_named() -> None:
    with pytest.raises(ImageError, match=r"image 7 \(y\.jpg\) has no instances"):
        labels().encode([ImageRecord(7, "y.jpg", None, 1, 1)])


def test_card_says_what_it_needs() -> None:
    assert labels().card.needs == "instances"
    assert len(set(COCO)) == labels().card.dim == 80
    assert load_reencoder("pixels", "cpu").card.needs == "pixels"


def test_no_images_at_all() -> None:
    assert labels().encode([]).shape == (0, 80)
    assert load_reencoder("pixels", "cpu").encode([]).shape[0] == 0


def test_labels_on_real_instances(shared: Path) -> None:
    captions = load_coco(shared / "coco", allow_missing_images=True)
    assert captions.labels == COCO
    images = [image for image in captions.images if image.instances is not None]
    rows = labels().encode(images)
    assert rows.shape == (79, 80)
    assert torch.allclose(rows.norm(dim=1), torch.ones(79))
    first = images[0]
    main = max(first.instances, key=lambda instance: instance.area)
    assert rows[0].argmax() == COCO.index(main.label)


# --------------------------------------------------------------------------------- pixels


def picture(path: Path, values: np.ndarray) -> ImageRecord:
    Image.fromarray(values.astype(np.uint8)).save(path)
    return ImageRecord(1, path.name, path, 0, 0)


def test_pixels_tell_color_and_place(tmp_path: Path) -> None:
    left = np.zeros((40, 40, 3))
    left[:, :20] = (255, 0, 0)
    images = [
        picture(tmp_path / "left.png", left),
        picture(tmp_path / "large.png", left.repeat(3, 0).repeat(3, 1)),
        picture(tmp_path / "right.png", left[:, ::-1]),
        picture(tmp_path / "blue.png", left[..., ::-1]),
        picture(tmp_path / "gray.png", np.full((40, 40, 3), 128)),
    ]
    rows = load_reencoder("pixels", "cpu").encode(images)
    assert rows.dtype == torch.float32
    unit = rows / rows.norm(dim=1, keepdim=True)
    same, mirrored, other = (unit[0] @ unit[1:4].T).tolist()
    assert same == pytest.approx(1, abs=1e-5)
    assert other < mirrored < same
    assert torch.isfinite(unit).all()
    histogram = rows[:, 8 * 8 * 3 :]
    assert torch.allclose(histogram.norm(dim=1), torch.ones(5))
    assert torch.allclose(histogram[0], histogram[2])  # the same colors elsewhere


def test_pixels_do_not_depend_on_the_batch(shared: Path) -> None:
    found = load_coco(shared / "coco", allow_missing_images=True)
    images = [image for image in found.images if image.path is not None]
    encoder = load_reencoder("pixels", "cpu")
    rows = encoder.encode(images)
    assert rows.shape == (79, encoder.card.dim)
    assert torch.equal(rows[5:6], encoder.encode(images[5:6]))


def test_broken_image_is_named(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.png", np.zeros((4, 4, 3)))
    (tmp_path / "bad.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    with pytest.raises(ImageError, match=r"bad\.png"):
        load_reencoder("pixels", "cpu").encode(
            [good, ImageRecord(2, "bad.png", tmp_path / "bad.png", 0, 0), good]
        )
