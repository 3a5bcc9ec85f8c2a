"""The store: whole or absent, verified, resumable."""

import errno
import os
from pathlib import Path

import pytest
import torch

from encbench import files
from encbench.errors import StoreError
from encbench.store import Store


def test_what_is_written_is_read(tmp_path):
    entry = Store(tmp_path).entry({"who": "me"})
    rows = torch.randn(3, 4)
    entry.write(0, "mean", {"pooled": rows, "half": rows.bfloat16()}, {"seconds": 1.5})
    tensors, info = entry.read(0, "mean")
    assert torch.equal(tensors["pooled"], rows)
    assert tensors["half"].dtype == torch.bfloat16
    assert info == {"seconds": 1.5}
    assert entry.read(1, "mean") is None


def test_address_follows_the_identity_alone(tmp_path):
    store = Store(tmp_path)
    assert store.entry({"a": 1, "b": 2}).folder == store.entry({"b": 2, "a": 1}).folder
    assert store.entry({"a": 1, "b": 2}).folder != store.entry({"a": 1, "b": 3}).folder


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "garbage"])
def test_a_damaged_shard_is_named_and_not_used(tmp_path, damage, caplog):
    entry = Store(tmp_path).entry({})
    entry.write(7, "mean", {"pooled": torch.arange(100.0)}, {})
    path = entry.path(7, "mean")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
    elif damage == "cut":
        data = data[:-20]
    elif damage == "empty":
        data = bytearray()
    else:
        data = bytearray(os.urandom(len(data)))
    path.write_bytes(bytes(data))
    with caplog.at_level("WARNING", logger="encbench"):
        assert entry.read(7, "mean") is None
    assert str(path) in caplog.text


def test_rows_are_computed_once_and_again_where_damaged(tmp_path):
    store, calls = Store(tmp_path), []

    def compute(span: range) -> torch.Tensor:
        calls.append(span)
        return torch.tensor([[float(i)] for i in span])

    for _ in range(2):
        rows = store.rows({"x": 1}, 10, compute, what="test", shard_size=4)
        assert rows.flatten().tolist() == list(range(10))
    assert [len(c) for c in calls] == [4, 4, 2]
    path = store.entry({"x": 1}).path(1, "rows")
    path.write_bytes(b"")
    store.rows({"x": 1}, 10, compute, what="test", shard_size=4)
    assert calls[3:] == [range(4, 8)]


def test_full_disk_is_one_line_and_leaves_no_part(tmp_path, monkeypatch):
    entry = Store(tmp_path).entry({})

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full") as caught:
        entry.write(0, "mean", {"pooled": torch.zeros(2)}, {})
    assert "\n" not in str(caught.value)
    assert [p.name for p in entry.folder.iterdir()] == ["identity.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(StoreError, match="making the store"):
        Store(blocked / "store")
    with pytest.raises(StoreError, match="failed"):
        files.write_atomic(Path("/proc/nowhere/x"), b"")
