"""An objective and a sampler of times from another package: a file, an entry point, a training."""

import json
import os
import subprocess
import sys

import pytest

OUTSIDE = '''
"""A package that encbench does not know."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from encbench.flow.objectives.base import Objective
from encbench.flow.times import Times


@dataclass(frozen=True)
class Halved(Objective):
    """MeanFlow with half of the correction."""

    name: ClassVar[str] = "halved"

    def error(self, u, v, correction):
        return super().error(u, v, correction / 2)


@dataclass(frozen=True)
class Ends:
    """The whole way in every sample: r = 0, t = 1."""

    share: float = 0.5

    def sample(self, n, progress=0.0, generator=None):
        return Times(torch.zeros(n), torch.ones(n))
'''
ENTRY_POINTS = """
[encbench.objectives]
halved = outside:Halved
[encbench.times]
ends = outside:Ends
"""
TINY = (
    "--world", "scenes-grid", "--images", "40", "--side", "8", "--patch", "4", "--network",
    "dit-16x1x1", "--steps", "4", "--batch", "8", "--warmup", "1", "--log-every", "1",
    "--flow-matching", "0.5", "--encoder", "control:word-position?dim=16", "--sample-prompts", "0",
    "--device", "cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """``encbench`` with another package installed beside it."""
    site = tmp_path_factory.mktemp("site")
    (site / "outside.py").write_text(OUTSIDE)
    about = site / "outside-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}

    def run(*arguments):
        command = [sys.executable, "-m", "encbench", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment, cwd=site
        )

    return run


def test_they_are_listed(outside):
    for kind, words in (
        ("objectives", ("halved", "MeanFlow with half of the correction.", "emf", "Plain flow")),
        ("time-samplers", ("ends", "The whole way in every sample", "logit-normal", "uniform")),
    ):
        done = outside("list", kind)
        assert done.returncode == 0, done.stderr
        assert all(word in done.stdout for word in words), done.stdout


def test_they_train(outside, tmp_path):
    done = outside("train", *TINY, "--objective", "halved", "--times", "ends", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["flow-matching"] * 2 + ["halved"] * 2
    assert [row["interval_share"] for row in rows] == [0, 0, 1, 1]
    assert all(part is None for part in rows[-1]["error_by_t"][:-1])  # t = 1 only


def test_what_they_lack_is_one_line(outside, tmp_path):
    for arguments, words in (
        (["--objective", "halved", "--omega", "2"], "--omega 2.0: objective halved has no such"),
        (["--objective", "halfed"], "unknown --objective 'halfed'; did you mean halved"),
        (["--times", "middle"], "unknown --times 'middle'; known: emf, ends, logit-normal"),
        (["--objective", "emf", "--kappa", "0.5"], "only imf, meanflow, pmf; guide when sampling"),
        (["--objective", "imf", "--perceptual", "lpips"], "no such setting, only pmf"),
        (["--objective", "pmf", "--prediction", "u"], "pmf needs a network that predicts x"),
    ):
        done = outside("train", *TINY, *arguments, "--out", tmp_path)
        said = " ".join(done.stderr.split())
        assert (done.returncode, words in said, "Traceback" in said) == (2, True, False), said
        assert not list(tmp_path.iterdir())
