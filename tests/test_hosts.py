"""Several hosts: what one process makes, a host that dies, and one that cannot be reached."""

import shutil
import signal
import time

import psutil
import pytest
from hosts import finish, own_lines, two_hosts
from safetensors.torch import load_file

from encbench.flow.checkpoint import latest
from encbench.flow.config import training_config
from encbench.flow.meters import read_log
from encbench.flow.train import train

pytestmark = pytest.mark.slow

TINY = {
    "world": "scenes-grid", "images": 40, "side": 8, "patch": 4, "network": "dit-16x1x1",
    "steps": 30, "batch": 8, "warmup": 2, "flow_matching": 0.5, "log_every": 5,
    "checkpoint_every": 5, "sample_prompts": 0, "precision": "fp32", "device": "cpu",
    "encoder": "control:word-position?dim=16", "long_share": 0.0, "captions": 1, "accumulate": 2,
    "report_to": "none",
}  # fmt: skip

SLOW = """
import time
from encbench.cli import main
from encbench.flow.trainer import Trainer

inner = Trainer._step

def step(self):
    time.sleep(0.2)
    return inner(self)

Trainer._step = step
main()
"""


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as made:
        yield made


def command(out):
    words = ["train", "--out", str(out)]
    for key, value in TINY.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    return words


def test_a_host_that_dies_is_one_line_and_the_training_goes_on(hosts, tmp_path):
    out, script = tmp_path / "two", tmp_path / "slow.py"
    script.write_text(SLOW)
    first, second = hosts.launch(str(script), *command(out))
    deadline = time.monotonic() + 60
    while latest(out) is None:
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    members = psutil.Process(second.pid).children(recursive=True)
    for process in (second, *members):
        process.send_signal(signal.SIGKILL)
    ((status, said), _) = finish([first, second])
    assert status != 0
    (line,) = own_lines(said)
    assert "another process of this command is gone; run the same command again" in line

    stopped = latest(out)
    assert stopped is not None
    assert stopped.name != "final"
    apart = tmp_path / "apart"
    shutil.copytree(out, apart)
    for status, text in finish(hosts.launch("-m", "encbench", *command(out))):
        assert status == 0, text[-3000:]
    values = {**TINY, "report_to": ["none"]}
    train(training_config({**values, "out": tmp_path / "one"}))
    train(training_config({**values, "out": apart}))  # what two began, one can end
    one = load_file(tmp_path / "one" / "final" / "model.safetensors")
    for name in ("two", "apart"):
        other = load_file(tmp_path / name / "final" / "model.safetensors")
        assert max(float((one[n] - other[n]).abs().max()) for n in one) < 1e-4
        losses = [[row["loss"] for row in read_log(tmp_path / run)] for run in ("one", name)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_process_that_cannot_reach_the_others_says_so_in_one_line(hosts, tmp_path):
    wrong = {
        0: {"MASTER_PORT": "29871"},  # nobody else comes
        1: {"MASTER_PORT": "29872"},  # nobody listens
    }
    started = [
        hosts.start(
            rank, "-m", "encbench", *command(tmp_path / str(rank)), WORLD_SIZE="2", RANK=str(rank),
            LOCAL_RANK="0", MASTER_ADDR=hosts.address, ENCBENCH_CONNECT_SECONDS="3", **more,
        )
        for rank, more in wrong.items()
    ]  # fmt: skip
    for rank, (status, said) in enumerate(finish(started)):
        assert status == 1
        (line,) = own_lines(said)
        who = "the other processes" if rank == 0 else "process 0"
        assert f"process {rank} of 2 cannot reach {who} at {hosts.address}:2987{rank + 1}" in line
        assert "ENCBENCH_CONNECT_SECONDS" in line
        assert not (tmp_path / str(rank) / "checkpoints").exists()
