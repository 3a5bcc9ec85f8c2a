"""Damaged files of every kind through every reader: what is refused is refused in one line.

Structure-aware: a good file is changed in its values (a key lost, doubled or of another type, a
number beyond its range), and then maybe in its bytes. ``make fuzz`` runs 50,000 inputs.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from encbench.data.coco import load_coco
from encbench.data.dpg import load_prompts
from encbench.data.fetch import Archive, _unpack
from encbench.data.folder import load_folder
from encbench.data.geneval import load_geneval
from encbench.data.spec import DatasetSpec
from encbench.errors import EncbenchError
from encbench.files import read_json, read_toml
from encbench.images import open_image
from encbench.listing import list_images, number_names
from encbench.records import read_prediction, read_record, read_verdict
from encbench.types import ImageRecord

INPUTS = int(os.environ.get("ENCBENCH_FUZZ_INPUTS", "2000"))
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, 1e308, 1e-320,
    float("nan"), float("inf"), "", " ", "a", "\ud83d", "\udce9", "\0", "\u2028", "\x85", "../x",
    "/etc/passwd", "a\\b", "a:b", "x" * 5000, "é", "e\u0301", [], {}, [[]], [None], {"": {}},
    {"id": []}, "1", "NaN",
]  # fmt: skip
BYTES = [
    b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\xbd", b"[" * 3000, b"9" * 5000, b"NaN",
    b"\r\n", b"\n", b'"', b"{", b"\\ud800", b"1e999", b'"a":1,"a":2,', b"\xe2\x80\xa8",
]  # fmt: skip


# ------------------------------------------------------------------------------- mutations


def change_value(value: Any, data: st.DataObject) -> Any:
    """A JSON value with one thing changed, somewhere in it."""
    if isinstance(value, dict) and value and data.draw(st.integers(0, 4)):
        key = data.draw(st.sampled_from(sorted(value)))
        what = data.draw(st.integers(0, 9))
        changed = dict(value)
        if what == 0:
            del changed[key]
        elif what == 1:
            changed[data.draw(st.sampled_from(["", key.upper(), "\udce9", "kind", "id"]))] = (
                changed.pop(key)
            )
        else:
            changed[key] = change_value(value[key], data)
        return changed
    if isinstance(value, list) and value and data.draw(st.integers(0, 4)):
        place = data.draw(st.integers(0, len(value) - 1))
        what = data.draw(st.integers(0, 9))
        if what == 0:
            return value[:place] + value[place + 1 :]
        if what == 1:
            return [*value, value[place]]
        return [*value[:place], change_value(value[place], data), *value[place + 1 :]]
    return data.draw(st.sampled_from(ODD))


def change_bytes(content: bytes, data: st.DataObject) -> bytes:
    """Bytes cut, doubled, or with something put in or over them."""
    place = data.draw(st.integers(0, len(content)))
    what = data.draw(st.integers(0, 4))
    if what == 0:
        return content[:place]
    if what == 1:
        return content[:place] + content[: place // 2] + content[place:]
    piece = data.draw(st.sampled_from(BYTES) | st.binary(max_size=4))
    return content[:place] + piece + content[place + (len(piece) if what == 2 else 0) :]


def change_json(content: bytes, data: st.DataObject) -> bytes:
    values = [json.loads(line) for line in content.splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(values) - 1))
        values[place] = change_value(values[place], data)
    ascii_only = data.draw(st.booleans())
    lines = [json.dumps(value, ensure_ascii=ascii_only) for value in values]
    changed = "\n".join(lines).encode("utf-8", "surrogatepass")
    return change_bytes(changed, data) if data.draw(st.integers(0, 3)) == 0 else changed


# --------------------------------------------------------------------------------- readers


@dataclass(frozen=True)
class Reader:
    """A good file, how it is changed, and what reads it from a folder."""

    content: bytes
    change: Callable[[bytes, st.DataObject], bytes]
    name: str
    read: Callable[[Path], object]


def _json(*values: object) -> bytes:
    return "\n".join(map(json.dumps, values)).encode()


def _picture(kind: str, mode: str = "RGB", **how: Any) -> bytes:
    values = np.arange(12 * 9 * 3, dtype=np.uint8).reshape(9, 12, 3)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x112], exif[0x10E] = 6, "text"
    with_exif = {} if kind in ("GIF", "BMP", "PPM") else {"exif": exif}
    Image.fromarray(values).convert(mode).save(buffer, kind, **with_exif, **how)
    return buffer.getvalue()


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(2):
            archive.writestr(f"x/{i}.txt", b"a dog " * 50)
    return buffer.getvalue()


def _read_image(path: Path) -> object:
    return open_image(ImageRecord(0, path.name, path, 0, 0))


def _read_zip(path: Path) -> object:
    archive = Archive("http://x/x.zip", ("x/*.txt",), "", 2, None, 10_000)
    out = path.parent / "out"
    out.mkdir()
    _unpack(archive, path, out)
    return out


def _read_names(path: Path) -> object:
    for number, name in enumerate(path.read_bytes().split(b"\n")):
        clean = name.replace(b"/", b"").replace(b"\0", b"")[:200]
        if clean not in (b"", b".", b"..", b"x"):
            (path.parent / os.fsdecode(clean)).write_bytes(b"%d" % number)
    return number_names(list_images(path.parent).paths)


COCO = _json({
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 4, "height": 3} for i in (1, 2)],
    "annotations": [{"id": i, "image_id": 1 + i % 2, "caption": "A dog."} for i in range(4)],
    "licenses": [{"id": 1, "name": "free"}],
})  # fmt: skip
INSTANCES = _json({
    "images": [{"id": 1}, {"id": 2}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "area": 2, "bbox": [1, 1, 2, 2]}],
    "categories": [{"id": 1, "name": "dog"}],
})  # fmt: skip


def _read_coco(path: Path) -> object:
    root = path.parents[1]
    (root / "val").mkdir()
    for name, content in (("captions_val.json", COCO), ("instances_val.json", INSTANCES)):
        if not (path.parent / name).exists():
            (path.parent / name).write_bytes(content)
    return load_coco(root, allow_missing_images=True)


def _golden(pattern: str) -> bytes:
    return _json(json.loads(sorted(GOLDEN.rglob(pattern))[0].read_bytes()))


GENEVAL = _json(
    {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": "a"},
    {"tag": "position", "include": [{"class": "dog", "count": 1}, {"class": "cat", "count": 1,
     "position": ["left of", 0]}], "exclude": [{"class": "cat", "count": 2}], "prompt": "b"},
)  # fmt: skip
TABLE = b'item_id,text,keywords\r\np1,"A dog, on a mat.",1\r\np1,"A dog, on a mat.",2\r\np2,x,3\r\n'
READERS = {
    "coco captions": Reader(COCO, change_json, "annotations/captions_val.json", _read_coco),
    "coco instances": Reader(INSTANCES, change_json, "annotations/instances_val.json", _read_coco),
    "captions.jsonl": Reader(
        _json({"file_name": "1.png", "text": "a"}, {"file_name": "2.png", "caption": "b"}),
        change_json, "captions.jsonl", lambda path: load_folder(path.parent),
    ),
    "prompts.jsonl": Reader(
        _json({"item_id": "a", "text": "x"}, {"id": 1, "prompt": "y"}), change_json, "x.jsonl",
        load_prompts,
    ),
    "prompts.csv": Reader(TABLE, change_bytes, "x.csv", load_prompts),
    "prompts.txt": Reader("a dog\u2028x\nb\n".encode(), change_bytes, "x.txt", load_prompts),
    "geneval": Reader(GENEVAL, change_json, "x.jsonl", load_geneval),
    "record": Reader(_golden("records/**/*.json"), change_json, "x.json", read_record),
    "prediction": Reader(_golden("prediction.json"), change_json, "x.json", read_prediction),
    "verdict": Reader(_golden("verdict.json"), change_json, "x.json", read_verdict),
    "json": Reader(_json({"a": [1, {"b": "c"}]}), change_bytes, "x.json", read_json),
    "toml": Reader(b"a = 1\n[b]\nc = ['x', 2.5]\n", change_bytes, "x.toml", read_toml),
    "spec": Reader(
        b"coco:FOLDER?split=val2017&a=%41", change_bytes, "x",
        lambda path: DatasetSpec.parse(path.read_bytes().decode("utf-8", "surrogateescape")),
    ),
    "names": Reader(b"0001.png\n._2.png\n3.jpg\n.x\n", change_bytes, "x", _read_names),
    "zip": Reader(_zip(), change_bytes, "x.zip", _read_zip),
    **{
        f"image {kind} {mode}": Reader(_picture(kind, mode), change_bytes, "x.jpg", _read_image)
        for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
                           ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "F"),
                           ("WEBP", "RGB"), ("PPM", "L"))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@settings(
    max_examples=max(1, INPUTS // len(READERS)),
    deadline=None,
    database=None,
    derandomize=INPUTS <= 2000,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_damage_is_one_line(name: str, data: st.DataObject) -> None:
    reader = READERS[name]
    content = reader.change(reader.content, data)
    folder, refusal = Path(tempfile.mkdtemp(prefix="fuzz-")), ""
    try:
        path = folder / reader.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
    except EncbenchError as error:
        refusal = str(error)
    finally:
        shutil.rmtree(folder)
    assert "\n" not in refusal
    assert len(refusal) < 10_000
