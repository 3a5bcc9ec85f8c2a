"""Several hosts: what one process makes, a host that dies, and one that cannot be reached."""

import json
import shutil
import signal
import time

import psutil
import pytest
from hosts import finish, own_lines, two_hosts
from safetensors.torch import load_file

from encbench.cli import main
from encbench.flow.checkpoint import latest
from encbench.flow.config import training_config
from encbench.flow.meters import read_log
from encbench.flow.train import train
from encbench.metrics.run import read_scores

pytestmark = pytest.mark.slow
PROMPTS = [
    {"tag": "single_object", "include": [{"class": name, "count": 1}], "prompt": f"a {name}"}
    for name in ("circle", "square", "triangle")
]

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

IN_TURN = """
import json, sys, time
from pathlib import Path
from encbench.cli import main

for words, files in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as ended:
        if ended.code:
            raise
    folder, pattern, count = files
    while len(list(Path(folder).glob(pattern))) < count:  # of the other host
        time.sleep(0.05)
"""
"""Commands one after another; after each, until all processes' files are there."""


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as made:
        yield made


def command(out):
    words = ["train", "--out", str(out)]
    for key, value in TINY.items():
        words += [f"--{key.replace('_', '-')}", str(value)]
    return words


def sample_and_score(checkpoint, out, prompts):
    """Commands for images of a checkpoint and their scores; and what files to wait for."""
    sample = ["sample", str(checkpoint), "--prompts", str(prompts), "--steps", "1"]
    sample += ["--images-per-prompt", "2", "--out", str(out / "images"), "--device", "cpu"]
    score = ["score", str(out / "images"), "--metrics", "geneval?detector=scenes&colors=none"]
    score += ["--out", str(out / "scores"), "--device", "cpu"]
    return [
        [sample, [str(out / "images"), "*/samples/*.png", 2 * len(PROMPTS)]],
        [score, [str(out / "scores"), "scores.json", 1]],
    ]


def made(out):
    """The images and the scores in a folder."""
    images = {path.relative_to(out): path.read_bytes() for path in out.glob("images/*/samples/*")}
    (row,) = read_scores(out / "scores").metrics
    return images, row.scores


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
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, PROMPTS)))
    script.write_text(IN_TURN)
    later = sample_and_score(out, tmp_path / "shared", prompts)
    words = json.dumps([[command(out), [str(out / "final"), "state.json", 1]], *later])
    for status, text in finish(hosts.launch(str(script), words, by="accelerate")):
        assert status == 0, text[-3000:]
        assert f"{len(PROMPTS)} new images" in text  # half of them
    for words, _ in sample_and_score(out, tmp_path / "alone", prompts):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert not ended.value.code
    shared, alone = made(tmp_path / "shared"), made(tmp_path / "alone")
    assert len(shared[0]) == 2 * len(PROMPTS)
    assert shared == alone

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
