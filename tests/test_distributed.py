"""Several processes: the scores of one, whatever fails or is killed, with and without a shared
store. The processes are real ones, on the CPU, as torchrun and accelerate launch start them."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from encbench.cli import main
from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec
from encbench.records import find_records
from encbench.store import Store

pytestmark = pytest.mark.slow
PROMPTS = [f"prompt number {i} with words" + " and more" * (i % 9) for i in range(3000)]

CUSTOM = '''
import os, time, torch
from encbench.types import EncoderCard, TextFeatures

class Letters:
    """A table of letters and two layers over it; says in a file who encoded how much."""
    def __init__(self):
        torch.manual_seed(0)
        self.card = EncoderCard("python:letters", "python", "letters", "0", 32, 200)
        self.table = torch.randn(64, 32)
        self.layers = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU())
    @torch.inference_mode()
    def encode(self, prompts):
        time.sleep(float(os.environ.get("SLOW", "0")) * (len(prompts) > 1))
        if len(prompts) > 1 and "SEEN" in os.environ:
            with open(os.environ["SEEN"], "a") as file:
                file.write(os.environ.get("RANK", "alone") + "\\n")
        ids = [[ord(c) % 64 for c in p[:200]] or [0] for p in prompts]
        width = max(map(len, ids))
        mask = torch.tensor([[i < len(row) for i in range(width)] for row in ids])
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        cut = torch.tensor([len(p) > 200 for p in prompts])
        return TextFeatures(self.layers(self.table[padded]), mask, cut)

class Breaks(Letters):
    """Falls over in the second process only."""
    def encode(self, prompts):
        if os.environ.get("RANK") == "1":
            raise RuntimeError("one process fell over")
        return super().encode(prompts)
'''


@pytest.fixture(scope="module")
def custom(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("custom") / "mine.py"
    path.write_text(CUSTOM)
    return f"python:{path}"


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """600 images in COCO's layout: three shards of image vectors."""
    root = tmp_path_factory.mktemp("coco")
    (root / "annotations").mkdir()
    (root / "val2017").mkdir()
    images, captions = [], []
    for i in range(600):
        name = f"{i:012d}.png"
        Image.new("RGB", (8, 8), (i % 250, 250 - i % 250, i // 3)).save(root / "val2017" / name)
        images.append({"id": i, "file_name": name, "width": 8, "height": 8})
        for j in range(3):
            text = f"picture {i} of thing {i % 7} in place {i % 11}, worded {j} times" + " so" * j
            captions.append({"id": 10 * i + j, "image_id": i, "caption": text})
    body = {"images": images, "annotations": captions, "info": {}, "licenses": []}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(body))
    return root


def words(encoder: str, coco: Path, out: Path, what: str = "probe") -> list[str]:
    return [
        what, "--encoders", encoder, "--coco", str(coco), "--re-encoder", "pixels", "--probes",
        "retrieval", "--queries", "50", "--pools", "max", "--out", str(out / "out"), "--store",
        str(out / "store"), "--device", "cpu",
    ]  # fmt: skip


def launch(arguments: list[str], **environment: str) -> subprocess.Popen:
    """A command in two processes, by torchrun."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "encbench", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run_two(arguments: list[str], **environment: str) -> list[tuple[int, str]]:
    """Two processes with the environment that launchers set: each one's status and output."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", **shared, **environment, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def scores(out: Path) -> dict[str, str]:
    """All scores and items of a run, as the bytes on disk say them."""
    found = {}
    for path in find_records(out / "out"):
        record = json.loads(path.read_text())
        items = path.with_name(record["items"]).read_bytes()
        name = path.relative_to(out).as_posix()
        found[name] = json.dumps([record["scores"], record["key"]]) + items.hex()
    return found


@pytest.fixture(scope="module")
def alone(custom, coco, tmp_path_factory) -> dict[str, str]:
    """Scores of one process."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.raises(SystemExit) as caught:
        main(words(f"{custom}:Letters", coco, out))
    assert not caught.value.code
    return scores(out)


def test_two_processes_give_the_scores_of_one_after_one_was_killed(custom, coco, tmp_path, alone):
    command = words(f"{custom}:Letters", coco, tmp_path)
    rng = random.Random(int.from_bytes(os.urandom(4)))
    seen = tmp_path / "seen"
    seen.touch()
    process = launch(command, SLOW="0.3", SEEN=str(seen))
    wanted = rng.randint(1, 5)
    while (
        len(list((tmp_path / "store").rglob("*.safetensors"))) < wanted
        or set(seen.read_text().split()) < {"0", "1"}  # both have encoded something
    ):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    time.sleep(rng.uniform(0, 0.4))
    members = psutil.Process(process.pid).children()
    assert len(members) == 2
    for member in rng.choice([members[:1], members[1:], members]):
        member.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode != 0
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.safetensors")}
    assert len(kept) >= wanted

    # the same again, beside an encoder that fails in one process: told once, and nothing is lost
    command.insert(3, f"{custom}:Breaks")
    (status, said), (other, nothing) = run_two(["-m", "encbench", *command])
    assert (status, other) == (1, 0), said + nothing
    (line,) = [line for line in (said + nothing).splitlines() if line.startswith("encbench: ")]
    assert "mine.py:Breaks" in line
    assert "one process fell over" in line
    assert (said + nothing).count("records under") == 1
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())
    found = scores(tmp_path)
    assert {name: found.get(name) for name in alone} == alone
    assert not any("Breaks" in name for name in set(found) - set(alone))


def test_small_encoders_are_measured_by_one_process_each(coco, tmp_path):
    """The same scores; the leader's log names those that it measured itself, and no others."""
    lame = tmp_path / "lame"
    lame.mkdir()
    (lame / "config.json").write_text('{"model_type": "t5"}')
    command = words("zoo:mini-t5", coco, tmp_path / "one")
    command[2:3] = ["zoo:mini-t5", "zoo:mini-t5?step=3pct", "zoo:mini-clip", f"t5:{lame}"]
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 1
    for number in (command.index("--out"), command.index("--store")):
        command[number + 1] = command[number + 1].replace("/one/", "/two/")
    (status, said), (other, nothing) = run_two(["-m", "encbench", *command])
    assert (status, other) == (1, 0), said + nothing
    assert "lame failed" in said
    assert not nothing
    one, two = scores(tmp_path / "one"), scores(tmp_path / "two")
    assert two == one
    assert len(one) == 13
    measured = sum(": retrieval" in line for line in said.splitlines())
    assert 1 <= measured <= 12
    assert not list((tmp_path / "two").rglob(".encbench-*"))


APART = """
import os, sys, torch
from pathlib import Path
from encbench import distributed
from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec
from encbench.store import Store

if os.environ["RANK"] == "1":  # as on a node that does not see the leader's files
    exists = Path.exists
    Path.exists = lambda self, **more: not self.name.startswith(".shared-") and exists(self, **more)

def work():
    stored = StoredEncoder(
        EncoderSpec.parse(sys.argv[1]), Store(Path(sys.argv[2])), torch.device("cpu"), ("mean",)
    )
    prompts = [f"prompt number {i} with words" + " and more" * (i % 9) for i in range(3000)]
    rows = stored.embed(prompts)
    tokens = stored.tokens(prompts[:2000], keep=False)
    torch.save([rows, tokens], sys.argv[3])

distributed.run_command(work)
"""


def test_without_a_shared_store_the_leader_gets_what_the_others_made(custom, tmp_path):
    script, seen, made = tmp_path / "apart.py", tmp_path / "seen", tmp_path / "made.pt"
    script.write_text(APART)
    arguments = [str(script), f"{custom}:Letters", str(tmp_path / "store"), str(made)]
    for status, said in run_two(arguments, SEEN=str(seen)):
        assert status == 0, said[-3000:]
    assert set(seen.read_text().split()) == {"0", "1"}
    rows, tokens = torch.load(made)
    spec = EncoderSpec.parse(f"{custom}:Letters")
    alone = StoredEncoder(spec, Store(tmp_path / "alone"), torch.device("cpu"), ("mean",))
    assert torch.equal(alone.embed(PROMPTS), rows)
    assert all(map(torch.equal, alone.tokens(PROMPTS[:2000]), tokens))


LOST = """
import os, signal
from encbench import distributed
from encbench.errors import ProcessError

def job(task):
    if task == 3:  # the second process's second task
        os.kill(os.getpid(), signal.SIGKILL)
    return task

def work():
    kept = []
    try:
        distributed.share_tasks(job, list(range(8)), lambda number, result: kept.append(result))
    except ProcessError as error:
        print(kept, error)

distributed.run_command(work)
"""


def test_a_lost_process_is_one_line_and_no_waiting(tmp_path):
    script = tmp_path / "lost.py"
    script.write_text(LOST)
    (status, said), (other, _) = run_two([str(script)])
    assert other == -signal.SIGKILL
    assert status == 0, said
    assert "[0, 1] another process of this command is gone; run the same command again" in said


ENDS = """
import pathlib
from encbench import distributed

def job(task):
    import torch
    weights = [torch.nn.Parameter(torch.ones(2))]
    torch.optim.AdamW(weights).step()  # imports much of torch, while there is a group
    return task

def work():
    distributed.share_tasks(job, list(range(4)), lambda number, result: None)

distributed.run_command(work)
print([task.read_text().strip() for task in pathlib.Path("/proc/self/task").glob("*/comm")])
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc for threads' names")
def test_no_thread_of_a_launch_outlives_it(tmp_path):
    """One that did would abort the interpreter at its end, now and then."""
    script = tmp_path / "ends.py"
    script.write_text(ENDS)
    for status, said in run_two([str(script)]):
        assert status == 0, said
        assert "python" in said
        assert "gloo" not in said
