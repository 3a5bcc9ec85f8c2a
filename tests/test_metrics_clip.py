"""clipscore, pickscore and hps-v2.1 on tiny random checkpoints in the published formats."""

import hashlib
import pickle

import metric_checkpoints
import numpy as np
import pytest
import torch
from checkpoints import open_clip
from PIL import Image

from encbench.errors import ModelError, UnknownNameError
from encbench.metrics import hps, load_metric
from encbench.metrics.prompts import TextPrompt
from encbench.metrics.score import score_images

TEXTS = ("a red dog", "two blue cats near a window", "a red dog", "a green chair", "a photo")
PROMPTS = [TextPrompt(i, text) for i, text in enumerate(TEXTS)]


def pictures():
    rng = np.random.default_rng(0)
    sizes = ((40, 40), (64, 30), (32, 32), (30, 64), (17, 50))
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("clips")
    arch = metric_checkpoints.tiny_open_clip(base / "config")
    path, md5 = metric_checkpoints.hps(base / "hps", arch)
    return {
        "clip": metric_checkpoints.agreeing_clip(base / "clip"),
        "open_clip": open_clip(base / "open_clip"),
        "pick": metric_checkpoints.pickscore(base / "pick"), "hps": path.parent, "md5": md5,
        "arch": arch,
    }  # fmt: skip


@pytest.fixture
def tiny_hps(folders, monkeypatch):
    monkeypatch.setattr(hps, "ARCH", folders["arch"])
    monkeypatch.setattr(hps, "MD5", folders["md5"])


def cosines(folder, texts, images, **tokens):
    """By transformers alone, one pair at a time, and the model."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = []
    for text, image in zip(texts, images, strict=True):
        with torch.no_grad():
            out = model(
                **tokenizer([text], return_tensors="pt", truncation=True, max_length=77),
                pixel_values=processor(images=image, return_tensors="pt")["pixel_values"],
            )
        found.append(float((out.text_embeds * out.image_embeds).sum()))
    return np.array(found), model


def values(metric, prompts=PROMPTS, images=None):
    return np.array([s.value for s in score_images(metric, prompts, images or pictures())])


@pytest.mark.parametrize(
    ("form", "weight", "prefix"), [("published", 2.5, "A photo depicts "), ("plain", 100, "")]
)
def test_clipscore_is_the_cosine_of_transformers(folders, form, weight, prefix):
    metric = load_metric(f"clipscore:{folders['clip']}?form={form}", "cpu")
    expected, _ = cosines(folders["clip"], [prefix + text for text in TEXTS], pictures())
    assert expected.max() > 0.01  # else every score is 0
    assert values(metric) == pytest.approx(weight * expected.clip(0), abs=1e-5 * weight)
    assert metric.name.startswith("clipscore:clip@")
    assert f"form={form}" in metric.name


def test_clipscore_by_open_clip(folders):
    import open_clip as library

    folder = folders["open_clip"]
    model, _, prepare = library.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = library.get_tokenizer(f"local-dir:{folder}")
    metric = load_metric(f"clipscore:{folder}?form=plain", "cpu")
    model.eval()
    with torch.no_grad():
        words = model.encode_text(tokenizer(list(TEXTS)), normalize=True)
        seen = model.encode_image(torch.stack(list(map(prepare, pictures()))), normalize=True)
    expected = 100 * (words * seen).sum(1).numpy()
    assert values(metric) == pytest.approx(expected.clip(0), abs=1e-3)


def test_pickscore_is_the_scaled_cosine_of_transformers(folders):
    metric = load_metric(f"pickscore:{folders['pick']}", "cpu")
    expected, model = cosines(folders["pick"], TEXTS, pictures())
    scale = float(model.logit_scale.exp())
    assert values(metric) == pytest.approx(scale * expected, abs=1e-5 * scale)


def test_hps_is_the_cosine_of_open_clip(folders, tiny_hps):
    """The published preprocessing: longer side to the model's, black beside it."""
    import open_clip as library
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    metric = load_metric(f"hps-v2.1:{folders['hps']}", "cpu")
    model = library.create_model(folders["arch"]).eval()
    model.load_state_dict(torch.load(folders["hps"] / hps.FILE)["state_dict"])
    tokenizer = library.get_tokenizer(folders["arch"])
    expected = []
    for text, image in zip(TEXTS, pictures(), strict=True):
        w, h = image.size
        size = [round(h * 32 / max(w, h)), round(w * 32 / max(w, h))]
        pixels = F.resize(F.to_tensor(image), size, InterpolationMode.BICUBIC, antialias=True)
        black = torch.zeros(3, 32, 32)
        top, left = (32 - size[0]) // 2, (32 - size[1]) // 2
        black[:, top : top + size[0], left : left + size[1]] = pixels
        pixels = (black - torch.tensor(hps.MEAN)[:, None, None]) / torch.tensor(hps.STD)[
            :, None, None
        ]
        with torch.no_grad():
            words = model.encode_text(tokenizer([text]), normalize=True)
            seen = model.encode_image(pixels[None], normalize=True)
        expected.append(100 * float((words * seen).sum()))
    assert values(metric) == pytest.approx(np.array(expected), abs=1e-3)


@pytest.mark.parametrize("name", ["clipscore", "pickscore", "hps-v2.1"])
def test_a_batch_equals_one_by_one(folders, tiny_hps, name):
    folder = {"clipscore": "clip", "pickscore": "pick", "hps-v2.1": "hps"}[name]
    metric = load_metric(f"{name}:{folders[folder]}", "cpu")
    alone = [
        values(metric, [prompt], [image])[0]
        for prompt, image in zip(PROMPTS, pictures(), strict=True)
    ]
    assert values(metric) == pytest.approx(np.array(alone), abs=1e-3)
    assert values(metric)[0] != values(metric)[2]  # the same prompt, another image


class Code:
    def __reduce__(self):
        return (print, ("run",))


def test_other_weights_are_one_line(folders, tiny_hps, tmp_path, monkeypatch, capsys):
    path = tmp_path / hps.FILE
    (tmp_path / "HPS_v2_compressed.pt").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"holds no HPS_v2\.1_compressed\.pt \(it has HPS_v2_com"):
        load_metric(f"hps-v2.1:{tmp_path}", "cpu")
    path.write_bytes(b"another file")
    with pytest.raises(ModelError, match=r"is not the published file \(md5 "):
        load_metric(f"hps-v2.1:{path}", "cpu")
    path.write_bytes(pickle.dumps({"state_dict": Code()}))
    monkeypatch.setattr(hps, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    with pytest.raises(ModelError, match="holds more than weights"):
        load_metric(f"hps-v2.1:{tmp_path}", "cpu")
    assert "run" not in capsys.readouterr().out
    torch.save({"state_dict": {"x": torch.zeros(1)}}, path)
    monkeypatch.setattr(hps, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    with pytest.raises(ModelError, match="does not hold the weights of a tiny-hps"):
        load_metric(f"hps-v2.1:{tmp_path}", "cpu")


def test_wrong_models_are_one_line(folders, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown form of clipscore 'plane'"):
        load_metric(f"clipscore:{folders['clip']}?form=plane", "cpu")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is not a CLIP, so it is not a PickScore"):
        load_metric(f"pickscore:{tmp_path}", "cpu")
