"""Images a second through GenEval's detector and colors: batched against one by one.

Both sides in turn in one process, the same images, random weights (speed does not depend on
them), the same results checked. The threshold is set so that about four objects an image pass;
the best object of every second image has its color named, about as often
as the published prompts ask for it.

    python benchmarks/geneval.py                             # small models, a CPU will do
    python benchmarks/geneval.py --device cuda --real-size   # Swin-S at 384 px, ViT-L-14
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from provenance import keep

from encbench.data.geneval import CLASSES
from encbench.device import choose_device
from encbench.metrics.geneval.colors import ClipColors, load_colors
from encbench.metrics.geneval.detect import Mask2FormerDetector, load_detector

COCO_WORDS = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
PUBLISHED_IMAGES = 4 * 553
OBJECTS = 4  # an image


def write_mask2former(folder: Path, real: bool) -> None:
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    side = 384 if real else 128
    small = {"depths": [1, 1, 2, 1], "embed_dim": 32, "num_heads": [1, 2, 4, 8]}
    swin_s = {"depths": [2, 2, 18, 2], "embed_dim": 96, "num_heads": [3, 6, 12, 24]}
    backbone = SwinConfig(
        image_size=side,
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        **(swin_s if real else small),
    )
    sizes = {
        "feature_size": 64,
        "mask_feature_size": 64,
        "hidden_dim": 64,
        "encoder_feedforward_dim": 128,
        "dim_feedforward": 256,
        "encoder_layers": 2,
        "decoder_layers": 3,
    }
    names = [COCO_WORDS.get(name, name) for name in CLASSES]
    config = Mask2FormerConfig(
        backbone_config=backbone,
        num_queries=100,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        **({} if real else sizes),
    )
    model = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():  # as in a trained model, few queries stand out and masks are sure
        transformer = model.model.transformer_module
        transformer.queries_features.weight.mul_(3)
        transformer.queries_embedder.weight.mul_(3)
        model.class_predictor.weight.mul_(40)
        for weight in transformer.decoder.mask_predictor.mask_embedder.parameters():
            weight.mul_(8)
    model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)


def write_clip(folder: Path, real: bool) -> None:
    import open_clip
    from safetensors.torch import save_file

    config = open_clip.get_model_config("ViT-L-14" if real else "ViT-B-32")
    if not real:
        config["vision_cfg"] |= {"width": 192, "layers": 4}
        config["text_cfg"] |= {"width": 128, "heads": 4, "layers": 2}
    folder.mkdir()
    written = {"model_cfg": config, "preprocess_cfg": {"size": [224, 224]}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")


def pictures(count: int, side: int) -> list[Image.Image]:
    """Colored blocks on soft noise."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        soft = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        image = soft.resize((side, side), Image.Resampling.BICUBIC)
        for _ in range(4):
            x, y = rng.integers(0, side - side // 4, 2).tolist()
            image.paste(
                tuple(rng.integers(0, 256, 3).tolist()), (x, y, x + side // 4, y + side // 4)
            )
        made.append(image)
    return made


def lower_threshold(detector: Mask2FormerDetector, images: list[Image.Image]) -> None:
    """So that about ``OBJECTS`` of each image pass."""
    detector.threshold = 0.0
    scores = [d.score for found in detector.detect(images) for d in found]
    detector.threshold = sorted(scores, reverse=True)[OBJECTS * len(images)]


def judge(detector: Mask2FormerDetector, colors: ClipColors, images: list[Image.Image], first: int):
    """Objects of each image, and colors of the best of every second."""
    found = detector.detect(images)
    crops = [
        (image, objects[0])
        for place, (image, objects) in enumerate(zip(images, found, strict=True))
        if (first + place) % 2 == 0 and objects
    ]
    return [[d.label for d in objects] for objects in found], colors.classify(crops)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--real-size", action="store_true", help="Swin-S at 384 px and ViT-L-14")
    parser.add_argument("--images", type=int, default=24, help="a turn")
    parser.add_argument("--side", type=int, default=512, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="more share cores with others")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_mask2former(folder / "m2f", options.real_size)
        write_clip(folder / "clip", options.real_size)
        detector = load_detector(f"mask2former:{folder}/m2f?batch={options.batch}", device)
        colors = load_colors(f"clip:{folder}/clip", device)
    assert isinstance(detector, Mask2FormerDetector)
    images = pictures(options.images, options.side)
    lower_threshold(detector, images[:4])
    judge(detector, colors, images[: options.batch], 0)  # warm up; learns the classes' texts

    def batched():
        return judge(detector, colors, images, 0)

    def one_by_one():
        labels, names = [], []
        for place, image in enumerate(images):
            found, named = judge(detector, colors, [image], place)
            labels += found
            names += named
        return labels, names

    sides = {"batched": batched, "one_by_one": one_by_one}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    same = []
    for work in sides.values():
        work()
    for turn in range(options.turns):
        made = {}
        for name, work in sides.items() if turn % 2 else reversed(sides.items()):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            made[name] = work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
        pairs = zip(made["batched"][0], made["one_by_one"][0], strict=True)
        same.append(sum(sorted(a) == sorted(b) for a, b in pairs) / len(images))
        print(f"turn {turn + 1} of {options.turns}", flush=True)
    ratios = [b / a for a, b in zip(seconds["batched"], seconds["one_by_one"], strict=True)]
    rate = options.images / statistics.median(seconds["batched"])
    result = {
        "models": "Swin-S at 384 px, ViT-L-14" if options.real_size else "small",
        "weights": "random",
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "images": options.images,
        "side": options.side,
        "batch": options.batch,
        "objects_per_image": sum(map(len, made["batched"][0])) / options.images,
        "images_per_second_batched": rate,
        "images_per_second_one_by_one": options.images / statistics.median(seconds["one_by_one"]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "images_with_the_same_objects": min(same),
        "seconds_for_2212_images": PUBLISHED_IMAGES / rate,
    }
    keep("geneval" if device.type == "cpu" else "geneval-gpu", result)
    print(f"ratio {result['ratio']:.2f}")


if __name__ == "__main__":
    main()
