"""The memory that a dry run names, against what trainings hold."""

from dataclasses import replace

import flow_checkpoints
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from encbench.errors import UsageError
from encbench.flow.config import training_config
from encbench.flow.estimate import TEXT, cost_of, plan_training
from encbench.flow.features import Widths
from encbench.flow.meanflow import Condition
from encbench.flow.networks import build_network
from encbench.flow.sharding import recompute_activations
from encbench.flow.train import Trainer, train

WIDTHS = Widths(16, 0)
TINY = {
    "world": "scenes-grid", "images": 8, "steps": 2, "batch": 4, "log_every": 0, "workers": 0,
    "checkpoint_every": 0, "sample_prompts": 0, "device": "cpu", "captions": 1, "precision": "fp32",
    "encoder": "control:word-position?dim=16", "report_to": ["none"], "more_ema": [0.5],
    "long_share": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    pytest.importorskip("diffusers")
    sana = flow_checkpoints.sana(tmp_path_factory.mktemp("sana"), side=8, num_layers=3)
    latents = {"network": f"sana:{sana}", "autoencoder": str(sana), "prediction": "u", "side": 32}
    return {
        "dit": ({"network": "dit-48x3x3", "patch": 4, "side": 32}, (3, 32, 32)),
        "sana": (latents, (4, 8, 8)),
        "lora": ({**latents, "trainable": "lora", "lora_rank": 4}, (4, 8, 8)),
    }


def cost(values, shape, processes=1, **more):
    config = training_config({**TINY, **values, **more})
    return cost_of(config, build_network(config, shape, WIDTHS), shape, WIDTHS, processes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "lora"])
def test_weights_averages_and_optimizer_take_what_is_said(networks, name, tmp_path, monkeypatch):
    if name == "lora":
        pytest.importorskip("peft")
    trainers, inner = [], Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, *a: trainers.append(self) or inner(self, *a))
    values, shape = networks[name]
    train(training_config({**TINY, **values, "out": tmp_path / "run"}))
    (trainer,) = trainers
    states = [s for o in trainer.optimizers for s in o.state.values()]
    modules = [trainer.net, *(mean.module for mean in trainer.means.values())]
    held = [p.detach() for module in modules for p in module.parameters()]
    held += [value for state in states for value in state.values() if value.dim()]
    distinct = {tensor.untyped_storage().data_ptr(): tensor.numel() for tensor in held}
    gradient = sum(p.numel() for p in trainer.named.values())
    said = cost(values, shape)
    assert said.weights == 4 * (sum(distinct.values()) + gradient)
    assert said.trained == gradient


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dit", "sana"])
@pytest.mark.parametrize("again", [False, True])
def test_activations_are_within_a_fifth_of_the_peak(networks, name, again):
    values, shape = networks[name]
    config = training_config({**TINY, **values})
    batch, net = 32, build_network(config, shape, WIDTHS)
    if again:
        recompute_activations(net)
    z, t = torch.randn(batch, *shape), torch.rand(batch)
    cond = Condition(torch.randn(batch, TEXT, 16), torch.ones(batch, TEXT, dtype=torch.bool))
    tracker = MemTracker()
    tracker.track_external(net)
    with tracker:
        net(z, 0 * t, t, cond).square().mean().backward()
    kinds = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    peak = sum(value for kind, value in kinds.items() if str(kind)[-3:] in ("ACT", "EMP"))
    said = cost(values, shape, batch=batch, recompute=again).activations
    assert said == pytest.approx(peak, rel=0.2)


def test_processes_share_activations_and_sharded_ones_weights(networks):
    values, shape = networks["dit"]
    one, two = cost(values, shape), cost(values, shape, 2)
    sharded = cost(values, shape, 2, shard=True)
    assert two.weights == one.weights
    assert (two.activations, two.flops) == (one.activations // 2, one.flops)
    block = sum(p.numel() for p in build_network(
        training_config({**TINY, **values}), shape, WIDTHS
    ).blocks[0].parameters())  # fmt: skip
    outside = one.parameters - 3 * block
    assert sharded.weights == one.weights // 2 + 4 * (outside + 2 * block)
    assert cost(values, shape, shard=True).weights == one.weights
    with pytest.raises(UsageError, match="cannot be shared by 3 processes"):
        cost(values, shape, 3)


def test_the_plan_says_for_how_many_processes(networks):
    config = training_config({**TINY, **networks["dit"][0], "shard": True})
    alone, shared = (plan_training(config, lambda _: 1e9, n) for n in (1, 2))
    assert shared.seconds == alone.seconds / 2
    assert (shared.processes, alone.processes) == (2, 1)
    assert any("in each of 2 processes" in line for line in shared.lines)
    assert any("start the dry run by torchrun" in line for line in alone.lines)
    with pytest.raises(UsageError, match="add --no-compile"):
        plan_training(replace(config, compile=True), lambda _: 1e9)
