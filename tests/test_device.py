"""Where to compute: each process of a launch gets a card of its own; wrong names are one line."""

from types import SimpleNamespace

import pytest
import torch

from encbench import cli, distributed, group
from encbench.confirm import experiment
from encbench.confirm.experiment import TrainingTask, run_task
from encbench.device import choose_device, current_launch, device_name, is_out_of_memory
from encbench.errors import UsageError
from encbench.flow import sample, train
from encbench.metrics.geneval import run as geneval
from encbench.records import ConfirmPlan, PlannedTraining
from encbench.types import Cell, Estimate


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
        (2, 2, "cuda:1", "2 processes cannot share one card; give --device"),
        (1, 1, "gpu", "--device gpu: known: auto, cpu, cuda"),
        (1, 1, "cuda:", "known: auto"),
        (1, 1, "cuda:x", "known: auto"),
        (1, 1, "auto:1", "known: auto"),
        (1, 1, "", "known: auto"),
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


# ------------------------------------------------------- commands, in a process of a launch


class Computes(BaseException):
    """Raised where a command would begin to compute; nothing catches it."""


@pytest.fixture(params=[0, 1])
def place(machine, monkeypatch, request):
    """One of two processes on a machine of two pretended cards; the other one does not exist."""
    machine(2, RANK=request.param, LOCAL_RANK=request.param, WORLD_SIZE=2)
    for name in ("join_group", "leave_group"):
        monkeypatch.setattr(distributed, name, lambda: None)
    monkeypatch.setattr(distributed, "_send", lambda what: None)
    return request.param


def stop_at(monkeypatch, module, name, argument):
    """Raise with one argument of a function when it is called."""

    def stop(*arguments, **named):
        raise Computes(named[argument] if isinstance(argument, str) else arguments[argument])

    monkeypatch.setattr(module, name, stop)


def test_sample_computes_on_its_own_card(place, monkeypatch, tmp_path):
    stop_at(monkeypatch, sample, "load_checkpoint", 1)
    with pytest.raises(Computes, match=f"cuda:{place}"):
        cli.main(["sample", str(tmp_path), "--prompts", "a circle", "--out", str(tmp_path / "out")])


def test_train_computes_on_its_own_card(place, monkeypatch, tmp_path):
    stop_at(monkeypatch, train, "PromptEncoder", 2)
    monkeypatch.setattr(train, "load_training_images", lambda config: SimpleNamespace(notes=()))
    with pytest.raises(Computes, match=f"cuda:{place}"):
        cli.main(["train", "--preset", "scenes-cpu", "--device", "auto", "--out", str(tmp_path)])


def test_confirm_trains_on_its_own_card(place, monkeypatch, tmp_path):
    """The leader hands out the device's name, of which each process makes its own card."""
    name = device_name(choose_device("auto"))
    cell = Cell("geneval", 4, "A", "seen")
    plan = ConfirmPlan("", name, (), (0,), {}, 1, 1, "", {}, cell, "", "scenes", "none")
    entry = PlannedTraining(
        "control:constant", "constant", "final", True, Estimate(0.0, 0.0, 0.0), 0
    )
    for function, made in (
        ("train_config", SimpleNamespace(store=tmp_path, text_tokens=8)),
        ("_data", None),
        ("prompt_groups", ()),
    ):
        monkeypatch.setattr(experiment, function, lambda *_, made=made: made)
    stop_at(monkeypatch, experiment, "PromptEncoder", 2)
    with pytest.raises(Computes, match=f"cuda:{place}"):
        run_task(TrainingTask(plan, entry, 0, tmp_path, None, name, None))


def test_scores_are_computed_by_the_leader_alone(place, monkeypatch, tmp_path):
    served = []
    monkeypatch.setattr(distributed, "_serve", served.append)
    monkeypatch.setattr(geneval, "read_folder", lambda *_, **__: SimpleNamespace(prompts=()))
    stop_at(monkeypatch, geneval, "build_geneval", 2)
    words = ["geneval", "score", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(Computes if place == 0 else SystemExit):
        cli.main(words)
    assert [each.rank for each in served] == [1] * place
    assert choose_device("auto") == torch.device(f"cuda:{place}")


def test_whoever_joins_the_group_takes_its_own_card(machine, monkeypatch):
    """In `run` and `probe`, others are told 'cuda', which is the card that they set."""
    machine(2, RANK=1, LOCAL_RANK=1, WORLD_SIZE=2)
    cards, groups = [], []
    monkeypatch.setattr(torch.cuda, "set_device", cards.append)
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **_: groups.append(backend)
    )
    store = torch.distributed.HashStore()
    for each in ("here/0", "here/1"):
        torch.distributed.PrefixStore("encbench", store).set(each, "")
    monkeypatch.setattr(
        torch.distributed, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]), raising=False
    )
    monkeypatch.setattr(group, "_set_timeout", lambda limit: None)
    distributed.join_group()
    assert cards == [torch.device("cuda:1")]
    assert groups == ["cpu:gloo,cuda:nccl"]
