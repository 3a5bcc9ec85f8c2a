"""Two 'hosts' on this machine: network namespaces joined by a cable where root permits them, else
two launchers that meet on the loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

NAMES = f"encbench-{os.getpid()}-a", f"encbench-{os.getpid()}-b"
"""Of this process: tests in others may have hosts of their own at the same time."""


class Hosts(NamedTuple):
    """How a command is started on each host, and the first one's address."""

    prefixes: tuple[list[str], list[str]]
    address: str

    def launch(
        self, *arguments: str, by: str = "torchrun", **environment: str
    ) -> list[subprocess.Popen[str]]:
        """The same command on both, one process each, with a static rendezvous.

        Args:
            arguments: a script with its own, or -m and a module.
            by: torchrun or accelerate.
        """
        port = free_port()
        launchers = {
            "torchrun": [
                "-m", "torch.distributed.run", "--nnodes=2", "--node-rank={}",
                f"--master-addr={self.address}", f"--master-port={port}", "--nproc-per-node=1",
            ],
            "accelerate": [
                "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=2",
                "--machine_rank={}", "--num_processes=2", f"--main_process_ip={self.address}",
                f"--main_process_port={port}",
            ],
        }  # fmt: skip
        return [
            self.start(
                number, *(word.format(number) for word in launchers[by]), *arguments, **environment
            )
            for number in range(2)
        ]

    def start(self, number: int, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Python with these arguments on one host."""
        cpu = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(
            [*self.prefixes[number], sys.executable, *arguments],
            env={**os.environ, **cpu, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Each one's exit status and output."""
    said = [process.communicate(timeout=600)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def own_lines(text: str) -> list[str]:
    """The lines in which encbench says what went wrong."""
    return [line for line in text.splitlines() if line.startswith("encbench: ")]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    if _make_namespaces():
        try:
            first, second = (["ip", "netns", "exec", name] for name in NAMES)
            yield Hosts((first, second), "10.213.0.1")
        finally:
            _remove_namespaces()
    else:
        yield Hosts(([], []), "127.0.0.1")


def _make_namespaces() -> bool:
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    _remove_namespaces()
    inside = [["ip", "-n", name] for name in NAMES]
    steps = [
        *(["ip", "netns", "add", name] for name in NAMES),
        [*inside[0], "link", "add", "cable", "type", "veth", "peer", "cable", "netns", NAMES[1]],
        *([*part, "link", "set", link, "up"] for part in inside for link in ("lo", "cable")),
        *(
            [*part, "addr", "add", f"10.213.0.{number}/24", "dev", "cable"]
            for number, part in enumerate(inside, 1)
        ),
    ]
    for step in steps:
        if subprocess.run(step, capture_output=True, check=False).returncode:
            _remove_namespaces()
            return False
    return True


def _remove_namespaces() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
