"""Where to compute: each process of a launch gets a card of its own; wrong names are one line."""

import pytest
import torch

from encbench.device import choose_device, current_launch, device_name, is_out_of_memory
from encbench.errors import UsageError


@pytest.fixture
def machine(monkeypatch):
    """Pretend cards and a place in a launch."""

    def set_up(cards: int, **launch: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in launch.items():
            monkeypatch.setenv(name, str(value))

    return set_up


@pytest.mark.parametrize(
    ("cards", "asked", "given"),
    [
        (0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "cpu", "cpu"), (1, "auto", "cuda"),
        (2, "cuda", "cuda"), (2, "cuda:1", "cuda:1"), (2, torch.device("cuda:5"), "cuda:5"),
    ],
)  # fmt: skip
def test_alone(machine, cards, asked, given):
    machine(cards)
    assert choose_device(asked) == torch.device(given)
    assert device_name(choose_device(asked)) == given


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_processes_of_a_launch_get_a_card_each(machine, asked):
    """Two machines of four cards: local numbers count, not those among all."""
    seen = []
    for rank in range(8):
        machine(4, RANK=rank, LOCAL_RANK=rank % 4, WORLD_SIZE=8)
        assert current_launch() == (rank, rank % 4, 8)
        seen.append(str(choose_device(asked)))
    assert seen == [f"cuda:{n}" for n in range(4)] * 2
    machine(2, RANK=3, LOCAL_RANK=3, WORLD_SIZE=4)  # more processes than cards share them
    assert choose_device(asked) == torch.device("cuda:1")
    assert device_name(choose_device(asked)) == "cuda"  # another process makes its own of it


@pytest.mark.parametrize(
    ("cards", "size", "asked", "message"),
    [
        (0, 1, "cuda", "no usable CUDA device; use cpu"),
        (0, 1, "cuda:0", "no usable CUDA device; use cpu"),
        (1, 1, "cuda:1", "this machine has cuda:0$"),
        (4, 1, "cuda:4", "this machine has cuda:0 to cuda:3"),
        (2, 2, "cuda:1", "one card for 2 processes; give --device cuda"),
        (1, 1, "gpu", "--device gpu: known are auto, cpu, cuda"),
        (1, 1, "cuda:", "known are auto"),
        (1, 1, "cuda:x", "known are auto"),
        (1, 1, "auto:1", "known are auto"),
        (1, 1, "", "known are auto"),
        (0, 1, "mps", "no usable MPS device"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(machine, cards, size, asked, message):
    machine(cards, RANK=0, LOCAL_RANK=0, WORLD_SIZE=size)
    with pytest.raises(UsageError, match=message):
        choose_device(asked)


def test_mps_by_name_only(machine, monkeypatch):
    machine(0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps") == torch.device("mps")
    assert choose_device("auto") == torch.device("cpu")


def test_out_of_memory_has_many_faces():
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))
