"""A folder that is written is held by one process; the locks of dead ones are taken over."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from encbench import lock
from encbench.errors import FolderInUseError, StoreError
from encbench.files import TEMPORARY, _origin
from encbench.lock import lock_folder

HOLD = """
import sys, time
from pathlib import Path
from encbench.lock import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def change(path, **values):
    """Alter what a lock says of its holder."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_one_process_at_a_time(tmp_path, holder):
    with (
        pytest.raises(FolderInUseError, match=rf"is being written by process {holder.pid} on "),
        lock_folder(tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".encbench.lock"]
    with lock_folder(tmp_path, "other"):  # something else in the same folder
        pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, holder, end):
    holder.send_signal(end)
    holder.wait()
    assert (tmp_path / ".encbench.lock").exists()
    with lock_folder(tmp_path):
        assert f'"process": {os.getpid()}' in (tmp_path / ".encbench.lock").read_text()
    assert not list(tmp_path.iterdir())


def test_a_process_number_given_anew_is_another_process(tmp_path, holder):
    change(tmp_path / ".encbench.lock", started=time.time() - 1e6)
    with lock_folder(tmp_path):
        pass


def test_a_process_may_lock_again_what_it_holds(tmp_path):
    with lock_folder(tmp_path / "run"):
        with lock_folder(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".encbench.lock").exists()
    assert not list((tmp_path / "run").iterdir())
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path):
        _ = 1 / 0
    assert not (tmp_path / ".encbench.lock").exists()


@pytest.mark.parametrize("content", ['{"machine": "elsewhere", "host": "gpu7", "process": 3}', "["])
def test_elsewhere_the_heartbeat_decides(tmp_path, content):
    """A process number of another machine says nothing here; nor does a damaged lock."""
    path = tmp_path / ".encbench.lock"
    path.write_text(content)
    with pytest.raises(FolderInUseError, match="last heartbeat 0 s ago"), lock_folder(tmp_path):
        pass
    os.utime(path, (time.time() - lock.STALE - 5,) * 2)
    with lock_folder(tmp_path):
        assert path.read_text() != content


def work_on(path):
    """Work that sees its heartbeat, loses its lock, and would go on for long."""
    os.utime(path, (0, 0))
    wait_until(lambda: path.stat().st_mtime > 0)
    path.write_text("another process, while this one slept")
    for _ in range(2000):
        time.sleep(0.01)
    pytest.fail("it went on")


def wait_until(is_so):
    end = time.time() + 60
    while not is_so():
        assert time.time() < end
        time.sleep(0.01)


@pytest.mark.parametrize("handler", [signal.default_int_handler, signal.SIG_IGN, signal.SIG_DFL])
@pytest.mark.parametrize("thread", ["main", "other"])
def test_the_heart_beats_and_a_lost_lock_ends_the_work(tmp_path, monkeypatch, handler, thread):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    path = tmp_path / ".encbench.lock"

    def work():
        with pytest.raises(FolderInUseError, match="took over"), lock_folder(tmp_path):
            work_on(path)

    before = signal.signal(signal.SIGINT, handler)
    try:
        if thread == "main":
            work()
        else:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(work).result()
    finally:
        signal.signal(signal.SIGINT, before)
    assert path.read_text() == "another process, while this one slept"


SLOW = """
import time
class Slow:
    def __init__(self, device):
        for _ in range(9000):
            time.sleep(0.01)
"""


@pytest.mark.parametrize("interrupt", ["", "trap '' INT; "])
def test_a_command_that_loses_its_lock_ends_with_one_line(tmp_path, interrupt):
    """Also in the background of a script, where SIGINT is ignored."""
    (tmp_path / "mine.py").write_text(SLOW)
    call = "from encbench import cli, lock; lock.BEAT = 0.1; cli.main()"
    command = [sys.executable, "-c", call, "run", "--encoders", "python:mine.py:Slow", "--out", "o"]
    with subprocess.Popen(
        ["sh", "-c", f'{interrupt}exec "$@"', "sh", *command],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        path = tmp_path / "o" / ".encbench.lock"
        wait_until(path.exists)
        path.write_text("another process, while this one slept")
        said = process.stderr.read()
    assert process.returncode == 1
    assert said.strip().splitlines()[-1].startswith("encbench: another process took over o, since")
    assert "Traceback" not in said


def test_what_a_killed_process_left_is_swept(tmp_path):
    old, new = tmp_path / ".encbench.lock.ab", tmp_path / ".encbench.lock.cd"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = tmp_path / ".encbench.lock.ef"  # just now, by a process of this machine that is gone
    dead.write_text(
        json.dumps({"machine": lock._machine(), "process": ended.pid, "started": time.time()})
    )
    half = tmp_path / "below" / f"{TEMPORARY}{_origin()}-{ended.pid}-ab"
    half.parent.mkdir()
    half.touch()
    with lock_folder(tmp_path):
        assert not old.exists()
        assert not dead.exists()
        assert not half.exists()
        assert new.exists()  # of a process that is just about to lock


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StoreError, match=r"locking .*file/run failed"),
        lock_folder(tmp_path / "file" / "run"),
    ):
        pass


def contend(folder, results):
    try:
        with lock_folder(folder):
            results.put("got")
            time.sleep(3)
    except FolderInUseError as error:
        results.put(str(error))


def test_of_several_that_take_over_a_stale_lock_one_gets_it(tmp_path):
    path = tmp_path / ".encbench.lock"
    path.write_text("{}")
    os.utime(path, (0, 0))
    context = get_context("fork")
    results = context.Queue()
    several = [context.Process(target=contend, args=(tmp_path, results)) for _ in range(4)]
    for process in several:
        process.start()
    said = [results.get(timeout=20) for _ in several]
    for process in several:
        process.join()
    assert said.count("got") == 1
