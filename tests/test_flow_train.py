"""The trainer: what it repeats exactly, what it survives, and what it says when it cannot go on."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from itertools import pairwise

import flow_checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from encbench import checkpoint
from encbench.confirm.config import PRESETS as CONFIRM
from encbench.data.scenes.dataset import training_scenes
from encbench.data.scenes.world import GRID
from encbench.distributed import share_batch
from encbench.errors import DataError, EncbenchError, ModelError, StoreError, UsageError
from encbench.files import TEMPORARY, _origin
from encbench.flow import checkpoint as files
from encbench.flow import trainer as trainer_module
from encbench.flow.config import LATER, training_config
from encbench.flow.data import ImagesInMemory, training_images
from encbench.flow.features import Bank, PromptFeatures
from encbench.flow.meters import Spikes, read_log
from encbench.flow.networks import build_optimizers
from encbench.flow.presets import scenes_cpu
from encbench.flow.sample import load_checkpoint, load_sampler
from encbench.flow.train import Trainer, train
from encbench.training import load_state_tensors, state_tensors, warmup_cosine

TINY = {
    "world": "scenes-grid", "images": 40, "side": 8, "patch": 4, "network": "dit-16x1x1",
    "steps": 12, "batch": 8, "warmup": 2, "flow_matching": 0.5, "log_every": 3,
    "checkpoint_every": 4, "sample_every": 0, "sample_prompts": 0, "precision": "fp32",
    "device": "cpu", "encoder": "control:word-position?dim=16", "long_share": 0.0,
    "captions": 1,
}  # fmt: skip
TIMES = ("images_per_second", "seconds_left")


def settings(out, **others):
    return training_config({**TINY, "out": out, **others})


def weights(path):
    return {part: load_file(path / f"{part}.safetensors") for part in ("model", "ema")}


def curve(out):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_log(out)]


def same(one, other):
    return all(
        torch.equal(tensor, other[part][name])
        for part, tensors in one.items()
        for name, tensor in tensors.items()
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return train(settings(out)), out


def test_a_training_is_deterministic_and_finished_once(whole, tmp_path):
    done, out = whole
    again = train(settings(tmp_path / "again"))
    assert same(weights(done.path), weights(again.path))
    assert curve(out) == curve(tmp_path / "again")
    begun = done.path.stat().st_mtime_ns
    assert train(settings(out)).path == done.path
    assert done.path.stat().st_mtime_ns == begun
    other = train(settings(tmp_path / "other", seed=1))
    assert not same(weights(done.path), weights(other.path))


def test_what_is_logged_and_kept(whole):
    done, out = whole
    rows = read_log(out)
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert [row["stage"] for row in rows] == ["flow-matching"] * 2 + ["emf"] * 2
    assert [row["interval_share"] for row in rows[:2]] == [0, 0]
    assert 0 < rows[-1]["interval_share"] < 1
    assert all(g is None for g in rows[0]["gap_by_t"])
    assert any(g is not None and g > 0 for g in rows[-1]["gap_by_t"])
    assert len(rows[0]["error_by_t"]) == 10
    assert all(row["images_per_second"] > 0 and row["gradient_norm"] > 0 for row in rows)
    assert done.parent == out / "parent"
    assert files.read_state(done.parent).step == 6
    assert files.read_state(done.parent).instantaneous
    assert not files.read_state(done.path).instantaneous
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["00000012"]
    assert any((out / "tensorboard").iterdir())
    assert not same(weights(done.parent), weights(done.path))


KILLED = """
import json, os, signal, sys, threading
from encbench.flow import train as module
from encbench.flow.config import LATER, training_config

config, inner = training_config(json.loads(sys.argv[1])), module.Trainer._step
for moment in sys.argv[2:]:  # a step, and seconds after its beginning
    fatal, wait = moment.split("+")

    def step(self):
        if self.step == int(fatal):
            threading.Timer(float(wait), os.kill, (os.getpid(), signal.SIGKILL)).start()
        return inner(self)

    module.Trainer._step = step
    child = os.fork()
    if child == 0:
        module.train(config)
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]))
"""


def test_killed_at_random_moments_it_ends_with_the_same_bits(whole, tmp_path):
    done, out = whole
    killed = tmp_path / "killed"
    values = json.dumps({**TINY, "out": str(killed)})
    rng = random.Random()
    moments = [f"{step}+{rng.random() * 0.03}" for step in (2, 5, 9)]
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, values, *moments],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert str(int(signal.SIGKILL)) in ended.stdout.split(), moments
    finished = train(settings(killed))
    assert same(weights(finished.path), weights(done.path)), moments
    assert curve(killed) == curve(out), moments


def test_other_settings_are_refused_on_resume(whole):
    _, out = whole
    with pytest.raises(UsageError, match=r"other settings \(--lr was 0.001, is 0.002\); choose"):
        train(settings(out, lr=0.002))
    assert train(settings(out, log_every=5, keep=3)).steps == 12  # what changes no weight may


def stopped(out, monkeypatch, at=5, **others):
    """A training that was stopped after ``at`` steps."""
    inner = Trainer._step

    def step(self):
        if self.step == at:
            raise KeyboardInterrupt
        return inner(self)

    monkeypatch.setattr(Trainer, "_step", step)
    with pytest.raises(KeyboardInterrupt):
        train(settings(out, **others))
    monkeypatch.setattr(Trainer, "_step", inner)
    return out


def held(dim=16, count=40):
    data = training_images(training_scenes(GRID, count, captions=1, long_share=0.0), 8)
    generator = torch.Generator().manual_seed(0)
    texts = [PromptFeatures(torch.randn(3, dim, generator=generator), None) for _ in data.texts]
    return data, Bank.of(texts)


def test_other_images_and_another_encoder_are_refused_on_resume(tmp_path, monkeypatch):
    out = stopped(tmp_path / "run", monkeypatch)
    data, features = held()
    shifted = ImagesInMemory(data.name, "another pin", data.texts, data.of, data.images)
    with pytest.raises(DataError, match=r"not those that .* was started with"):
        train(settings(out), data=shifted, features=features)
    _, wide = held(dim=24)
    with pytest.raises(EncbenchError, match=r"width 24, and the model takes width 16"):
        train(settings(out), data=data, features=wide)
    with pytest.raises(ModelError, match="the weights of control:word-position"):
        train(settings(out), data=data, features=features, revision="f" * 40)


def test_as_a_library_with_data_and_features_in_memory(tmp_path):
    data, features = held()
    seen = []
    done = train(
        settings(tmp_path / "run", encoder="python:in.memory:Encoder"),
        data=data,
        features=features,
        callback=lambda moment: seen.append(
            (moment.step, moment.instantaneous, moment.ema is not moment.net)
        ),
        at=(1, 6, 12),
    )
    assert seen == [(1, True, True), (6, True, True), (12, False, True)]
    assert files.read_state(done.path).encoder.tokens == 16


def test_the_backbone_does_not_depend_on_the_encoder(tmp_path):
    from encbench.flow.features import Widths
    from encbench.flow.networks import build_network

    config = settings(tmp_path)
    one = build_network(config, (3, 8, 8), Widths(16, 0))
    other = build_network(config, (3, 8, 8), Widths(40, 24))
    pairs = zip(one.backbone_state().values(), other.backbone_state().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_it_begins_with_a_backbone(tmp_path, whole):

    done, _ = whole
    backbone = load_checkpoint(done.path, torch.device("cpu")).net.backbone_state()
    save_file(backbone, tmp_path / "backbone.safetensors")
    data, features = held(dim=24)
    seen = {}
    train(
        settings(tmp_path / "run", steps=1, warmup=0, lr=1e-12, flow_matching=0),
        data=data,
        features=features,
        init_backbone=tmp_path / "backbone.safetensors",
        callback=lambda moment: seen.update(moment.net.backbone_state()),
        at=(1,),
    )
    assert all(torch.allclose(seen[name], backbone[name], atol=1e-6) for name in backbone)
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(ModelError, match="pickled file"):
        train(
            settings(tmp_path / "r2"), data=data, features=features, init_backbone=tmp_path / "a.pt"
        )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_accumulated_parts_give_the_whole_batch(tmp_path, optimizer):
    """Up to rounding, which Muon's orthogonalisation (in bfloat16) enlarges."""
    data, features = held()
    made = []
    for parts in (1, 4):
        config = settings(tmp_path / f"{parts}", steps=3, accumulate=parts, optimizer=optimizer,
                          flow_matching=0.3, checkpoint_every=0)  # fmt: skip
        made.append(weights(train(config, data=data, features=features).path)["model"])
    largest = max(float((made[0][n] - made[1][n]).abs().max()) for n in made[0])
    assert largest < (2e-5 if optimizer == "adamw" else 2e-3)


def test_muon_resumes_exactly(tmp_path, monkeypatch):
    data, features = held()
    more = {"optimizer": "muon", "steps": 6, "checkpoint_every": 3}
    one = train(settings(tmp_path / "one", **more), data=data, features=features)
    inner = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self: inner(self) if self.step < 4 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(settings(tmp_path / "two", **more), data=data, features=features)
    monkeypatch.setattr(Trainer, "_step", inner)
    two = train(settings(tmp_path / "two", **more), data=data, features=features)
    assert same(weights(one.path), weights(two.path))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_is_put_where_the_parameters_are(kind, tmp_path):
    """Even the step's number, which a fused AdamW wants there; 'meta' stands for a GPU."""
    config = settings(tmp_path, optimizer=kind)
    net = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(3, 2)])})
    optimizers = build_optimizers(config, net)
    net["blocks"][0](torch.ones(1, 3)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    state = state_tensors(optimizers, dict(net.named_parameters()))
    other = net.to("meta")
    moved = build_optimizers(config, other)
    load_state_tensors(moved, dict(other.named_parameters()), state)
    found = [value for o in moved for held in o.state.values() for value in held.values()]
    assert len(found) == len(state)
    assert {value.device.type for value in found} == {"meta"}


# ------------------------------------------------------------------------- several processes

PAIR = """
import atexit, json, pathlib, sys
from encbench.flow.config import LATER, training_config
from encbench.flow.train import train

@atexit.register  # called last
def left():
    for task in pathlib.Path("/proc/self/task").glob("*/comm"):
        print("at the end:", task.read_text().strip(), flush=True)

train(training_config(json.loads(sys.argv[1])))
"""


def test_two_processes_do_what_one_does(tmp_path):
    """Weights within rounding, the same log, one set of files."""
    more = {**TINY, "steps": 4, "log_every": 2, "checkpoint_every": 0, "accumulate": 2,
            "flow_matching": 0.5}  # fmt: skip
    script = tmp_path / "pair.py"
    script.write_text(PAIR)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    values = json.dumps({**more, "out": str(tmp_path / "two")})
    done = subprocess.run(
        [*launch, str(script), values],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "at the end: gloo" not in done.stdout  # threads that outlive the interpreter abort it
    assert "process group" not in done.stderr  # torch's warning that nobody left it
    train(training_config({**more, "out": str(tmp_path / "one")}))
    one, two = (weights(tmp_path / name / "final")["model"] for name in ("one", "two"))
    largest = max(float((one[n] - two[n]).abs().max()) for n in one)
    assert largest < 2e-5
    for a, b in zip(curve(tmp_path / "one"), curve(tmp_path / "two"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["interval_share"] == b["interval_share"]
        assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-3)


def test_processes_that_cannot_share_a_batch():
    with pytest.raises(UsageError, match=r"--batch 8 cannot be shared by 3 processes"):
        share_batch(8, 1, processes=3)


# ------------------------------------------------------------------------------- bad moments


def test_steps_that_are_not_finite_are_skipped_then_end_it(tmp_path, monkeypatch, caplog):
    inner = Trainer._forward

    def forward(self, x, *rest):
        return inner(self, x * (float("nan") if self.step in bad else 1), *rest)

    monkeypatch.setattr(Trainer, "_forward", forward)
    bad = {3, 4}
    out = tmp_path / "some"
    caplog.set_level("WARNING", "encbench")
    done = train(settings(out, log_every=4, patience=3))
    assert all(bool(torch.isfinite(t).all()) for t in weights(done.path)["model"].values())
    skipped = [row["step"] for row in read_log(out) if "skipped_because" in row]
    assert skipped == [4, 5]
    assert "step 4 is skipped: the loss is nan" in caplog.text
    assert read_log(out)[-1]["skipped"] == 2
    bad = set(range(6, 99))
    with pytest.raises(EncbenchError, match=r"3 steps in a row were skipped up to step 9 .*--lr"):
        train(settings(tmp_path / "all", patience=3))


def test_a_spike_is_one_against_what_is_usual():
    spikes = Spikes(10.0)
    assert all(spikes.judge(1.0, 1.0 + 0.01 * i) is None for i in range(30))
    assert "usually" in (spikes.judge(1.0, 12.0) or "")
    assert spikes.judge(1.0, 5.0) is None
    assert (spikes.in_a_row, spikes.skipped) == (0, 1)


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "run"
    real = checkpoint.save_file

    def full(tensors, path, *rest):
        if (out / "checkpoints" / "00000004").exists():
            raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")
        real(tensors, path, *rest)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StoreError, match=r"writing .* failed: the disk is full"):
        train(settings(out))
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["00000004"]
    monkeypatch.setattr(checkpoint, "save_file", real)
    assert train(settings(out)).steps == 12


def test_a_disk_that_is_really_full(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        tensors = {"model": {"w": torch.zeros(1 << 20)}}
        written = checkpoint.Checkpoint(tensors, {"step": 1})
        with pytest.raises(StoreError, match="the disk is full"):
            checkpoint.write_checkpoint(small / "c", written)
        assert not list(small.iterdir())
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_out_of_memory_says_what_to_lower(tmp_path, monkeypatch):
    def forward(self, *rest):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "_forward", forward)
    with pytest.raises(EncbenchError, match=r"8 images; take --accumulate 2, which gives the same"):
        train(settings(tmp_path))


def test_pickles_and_damage_are_refused(whole, tmp_path):
    done, _ = whole
    (tmp_path / "model.pt").write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=r"model\.pt is a pickled file, .*: refused"):
        files.find_checkpoint(tmp_path / "model.pt")
    with pytest.raises(ModelError, match=r"model\.pt is a pickled file"):
        files.find_checkpoint(tmp_path)
    with pytest.raises(ModelError, match="there is no checkpoint"):
        files.read_state(tmp_path / "none.pt")
    with pytest.raises(ModelError, match="holds no checkpoint"):
        files.find_checkpoint(tmp_path / "nothing")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in done.path.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged"):
        checkpoint.read_part(copy, "model")
    (copy / "state.json").write_text("{")
    with pytest.raises(ModelError, match=r"state\.json is not valid JSON"):
        files.read_state(copy)


def copy_of(out, folder):
    shutil.copytree(out, folder)
    return folder


def outputs(out):
    """What a finished training leaves, but for what holds the time it took."""
    return {
        "grid": (out / "samples" / "00000012.png").read_bytes(),
        "config": json.loads((out / "config.json").read_text())["steps"],
        "log": curve(out),
    }


@pytest.fixture(scope="module")
def with_grid(tmp_path_factory):
    """An uninterrupted training that samples."""
    out = tmp_path_factory.mktemp("grid") / "run"
    train(settings(out, sample_prompts=1, sample_every=6))
    return out


@pytest.mark.parametrize("lost", ["grid", "log", "config", "cut grid", "cut log"])
def test_side_outputs_of_a_finished_training_are_made_again(with_grid, tmp_path, lost):
    path = {
        "grid": "samples/00000012.png", "log": "log.jsonl", "config": "config.json",
    }[lost.removeprefix("cut ")]  # fmt: skip
    whole = outputs(with_grid)
    out = copy_of(with_grid, tmp_path / "run")
    data = (out / path).read_bytes()
    (out / path).write_bytes(data[: len(data) // 2]) if "cut" in lost else (out / path).unlink()
    begun = (out / "final" / "state.json").stat().st_mtime_ns
    train(settings(out, sample_prompts=1, sample_every=6))
    assert outputs(out) == whole
    assert (out / "final" / "state.json").stat().st_mtime_ns == begun


@pytest.mark.parametrize("step", [6, 12])
def test_a_kill_right_before_any_file_is_named_loses_nothing(
    with_grid, tmp_path, step, monkeypatch
):
    """Callback, grid and log of a step are there before the checkpoint that would skip them."""
    out, seen = tmp_path / "run", []
    real = trainer_module.write_checkpoint

    def killed(path, written):
        if path.name == f"{step:08d}" and len(seen) < 2:
            raise KeyboardInterrupt
        return real(path, written)

    def go():
        config = settings(out, sample_prompts=1, sample_every=6, checkpoint_every=6)
        return train(config, callback=lambda moment: seen.append(moment.step), at={step})

    monkeypatch.setattr(trainer_module, "write_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert seen == [step]
    assert (out / "samples" / f"{step:08d}.png").is_file()
    go()
    assert seen == [step] * 2
    assert outputs(out)["grid"] == outputs(with_grid)["grid"]


def test_with_keep_1_a_damaged_last_checkpoint_leaves_the_one_before(
    whole, tmp_path, monkeypatch, caplog
):
    done, out = whole
    cut = stopped(tmp_path / "run", monkeypatch, at=10)
    names = [p.name for p in sorted((cut / "checkpoints").iterdir())]
    assert names == ["00000004", "00000008"]
    model = cut / "checkpoints" / "00000008" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-3] ^= 1  # one bit of a weight: the file can still be read
    model.write_bytes(data)
    caplog.set_level("WARNING", "encbench")
    finished = train(settings(cut))
    assert "model.safetensors is damaged" in caplog.text
    assert same(weights(finished.path), weights(done.path))
    assert curve(cut) == curve(out)
    assert [p.name for p in (cut / "checkpoints").iterdir()] == ["00000012"]


def test_a_damaged_final_checkpoint_is_written_again(whole, tmp_path):
    done, out = whole
    cut = copy_of(out, tmp_path / "run")
    (cut / "final" / "ema.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"ema\.safetensors is damaged.*run the same training"):
        files.find_checkpoint(cut)
    assert same(weights(train(settings(cut)).path), weights(done.path))


def test_a_finished_training_removes_older_checkpoints_that_a_kill_left(whole, tmp_path):
    out = copy_of(whole[1], tmp_path / "run")
    newest, older = out / "checkpoints" / "00000012", out / "checkpoints" / "00000008"
    shutil.copytree(newest, older)
    train(settings(out))
    assert (newest.is_dir(), older.exists()) == (True, False)


def test_all_checkpoints_damaged_is_one_line(whole, tmp_path):
    cut = copy_of(whole[1], tmp_path / "run")
    for path in cut.rglob("state.json"):
        path.write_text("[]")
    with pytest.raises(ModelError, match=r"state\.json .*no other checkpoint; remove .* to start"):
        train(settings(cut))


def test_what_a_killed_process_left_half_written_is_swept(whole, tmp_path):
    cut = copy_of(whole[1], tmp_path / "run")
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    left = cut / "checkpoints" / f"{TEMPORARY}{_origin()}-{int(gone.stdout)}-0a0b0c0d"
    shutil.copytree(cut / "final", left)
    train(settings(cut))
    assert not left.exists()


STATES = {  # a wrong value of a key, and what the line names
    "step": "12", "instantaneous": 1, "config": [], "encoder": None, "data": {"name": 3, "pin": ""},
    "seconds": "long", "meters": {"sums": [[1, None]], "loss": []}, "sana": 4,
    "spikes": {"norms": [10**400], "in_a_row": 0, "skipped": 0}, "schema": "one", "files": [],
}  # fmt: skip


@pytest.mark.parametrize(
    "key", [*STATES, *(f"no {key}" for key in STATES if key not in ("sana", "files"))]
)
def test_a_state_of_wrong_types_is_one_line_with_file_and_key(whole, tmp_path, key):
    copy = copy_of(whole[0].path, tmp_path / "final")
    state = json.loads((copy / "state.json").read_text())
    name = key.removeprefix("no ")
    state.pop(name)
    if name == key:
        state[key] = STATES[key]
    (copy / "state.json").write_text(json.dumps(state))
    with pytest.raises(ModelError) as error:
        files.find_checkpoint(copy)
    assert str(copy / "state.json") in str(error.value)
    assert name in str(error.value) or key == "spikes"  # a number of 400 digits is no JSON here
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "9" * 5000, "[" * 500 + "]" * 500, "{", "\xff"]
)
def test_a_state_that_is_no_json_of_ours_is_one_line(whole, tmp_path, text):
    copy = copy_of(whole[0].path, tmp_path / "final")
    state = (copy / "state.json").read_text().replace('"step": 12', f'"step": {text}')
    (copy / "state.json").write_bytes(state.encode("latin-1"))
    with pytest.raises(ModelError) as error:
        files.find_checkpoint(copy)
    assert str(copy / "state.json") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape", "type"])
def test_weights_of_another_network_are_one_line(whole, tmp_path, change):
    """Even where the sums are right, as in a file of an earlier version that has none."""

    copy = copy_of(whole[0].path, tmp_path / "final")
    state = json.loads((copy / "state.json").read_text())
    state["files"] = {}
    (copy / "state.json").write_text(json.dumps(state))
    tensors = load_file(copy / "model.safetensors")
    name = "output.linear.weight"
    tensors |= {
        "missing": {}, "unknown": {"strange": torch.zeros(2)}, "shape": {name: torch.zeros(2)},
        "type": {name: torch.zeros_like(tensors[name], dtype=torch.int32)},
    }[change]  # fmt: skip
    if change == "missing":
        del tensors["patches.weight"]
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ModelError) as error:
        load_checkpoint(copy, torch.device("cpu"), "model")
    named = {"missing": "patches.weight", "unknown": "strange"}.get(change, name)
    assert str(copy / "model.safetensors") in str(error.value)
    assert named in str(error.value)


# ---------------------------------------------------------------------------- small pieces


def test_the_rate_rises_and_falls():
    rates = [warmup_cosine(step, 100, 10, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) in (9, 10)
    assert all(a >= b for a, b in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-2)


def test_settings_that_make_no_sense():
    for values, said in (
        ({"steps": 0}, "--steps must be at least 1"),
        ({"objective": "emff"}, "unknown --objective 'emff'; did you mean emf"),
        ({"flow_matching": 1.5}, "--flow-matching must be at least 0 and at most 1, not 1.5"),
        ({"batch": 10, "accumulate": 4}, "not a multiple of --accumulate"),
        ({"lr": "fast"}, "--lr must be a finite number, not the text 'fast'"),
        ({"steps": 1.5}, "--steps must be a whole number"),
        ({"stepps": 1}, "unknown configuration key 'stepps'"),
        ({"coco": "a", "folder": "b"}, "more than one of --data, --coco and --folder is given"),
    ):
        with pytest.raises(UsageError, match=said):
            training_config(values)


def test_presets_are_configurations():
    from encbench.flow.presets import PRESETS
    from encbench.presets import preset_values

    for name in PRESETS:
        assert training_config(preset_values(PRESETS, name)).steps > 0
    with pytest.raises(UsageError, match="unknown preset 'scenes-gpuu'; did you mean scenes-gpu"):
        preset_values(PRESETS, "scenes-gpuu")


@pytest.mark.parametrize("objective", ["flow-matching", "meanflow", "emf", "imf", "pmf"])
def test_every_objective_and_derivative_trains(tmp_path, objective):
    data, features = held()
    derivative = {"meanflow": "jvp", "emf": "forward", "imf": "jvp"}.get(objective, "central")
    more = {"omega": 2.0, "kappa": 0.5} if objective == "meanflow" else {}
    precision = "bf16" if objective == "emf" else "fp32"
    config = settings(tmp_path / "run", objective=objective, derivative=derivative, steps=3,
                      flow_matching=0.3, times="logit-normal", log_every=1, precision=precision,
                      **more)  # fmt: skip
    done = train(config, data=data, features=features)
    rows = read_log(tmp_path / "run")
    assert [row["skipped"] for row in rows] == [0, 0, 0]
    assert [row["stage"] for row in rows] == ["flow-matching"] + [objective] * 2
    assert all(row["gradient_norm"] > 0 for row in rows)
    assert (done.parent is None) == (objective == "flow-matching")


def test_new_options_at_their_defaults_leave_a_configuration_as_it_was():
    """So that hashes of recipes and the folders of older trainings stay."""
    written = training_config({}).as_dict()
    assert not written.keys() & LATER.keys()
    changed = training_config({"guidance_span": [0.2, 0.8], "weight_power": 0.5})
    new = {"guidance_span": [0.2, 0.8], "weight_power": 0.5}
    assert changed.as_dict() == written | new
    assert training_config({}).same_training(written) == []
    assert changed.same_training(changed.as_dict()) == []
    assert changed.same_training(written) == [
        "--guidance-span was [0.0, 1.0], is [0.2, 0.8]",
        "--weight-power was 1.0, is 0.5",
    ]


def test_the_step_of_the_difference_is_written_out():
    """A file without it is from when it was another one."""
    for derivative, new, old in (("central", 2**-12, 2**-10), ("forward", 2**-13, 2**-11)):
        config = training_config({"derivative": derivative})
        assert config.as_dict()["derivative_step"] == new
        before = config.as_dict() | {"derivative_step": None}
        assert config.same_training(before) == [f"--derivative-step was {old}, is {new}"]
        same = training_config({"derivative": derivative, "derivative_step": old})
        assert same.same_training(before) == []
    assert training_config({"derivative": "jvp"}).same_training({
        **training_config({"derivative": "jvp"}).as_dict(), "derivative_step": None
    }) == []  # fmt: skip
    sana = training_config({"network": "sana:x", "sana_times": "scaled"})
    assert sana.same_training({**sana.as_dict(), "derivative_step": None}) == []
    # recipes that have trained keep theirs
    assert training_config(scenes_cpu()).derivative_step == 2**-10
    assert training_config(CONFIRM["cpu"]()["train"]).derivative_step == 2**-11
    assert training_config(CONFIRM["full"]()["train"]).derivative_step == 2**-10


def test_a_parent_a_warm_up_and_several_means(tmp_path, monkeypatch):
    common = {
        "parent_target": 0.7, "tangent_warmup": 0.5, "more_ema": [0.5, 0.0], "uniform_share": 0.2,
        "ema": 0.9,
    }  # fmt: skip
    done = train(settings(tmp_path / "whole", **common))
    raw = weights(done.path)["model"]
    means = {name: load_file(done.path / f"{name}.safetensors") for name in ("ema-0.5", "ema-0")}
    assert all(torch.equal(raw[name], w) for name, w in means["ema-0"].items() if name in raw)
    assert any(not torch.equal(raw[name], w) for name, w in means["ema-0.5"].items() if name in raw)
    stopped(tmp_path / "again", monkeypatch, at=9, **common)
    again = train(settings(tmp_path / "again", **common))
    assert same(weights(again.path), weights(done.path))
    one, other = (load_checkpoint(done.path, torch.device("cpu"), w) for w in ("ema", "ema-0.5"))
    assert one.fingerprint != other.fingerprint
    with pytest.raises(UsageError, match=r"unknown --weights 'ema-0.7'; did you mean ema-0.5"):
        load_checkpoint(done.path, torch.device("cpu"), "ema-0.7")
    plain = train(settings(tmp_path / "plain", **{**common, "parent_target": 0.0}))
    assert same(weights(plain.parent), weights(done.parent))
    assert not same(weights(plain.path), weights(done.path))
    # another training that begins where the parent ended
    more = settings(tmp_path / "more", flow_matching=0.0, steps=1, lr=1e-12, parent_target=1.0)
    begun = weights(train(more, init=done.parent).path)["model"]
    assert all((begun[n] - w).abs().max() < 1e-6 for n, w in weights(done.parent)["ema"].items()
               if n in begun)  # fmt: skip
    with pytest.raises(UsageError, match="--times uniform has no such setting; take --times"):
        train(settings(tmp_path / "none", times="uniform", uniform_share=0.1))
    with pytest.raises(UsageError, match="--parent-target and guidance inside the target do not"):
        train(settings(tmp_path / "none", objective="meanflow", omega=2.0, parent_target=1.0))


def test_a_guided_head_trains_goes_on_and_is_sampled(tmp_path, monkeypatch):
    common = {
        "objective": "imf", "velocity_head": True, "head_depth": 1, "head_at": "instant",
        "guidance_max": 8.0, "weight_power": 0.5, "head_weight": 0.5, "derivative": "jvp",
        "network": "dit-16x2x2", "encoder": "control:word-position",
    }  # fmt: skip
    done = train(settings(tmp_path / "whole", **common))
    names = weights(done.path)["model"]
    assert {"velocity.linear.weight", "head.0.modulation.weight", "guidance.0.weight"} <= set(names)
    assert names["guidance.2.weight"].abs().max() > 0
    stopped(tmp_path / "again", monkeypatch, at=9, **common)
    assert same(weights(train(settings(tmp_path / "again", **common)).path), weights(done.path))

    def loaded(**more):
        return load_sampler(done.path, torch.device("cpu"), steps=1, **more)

    ways = [loaded(), loaded(guidance=4.0), loaded(guidance=4.0, guidance_span=(0.2, 0.6))]
    assert len({way.fingerprint for way in ways}) == 3
    cond = Bank.of(ways[0].encode(["a red circle"])).conditions(np.arange(1), torch.device("cpu"))
    z, r, t = torch.ones(1, 3, 8, 8), torch.zeros(1), torch.ones(1)
    made = [way.model.net(z, r, t, cond) for way in ways]
    trained = ways[0].model.net(z, r, t, cond.guided((0.75, 0.2, 0.6)))
    assert torch.equal(made[2], trained)
    assert (made[0] - made[1]).abs().max() > 0
    assert (made[1] - made[2]).abs().max() > 0
    assert len(ways[1](["a red circle"], [0])) == 1
    with pytest.raises(UsageError, match="a --guidance other than 1"):
        loaded(guidance_span=(0.2, 0.6))
    with pytest.raises(UsageError, match="--head-at instant needs the velocity head: add"):
        train(settings(tmp_path / "none", objective="imf", head_at="instant"))
    with pytest.raises(UsageError, match="objective emf has no such setting, only imf, pmf"):
        train(settings(tmp_path / "none", objective="emf", velocity_head=True))
    with pytest.raises(UsageError, match="--velocity-head was True, is False"):
        train(settings(tmp_path / "whole", **{**common, "velocity_head": False, "head_depth": 0,
                                              "head_at": "interval"}))  # fmt: skip


def test_a_perceptual_loss_trains_and_is_resumed(tmp_path, monkeypatch):
    """It adds to the loss where noise is low, and no weight of it is in a checkpoint."""
    pytest.importorskip("timm")
    network = flow_checkpoints.convnext(tmp_path / "convnext")
    common = {"objective": "pmf", "perceptual": f"convnext:{network}", "mu": -1.0}
    done = train(settings(tmp_path / "with", **common))
    plain = train(settings(tmp_path / "without", **{**common, "perceptual": "none"}))
    first, other = (
        next(row for row in read_log(tmp_path / name) if row["stage"] == "pmf")
        for name in ("with", "without")
    )
    assert first["loss"] > other["loss"] * 1.001
    assert weights(done.path)["model"].keys() == weights(plain.path)["model"].keys()
    assert not same(weights(done.path), weights(plain.path))
    stopped(tmp_path / "again", monkeypatch, at=9, **common)
    assert same(weights(train(settings(tmp_path / "again", **common)).path), weights(done.path))


@pytest.mark.parametrize("derivative", ["jvp", "central"])
def test_a_compiled_network_trains_as_the_plain_one(tmp_path, monkeypatch, derivative):
    """Traced by torch.compile; compiling the trace needs a C++ compiler and minutes."""
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda net: whole(net, backend="aot_eager"))
    common = {"derivative": derivative, "ema": 0.9}
    plain = weights(train(settings(tmp_path / "plain", **common)).path)
    compiled = weights(train(settings(tmp_path / "compiled", compile=True, **common)).path)
    for part, tensors in plain.items():
        assert tensors.keys() == compiled[part].keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(compiled[part][name], tensor, rtol=1e-4, atol=1e-5)


def test_texts_that_are_encoded_as_they_are_needed_train_alike(tmp_path, monkeypatch):
    from encbench.flow import train as module

    one = train(settings(tmp_path / "one", steps=2))
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    two = train(settings(tmp_path / "two", steps=2))
    a, b = (weights(done.path)["model"] for done in (one, two))
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 5e-3  # float16 in memory
