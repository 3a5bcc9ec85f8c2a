"""The downloader, against a small stand-in for the hub on this machine."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_hub import REPO, FakeHub
from huggingface_hub import constants
from safetensors.torch import save_file

from encbench.data import hub
from encbench.data.hub import download_plan, resolve_model
from encbench.data.hub_facts import facts_of
from encbench.errors import DownloadError, EncbenchError, ModelError, StoreError
from encbench.files import digest_files

COMMIT = "a" * 40
NEXT = "b" * 40
PATTERNS = ["*.json", "*.safetensors", "*.bin"]
CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    fake = FakeHub()
    fake.files[COMMIT] = {
        "README.md": CARD,
        "config.json": b'{"a": 1}',
        "model.safetensors": b"weights",
        "pytorch_model.bin": b"pickle",
        "notes/unwanted.txt": b"x",
    }
    fake.refs["main"] = COMMIT
    threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    monkeypatch.setenv("ENCBENCH_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    yield fake
    fake.shutdown()
    fake.server_close()


def folder_with(path: Path, **files: bytes) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return path


# ------------------------------------------------------------------------- local folders


def test_folder_is_pinned_by_the_files_that_match(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path / "m",
        config__json=b"{}",
        model__safetensors=b"w",
        README__md=CARD,
        notes__txt=b"1",
    )
    found = resolve_model(str(folder), None, patterns=PATTERNS)
    assert found.path == folder
    assert found.license == "apache-2.0"
    expected = digest_files([folder / "config.json", folder / "model.safetensors"], folder)
    assert found.revision == expected

    (folder / "notes.txt").write_bytes(b"2")
    assert resolve_model(str(folder), None, patterns=PATTERNS).revision == expected
    (folder / "model.safetensors").write_bytes(b"v")
    os.utime(folder / "model.safetensors", ns=(1, 1))
    assert resolve_model(str(folder), None, patterns=PATTERNS).revision != expected


def test_digest_names_files_by_their_place(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", **{"b__json": b"{}", "a-b__json": b"1"})
    folder_with(folder / "a", **{"z__json": b"2"})
    files = [folder / "b.json", folder / "a-b.json", folder / "a" / "z.json"]
    found = resolve_model(str(folder), None, patterns=["*.json"])
    assert found.revision == digest_files(files, folder)


def test_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_with(tmp_path / "m", model__safetensors=b"w")
    first = resolve_model(str(folder), None, patterns=PATTERNS)

    def refuse(*_: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(hub.hashlib, "file_digest", refuse)
    assert resolve_model(str(folder), None, patterns=PATTERNS) == first


def test_works_without_a_place_to_keep_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ENCBENCH_CACHE", str(tmp_path / "file" / "cache"))
    folder = folder_with(tmp_path / "m", model__safetensors=b"w")
    assert len(resolve_model(str(folder), None, patterns=PATTERNS).revision) == 64


def test_folder_may_be_held_to_its_hash(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", model__safetensors=b"w")
    revision = resolve_model(str(folder), None, patterns=PATTERNS).revision
    assert resolve_model(str(folder), revision[:12], patterns=PATTERNS).revision == revision
    with pytest.raises(ModelError, match="has content hash"):
        resolve_model(str(folder), "0" * 12, patterns=PATTERNS)


def test_pickles_only_when_asked_for(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "m", config__json=b"{}", pytorch_model__bin=b"p")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*\?pickle=true"):
        resolve_model(str(folder), None, patterns=PATTERNS)
    found = resolve_model(str(folder), None, patterns=PATTERNS, pickle=True)
    assert found.revision == digest_files(folder.iterdir(), folder)

    both = folder_with(tmp_path / "b", model__safetensors=b"w", pytorch_model__bin=b"p")
    revision = resolve_model(str(both), None, patterns=PATTERNS, pickle=True).revision
    assert revision == digest_files([both / "model.safetensors"], both)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    folder = folder_with(tmp_path / "m", **{"model-1__safetensors": b"w"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks model-2\.safetensors"):
        resolve_model(str(folder), None, patterns=PATTERNS)


def test_parts_under_any_name_are_pinned(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "half-a.safetensors", "b": "half-b.safetensors"}}
    folder = folder_with(
        tmp_path / "m", **{"half-a__safetensors": b"1", "half-b__safetensors": b"2"}
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    patterns = ["model.safetensors", "model.safetensors.index.json"]
    first = resolve_model(str(folder), None, patterns=patterns).revision
    (folder / "half-b.safetensors").write_bytes(b"other")
    assert resolve_model(str(folder), None, patterns=patterns).revision != first


@pytest.mark.parametrize(
    "index",
    [
        "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "../../model.safetensors"}}', '{"weight_map": {"a": ["x"]}}',
    ],
)  # fmt: skip
def test_damaged_index_of_parts_is_named(tmp_path: Path, index: str) -> None:
    folder = folder_with(tmp_path / "m", **{"model-1__safetensors": b"w"})
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"/model\.safetensors\.index\.json") as caught:
        resolve_model(str(folder), None, patterns=PATTERNS)
    assert "\n" not in str(caught.value)


MIXED = {"model.safetensors": b"w", "2_Dense/pytorch_model.bin": b"p", "3/pytorch_model.bin": b"q"}
MIXED_PATTERNS = ["model.safetensors", "pytorch_model.bin", "2_Dense/*.bin", "3/*.safetensors"]
MIXED_PATTERNS += ["3/pytorch_model.bin"]


@pytest.mark.parametrize("changed", sorted(MIXED))
def test_every_module_that_is_loaded_is_in_the_pin(tmp_path: Path, changed: str) -> None:
    for name, content in MIXED.items():
        folder_with((tmp_path / name).parent, **{Path(name).name.replace(".", "__"): content})
    (tmp_path / "pytorch_model.bin").write_bytes(b"beside safetensors, so never read")

    def pin() -> str:
        return resolve_model(
            str(tmp_path), None, patterns=MIXED_PATTERNS, pickle=True, weights_in=("", "2_Dense")
        ).revision

    first = pin()
    assert first == digest_files([tmp_path / name for name in MIXED], tmp_path)
    (tmp_path / changed).write_bytes(b"other")
    assert pin() != first
    with pytest.raises(ModelError, match=r"2_Dense has only pickled weights .*\?pickle=true"):
        resolve_model(str(tmp_path), None, patterns=MIXED_PATTERNS)


LOOKED = r"holds no weights \(looked for model\.safetensors, pytorch_model\.bin\)"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["model.fp16.safetensors"], LOOKED + r"; it has model\.fp16\.safetensors: rename"),
        (["diffusion_pytorch_model.safetensors"], "it has diffusion_pytorch_model"),
        (["model-q4.gguf"], "it has model-q4"),
        (["tf_model.h5", "flax_model.msgpack"], r"it has flax_model\.msgpack, tf_model\.h5: "),
        ([], LOOKED + "$"),
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter of some/base"),
    ],
)
def test_weights_under_other_names_are_named(tmp_path: Path, files: list[str], says: str) -> None:
    (tmp_path / "part").mkdir()
    for name in files:
        (tmp_path / "part" / name).write_text('{"base_model_name_or_path": "some/base"}')
    patterns = ["part/model.safetensors", "part/pytorch_model.bin"]
    with pytest.raises(ModelError, match=says) as caught:
        resolve_model(str(tmp_path), None, patterns=patterns)
    assert str(tmp_path / "part") in str(caught.value)


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./no-such", "~/no-such-folder", r"C:\models\x", "a/b/c"]
)
def test_missing_folder_is_no_hub_id(source: str) -> None:
    with pytest.raises(ModelError, match="there is no folder"):
        resolve_model(source, None, patterns=PATTERNS)


def test_useless_sources(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"w")
    with pytest.raises(ModelError, match="is a file"):
        resolve_model(str(file), None, patterns=PATTERNS)
    empty = folder_with(tmp_path / "empty")
    with pytest.raises(ModelError, match="holds no weights"):
        resolve_model(str(empty), None, patterns=PATTERNS)
    with pytest.raises(ModelError, match="holds none of"):
        resolve_model(str(empty), None, patterns=["*.json"])
    with pytest.raises(ModelError, match="neither a folder here nor a hub id"):
        resolve_model("not a name!", None, patterns=PATTERNS)


@pytest.mark.parametrize(
    ("card", "license"),
    [
        (b"---\nlicense: [mit, cc0-1.0]\n---\n", "mit, cc0-1.0"),
        (b"---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        (b"---\nlicense: other\n---\n", "other"),
        (b"---\ntags: [x]\n---\n", "unknown"),
        (b"# no front matter", "unknown"),
        (b"---\n: [broken\n---\n", "unknown"),
        (b"\xff\xfe", "unknown"),
    ],
)
def test_license_from_the_card(tmp_path: Path, card: bytes, license: str) -> None:
    folder = folder_with(tmp_path / "m", model__safetensors=b"w", README__md=card)
    assert resolve_model(str(folder), None, patterns=PATTERNS).license == license


# ----------------------------------------------------------------------- hub repositories


def test_first_download_is_locked_and_later_runs_hold_to_it(server: FakeHub) -> None:
    first = resolve_model(REPO, None, patterns=PATTERNS)
    assert (first.revision, first.license) == (COMMIT, "apache-2.0")
    names = {p.name for p in first.path.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}
    lock = json.loads(hub.lock_file().read_text())[REPO]
    assert lock["revision"] == COMMIT
    assert lock["files"]["model.safetensors"] == hashlib.sha256(b"weights").hexdigest()

    server.files[NEXT] = {**server.files[COMMIT], "model.safetensors": b"other"}
    server.refs["main"] = NEXT
    server.requests.clear()
    assert resolve_model(REPO, None, patterns=PATTERNS) == first
    assert server.requests == []  # no network at all


def test_locked_revision_is_fetched_again_once_the_cache_is_gone(server: FakeHub) -> None:
    import shutil

    first = resolve_model(REPO, None, patterns=PATTERNS)
    shutil.rmtree(first.path.parents[2])
    server.files[NEXT] = {**server.files[COMMIT], "model.safetensors": b"other"}
    server.refs["main"] = NEXT
    assert resolve_model(REPO, None, patterns=PATTERNS).revision == COMMIT


def test_other_patterns_of_a_locked_repository_fetch_what_is_missing(server: FakeHub) -> None:
    resolve_model(REPO, None, patterns=["*.json"])
    again = resolve_model(REPO, None, patterns=PATTERNS)
    assert (again.path / "model.safetensors").read_bytes() == b"weights"
    assert set(json.loads(hub.lock_file().read_text())[REPO]["files"]) == {
        "config.json",
        "model.safetensors",
    }


def test_pinned_revision_and_branch(server: FakeHub) -> None:
    server.files[NEXT] = {"model.safetensors": b"other"}
    server.refs["old"] = NEXT
    assert resolve_model(REPO, COMMIT, patterns=PATTERNS).revision == COMMIT
    assert resolve_model(REPO, "old", patterns=PATTERNS).revision == NEXT
    assert set(json.loads(hub.lock_file().read_text())) == {f"{REPO}@{COMMIT}", f"{REPO}@old"}


def test_cached_repository_works_offline(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    first = resolve_model(REPO, None, patterns=PATTERNS)
    hub.lock_file().unlink()  # as if another program had filled the cache
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model(REPO, None, patterns=PATTERNS) == first


def test_pickles_of_a_repository(server: FakeHub) -> None:
    del server.files[COMMIT]["model.safetensors"]
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*\?pickle=true"):
        resolve_model(REPO, None, patterns=PATTERNS)
    assert not any("pytorch_model.bin" in path for path in server.requests)
    found = resolve_model(REPO, None, patterns=PATTERNS, pickle=True)
    assert (found.path / "pytorch_model.bin").read_bytes() == b"pickle"
    server.requests.clear()
    assert resolve_model(REPO, None, patterns=PATTERNS, pickle=True) == found
    assert server.requests == []


def test_pickles_are_left_where_there_are_safetensors(server: FakeHub) -> None:
    resolve_model(REPO, None, patterns=PATTERNS, pickle=True)
    assert not any("pytorch_model.bin" in path for path in server.requests)


@pytest.mark.parametrize("allowed", [False, True])
def test_pickled_module_of_a_sentence_model(server: FakeHub, tmp_path: Path, allowed: bool) -> None:
    import checkpoints
    import torch
    from safetensors.torch import load_file

    from encbench.encoders import load_encoder

    folder = checkpoints.sentence_bert(tmp_path / "dense", dense=True)
    dense = folder / "2_Dense" / "model.safetensors"
    torch.save(load_file(dense), dense.with_name("pytorch_model.bin"))
    dense.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"beside safetensors, so never fetched")
    server.files[COMMIT] = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    if not allowed:
        with pytest.raises(ModelError, match=rf"{REPO}/2_Dense has only pickled .*pickle=true"):
            load_encoder(f"st:{REPO}", "cpu")
        assert not any(path.endswith(".bin") for path in server.requests)
        return
    text = f"st:{REPO}?pickle=true"
    pooled = load_encoder(text, "cpu").encode(["a dog"]).pooled
    fetched = {path for path in server.requests if path.endswith(".bin")}
    assert fetched == {f"/{REPO}/resolve/{COMMIT}/2_Dense/pytorch_model.bin"}
    assert "2_Dense/pytorch_model.bin" in json.loads(hub.lock_file().read_text())[REPO]["files"]
    local = load_encoder(f"st:{folder}?pickle=true", "cpu").encode(["a dog"]).pooled
    torch.testing.assert_close(pooled, local)
    server.requests.clear()
    load_encoder(text, "cpu")
    assert server.requests == []


def test_damaged_download_is_noticed(server: FakeHub) -> None:
    server.damage = True
    with pytest.raises(DownloadError, match=r"checksum mismatch: .*remove .* and run again"):
        resolve_model(REPO, None, patterns=["*.safetensors"])
    assert not hub.lock_file().exists()


def test_changed_cache_is_noticed(server: FakeHub) -> None:
    first = resolve_model(REPO, None, patterns=PATTERNS)
    blob = (first.path / "model.safetensors").resolve()
    blob.write_bytes(b"tampered")
    with pytest.raises(DownloadError, match=r"checksum mismatch: model\.safetensors.*remove"):
        resolve_model(REPO, None, patterns=PATTERNS)
    blob.unlink()  # as the message says
    again = resolve_model(REPO, None, patterns=PATTERNS)
    assert (again.path / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "content",
    ["{", "[]", f'{{"{REPO}": []}}', f'{{"{REPO}": {{"files": {{}}}}}}',
     f'{{"{REPO}": {{"revision": 1, "files": {{}}}}}}',
     f'{{"{REPO}": {{"revision": "{COMMIT}", "files": {{"a": {"9" * 30}}}}}}}'],
)  # fmt: skip
def test_damaged_lock_file_is_named(server: FakeHub, content: str) -> None:
    hub.lock_file().parent.mkdir(parents=True)
    hub.lock_file().write_text(content)
    with pytest.raises(ModelError, match=r"lock file is damaged \(.*/hub-lock\.json") as caught:
        resolve_model(REPO, None, patterns=PATTERNS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"PATH": []}', '{"PATH": [1, 2]}', '{"PATH": 3}'])
def test_damaged_memory_of_hashes_is_made_again(tmp_path: Path, content: str) -> None:
    folder = folder_with(tmp_path / "m", config__json=b"{}", model__safetensors=b"w")
    first = resolve_model(str(folder), None, patterns=PATTERNS)
    memory = hub.cache_dir() / "file-hashes.json"
    memory.write_text(content.replace("PATH", str(folder / "config.json")))
    assert resolve_model(str(folder), None, patterns=PATTERNS).revision == first.revision
    assert str(folder / "config.json") in json.loads(memory.read_text())


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", rf"accept the conditions at https://huggingface\.co/{REPO} .*HF_TOKEN"),
        (404, "RepoNotFound", "no repository"),
        (401, "", "no repository"),
        (404, "RevisionNotFound", "no revision"),
        (503, "", "answered 503"),
    ],
)
def test_refusals_are_one_clear_line(server: FakeHub, status: int, code: str, words: str) -> None:
    server.error = (status, code)
    with pytest.raises(DownloadError, match=words) as caught:
        resolve_model(REPO, "main", patterns=PATTERNS)
    assert "\n" not in str(caught.value)


def test_offline_switch(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError, match=r"HF_HUB_OFFLINE is set.*local folder"):
        resolve_model(REPO, None, patterns=PATTERNS)
    assert server.requests == []


def test_disk_full(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(StoreError, match="the disk is full"):
        resolve_model(REPO, None, patterns=PATTERNS)


def test_unreachable_hub_from_a_fresh_process(tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HUB_OFFLINE are read when the client is imported."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = (
        "from encbench.data.hub import resolve_model\n"
        "from encbench.errors import EncbenchError\n"
        "try:\n"
        f"    resolve_model({REPO!r}, None, patterns=['*.json'])\n"
        "except EncbenchError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    endpoint = f"http://127.0.0.1:{port}"
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "ENCBENCH_CACHE": str(tmp_path)}
    environment = {**os.environ, **settings, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout.startswith(f"DownloadError {endpoint} cannot be reached for {REPO}")
    assert "HF_HUB_OFFLINE" in done.stdout
    assert "local folder" in done.stdout
    assert done.stdout.count("\n") == 1


# ------------------------------------------------------------------------ what would be fetched


def test_plan_asks_nobody(server: FakeHub, tmp_path: Path) -> None:
    known = "google/gemma-2-2b-it"
    plan = download_plan([(REPO, None), (known, "c" * 40)])
    assert [p.cached for p in plan] == [False, False]
    assert [p.revision for p in plan] == [None, "c" * 40]
    assert plan[0].bytes is None
    assert plan[1].bytes == facts_of(known).bytes

    folder = folder_with(tmp_path / "m", model__safetensors=b"12345")
    resolve_model(REPO, None, patterns=PATTERNS)
    server.requests.clear()
    repo, local = download_plan([(REPO, None), (str(folder), None)])
    assert (repo.cached, repo.revision) == (True, COMMIT)
    assert repo.bytes == len(CARD) + len(b'{"a": 1}') + len(b"weights")
    assert (local.cached, local.bytes) == (True, 5)
    assert server.requests == []


def test_plan_asks_the_hub_where_it_may(server: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = download_plan([(REPO, None)], ask=True)
    assert row.bytes == len(b"weights") + len(b'{"a": 1}') + len(b"x")  # one set of weights
    assert row.parameters == 1234
    server.error = (500, "")
    (row,) = download_plan([(REPO, None)], ask=True)
    assert (row.bytes, row.parameters) == (None, None)
    server.error = None
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download_plan([(REPO, None)], ask=True)[0].bytes is None
    assert server.requests == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_of_a_folder_are_counted(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": torch.zeros(3, 4, dtype=dtype), "b": torch.zeros(5, dtype=dtype)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert download_plan([(str(tmp_path), None)])[0].parameters == 17
    (tmp_path / "other.safetensors").write_bytes(b"damaged")
    assert download_plan([(str(tmp_path), None)])[0].parameters is None


def test_plan_finds_what_others_cached(server: FakeHub) -> None:
    resolve_model(REPO, None, patterns=PATTERNS)
    hub.lock_file().unlink()
    assert download_plan([(REPO, None)])[0].revision == COMMIT


def test_every_message_is_one_line(server: FakeHub) -> None:
    for source in ("someone/other", "not a name!", "/no/such", "a/b/c"):
        with pytest.raises(EncbenchError) as caught:
            resolve_model(source, None, patterns=PATTERNS)
        assert "\n" not in str(caught.value)
