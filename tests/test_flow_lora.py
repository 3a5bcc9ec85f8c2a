"""Adapters (LoRA) of a pretrained SANA: only they move, and everything reads them."""

import builtins
import json
import runpy
import shutil
import sys

import flow_checkpoints
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from encbench.errors import MissingLibraryError, ModelError, UsageError
from encbench.flow.config import training_config
from encbench.flow.derivative import total_derivative
from encbench.flow.estimate import plan_training
from encbench.flow.export import export_model
from encbench.flow.lora import has_adapters
from encbench.flow.meanflow import Condition
from encbench.flow.meters import read_log
from encbench.flow.sample import load_checkpoint, load_sampler
from encbench.flow.sana import load_sana
from encbench.flow.train import train

pytest.importorskip("diffusers")
pytest.importorskip("peft")
CPU = torch.device("cpu")
TINY = {
    "world": "scenes-grid", "images": 8, "steps": 12, "batch": 8, "warmup": 0, "log_every": 1,
    "checkpoint_every": 5, "sample_prompts": 0, "device": "cpu", "captions": 1, "long_share": 0.0,
    "encoder": "control:word-position?dim=16", "report_to": ["none"], "lr": 1e-2, "keep": 9,
    "flow_matching": 0.5, "ema": 0.5, "side": 32, "prediction": "u", "trainable": "lora",
    "lora_rank": 3, "sana_times": "unscaled", "workers": 0,
}  # fmt: skip
PROMPT = "a red circle"


class StoppedError(Exception):
    pass


def stop(_):
    raise StoppedError


@pytest.fixture(scope="module")
def values(tmp_path_factory):
    backbone = flow_checkpoints.sana(tmp_path_factory.mktemp("sana"), side=8)
    return {**TINY, "network": f"sana:{backbone}", "autoencoder": str(backbone)}


@pytest.fixture(scope="module")
def run(values, tmp_path_factory):
    out = tmp_path_factory.mktemp("lora") / "run"
    train(training_config({**values, "out": out}))
    return out


@pytest.mark.slow
def test_only_adapters_and_the_connector_are_trained_and_kept(values, run):
    from diffusers import SanaTransformer2DModel

    losses = [row["error"] for row in read_log(run)]
    assert np.mean(losses[3:6]) < np.mean(losses[:3])
    held = load_file(run / "final" / "model.safetensors")
    assert {name.split(".")[0] for name in held if ".lora_" not in name} == {"connector"}
    averaged = load_file(run / "final" / "ema.safetensors")
    assert averaged.keys() - {"n_averaged"} == held.keys() - {"connector.scale"}
    away = [name for name, weight in held.items() if "lora_B" in name and weight.abs().max() > 1e-3]
    adapted = {name.split(".lora_")[0] for name in held if ".lora_" in name}
    assert len(adapted) == 2 * 2 * 4 + 2  # blocks, kinds of attention, projections; the interval
    assert len(away) == len(adapted)

    # what is sampled is the parent's weights, but where an adapter was added
    model = load_checkpoint(run, CPU, "model")
    assert not has_adapters(model.net)
    folder = values["network"].removeprefix("sana:") + "/transformer"
    parent = SanaTransformer2DModel.from_pretrained(folder).state_dict()
    changed = {
        name.removesuffix(".weight")
        for name, weight in model.net.transformer.state_dict().items()
        if "time_embed" not in name and not torch.equal(weight, parent[name])
    }
    assert changed == {
        name.removeprefix("transformer.") for name in adapted if "time_embed" not in name
    }


def test_a_dry_run_counts_few_trained_parameters(values):
    plans = [
        plan_training(training_config({**values, **more}), lambda _: 1e9)
        for more in ({}, {"trainable": "all", "lora_rank": 16})
    ]
    assert plans[0].trained < plans[1].trained / 2
    assert plans[0].memory < plans[1].memory


@pytest.mark.slow
def test_resumed_it_is_the_uninterrupted_one_to_the_bit(values, run, tmp_path):
    config = training_config({**values, "out": tmp_path / "run"})
    with pytest.raises(StoppedError):
        train(config, callback=stop, at={8})
    assert not (config.out / "final").exists()
    train(config)
    for part in ("model", "ema"):
        one, other = (load_file(out / "final" / f"{part}.safetensors") for out in (run, config.out))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_an_export_has_the_adapters_in_its_weights(run, tmp_path, monkeypatch):
    folder = export_model(run, tmp_path / "out", steps=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["example.py", PROMPT])
    runpy.run_path(str(folder / "example.py"), run_name="__main__")
    image = np.asarray(Image.open(tmp_path / "image.png")).astype(int)
    own = np.asarray(load_sampler(run, CPU, steps=2)([PROMPT], [0])[0]).astype(int)
    assert own.std() > 1
    assert np.abs(image - own).max() <= 1
    assert "LoRA of rank 3" in (folder / "README.md").read_text()


@torch.no_grad()
def test_the_jvp_goes_through_adapters(values):
    net = load_sana(values["network"].removeprefix("sana:"), 10, times="unscaled")
    net.train_only("lora", 3)
    for name, weight in net.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.3)
    torch.manual_seed(1)
    z, v = torch.randn(2, 3, 4, 8, 8)
    cond = Condition(torch.randn(3, 5, 10), torch.ones(3, 5, dtype=torch.bool))
    r, t = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1, 0.3])
    exact, near = (
        total_derivative(lambda *at: net(*at, cond), z, r, t, v, mode=mode, step=step)
        for mode, step in (("jvp", None), ("central", 2**-10))
    )
    assert (exact - near).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"network": "dit-16x1x1", "autoencoder": None}, "lora is for a pretrained SANA"),
        ({"trainable": "emf"}, "--lora-rank 3 needs --trainable lora"),
        ({"lora_rank": 17}, r"--lora-rank 17 is above the width of this SANA's layers \(16\)"),
        ({"lora_rank": 0}, "--lora-rank must be at least 1"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(values, tmp_path, more, says):
    with pytest.raises(UsageError, match=says):
        train(training_config({**values, **more, "out": tmp_path}))


def test_without_attention_or_peft_is_one_line(tmp_path, monkeypatch):
    flow_checkpoints.sana(tmp_path, num_layers=0)
    with pytest.raises(UsageError, match="has no attention layers"):
        load_sana(str(tmp_path), 10, times="scaled").train_only("lora")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    net = load_sana(str(tmp_path), 10, times="scaled")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingLibraryError, match=r'lora needs peft.*"encbench\[lora\]"'):
        net.train_only("lora")


@pytest.mark.slow
def test_adapters_of_another_model_are_refused(values, run, tmp_path):
    from safetensors.torch import save_file

    backbone, out = tmp_path / "parent", tmp_path / "run"
    shutil.copytree(values["autoencoder"], backbone)
    shutil.copytree(run, out)
    file = next((backbone / "transformer").glob("*.safetensors"))
    tensors = load_file(file)
    tensors["scale_shift_table"] = tensors["scale_shift_table"] + 1
    save_file(tensors, file, {"format": "pt"})
    state = json.loads((out / "final" / "state.json").read_text())
    state["config"] |= {"network": f"sana:{backbone}"}
    (out / "final" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ModelError, match=r"holds adapters of .*, whose weights have changed"):
        load_checkpoint(out, CPU)
