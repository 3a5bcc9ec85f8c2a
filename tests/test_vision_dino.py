"""DINO re-encoders, on tiny random checkpoints in the published formats.

Each is written by the library that publishes such weights, read by ours, and compared with a
direct call of that library.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encbench.data.coco import load_coco
from encbench.data.hub import cache_dir
from encbench.errors import ImageError, ModelError, UsageError
from encbench.types import ImageRecord
from encbench.vision import load_reencoder, open_image, reencoder_family

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
CARD = "---\nlicense: other\nlicense_name: dinov3-license\n---\n"


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Weights by which the output depends on the image (fresh layer scales nearly hide it)."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.2)
    return model.eval()


def save_timm(folder: Path, architecture: str, **arguments: Any) -> torch.nn.Module:
    import timm

    model = randomize(timm.create_model(architecture, pretrained=False, num_classes=0, **arguments))
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    (folder / "README.md").write_text(CARD)
    return model


@pytest.fixture(scope="module")
def timm_v3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("timm-v3")
    model = save_timm(
        folder, "vit_small_patch16_dinov3", embed_dim=32, depth=2, num_heads=2, img_size=64
    )
    return folder, model


@pytest.fixture(scope="module")
def timm_v2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    folder = tmp_path_factory.mktemp("timm-v2")
    model = save_timm(
        folder, "vit_small_patch14_reg4_dinov2", embed_dim=32, depth=2, num_heads=2, img_size=70
    )
    return folder, model


@pytest.fixture(scope="module")
def hf_v3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    from transformers import DINOv3ViTConfig, DINOv3ViTImageProcessor, DINOv3ViTModel

    folder = tmp_path_factory.mktemp("hf-v3")
    config = DINOv3ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_register_tokens=4,
        image_size=64,
    )
    model = randomize(DINOv3ViTModel(config))
    model.save_pretrained(folder)
    DINOv3ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def hf_v2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("hf-v2")
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=70, patch_size=14
    )
    model = randomize(Dinov2Model(config))
    model.save_pretrained(folder)
    processor = BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56})
    processor.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[ImageRecord]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    records = []
    for number in range(5):
        shape = (60 + 20 * number, 150 - 20 * number, 3)
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(coarse).resize(shape[1::-1]).save(path)
        records.append(ImageRecord(number, path.name, path, shape[1], shape[0]))
    return records


def direct_timm(
    model: torch.nn.Module, images: list[ImageRecord], pool: str, **settings: Any
) -> torch.Tensor:
    from timm.data import create_transform, resolve_data_config

    transform = create_transform(**resolve_data_config(settings, model=model))
    with torch.inference_mode():
        tokens = model.forward_features(torch.stack([transform(open_image(i)) for i in images]))
        return model.pool(tokens, pool_type=pool)


def direct_transformers(
    folder: Path, model: torch.nn.Module, images: list[ImageRecord], **sizes: Any
) -> Any:
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images=[open_image(i) for i in images], return_tensors="pt", **sizes)
    with torch.inference_mode():
        return model(**pixels)


@pytest.mark.parametrize("family", ["dinov3", "dinov2"])
def test_timm_checkpoints(
    family: str, request: pytest.FixtureRequest, images: list[ImageRecord]
) -> None:
    import timm

    folder, model = request.getfixturevalue(f"timm_v{family[-1]}")
    encoder = load_reencoder(f"{family}:{folder}", "cpu")
    rows = encoder.encode(images)
    assert rows.std(0).mean() > 1e-3  # or the comparison would say nothing
    direct = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(rows, direct_timm(direct, images, "token"), **CLOSE)
    mean = load_reencoder(f"{family}:{folder}?token=mean", "cpu").encode(images)
    torch.testing.assert_close(mean, direct_timm(direct, images, "avg"), **CLOSE)
    assert encoder.card.dim == 32
    assert encoder.card.license == "dinov3-license"
    assert encoder.card.parameters == sum(p.numel() for p in model.parameters())
    assert encoder.card.spec == f"{family}:{folder}"


@pytest.mark.parametrize(("family", "size"), [("dinov3", 96), ("dinov2", 98)])
def test_timm_at_another_size(
    family: str, size: int, request: pytest.FixtureRequest, images: list[ImageRecord]
) -> None:
    import timm

    folder, _ = request.getfixturevalue(f"timm_v{family[-1]}")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=size).eval()
    expected = direct_timm(model, images, "token", img_size=size)
    rows = load_reencoder(f"{family}:{folder}?size={size}", "cpu").encode(images)
    torch.testing.assert_close(rows, expected, **CLOSE)
    assert not torch.allclose(rows, load_reencoder(f"{family}:{folder}", "cpu").encode(images))


def test_transformers_dinov3(
    hf_v3: tuple[Path, torch.nn.Module], images: list[ImageRecord]
) -> None:
    folder, model = hf_v3
    expected = direct_transformers(folder, model, images)
    rows = load_reencoder(f"dinov3:{folder}", "cpu").encode(images)
    assert rows.std(0).mean() > 1e-3
    torch.testing.assert_close(rows, expected.pooler_output, **CLOSE)
    patches = expected.last_hidden_state[:, 1 + 4 :]
    assert patches.shape[1] == (64 // 16) ** 2
    mean = load_reencoder(f"dinov3:{folder}?token=mean", "cpu").encode(images)
    torch.testing.assert_close(mean, patches.mean(1), **CLOSE)
    size = {"height": 96, "width": 96}
    torch.testing.assert_close(
        load_reencoder(f"dinov3:{folder}?size=96", "cpu").encode(images),
        direct_transformers(folder, model, images, size=size).pooler_output,
        **CLOSE,
    )


def test_transformers_dinov2(
    hf_v2: tuple[Path, torch.nn.Module], images: list[ImageRecord]
) -> None:
    folder, model = hf_v2
    expected = direct_transformers(folder, model, images)
    rows = load_reencoder(f"dinov2:{folder}", "cpu").encode(images)
    torch.testing.assert_close(rows, expected.pooler_output, **CLOSE)
    patches = expected.last_hidden_state[:, 1:]
    assert patches.shape[1] == (56 // 14) ** 2
    mean = load_reencoder(f"dinov2:{folder}?token=mean", "cpu").encode(images)
    torch.testing.assert_close(mean, patches.mean(1), **CLOSE)
    resized = direct_transformers(
        folder, model, images, size={"shortest_edge": 128}, crop_size={"height": 112, "width": 112}
    )
    torch.testing.assert_close(
        load_reencoder(f"dinov2:{folder}?size=112", "cpu").encode(images),
        resized.pooler_output,
        **CLOSE,
    )


@pytest.mark.parametrize("fixture", ["timm_v3", "hf_v3", "hf_v2"])
def test_batch_of_one_equals_many(
    fixture: str, request: pytest.FixtureRequest, images: list[ImageRecord]
) -> None:
    folder, _ = request.getfixturevalue(fixture)
    encoder = load_reencoder(f"dino{fixture[-2:]}:{folder}", "cpu")
    many = encoder.encode(images * 9)  # more than one batch of the network
    assert many.shape == (45, 32)
    for number, image in enumerate(images):
        torch.testing.assert_close(encoder.encode([image])[0], many[number], **CLOSE)
        torch.testing.assert_close(many[number + 40], many[number], **CLOSE)
    assert encoder.encode([]).shape == (0, 32)


def test_broken_image_is_named(
    timm_v3: tuple[Path, torch.nn.Module], images: list[ImageRecord], tmp_path: Path
) -> None:
    path = tmp_path / "cut.png"
    path.write_bytes(images[0].path.read_bytes()[:60])
    cut = ImageRecord(9, "cut.png", path, 0, 0)
    with pytest.raises(ImageError, match=r"cut\.png"):
        load_reencoder(f"dinov3:{timm_v3[0]}", "cpu").encode([images[0], cut])


def test_defaults_and_short_names_need_no_network() -> None:
    cases = {
        "dinov3": "timm/vit_large_patch16_dinov3.lvd1689m",
        "dinov3:vit_base_patch16_dinov3.lvd1689m@v1": "timm/vit_base_patch16_dinov3.lvd1689m",
        "dinov3:facebook/dinov3-vitb16": "facebook/dinov3-vitb16",
        "dinov2": "facebook/dinov2-large",
        "dinov2:vit_large_patch14_dinov2.lvd142m": "timm/vit_large_patch14_dinov2.lvd142m",
    }
    for text, repository in cases.items():
        family, spec = reencoder_family(text)
        assert family.requires(spec) == [(repository, "v1" if text.endswith("@v1") else None)]


def copied(folder: Path, to: Path, **changes: object) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


def test_wrong_folders_are_named(
    timm_v3: tuple[Path, torch.nn.Module], hf_v3: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    def refused(folder: Path, words: str, family: str = "dinov3") -> None:
        with pytest.raises(ModelError, match=words) as caught:
            load_reencoder(f"{family}:{folder}", "cpu")
        assert "\n" not in str(caught.value)

    refused(timm_v3[0], "holds no DINOv2 .*vit_small_patch16_dinov3", "dinov2")
    refused(hf_v3[0], "holds no DINOv2 .*dinov3_vit", "dinov2")
    refused(copied(timm_v3[0], tmp_path / "a", architecture="no_such_dinov3"), "no_such_dinov3")
    deeper = {"embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 64}
    refused(copied(timm_v3[0], tmp_path / "b", model_args=deeper), "Missing key")
    refused(copied(hf_v3[0], tmp_path / "c", num_hidden_layers=3), "is missing or of another size")
    refused(copied(hf_v3[0], tmp_path / "d", hidden_size=64), "is missing or of another size")

    broken = copied(hf_v3[0], tmp_path / "e")
    (broken / "model.safetensors").write_bytes(b"\x08")
    refused(broken, "transformers cannot load")
    (broken / "preprocessor_config.json").unlink()
    refused(broken, r"lacks preprocessor_config\.json")
    broken = copied(timm_v3[0], tmp_path / "f")
    (broken / "model.safetensors").write_bytes(b"\x08")
    refused(broken, "timm cannot load")
    (broken / "config.json").write_text("{")
    refused(broken, "not valid JSON")
    (broken / "config.json").unlink()
    refused(broken, r"lacks config\.json")


def test_pickled_weights_are_refused(hf_v3: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    folder = copied(hf_v3[0], tmp_path / "m")
    torch.save(hf_v3[1].state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        load_reencoder(f"dinov3:{folder}", "cpu")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("token=max", "known: cls, mean"),
        ("size=big", "number of pixels"),
        ("size=0", "number of pixels"),
        ("size=100", "multiple of the model's 16-pixel patches; try 96"),
    ],
)
def test_bad_options(timm_v3: tuple[Path, torch.nn.Module], options: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_reencoder(f"dinov3:{timm_v3[0]}?{options}", "cpu")


def test_revision_pins_weights_and_configuration(
    timm_v3: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    first = load_reencoder(f"dinov3:{timm_v3[0]}", "cpu").card.revision
    same = copied(timm_v3[0], tmp_path / "same")
    shutil.copy(timm_v3[0] / "config.json", same / "config.json")
    (same / "README.md").write_text("another text")
    assert load_reencoder(f"dinov3:{same}", "cpu").card.revision == first
    other = copied(timm_v3[0], tmp_path / "other", note="x")
    assert load_reencoder(f"dinov3:{other}", "cpu").card.revision != first
    assert cache_dir().is_dir()  # where the hashes are kept


def test_real_images(timm_v3: tuple[Path, torch.nn.Module], shared: Path) -> None:
    found = load_coco(shared / "coco", allow_missing_images=True)
    images = [image for image in found.images if image.path is not None]
    rows = load_reencoder(f"dinov3:{timm_v3[0]}", "cpu").encode(images)
    assert rows.shape == (79, 32)
    assert torch.isfinite(rows).all()
