"""Downloads of datasets, against a server on this machine that can misbehave."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import socket
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from encbench.data import fetch as module
from encbench.data.dpg import PUBLISHED, load_prompts
from encbench.data.fetch import Archive, FetchPlan, fetch_dataset, fetch_plan
from encbench.errors import DownloadError, StoreError, UsageError
from encbench.files import TEMPORARY, _origin

NOISE = hashlib.shake_256(b"picture").digest(300_000)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges: list[str | None] = []
        self.break_after: list[int] = []  # bytes after which the next answers stop
        self.supports_ranges = True
        self.status = 200

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        content = self.server.files.get(self.path.strip("/"))
        if content is None or self.server.status != 200:
            self.send_response(404 if content is None else self.server.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if not self.server.supports_ranges:
            start = 0
        body = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.break_after:
            self.wfile.write(body[: self.server.break_after.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "CHUNK", 10_000)
    made = Server()
    threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def blobs(members: dict[str, bytes]) -> str:
    lines = [
        f"{Path(n).stem} {hashlib.sha1(b'blob %d' % len(c) + bytes(1) + c).hexdigest()}\n"
        for n, c in members.items()
    ]
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def serve(server: Server, members: dict[str, bytes], name: str = "val2017.zip") -> FetchPlan:
    """Serve a zip of these members and return the plan that fetches it."""
    content = zipped(members)
    server.files[name] = content
    archive = Archive(
        url=server.url(name),
        members=("val2017/*.jpg",),
        folder="val2017",
        files=sum(member.startswith("val2017/") for member in members),
        bytes=len(content),
        unpacked=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return FetchPlan("coco", (archive,), "a license")


PICTURES = {"val2017/1.jpg": NOISE, "val2017/2.jpg": b"two", "readme.txt": b"not asked for"}


def test_plans_are_pinned_and_told_before_anything_is_fetched() -> None:
    plan = fetch_plan("coco")
    assert [archive.name for archive in plan.archives] == [
        "annotations_trainval2017.zip",
        "val2017.zip",
    ]
    assert plan.bytes == 252_907_541 + 815_585_330
    assert "coco: 1.1 GB" in str(plan)
    assert "size unknown" in str(fetch_plan("dpg"))
    assert fetch_plan("coco", "train2017").bytes == 252_907_541 + 19_336_861_798
    for archive in (*plan.archives, *fetch_plan("coco", "train2017").archives):
        assert re.fullmatch("[0-9a-f]{64}", archive.sha256)
    (prompts,) = fetch_plan("dpg").archives
    assert module.ELLA_COMMIT in prompts.url
    assert re.fullmatch("[0-9a-f]{64}", prompts.blobs)
    with pytest.raises(UsageError, match="val2017"):
        fetch_plan("coco", "val2014")
    with pytest.raises(UsageError, match="coco, dpg"):
        fetch_plan("imagenet")


def test_whole_download(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    told = []
    found = fetch_dataset(
        "coco", tmp_path / "new" / "coco", plan=plan, confirm=lambda p: told.append(p) or True
    )
    assert found == tmp_path / "new" / "coco"
    assert len(told) == 1
    assert plan.archives[0].url in told[0]
    assert "a license" in told[0]
    assert {p.name: p.read_bytes() for p in (found / "val2017").iterdir()} == {
        "1.jpg": NOISE,
        "2.jpg": b"two",
    }
    assert [p.name for p in found.iterdir()] == ["val2017"]  # no archive, no part left

    server.ranges.clear()
    assert fetch_dataset("coco", found, plan=plan, confirm=lambda p: pytest.fail("asked")) == found
    assert server.ranges == []  # a finished step is not repeated


def test_nothing_is_fetched_against_the_users_will(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    with pytest.raises(UsageError, match="nothing was downloaded"):
        fetch_dataset("coco", tmp_path / "coco", plan=plan, confirm=lambda _: False)
    assert server.ranges == []
    assert not (tmp_path / "coco").exists()


def test_broken_connection_is_resumed_at_once(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    server.break_after = [100_000, 100_000]
    fetch_dataset("coco", tmp_path, plan=plan)
    assert (tmp_path / "val2017" / "1.jpg").read_bytes() == NOISE
    starts = [int(r.removeprefix("bytes=").rstrip("-")) for r in server.ranges if r]
    assert len(server.ranges) == 3
    assert 0 < starts[0] <= 100_000 < starts[1] <= 200_000


def test_stopped_download_goes_on_in_the_next_run(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    server.break_after = [100_000] + [0] * module.ATTEMPTS
    with pytest.raises(DownloadError, match="run again; 0 MB are kept"):
        fetch_dataset("coco", tmp_path, plan=plan)
    part = tmp_path / "val2017.zip.part"
    kept = part.stat().st_size
    assert 0 < kept <= 100_000
    server.ranges.clear()
    fetch_dataset("coco", tmp_path, plan=plan)
    assert server.ranges == [f"bytes={kept}-"]
    assert not part.exists()
    assert (tmp_path / "val2017" / "2.jpg").read_bytes() == b"two"


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    server.supports_ranges = False
    server.break_after = [100_000]
    fetch_dataset("coco", tmp_path, plan=plan)
    assert (tmp_path / "val2017" / "1.jpg").read_bytes() == NOISE


def test_complete_part_needs_no_server(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    (tmp_path / "val2017.zip.part").write_bytes(server.files["val2017.zip"])
    fetch_dataset("coco", tmp_path, plan=plan)
    assert server.ranges == []


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    content = server.files["val2017.zip"]
    server.files["val2017.zip"] = content[:-1] + b"x"
    with pytest.raises(DownloadError, match=r"checksum mismatch: .*removed, run again"):
        fetch_dataset("coco", tmp_path, plan=plan)
    assert list(tmp_path.iterdir()) == []
    server.files["val2017.zip"] = content
    assert fetch_dataset("coco", tmp_path, plan=plan) == tmp_path


def test_archive_put_there_by_hand(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    (tmp_path / "val2017.zip").write_bytes(b"something")
    with pytest.raises(DownloadError, match=r"checksum mismatch: .*remove it"):
        fetch_dataset("coco", tmp_path, plan=plan)
    (tmp_path / "val2017.zip").write_bytes(server.files["val2017.zip"])
    fetch_dataset("coco", tmp_path, plan=plan)
    assert server.ranges == []
    assert (tmp_path / "val2017" / "2.jpg").exists()


def test_missing_file_and_other_answers(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    content = server.files.pop("val2017.zip")
    with pytest.raises(DownloadError, match=r"is gone \(404\)"):
        fetch_dataset("coco", tmp_path, plan=plan)
    server.files["val2017.zip"] = content
    server.status = 403
    with pytest.raises(DownloadError, match="answered 403"):
        fetch_dataset("coco", tmp_path, plan=plan)
    server.status = 503
    with pytest.raises(DownloadError, match="answered 503"):
        fetch_dataset("coco", tmp_path, plan=plan)
    assert len(server.ranges) == 2 + module.ATTEMPTS


def test_unreachable_site(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    archive = replace(plan.archives[0], url=f"http://127.0.0.1:{port}/val2017.zip")
    with pytest.raises(DownloadError, match=r"Connection refused\): check the network") as caught:
        fetch_dataset("coco", tmp_path, plan=replace(plan, archives=(archive,)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["val2017/../../evil.jpg", "val2017/a\\..\\b.jpg"])
def test_members_cannot_leave_the_folder(server: Server, tmp_path: Path, name: str) -> None:
    root = tmp_path / "deep" / "coco"
    with pytest.raises(DownloadError, match="leads out of its folder"):
        fetch_dataset("coco", root, plan=serve(server, {name: b"evil"}))
    assert not list(tmp_path.rglob("*evil*"))


def test_stopped_unpacking_goes_on(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    (tmp_path / "val2017.zip").write_bytes(server.files["val2017.zip"])
    folder = tmp_path / "val2017"
    folder.mkdir()
    (folder / "1.jpg").write_bytes(NOISE)
    before = (folder / "1.jpg").stat().st_mtime_ns
    fetch_dataset("coco", tmp_path, plan=plan)
    assert (folder / "1.jpg").stat().st_mtime_ns == before
    assert (folder / "2.jpg").read_bytes() == b"two"
    assert server.ranges == []


def test_too_little_space_is_told_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = serve(server, PICTURES)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StoreError, match="are needed in"):
        fetch_dataset("coco", tmp_path, plan=plan)
    assert server.ranges == []


def test_what_a_kill_left_after_unpacking_is_removed(server: Server, tmp_path: Path) -> None:
    plan = serve(server, PICTURES)
    fetch_dataset("coco", tmp_path, plan=plan)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "val2017.zip").write_bytes(server.files["val2017.zip"])
    (tmp_path / "val2017" / f"{TEMPORARY}{_origin()}-{2**22 + 1}-ab").write_bytes(b"half")
    fetch_dataset("coco", tmp_path, plan=plan)
    assert sorted(tmp_path.rglob("*")) == before


def test_root_that_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file failed: File exists"):
        fetch_dataset("coco", tmp_path / "file", plan=serve(server, PICTURES))


def test_contents_are_verified_where_the_archive_cannot_be(server: Server, tmp_path: Path) -> None:
    """GitHub makes its archives anew, so their own checksum is not fixed."""
    prompts = {"a.txt": b"one", "b.txt": b"two\n"}
    inside = {f"ELLA-{module.ELLA_COMMIT}/dpg_bench/prompts/{n}": c for n, c in prompts.items()}
    server.files["x.zip"] = zipped({**inside, "ELLA/README.md": b"x"})
    archive = replace(
        fetch_plan("dpg").archives[0], url=server.url("x.zip"), files=2, blobs=blobs(prompts)
    )
    plan = replace(fetch_plan("dpg"), archives=(archive,))
    server.break_after = [50]
    folder = fetch_dataset("dpg", tmp_path, plan=plan)
    assert folder == tmp_path / "prompts"
    assert [p.text for p in load_prompts(folder).prompts] == ["one", "two"]

    (folder / "a.txt").write_bytes(b"One")  # changed since: fetched again
    fetch_dataset("dpg", tmp_path, plan=plan)
    assert (folder / "a.txt").read_bytes() == b"one"

    other = replace(plan, archives=(replace(archive, blobs="0" * 64),))
    with pytest.raises(DownloadError, match="checksum mismatch"):
        fetch_dataset("dpg", tmp_path / "other", plan=other)
    assert not list((tmp_path / "other").rglob("*.txt"))


def test_broken_zip(server: Server, tmp_path: Path) -> None:
    server.files["x.zip"] = b"<html>sign in to this network</html>"
    archive = replace(fetch_plan("dpg").archives[0], url=server.url("x.zip"))
    with pytest.raises(DownloadError, match="not an intact zip"):
        fetch_dataset("dpg", tmp_path, plan=replace(fetch_plan("dpg"), archives=(archive,)))


def test_committed_digest_is_that_of_the_real_prompts(shared: Path, tmp_path: Path) -> None:
    """Rebuild the published files from the texts and their git blob ids."""
    rows = [json.loads(line) for line in (shared / "dpg" / "prompts.jsonl").open()]
    lines = sorted(f"{row['item_id']} {row['git_blob']}\n" for row in rows)
    (archive,) = fetch_plan("dpg").archives
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == archive.blobs
    assert len(rows) == archive.files

    for row in rows:
        text = row["text"].encode()
        for content in (text, text + b"\n", b" " + text):
            if hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == row["git_blob"]:
                (tmp_path / f"{row['item_id']}.txt").write_bytes(content)
    assert module._blobs(sorted(tmp_path.iterdir())) == archive.blobs
    assert load_prompts(tmp_path).pin == PUBLISHED


def _damaged(name: str) -> bytes:
    whole = zipped({"ELLA/dpg_bench/prompts/a.txt": bytes(range(256)) * 40})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ELLA/dpg_bench/prompts/a.txt", b"A dog. " * 9000)
    packed = buffer.getvalue()
    end = packed.rindex(b"PK\x05\x06")
    return {
        "a page": b"<html>sign in</html>",
        "nothing": b"",
        "cut": whole[: len(whole) // 2],
        "a wrong byte inside": whole[:5000] + b"\xff\xfe" + whole[5002:],
        "a wrong byte in packed data": packed[:80] + b"\xff\xff\xff" + packed[83:],
        "a directory elsewhere": packed[: end + 16] + b"\xff\xff\xff\x7f" + packed[end + 20 :],
        "an unknown method": packed.replace(b"\x14\0\0\0\x08\0", b"\x14\0\0\0\x63\0"),
        "a password": packed.replace(b"\x14\0\0\0\x08\0", b"\x14\0\1\0\x08\0"),
        "too many files": zipped({f"ELLA/dpg_bench/prompts/{i}.txt": b"a" for i in range(3)}),
        "one name twice": zipped({f"ELLA/{i}/dpg_bench/prompts/a.txt": b"a" for i in range(2)}),
        "a bomb": zipped({"ELLA/dpg_bench/prompts/a.txt": bytes(12_000_000)}),
    }[name]


@pytest.mark.parametrize(
    "name",
    ["a page", "nothing", "cut", "a wrong byte inside", "a wrong byte in packed data",
     "a directory elsewhere", "an unknown method", "a password", "too many files",
     "one name twice", "a bomb"],
)  # fmt: skip
def test_a_damaged_archive_is_removed_and_the_next_run_is_whole(
    server: Server, tmp_path: Path, name: str
) -> None:
    archive = replace(
        fetch_plan("dpg").archives[0],
        url=server.url("x.zip"),
        files=1,
        blobs=blobs({"a.txt": b"a"}),
    )
    plan = replace(fetch_plan("dpg"), archives=(archive,))
    server.files["x.zip"] = _damaged(name)
    with pytest.raises(DownloadError, match=r"x\.zip.* removed") as caught:
        fetch_dataset("dpg", tmp_path, plan=plan)
    assert "\n" not in str(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    server.files["x.zip"] = zipped({"ELLA/dpg_bench/prompts/a.txt": b"a"})
    fetch_dataset("dpg", tmp_path, plan=plan)
    assert (tmp_path / "prompts" / "a.txt").read_bytes() == b"a"


def test_a_link_in_place_of_a_part_is_not_followed(server: Server, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    root = tmp_path / "coco"
    root.mkdir()
    (root / "val2017.zip.part").symlink_to(mine)
    fetch_dataset("coco", root, plan=serve(server, PICTURES))
    assert mine.read_bytes() == b"precious"
    assert (root / "val2017" / "2.jpg").read_bytes() == b"two"
