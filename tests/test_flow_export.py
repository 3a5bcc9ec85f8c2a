"""An exported model gives the images of the training it came from, in diffusers and here."""

import json
import runpy
import sys

import flow_checkpoints
import numpy as np
import pytest
import torch
from PIL import Image

from encbench import cli
from encbench.errors import ModelError, UsageError
from encbench.flow.config import training_config
from encbench.flow.export import export_model, fold_interval, load_connector, load_export
from encbench.flow.features import Bank
from encbench.flow.sample import encoder_for, load_checkpoint, load_sampler, noise_of, sample_images
from encbench.flow.train import train

CPU = torch.device("cpu")
TINY = {
    "world": "scenes-grid", "images": 40, "steps": 4, "batch": 4, "warmup": 0, "log_every": 0,
    "checkpoint_every": 0, "sample_prompts": 0, "device": "cpu", "captions": 2, "long_share": 0.0,
    "encoder": "control:word-position?dim=16", "report_to": ["none"], "lr": 1e-2,
    "flow_matching": 0.5, "ema": 0.5,
}  # fmt: skip
PROMPTS = ["a red circle", "a blue square to the left of a green triangle"]


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    out = tmp_path_factory.mktemp("dit") / "run"
    small = {"side": 8, "patch": 4, "network": "dit-16x1x1", "condition_scaling": "whitened"}
    train(training_config({**TINY, **small, "out": out}))
    return out


@pytest.fixture(scope="module")
def sana(tmp_path_factory):
    pytest.importorskip("diffusers")
    home = tmp_path_factory.mktemp("sana")
    backbone = flow_checkpoints.sana(home / "parent", side=8)
    more = {"side": 32, "network": f"sana:{backbone}", "autoencoder": str(backbone)}
    train(training_config({**TINY, **more, "prediction": "u", "out": home / "run"}))
    return home / "run"


def run_example(folder, tmp_path, monkeypatch):
    """The image that an exported folder's own example makes of the first prompt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example.py", PROMPTS[0]])
    runpy.run_path(str(folder / "example.py"), run_name="__main__")
    return np.asarray(Image.open(tmp_path / "image.png")).astype(int)


def test_a_sana_in_diffusers_gives_the_same_images(sana, tmp_path, monkeypatch):
    from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel

    folder = export_model(sana, tmp_path / "out", steps=3)
    model = load_checkpoint(sana, CPU)
    texts = encoder_for(model, CPU).alone(PROMPTS)
    own = sample_images(model.net, model.space, texts, [0, 1], steps=3, device=CPU, batch=2)
    vae = AutoencoderDC.from_pretrained(sana.parent / "parent", subfolder="vae")
    pipe = SanaPipeline.from_pretrained(folder, vae=vae, text_encoder=None, tokenizer=None)
    assert type(pipe.transformer) is SanaTransformer2DModel
    cond = Bank.of(texts).conditions(np.arange(2), CPU)
    noise = torch.stack([noise_of(seed, model.space.shape) for seed in (0, 1)])
    made = pipe(
        prompt_embeds=load_connector(folder)(cond.tokens), prompt_attention_mask=cond.mask,
        latents=noise, num_inference_steps=3, guidance_scale=1.0, height=32, width=32,
        negative_prompt=None, use_resolution_binning=False, output_type="pt",
    ).images  # fmt: skip
    pixels = (made.clamp(0, 1) * 255).round().int()
    assert own.float().std() > 1
    assert (pixels - own.int()).abs().max() <= 1
    assert (pixels != own.int()).float().mean() < 0.01  # rounding at the border of two values

    net = model.net
    z, t = noise, torch.ones(2)
    folded, parent = (
        fold_interval(net, gap, 1)(
            z, encoder_hidden_states=net.connector(cond.tokens), timestep=t * net.scale,
            encoder_attention_mask=cond.mask, return_dict=False,
        )[0]
        for gap in (1.0, 0.0)
    )  # fmt: skip
    with torch.no_grad():
        average = net(z, 0 * t, t, cond)
    assert torch.allclose(folded, average, atol=1e-5)
    assert not torch.allclose(parent, average, atol=1e-3)  # the interval says something

    image = run_example(folder, tmp_path, monkeypatch)
    alone = load_sampler(sana, CPU, steps=3)([PROMPTS[0]], [0])[0]
    assert np.abs(image - np.asarray(alone).astype(int)).max() <= 1
    with pytest.raises(ModelError, match="is for diffusers"):
        load_checkpoint(folder, CPU)


def test_a_dit_is_sampled_from_its_folder_alone(dit, tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(dit), "--to", str(tmp_path / "out"), "--steps", "2"])
    assert not ended.value.code
    folder = tmp_path / "out"
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "config.json", "example.py", "model.safetensors",
    }  # fmt: skip
    image = run_example(folder, tmp_path, monkeypatch)
    own = load_sampler(dit, CPU, steps=2)([PROMPTS[0]], [0])[0]
    assert np.abs(image - np.asarray(own).astype(int)).max() <= 1
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: encbench\n")
    assert "control:word-position?dim=16" in card
    assert str(dit.parent) not in card + (folder / "config.json").read_text()
    parent = export_model(dit / "parent", tmp_path / "parent")
    assert load_export(parent, CPU).instantaneous


def test_what_cannot_be_exported_or_read_is_one_line(dit, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="full is not empty; choose another folder"):
        export_model(dit, tmp_path / "full")
    folder = export_model(dit, tmp_path / "out")
    with pytest.raises(UsageError, match="leave out --weights"):
        load_checkpoint(folder, CPU, "model")
    held = json.loads((folder / "config.json").read_text())
    for change, says in (
        ({"version": 99}, "newer version"),
        ({"network": {"width": 4}}, "config.json: network"),
        ({"side": "wide"}, "side"),
        ({"network": {**held["network"], "width": 32}}, "the sizes differ"),
    ):
        (folder / "config.json").write_text(json.dumps({**held, **change}))
        with pytest.raises(ModelError, match=says):
            load_checkpoint(folder, CPU)
