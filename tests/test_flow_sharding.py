"""Sharded training (FSDP2): what DDP does, from checkpoints of any number of processes.

One launch of two processes makes most of what is checked here, one of three resumes.
"""

import json
import os
import shutil
import subprocess
import sys

import flow_checkpoints
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from encbench.errors import UsageError
from encbench.flow.config import training_config
from encbench.flow.meters import read_log
from encbench.flow.sample import load_sampler
from encbench.flow.train import train

pytestmark = pytest.mark.slow

TINY = {
    "world": "scenes-grid", "images": 40, "side": 8, "patch": 4, "network": "dit-24x2x2",
    "steps": 6, "batch": 12, "warmup": 2, "flow_matching": 0.34, "log_every": 1,
    "checkpoint_every": 3, "sample_prompts": 0, "precision": "fp32", "device": "cpu",
    "encoder": "control:word-position?dim=16", "long_share": 0.0, "captions": 1,
    "report_to": ["none"], "ema": 0.9, "more_ema": [0.5], "keep": 9, "times": "uniform",
    "interval_share": 0.2,
}  # fmt: skip
CASES = {
    "ddp": {"sample_prompts": 2},
    "sharded": {"shard": True, "sample_prompts": 2},
    "recomputed": {"shard": True, "recompute": True, "accumulate": 2},
    "jvp": {"derivative": "jvp"},
    "jvp-sharded": {"derivative": "jvp", "shard": True, "recompute": True},
    "head": {"objective": "pmf", "parent_target": 0.5},
    "head-sharded": {"objective": "pmf", "parent_target": 0.5, "shard": True},
    "bf16": {"precision": "bf16"},
    "bf16-sharded": {"precision": "bf16", "shard": True},
    "sana": {"trainable": "emf", "steps": 3},
    "sana-sharded": {"trainable": "emf", "steps": 3, "shard": True, "recompute": True},
    "sana-lora": {"trainable": "lora", "lora_rank": 4, "steps": 3},
    "sana-lora-sharded": {
        "trainable": "lora",
        "lora_rank": 4,
        "steps": 3,
        "shard": True,
        "recompute": True,
    },
}

WORK = """
import atexit, glob, json, os, sys

rank = int(os.environ["RANK"])

def look_at_threads():  # after all that is registered later
    names = [open(path).read().strip() for path in glob.glob("/proc/self/task/*/comm")]
    print(f"threads of {rank}: {json.dumps(names)}\\n", end="", flush=True)

atexit.register(look_at_threads)

from encbench.flow.config import training_config
from encbench.flow.train import train

for values in json.loads(sys.argv[1]):
    stop = values.pop("stop", None)

    def look(moment):
        parts = {name: p.to_local().numel()
                 for name, p in moment.net.named_parameters() if hasattr(p, "to_local")}
        print(f"held by {rank}: {json.dumps(parts)}\\n", end="", flush=True)  # in one write
        raise KeyboardInterrupt

    try:
        train(training_config(values), callback=look if stop else None, at={stop})
    except KeyboardInterrupt:
        pass
"""


def launch(tmp_path, processes, cases):
    script = tmp_path / "work.py"
    script.write_text(WORK)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone",
         f"--nproc-per-node={processes}", str(script), json.dumps(cases)],
        capture_output=True, text=True, check=False, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def weights(out, part="model"):
    return load_file(out / "final" / f"{part}.safetensors")


def furthest(one, other, part="model"):
    """The largest difference between the weights of two trainings."""
    a, b = weights(one, part), weights(other, part)
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def losses(out):
    """What is minimized, and the squared error before it is weighted, by steps."""
    return [row[name] for row in read_log(out) for name in ("loss", "error")]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Trainings of two processes, and one that was stopped after step 4."""
    home = tmp_path_factory.mktemp("two")
    pytest.importorskip("diffusers")
    pytest.importorskip("peft")
    parent = str(flow_checkpoints.sana(home / "parent", side=8))
    latents = {
        "network": f"sana:{parent}", "autoencoder": parent, "side": 32, "prediction": "u",
        "sana_times": "unscaled", "more_ema": [],
    }  # fmt: skip
    cases = [
        {**TINY, **more, **(latents if "sana" in name else {}), "out": str(home / name)}
        for name, more in CASES.items()
    ]
    cases.append({**TINY, "shard": True, "stop": 4, "out": str(home / "stopped")})
    said = launch(home, 2, cases)
    return home, said


@pytest.mark.parametrize(
    ("one", "other", "loss", "weight"),  # tolerances
    [
        ("ddp", "sharded", 1e-5, 1e-5),
        ("ddp", "recomputed", 1e-5, 1e-5),
        ("jvp", "jvp-sharded", 1e-5, 1e-5),
        ("head", "head-sharded", 1e-5, 3e-4),  # Adam enlarges the rounding of small gradients
        ("sana", "sana-sharded", 1e-4, 1e-3),
        ("sana-lora", "sana-lora-sharded", 1e-4, 1e-3),
        ("bf16", "bf16-sharded", 2e-2, 1e-2),
    ],
)
def test_sharded_it_is_the_training_that_ddp_makes(two, one, other, loss, weight):
    home, _ = two
    assert losses(home / other) == pytest.approx(losses(home / one), rel=loss)
    for part in ("model", "ema"):
        assert furthest(home / one, home / other, part) < weight


def test_all_processes_sample_a_sharded_network(two):
    home, _ = two
    assert furthest(home / "ddp", home / "sharded", "ema-0.5") < 1e-5
    grids = [
        np.asarray(Image.open(home / name / "samples" / "00000006.png")).astype(int)
        for name in ("ddp", "sharded")
    ]
    assert np.abs(grids[0] - grids[1]).max() <= 1


def test_each_process_holds_its_part(two):
    home, said = two
    held = [json.loads(line.partition(": ")[2]) for line in said.splitlines() if "held by" in line]
    assert len(held) == 2
    for name, tensor in weights(home / "ddp").items():
        if name in held[0]:
            assert sum(parts[name] for parts in held) == tensor.numel()
    large = "blocks.0.mlp.into.weight"
    assert held[0][large] == held[1][large]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have names on Linux only")
def test_no_thread_of_the_group_outlives_it(two):
    """One that does ends the process by SIGABRT now and then, when the interpreter is gone."""
    lines = [line for line in two[1].splitlines() if "threads of" in line]
    assert len(lines) == 2
    for line in lines:
        names = json.loads(line.partition(": ")[2])
        assert names
        assert not [name for name in names if "gloo" in name]


def test_a_checkpoint_of_two_goes_on_in_one_and_in_three(two, tmp_path):
    home, _ = two
    assert not (home / "stopped" / "final").exists()
    for name in ("one", "three"):
        shutil.copytree(home / "stopped", tmp_path / name)
    train(training_config({**TINY, "shard": True, "out": tmp_path / "one"}))
    launch(tmp_path, 3, [{**TINY, "shard": True, "out": str(tmp_path / "three")}])
    for name in ("one", "three"):
        assert losses(tmp_path / name) == pytest.approx(losses(home / "sharded"), rel=1e-5)
        for part in ("model", "ema"):
            assert furthest(tmp_path / name, home / "sharded", part) < 1e-5
    images = [
        np.asarray(load_sampler(out, torch.device("cpu"))(["a red circle"], [0])[0]).astype(int)
        for out in (tmp_path / "three", home / "ddp")
    ]
    assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.parametrize("derivative", ["central", "jvp"])
def test_activations_that_are_computed_again_change_nothing(tmp_path, derivative):
    outs = []
    for again in (False, True):
        outs.append(tmp_path / str(again))
        few = {"steps": 3, "derivative": derivative, "recompute": again}
        train(training_config({**TINY, **few, "out": outs[-1]}))
    assert losses(outs[0]) == losses(outs[1])
    assert furthest(*outs) == 0


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"compile": True}, "add --no-compile"),
        ({"optimizer": "muon"}, "needs --optimizer adamw"),
        ({"objective": "meanflow", "omega": 2.0}, "guidance inside the target"),
    ],
)
def test_what_does_not_go_with_it_is_one_line(tmp_path, more, says):
    with pytest.raises(UsageError, match=says):
        train(training_config({**TINY, "shard": True, "out": tmp_path, **more}))
