"""The check of a GPU in one command, in miniature on a CPU."""

import importlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from encbench.files import read_json

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
UNUSED = ("faiss", "open_clip", "diffusers", "pycocotools", "transformers")


@pytest.fixture(scope="module")
def gpu_check():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("gpu_check")


def test_it_loads_without_the_libraries_that_a_gpu_machine_may_lack():
    code = f"import sys, gpu_check; print([n for n in {UNUSED} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_part_in_miniature(gpu_check, tmp_path, monkeypatch):
    # its two commands take a minute of CPU time: python benchmarks/gpu_check.py --parts confirm
    monkeypatch.setattr(gpu_check, "run_until", lambda *_: {"status": 1, "last": ["not here"]})
    names = [part.__name__ for part in gpu_check.PARTS]
    gpu_check.check(3, tmp_path, "cpu", names)
    body = read_json(tmp_path / "gpu.json")
    assert body["provenance"]["commit"]
    found = {name: body["parts"][name] for name in names}
    assert [part["ended"] for part in found.values()] == ["whole"] * 5
    agreement = found["agreement"]["found"]
    assert agreement["machine"]["torch"]
    assert agreement["attention math bf16"] < 0.02
    assert agreement["forward fp32"] < 1e-5 < agreement["forward bf16"] < 0.05
    assert agreement["du/dt fp32, by mode"]["jvp"] < 1e-4
    assert agreement["gradient of meanflow, jvp"] < 1e-3
    assert agreement["gradient of meanflow, central"] < 0.05
    assert agreement["sampled images"]["largest_difference"] == 0
    assert agreement["zoo:mini-t5 (1 - cosine of tokens)"] < 1e-6
    assert found["encode"]["found"]["vit-l-14-text"]["share_of_matrix_rate"] > 0
    steps = found["step"]["found"].values()
    assert all(row["methods"]["meanflow, forward"]["ratio"] > 0 for row in steps)
    (rates,) = found["sampling"]["found"].values()
    assert rates["image"] > 0
    assert rates["judged"] > 0
    assert found["confirm"]["found"]["trainings"] == {"begun": 0, "finished": []}


def test_a_part_that_hangs_or_dies_costs_no_other(gpu_check, tmp_path, monkeypatch):
    def agreement(report, asked):
        report.add("first", lambda: 1)
        report.add("wrong", lambda: 1 / 0)
        time.sleep(60)

    def encode(report, asked):
        sys.exit(3)

    def step(report, asked):
        report.add("last", lambda: 2)

    monkeypatch.setattr(gpu_check, "PARTS", (agreement, encode, step))
    monkeypatch.setattr(gpu_check, "LEAST", 0.5)
    gpu_check.check(0.1, tmp_path, "cpu", ["agreement", "encode", "step"])
    parts = read_json(tmp_path / "gpu.json")["parts"]
    assert parts["agreement"]["ended"] == "out of time"
    assert parts["agreement"]["found"]["first"] == 1
    assert "ZeroDivisionError" in parts["agreement"]["found"]["wrong"]["failed"]
    assert parts["encode"]["ended"] == "it ended with status 3"
    assert parts["step"]["found"] == {"last": 2}


def test_a_command_is_ended_in_time(gpu_check, tmp_path):
    command = [sys.executable, "-c", "import time; print('begun', flush=True); time.sleep(60)"]
    found = gpu_check.run_until(command, time.monotonic() + 1, tmp_path)
    assert (found["status"], found["ended"]) == (None, "out of time")
    assert found["seconds"] < 5
    whole = gpu_check.run_until([sys.executable, "-c", "print(7)"], time.monotonic() + 20, tmp_path)
    assert (whole["status"], whole["last"][-1]) == (0, "7")
