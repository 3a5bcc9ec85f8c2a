"""Kill commands at random and at aimed moments, and compare what the resumed ones leave behind.

Run it by ``make torture``, or ``python tests/torture.py --only train --kills 20 --seed 1``; pytest
does not collect it. Each trial works on the same absolute path, so that files that name it stay
equal. The heavy modules are imported once; every trial is a forked child.

Every file that a command leaves must be equal bit for bit to that of an uninterrupted run. Two
things are left out, both in :func:`snapshot`: TensorBoard's event files, whose names and records
hold time, host and process; and the order of keys in the header of a safetensors file, which the
library draws anew each time. Times go into many files and figures, so in a child the clock stands
still (:func:`stop_clock`): every duration is 0 and every date the same.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch: a child of a process with threads may hang
os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}

# ruff: noqa: E402, SIM905, the imports follow the settings; commands read best as one text
import argparse
import dataclasses
import hashlib
import importlib
import json
import pkgutil
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import fake_run
import test_confirm
import test_data_fetch
import test_flow_train
import test_pipeline
import torch
from matplotlib.figure import Figure
from PIL import Image

from encbench import context, pipeline, probes, records, registry, reports
from encbench.cli import main
from encbench.data import fetch
from encbench.data.geneval import TASKS
from encbench.data.scenes.prompts import scene_prompts
from encbench.data.scenes.render import render, to_bytes
from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.world import SceneBatch
from encbench.encoders import EncoderSpec, family_of
from encbench.files import write_json
from encbench.metrics import score
from encbench.metrics.geneval.generate import write_prompts
from encbench.records import find_records, read_record, write_record

MEMORY = Path("/dev/shm")  # a kill loses nothing that a disk would keep, and fsync costs nothing
FULL = re.compile("disk is full|free some space")
CHAIN = 4  # at most so many kills before a trial may end
LONGEST = 1200.0  # seconds after which a child counts as hanging


@dataclass
class Command:
    """A command to torture.

    Attributes:
        arguments: of one or more calls of encbench, made one after the other by one process.
        prepare: fills the folder, which is the current one, before the first call.
        before: changes modules in the child.
    """

    name: str
    arguments: list[list[str]]
    prepare: Callable[[], None]
    before: Callable[[], None] = lambda: None


# ------------------------------------------------------------------------------ commands


def prepare_run() -> None:
    Path("mine.py").write_text(test_pipeline.CUSTOM)
    make = "data make scenes --split probe-test --count 12 --size 32 --out coco"
    with suppress(SystemExit):
        main(make.split())


def prepare_confirm() -> None:
    spec = test_confirm.encoder(Path(), "first", 8)
    folder = fake_run.build(
        Path("run"), [fake_run.Fake(spec, "first", 0.9)],
        gallery=False, variants=False, prompts=False, diagnostics=False,
    )  # fmt: skip
    for path in find_records(folder):
        record = read_record(path)
        if record.card.spec == spec:
            parsed = EncoderSpec.parse(spec)
            revision = family_of(parsed).resolve(parsed).revision
            card = dataclasses.replace(record.card, revision=revision)
            write_record(path, dataclasses.replace(record, card=card))
    write_json(folder / "config.json", {"encoders": [spec], "out": "run", "device": "cpu"})


def prepare_score() -> None:
    prompts = scene_prompts(per_task=dict.fromkeys(TASKS, 2), combos="both")
    write_prompts(prompts, Path("images"))
    scenes = sample_scenes("probe-test", 2 * len(prompts))
    for at, image in enumerate(to_bytes(render(SceneBatch.of(scenes), 64)).numpy()):
        name = f"{prompts[at // 2].prompt_id:05d}/samples/{at % 2:04d}.png"
        Image.fromarray(image).save(Path("images") / name)


def one_control() -> None:
    pipeline.CONTROLS = ("control:constant",)


def small_chunks() -> None:
    score.CHUNK = 8


TRAINING = {**test_flow_train.TINY, "sample_prompts": 1, "sample_every": 6}
CONFIRM = {
    **test_confirm.TRAIN, "network": "dit-16x1x1", "images": 16, "steps": 4, "batch": 4,
}  # fmt: skip
COMMANDS = [
    Command(
        "run",
        [
            "run --encoders python:mine.py:Words --coco coco --out out --store store --device cpu "
            "--probes retrieval --pools max --re-encoder labels --queries 12 --draws 2 "
            "--shares 0.5 --limit 12".split()
        ],
        prepare_run,
        one_control,
    ),
    Command(
        "train",
        [
            ["train", "--out", "out", "--store", "store"]
            + [f"--{k.replace('_', '-')}={v}" for k, v in TRAINING.items()]
        ],
        lambda: None,
    ),
    Command(
        "confirm",
        [
            "confirm --out run --per-task 1 --images 1 --from-scratch --seeds 1 --device cpu "
            "--store store".split()
            + [f"--set={key}={value}" for key, value in CONFIRM.items()]
        ],
        prepare_confirm,
    ),
    Command(
        "score",
        [
            "geneval score images --out out --detector scenes --colors none --device cpu".split(),
            "geneval gallery out".split(),
        ],
        prepare_score,
        small_chunks,
    ),
]


def fetch_command() -> Command:
    """``data fetch`` of two archives from a server on this machine, which is a child."""
    server = test_data_fetch.Server()
    noise = {f"val2017/{i}.jpg": random.Random(i).randbytes(60_000) for i in range(6)}
    pictures = test_data_fetch.serve(server, noise).archives[0]
    captions = {f"val2017/{name}.jpg": name.encode() * 9000 for name in ("captions", "instances")}
    annotations = test_data_fetch.serve(server, captions, "annotations.zip").archives[0]
    annotations = fetch.replace(annotations, folder="annotations")
    plan = fetch.FetchPlan("coco", (annotations, pictures), "a license")
    child = os.fork()
    if not child:
        server.serve_forever()
    server.socket.close()
    CHILDREN.append(child)

    def before() -> None:
        fetch.fetch_plan = lambda *_: plan
        fetch.CHUNK, fetch.PAUSE = 10_000, 0.0

    return Command("fetch", ["data fetch coco --to out --yes".split()], lambda: None, before)


CHILDREN: list[int] = []

# ------------------------------------------------------------------------------ children


def start(command: Command, folder: Path, log: Path, fatal: int = 0, renamed: Path | None = None):
    """Fork a child that runs the command in a folder; it kills itself right after it has put
    ``fatal`` files into place, or writes the names of all these files to ``renamed``."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(folder)
        torch.manual_seed(0)
        stop_clock()
        Figure.savefig = _write_name  # type: ignore[method-assign]
        _count_renames(fatal, renamed)
        command.before()
        for arguments in command.arguments:
            try:
                main(arguments)
            except SystemExit as ended:
                code = int(ended.code or 0)
            if code:
                break
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _NoTime(float):
    """A duration of zero, or a moment; a rate over it is 1."""

    def __sub__(self, other: float) -> _NoTime:
        return _NoTime()

    def __rtruediv__(self, other: float) -> float:
        return 1.0

    def __lt__(self, other: float) -> bool:
        return False  # max(duration, something small), before it is divided by, keeps it


class _Noon(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime(2026, 1, 1, 12, tzinfo=tz)


def stop_clock() -> None:
    """Let every duration be zero and every date the same."""
    time.perf_counter = _NoTime
    for module in list(sys.modules.values()):
        if module.__name__.startswith("encbench.") and getattr(module, "datetime", 0) is datetime:
            module.datetime = _Noon  # type: ignore[attr-defined]


def _write_name(figure: Figure, file: Any, **how: Any) -> None:
    """Instead of drawing, which takes most of a report's time: one write all the same."""
    title = " ".join(axes.get_title() for axes in figure.axes)
    file.write(f"<svg ><title>a figure as {how['format']}: {title}</title></svg>".encode())


def _count_renames(fatal: int, names: Path | None) -> None:
    count = 0

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def renamed(source: Any, target: Any, **more: Any) -> Any:
            nonlocal count
            result = real(source, target, **more)
            count += 1
            if names is not None:
                with names.open("a") as file:
                    file.write(f"{os.path.relpath(target)}\n")
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return renamed

    os.replace, os.rename, os.link = wrap(os.replace), wrap(os.rename), wrap(os.link)


def wait(child: int, limit: float = LONGEST) -> int | None:
    """The exit status (negative: a signal) of a child; None if it ran on, and was killed."""
    end = time.monotonic() + limit
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        left = end - time.monotonic()
        if left <= 0:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(min(left, 0.002))


# ---------------------------------------------------------------------------- comparison


def snapshot(folder: Path) -> dict[str, str]:
    """sha256 of every file, but for what the top of this module says."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or "/tensorboard/" in name:
            continue
        data = path.read_bytes()
        if path.suffix == ".safetensors":
            length = 8 + int.from_bytes(data[:8], "little")
            header = json.dumps(json.loads(data[8:length]), sort_keys=True)
            data = header.encode() + data[length:]
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def differences(one: dict[str, str], two: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


# -------------------------------------------------------------------------------- trials


class Diary:
    """Trials of one command at one commit, so that a later run goes on: one JSON object a line."""

    def __init__(self, path: Path | None, command: str) -> None:
        self.path, self.of = path, {"command": command, **records._commit()}
        lines = path.read_text().splitlines() if path and path.exists() else []
        rows = [json.loads(line) for line in lines]
        self.rows = [row for row in rows if row | self.of == row]

    def add(self, **row: Any) -> None:
        self.rows.append(self.of | row)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")

    @property
    def kills(self) -> int:
        return sum(row["kills"] for row in self.rows)


@dataclass
class Torture:
    """All trials of one command.

    Attributes:
        differing: how often each file differed.
        faults: what else went wrong, in words.
    """

    command: Command
    base: Path
    rng: random.Random
    diary: Diary
    kills: int = 0
    aimed: int = 0
    equal: int = 0
    trials: int = 0
    differing: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base.mkdir(parents=True)
        self.folder, self.log = self.base / "now", self.base / "log"
        self.folder.mkdir()
        child = os.fork()
        if not child:
            os.chdir(self.folder)
            code = 1
            try:
                self.command.prepare()
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        if wait(child):
            raise SystemExit(f"{self.command.name}: its inputs could not be made")
        self.folder.rename(self.base / "inputs")
        self.fresh()
        started = time.monotonic()
        self.finish("uninterrupted")
        self.seconds = time.monotonic() - started
        self.whole = snapshot(self.folder)
        self.folder.rename(self.base / "whole")
        self.fresh()
        names = self.base / "renamed"
        names.touch()
        self.finish("uninterrupted, again", names)
        self.renamed = names.read_text().splitlines()
        unequal = differences(self.whole, snapshot(self.folder))
        if unequal:
            self.faults.append(f"two uninterrupted runs differ in {', '.join(unequal)}")
        print(
            f"{self.command.name}: {self.seconds:.1f} s uninterrupted, {len(self.whole)} files, "
            f"{len(self.renamed)} renames", flush=True,
        )  # fmt: skip

    def fresh(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.base / "inputs", self.folder)
        self.log.unlink(missing_ok=True)

    def start(self, fatal: int = 0, renamed: Path | None = None) -> int:
        return start(self.command, self.folder, self.log, fatal, renamed)

    def finish(self, what: str, renamed: Path | None = None) -> bool:
        status = wait(self.start(renamed=renamed))
        text = self.log.read_text(errors="replace")
        if status or "Traceback" in text:
            ends = "hangs" if status is None else f"ends with {status}"
            self.faults.append(f"{what}: {ends}: {' '.join(text.split())[-400:]}")
            self.keep(what)
        return not status

    def keep(self, what: str) -> None:
        """Leave what a failed trial left for a look at it; the first few of them."""
        target = self.base / f"failed-{len(list(self.base.glob('failed-*')))}"
        if len(list(self.base.glob("failed-*"))) < 5:
            shutil.copytree(self.folder, target, symlinks=True)
            (target / "WHAT").write_text(what + "\n" + self.log.read_text(errors="replace"))

    def compare(self, what: str) -> bool:
        self.trials += 1
        if not self.finish(what):
            return False
        unequal = differences(self.whole, snapshot(self.folder))
        self.differing.update(unequal)
        self.equal += not unequal
        if unequal:
            print(f"{self.command.name}, {what}: {', '.join(unequal)}", flush=True)
            self.keep(what)
        return not unequal

    def kill_aimed(self, end: float) -> None:
        """One kill right after each rename, in random order; none after the moment ``end``."""
        done = {row["rename"] for row in self.diary.rows if row["rename"]}
        places = [place for place in enumerate(self.renamed, 1) if place[0] not in done]
        self.rng.shuffle(places)
        for number, name in places:
            if time.monotonic() > end:
                break
            self.fresh()
            status = wait(self.start(fatal=number))
            if status != -signal.SIGKILL:
                self.faults.append(f"rename {number} ({name}) was not reached: status {status}")
            self.aimed += 1
            equal = self.compare(f"killed after rename {number}, {name}")
            self.diary.add(rename=number, kills=0, equal=equal)

    def kill_randomly(self, kills: int, end: float) -> None:
        """Trials of one to four kills each, at moments spread over the length of a run; none
        after the moment ``end``."""
        last = self.kills + kills
        while self.kills < last and time.monotonic() < end:
            self.fresh()
            moments = []
            for _ in range(min(self.rng.randint(1, CHAIN), last - self.kills)):
                moment = self.rng.uniform(0, self.seconds)
                if wait(self.start(), moment) is not None:
                    break  # it came to its end before
                moments.append(moment)
            if moments:
                self.kills += len(moments)
                equal = self.compare("killed after " + ", ".join(f"{m:.3f} s" for m in moments))
                self.diary.add(rename=0, kills=len(moments), equal=equal)

    def fill_disk(self) -> str:
        """A disk that is full at some point: one line; with more room it goes on."""
        size = pages(self.base / "whole")
        given = pages(self.base / "inputs")
        full = 0
        for share in (0.1, 0.3, 0.5, 0.7, 0.9):
            self.fresh()
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            room = given + int(share * (size - given))
            mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(self.folder)]
            if subprocess.run(mount, capture_output=True, check=False).returncode:
                return "not tried (mounting a small disk needs root)"
            try:
                shutil.copytree(self.base / "inputs", self.folder, dirs_exist_ok=True)
                status, text = wait(self.start()), self.log.read_text(errors="replace")
                if status:
                    full += 1
                    if status != 1 or "Traceback" in text or not FULL.search(text):
                        self.faults.append(f"full disk: status {status}: {text[-600:]}")
                more = ["mount", "-o", f"remount,size={4 * size + (64 << 20)}", str(self.folder)]
                subprocess.run(more, capture_output=True, check=True)
                self.log.unlink(missing_ok=True)
                self.compare(f"disk full at {share:.0%}")
            finally:
                subprocess.run(["umount", str(self.folder)], check=True)
        return f"{full} of 5 disks were too small"

    def start_two(self) -> str:
        """A second process in the same folder is refused in one line; the first ends well."""
        self.fresh()
        first = self.start()
        while not list(self.folder.rglob(".*.lock")):
            time.sleep(0.001)
            if os.waitpid(first, os.WNOHANG)[0]:
                self.faults.append("two at once: the first ended without a lock")
                return "failed"
        os.kill(first, signal.SIGSTOP)  # so that it is in the folder for as long as the second
        log = self.base / "log-second"
        log.unlink(missing_ok=True)
        status = wait(start(self.command, self.folder, log))
        text = log.read_text(errors="replace")
        os.kill(first, signal.SIGCONT)
        if not status or "is being written by" not in text or "Traceback" in text:
            self.faults.append(f"two at once: the second ended with {status}: {text[-400:]}")
        if wait(first):
            self.faults.append(f"two at once: the first failed: {self.log.read_text()[-400:]}")
        unequal = differences(self.whole, snapshot(self.folder))
        self.differing.update(unequal)
        return "differs" if unequal else "refused"


def pages(folder: Path) -> int:
    """Bytes of the pages of 4096 that the files take on a disk in memory."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def preload() -> None:
    """Import everything that a child would import, without starting a thread."""
    import encbench

    for package in (encbench, probes, reports):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    for kind in registry.GROUPS:
        for name in registry.names(kind):
            with suppress(Exception):
                registry.get(kind, name)
    for name in ("torch._dynamo", "torch.utils.tensorboard", "scipy.stats", "PIL.PngImagePlugin"):
        with suppress(ImportError):
            importlib.import_module(name)
    torch.set_num_threads(1)
    context.scene_captions = cache(context.scene_captions)  # the same in each trial, and slow
    context.scene_captions()
    commit = records._commit()  # asked once: somebody may commit while this runs
    records._commit = lambda: commit
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        print(f"warning: {threads} threads run in the process that forks", flush=True)


def torture(arguments: argparse.Namespace, base: Path) -> list[Torture]:
    commands = [*COMMANDS, fetch_command()]
    done = []
    for command in commands:
        if arguments.only and command.name not in arguments.only:
            continue
        begun = time.monotonic()
        diary = Diary(arguments.diary, command.name)
        rng = random.Random(1000 * arguments.seed + len(diary.rows))
        trial = Torture(command, base / command.name, rng, diary)
        done.append(trial)
        if not trial.faults:
            if not diary.rows:
                print(f"{command.name}: two at once: {trial.start_two()}", flush=True)
                print(f"{command.name}: full disk: {trial.fill_disk()}", flush=True)
            trial.kill_randomly(arguments.kills - diary.kills, begun + 30 * arguments.minutes)
            trial.kill_aimed(begun + 60 * arguments.minutes)
            trial.kill_randomly(arguments.kills - diary.kills, begun + 60 * arguments.minutes)
            equal = sum(row["equal"] for row in diary.rows)
            aimed = sum(row["rename"] > 0 for row in diary.rows)
            print(
                f"{command.name}: so far {diary.kills} random kills, {aimed} of "
                f"{len(trial.renamed)} aimed, {equal} of {len(diary.rows)} trials equal",
                flush=True,
            )  # fmt: skip
        for fault in trial.faults:
            print(f"{command.name}: FAULT: {fault}", flush=True)
        print(f"{command.name}: {time.monotonic() - begun:.0f} s", flush=True)
    return done


def table(done: list[Torture]) -> str:
    rows = [("command", "random kills", "aimed", "trials", "equal", "faults", "differing")]
    for t in done:
        unequal = ", ".join(f"{name} ({count})" for name, count in t.differing.most_common())
        numbers = (t.kills, f"{t.aimed} of {len(t.renamed)}", t.trials, t.equal, len(t.faults))
        rows.append((t.command.name, *map(str, numbers), unequal or "none"))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=100, help="random kills of each command")
    parser.add_argument("--only", nargs="+", choices=["run", "train", "confirm", "score", "fetch"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--diary", type=Path, help="a file of trials done, to go on with")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"),
        help="stop a command's kills then; the random ones at half of it, if others are left",
    )  # fmt: skip
    parser.add_argument("--keep", action="store_true", help="leave the folders there")
    return parser.parse_args()


if __name__ == "__main__":
    given = parse_arguments()
    preload()
    place = Path(tempfile.mkdtemp(prefix="torture-", dir=MEMORY if MEMORY.is_dir() else None))
    print(f"in {place}", flush=True)
    try:
        results = torture(given, place)
        print(table(results))
    finally:
        for server in CHILDREN:
            os.kill(server, signal.SIGKILL)
        if not given.keep:
            shutil.rmtree(place, ignore_errors=True)
    sys.exit(any(t.faults or t.differing for t in results))
