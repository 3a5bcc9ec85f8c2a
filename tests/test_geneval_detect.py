"""Mask2Former and zero-shot colors on tiny random checkpoints in published format."""

import shutil

import numpy as np
import pytest
import torch
from checkpoints import clip, open_clip
from geneval_checkpoints import COCO_NAMES, mask2former
from PIL import Image

from encbench.data.geneval import CLASSES, COLORS
from encbench.errors import EncbenchError, ModelError, UnknownNameError, UsageError
from encbench.metrics.geneval.colors import TEMPLATES, ColorClassifier, crop, load_colors
from encbench.metrics.geneval.detect import (
    instances,
    load_detector,
    mask_boxes,
    match_labels,
)
from encbench.types import Detection, Detector

SIZES = ((96, 64), (64, 96), (96, 64), (80, 80), (96, 64), (64, 96), (96, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mask2former(tmp_path_factory.mktemp("m2f") / "tiny")


@pytest.fixture(scope="module")
def detector(folder):
    return load_detector(f"mask2former:{folder}?batch=3", "cpu")


@pytest.fixture(scope="module")
def images():
    """Colored noise in blocks, of several sizes."""
    rng = np.random.default_rng(0)
    made = []
    for width, height in SIZES:
        blocks = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        made.append(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))
    return made


def same(one, two):
    assert [d.label for d in one] == [d.label for d in two]
    for a, b in zip(one, two, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-5)
        assert a.box == pytest.approx(b.box)
        assert (a.mask == b.mask).float().mean() > 0.999


def test_batch_equals_one_by_one(detector, images):
    assert isinstance(detector, Detector)
    together = detector.detect(images)
    assert sum(map(len, together)) > 5
    for image, found in zip(images, together, strict=True):
        same(found, detector.detect([image])[0])
    assert detector.detect([]) == []


def test_detections_are_sound(detector, images):
    for image, found in zip(images, detector.detect(images), strict=True):
        for each in found:
            assert each.label in CLASSES
            assert 0.3 <= each.score <= 1
            assert each.mask.shape == (image.height, image.width)
            rows, columns = np.nonzero(each.mask.numpy())
            ends = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert each.box == tuple(map(float, ends))
            assert each.color is None


def test_input_is_what_the_librarys_processor_makes(detector, images, folder):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    batch = detector.prepare([image for image in images if image.size == (96, 64)])
    one_by_one = [
        processor(images=image, return_tensors="pt")["pixel_values"]
        for image in images
        if image.size == (96, 64)
    ]
    assert batch.shape == (4, 3, 64, 64)
    torch.testing.assert_close(batch, torch.cat(one_by_one), rtol=0, atol=0)


@pytest.mark.parametrize("threshold", [0.02, 0.3])
def test_objects_are_those_of_the_library(detector, images, threshold):
    batch = [image for image in images if image.size == (96, 64)]
    with torch.inference_mode():
        out = detector.model(pixel_values=detector.prepare(batch))
    theirs = detector.processor.post_process_instance_segmentation(
        out, threshold=threshold, target_sizes=[(64, 96)] * len(batch), return_binary_maps=True
    )
    image, label, score, mask = instances(
        out.class_queries_logits, out.masks_queries_logits, (64, 96), threshold
    )
    assert len(image) > 3
    for i, expected in enumerate(theirs):
        mine = image == i
        segments = expected["segments_info"]
        assert label[mine].tolist() == [s["label_id"] for s in segments]
        assert score[mine].tolist() == pytest.approx([s["score"] for s in segments], abs=2e-6)
        if segments:
            assert torch.equal(mask[mine], expected["segmentation"] > 0)


def test_nothing_above_the_threshold():
    image, label, score, mask = instances(
        torch.zeros(2, 5, 81), torch.zeros(2, 5, 16, 16), (40, 30), 0.3
    )
    assert (len(image), len(label), len(score)) == (0, 0, 0)
    assert mask.shape == (0, 40, 30)
    assert mask_boxes(mask).shape == (0, 4)


def test_classes_get_genevals_names():
    assert list(match_labels(dict(enumerate(COCO_NAMES)), "x").values()) == list(CLASSES)
    with pytest.raises(ModelError, match="class 1 'sky', which is not one of GenEval's 80"):
        match_labels({0: "person", 1: "sky"}, "x")
    with pytest.raises(ModelError, match="two classes for 'tv'"):
        match_labels({0: "tv", 1: "tvmonitor"}, "x")


def test_other_class_names_are_refused_at_load(tmp_path):
    folder = mask2former(tmp_path / "odd", names=["person", "LABEL_1"])
    with pytest.raises(ModelError, match="class 1 'LABEL_1', which is not one"):
        load_detector(f"mask2former:{folder}", "cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: (f / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no"), "damaged"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "detr"}'),
            "is not a mask2former",
        ),
    ],
)
def test_broken_models_are_told_in_one_line(folder, tmp_path, change, said):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    change(copy)
    with pytest.raises(EncbenchError, match=said) as caught:
        load_detector(f"mask2former:{copy}", "cpu")
    assert "\n" not in str(caught.value)


def test_pickled_weights_only_when_allowed(folder, tmp_path, images):
    from safetensors.torch import load_file

    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickle=true"):
        load_detector(f"mask2former:{copy}", "cpu")
    trusted = load_detector(f"mask2former:{copy}?pickle=true", "cpu")
    same(
        trusted.detect(images[:1])[0],
        load_detector(f"mask2former:{folder}", "cpu").detect(images[:1])[0],
    )


def test_bad_specs(folder):
    with pytest.raises(UnknownNameError, match="detector 'yolo'"):
        load_detector("yolo:x", "cpu")
    with pytest.raises(UnknownNameError, match="option"):
        load_detector(f"mask2former:{folder}?speed=9", "cpu")
    with pytest.raises(UsageError, match="batch=0"):
        load_detector(f"mask2former:{folder}?batch=0", "cpu")
    with pytest.raises(ModelError, match="cannot be made: No module named"):
        load_detector("python:no_such_module:make", "cpu")
    with pytest.raises(ModelError, match="is not a detector"):
        load_detector("python:builtins:str", "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_gpu_agrees_with_cpu(folder, detector, images):
    gpu = load_detector(f"mask2former:{folder}", "cuda")
    for one, two in zip(detector.detect(images), gpu.detect(images), strict=True):
        assert [d.label for d in one] == [d.label for d in two]
        for a, b in zip(one, two, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-3)


# --------------------------------------------------------------------------------- colors


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return open_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def colors(clip_folder):
    return load_colors(f"clip:{clip_folder}", "cpu")


@pytest.fixture(scope="module")
def objects(images):
    rng = np.random.default_rng(1)
    made = []
    for number in range(12):
        image = images[number % len(images)]
        x0, y0 = rng.integers(0, 30, 2).tolist()
        box = (x0 + 0.4, y0 + 0.5, x0 + 20.6, y0 + 25.5)
        mask = torch.from_numpy(rng.random((image.height, image.width)) < 0.7)
        label = ("dog", "wine glass", "tv")[number % 3]
        made.append((image, Detection(label, box, 0.9, mask if number % 2 else None)))
    return made


def test_colors_in_a_batch_equal_one_by_one(colors, objects):
    assert isinstance(colors, ColorClassifier)
    together = colors.classify(objects)
    assert set(together) <= set(COLORS)
    assert together == [colors.classify([each])[0] for each in objects]
    assert colors.classify([]) == []


def test_colors_are_what_open_clip_itself_says(colors, clip_folder, objects):
    import open_clip as library

    model, _, prepare = library.create_model_and_transforms(f"local-dir:{clip_folder}")
    model.eval()
    tokenizer = library.get_tokenizer(f"local-dir:{clip_folder}")
    expected, margins = [], []
    for image, found in objects:
        templates = [
            lambda c, t=template, label=found.label: t.format(c=c, label=label)
            for template in TEMPLATES
        ]
        with torch.no_grad():
            texts = library.build_zero_shot_classifier(model, tokenizer, COLORS, templates)
            vector = model.encode_image(prepare(crop(image, found))[None], normalize=True)
            logits = (vector @ texts)[0]
        margins.append(float(logits.topk(2).values.diff().abs()))
        expected.append(COLORS[int(logits.argmax())])
    assert colors.classify(objects) == expected
    assert len(set(expected)) > 1
    assert min(margins) > 1e-6


def test_text_vectors_are_made_once_a_class(clip_folder, objects, monkeypatch):
    colors = load_colors(f"clip:{clip_folder}", "cpu")
    asked = []
    encode = colors.encoder.encode
    monkeypatch.setattr(
        colors.encoder, "encode", lambda prompts: asked.append(list(prompts)) or encode(prompts)
    )
    colors.classify(objects)
    colors.classify(objects[:3])
    (prompts,) = asked
    assert len(prompts) == 3 * 10 * 3
    assert prompts[:3] == [
        "a photo of a red dog",
        "a photo of a red-colored dog",
        "a photo of a red object",
    ]


def test_crop_shows_the_object_on_gray():
    image = Image.new("RGB", (10, 8), "red")
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[2:5, 3:6] = True
    cut = crop(image, Detection("dog", (2.0, 1.0, 7.0, 6.0), 1.0, mask))
    assert cut.size == (5, 5)
    assert cut.getpixel((0, 0)) == (0x99,) * 3
    assert cut.getpixel((1, 1)) == (255, 0, 0)
    whole = crop(image, Detection("dog", (2.0, 1.0, 7.0, 6.0), 1.0))
    assert whole.getpixel((0, 0)) == (255, 0, 0)
    assert crop(image, Detection("dog", (2.0, 3.0, 2.0, 3.0), 1.0)).size == (1, 1)


def test_a_model_without_images_names_no_colors(tmp_path):
    folder = clip(tmp_path / "text-only", kind="CLIPTextModelWithProjection")
    with pytest.raises(UsageError, match="has no image tower"):
        load_colors(f"clip:{folder}", "cpu")
