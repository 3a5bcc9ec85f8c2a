"""Damaged files of every kind through every reader: what is refused is refused in one line.

Structure-aware: a good file is changed in its values (a key lost, doubled or of another type, a
number beyond its range), and then maybe in its bytes. ``make fuzz`` runs 50,000 inputs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from encbench.checkpoint import find_damage, read_tensors
from encbench.config import read_run_config, run_config
from encbench.confirm.bank import read_bank
from encbench.confirm.config import parse_settings
from encbench.confirm.experiment import ScoredTraining, _curve, gap
from encbench.confirm.plan import read_plan
from encbench.data import hub
from encbench.data.coco import load_coco
from encbench.data.dpg import load_prompts
from encbench.data.fetch import Archive, _unpack
from encbench.data.folder import load_folder
from encbench.data.geneval import load_geneval
from encbench.data.lines import load_captions
from encbench.data.spec import DatasetSpec
from encbench.encode import EncoderFacts
from encbench.encoders import EncoderSpec
from encbench.encoders.gguf import read_header
from encbench.encoders.guard import one_line_errors
from encbench.encoders.hf import device_map_of
from encbench.encoders.local import PLACES, read_places
from encbench.encoders.queries import ConnectorLayers, build_connector, read_trained
from encbench.encoders.sentence import _modules
from encbench.errors import EncbenchError
from encbench.files import read_json, read_table, read_toml
from encbench.flow.checkpoint import read_state
from encbench.flow.config import training_config
from encbench.flow.meters import read_log
from encbench.images import open_image
from encbench.listing import list_images, number_names
from encbench.lock import _is_alive, _machine
from encbench.media import write_gallery
from encbench.metrics.dpg import load_questions
from encbench.metrics.fid import read_statistics
from encbench.metrics.folder import read_folder, read_images
from encbench.metrics.geneval.metric import Judgment
from encbench.metrics.run import read_scores
from encbench.metrics.score import load_scoring
from encbench.records import read_items, read_prediction, read_record, read_verdict
from encbench.reports.load import read_object
from encbench.rules import read_records
from encbench.schema import read_dataclass, read_model_config
from encbench.shipped import shipped
from encbench.store import Store
from encbench.study.answers import read_study
from encbench.types import ImageRecord
from encbench.validate import load_outcomes, load_predictions

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


def change_gzip(content: bytes, data: st.DataObject) -> bytes:
    """The text inside changed, or the archive."""
    if data.draw(st.booleans()):
        return change_bytes(content, data)
    return gzip.compress(change_bytes(gzip.decompress(content), data))


def change_tensors(content: bytes, data: st.DataObject) -> bytes:
    """A safetensors file with its header changed, or its bytes."""
    if data.draw(st.booleans()):
        return change_bytes(content, data)
    length = int.from_bytes(content[:8], "little")
    header = change_json(content[8 : 8 + length], data)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


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
    image = Image.fromarray(values).convert(mode)
    if mode == "F":  # from 0 to 1
        image = Image.fromarray(np.asarray(image) / 256)
    image.save(buffer, kind, **with_exif, **how)
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


def _tensors(**metadata: str) -> bytes:
    return save({"rows": torch.arange(6.0).reshape(2, 3)}, metadata=metadata)


def _read_shard(path: Path) -> object:
    """Damaged shards are made again, so rows come back whatever lies there."""
    store = Store(path.parent)
    entry = store.entry({"a": 1})
    path.rename(entry.path(0, "rows"))
    made = store.rows({"a": 1}, 2, lambda span: torch.ones(len(span), 3), what="rows")
    assert made.shape == (2, 3)
    return made


def _array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(6, dtype=np.float32).reshape(2, 3))
    return buffer.getvalue()


def _shard() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        entry = Store(Path(folder)).entry({"a": 1})
        entry.write(0, "rows", {"rows": torch.arange(6.0).reshape(2, 3)}, {})
        return entry.path(0, "rows").read_bytes()


def _read_items(path: Path) -> object:
    return read_items(path, replace(read_record(RECORD), items=path.name))


def _read_cache(read: Callable[[], object]) -> Callable[[Path], object]:
    def call(path: Path) -> object:
        with mock.patch.object(hub, "cache_dir", return_value=path.parent):
            return read()

    return call


def _hash_again(path: Path) -> object:
    (path.parent / "w").write_bytes(b"weights")
    content = path.read_bytes().replace(b"PLACE", os.fsencode(path.parent / "w"))
    path.write_bytes(content)
    with mock.patch.object(hub, "cache_dir", return_value=path.parent):
        return hub.digest_each({"w": path.parent / "w"})


def _read_scores(path: Path) -> object:
    for name, content in (("scoring.json", SCORING), ("prompts/00000.json", KEPT)):
        place = path.parents[path.parent.name == "prompts"] / name
        place.parent.mkdir(exist_ok=True)
        if not place.exists():
            place.write_bytes(content)
    return load_scoring(path.parents[path.parent.name == "prompts"], Judgment)


def _read_layout(path: Path) -> object:
    (path.parent / "samples").mkdir()
    (path.parent / "samples" / "0000.png").write_bytes(b"")
    return read_folder(path.parents[1])


def _read_gallery(path: Path) -> object:
    example = {"query": {"image_id": 1}, "retrieved": [{"image_id": 2}]}
    write_gallery(path.parents[1], "a:b", {"best": [example]}, _read_coco_of(path.parents[1]))
    return path.read_bytes()


def _read_coco_of(root: Path) -> Any:
    place = root / "annotations" / "captions_val.json"
    place.parent.mkdir()
    place.write_bytes(COCO)
    return _read_coco(place)


def _model_config(path: Path) -> object:
    return read_model_config(path.parent)


def _golden_card() -> Any:
    return json.loads(RECORD.read_bytes())["card"]


def _statistics() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, mu=np.ones(3), sigma=np.eye(3))
    return buffer.getvalue()


def _read_listed(path: Path) -> object:
    for name in "ab":
        (path.parent / f"{name}.png").write_bytes(b"")
    return read_images(path.parent)


STUDY = _json({
    "version": 1, "study": "s", "question": "q", "models": ["x", "y"],
    "pairs": [{"pair_id": i, "prompt": i, "left": "x", "right": "y"} for i in "ab"],
})  # fmt: skip
ANSWERS = _json({
    "study": "s", "person": "p",
    "answers": [{"pair": "a", "choice": "left"}, {"pair": "b", "choice": "tie"}],
})  # fmt: skip


def _read_answers(path: Path) -> object:
    for name, content in (("key.json", STUDY), ("one.json", ANSWERS)):
        if not path.with_name(name).exists():
            path.with_name(name).write_bytes(content)
    return read_study(path.with_name("key.json"), [path.with_name("one.json")])


def _read_queries(path: Path) -> object:
    """The queries of OpenUni, and the connector that follows them, as an encoder is loaded."""
    with one_line_errors(f"loading {path}"):
        state = read_trained(EncoderSpec.parse("queries:x.safetensors"), path)
        return build_connector(state, 4, torch.float32, path)


def _queries() -> bytes:
    layer = ConnectorLayers(4, 8, 1).state_dict()
    state = {f"connector.{name}": value for name, value in layer.items()}
    return save(state | {"meta_queries": torch.ones(2, 4), "projector.weight": torch.ones(6, 4)})


def _gguf() -> bytes:
    """A header with three texts and no tensors."""

    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    about = {"general.architecture": "llama", "general.name": "x", "general.license": "mit"}
    rows = [text(key) + (8).to_bytes(4, "little") + text(value) for key, value in about.items()]
    sizes = (0).to_bytes(8, "little") + len(rows).to_bytes(8, "little")
    return b"GGUF" + (3).to_bytes(4, "little") + sizes + b"".join(rows)


RECORD = sorted(GOLDEN.rglob("records/**/*.json"))[0]
SCORING = _json({
    "version": 1, "metric": "geneval:?detector=scenes&colors=none", "path": "..", "prompts": [0],
    "notes": ["a"],
})  # fmt: skip
KEPT = _json({
    "key": "k", "prompt_id": 0,
    "metadata": {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a"},
    "images": [{
        "file": "a.png", "size": [4, 4], "sha256": "0" * 64, "value": 1.0,
        "objects": [{"label": "dog", "box": [0, 0, 1, 1], "score": 0.5}],
        "verdict": {"correct": True, "reason": "", "clauses": []},
    }],
})  # fmt: skip
LOG = _json(
    {"step": 1, "stage": "flow-matching", "loss": 1.0},
    {"step": 2, "stage": "emf", "loss": 0.5, "gap_by_t": [0.1, None] * 5},
)
BANK = (
    b"encoder,revision,layer,stage,control,features,recipe,seed,repeat,metric,steps,tier,combos,"
    b"score,prompts,images,source,commit,created,phase\n"
    b"a:b,r,last,final,False,,30ee,0,0,geneval,1,A,seen,0.15,82,2,x,c,2026-11-27T23:50:14+00:00,\n"
    b"a:c,r,last,final,False,,30ee,0,0,geneval,1,A,seen,0.25,82,2,x,c,2026-11-27T23:50:14+00:00,\n"
)
STATE = _json({
    "schema": 1, "files": {}, "step": 3, "instantaneous": False, "config": {"a": 1},
    "encoder": {"spec": "a:b", "revision": "r", "tokens": 4, "pooled": 4},
    "data": {"name": "x", "pin": "y"}, "seconds": 1.5,
    "meters": {"sums": [[0.5] * 10] * 4, "loss": [1.0]},
    "spikes": {"norms": [1.0], "in_a_row": 0, "skipped": 0},
})  # fmt: skip
READERS = {
    "items": Reader(
        gzip.compress(b"item,one,right\n1,1,0.5\nNA,2,\n"), change_gzip, "x.csv.gz", _read_items
    ),
    "about an encoder": Reader(
        _json({"card": _golden_card(), "joint": True, "pooled": False, "latency_ms": 1.5,
               "notes": ["x"], "causal": False}),
        change_json, "about.json", lambda path: read_dataclass(EncoderFacts, path),
    ),
    "shard": Reader(_shard(), change_tensors, "x.safetensors", _read_shard),
    "tensors": Reader(_tensors(), change_tensors, "model.safetensors", read_tensors),
    "state of a training": Reader(
        STATE, change_json, "state.json",
        lambda path: (read_state(path.parent), find_damage(path.parent)),
    ),
    "plan": Reader(
        _json(json.loads(_golden("verdict.json"))["plan"]), change_json, "plan.json", read_plan
    ),
    "result": Reader(
        _json({"key": "k", "right": {"steps=1&tier=A&combos=seen": [0.5, None]}, "parent": {},
               "curve": [{"step": 1, "stage": "meanflow", "value": 0.5}],
               "gap": [{"t": 0.05, "value": 0.1}], "training_seconds": 1, "scoring_seconds": 2,
               "device": "cpu"}),
        change_json, "result.json", lambda path: read_dataclass(ScoredTraining, path),
    ),
    "curve": Reader(_json({"1": 0.5, "2": 0.25}), change_json, "curve.json", _curve),
    "log": Reader(LOG, change_json, "log.jsonl", lambda path: (read_log(path.parent), gap(path))),
    "bank": Reader(BANK, change_bytes, "bank.csv", read_bank),
    "outcomes.csv": Reader(
        b"spec,score,seed\na:b,0.5,0\na:c,0.25,0\n", change_bytes, "x.csv", load_outcomes
    ),
    "outcomes.jsonl": Reader(
        _json({"spec": "a:b", "score": 0.5, "seed": 0}, {"spec": "a:c", "score": 0.25}),
        change_json, "x.jsonl", load_outcomes,
    ),
    "track records": Reader(
        _json([{"rule": "reader", "version": 1, "cell": "steps=4&tier=A&combos=seen",
                "recipe": "30ee", "encoders": 20, "sets": 12, "correlation": 0.9, "low": 0.7,
                "high": 0.98, "source": "x", "commit": "c"}]),
        change_json, "x.json", read_records,
    ),
    "features": Reader(_array(), change_bytes, "x.npy", read_table),
    "scoring": Reader(SCORING, change_json, "scoring.json", _read_scores),
    "scored prompt": Reader(KEPT, change_json, "prompts/00000.json", _read_scores),
    "metadata of a layout": Reader(
        GENEVAL.split(b"\n")[0], change_json, "00000/metadata.jsonl", _read_layout
    ),
    "gallery": Reader(
        _json({"images": {"1": {"thumb": "media/1.jpg", "caption": "a"}}, "encoders": {"a:b": {}}}),
        change_json, "media/gallery.json", _read_gallery,
    ),
    "object of a report": Reader(_json({"a": [1], "b": {}}), change_json, "x.json", read_object),
    "manifest": Reader(
        _json({"files": {"a": hashlib.sha256(b"").hexdigest()}, "about": {"license": "MIT"}}),
        change_json, "manifest.json",
        lambda path: (path.with_name("a").touch(), shipped(path.parent)),
    ),
    "model config": Reader(
        _json({"model_type": "t5", "d_model": 4, "auto_map": None}), change_json, "config.json",
        _model_config,
    ),
    "modules": Reader(
        _json([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.X"}]),
        change_json, "modules.json",
        lambda path: _modules(EncoderSpec.parse("st:x"), path.parent),
    ),
    "index of weights": Reader(
        _json({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}), change_json,
        "model.safetensors.index.json", hub.read_weight_map,
    ),
    "hub lock": Reader(
        _json({"a/b": {"revision": "0" * 40, "files": {"x": "1"}}}), change_json, "hub-lock.json",
        _read_cache(lambda: hub._locked("a/b", None)),
    ),
    "hashes of weights": Reader(
        _json({"PLACE": [7, 1, "x"]}), change_json, "file-hashes.json", _hash_again
    ),
    "folders of encoders": Reader(
        _json({"st:m@1": "st:/a/m"}), change_json, "encoders.json",
        lambda path: (path.rename(path.with_name(PLACES)), read_places(path.parent)),
    ),
    "lock": Reader(
        _json({"machine": _machine(), "host": "h", "process": 1, "started": 1.5, "token": "t"}),
        change_json, "x", lambda path: _is_alive(path.read_bytes()),
    ),
    "device map": Reader(
        _json({"model.layers": 0, "lm_head": "cpu"}), change_json, "x.json",
        lambda path: device_map_of(EncoderSpec.parse(f"causal:x?device_map={path}")),
    ),
    "settings of a run": Reader(
        b'encoders = ["a:b"]\nqueries = 7\nks = [1, 2]\nseed = 3\n', change_bytes, "x.toml",
        lambda path: run_config(read_toml(path)),
    ),
    "config of a run": Reader(
        _json({"encoders": ["a:b"], "queries": 7, "ks": [1], "out": "x", "seed": 0}), change_json,
        "x.json", read_run_config,
    ),
    "settings of a training": Reader(
        b'encoder = "a:b"\nsteps = 7\nlr = 0.1\nnetwork = "dit-16x1x1"\n', change_bytes, "x.toml",
        lambda path: training_config(read_toml(path)),
    ),
    "--set": Reader(
        b"steps=[1, 2.5, 'x']", change_bytes, "x",
        lambda path: parse_settings([path.read_bytes().decode("utf-8", "surrogateescape")]),
    ),
    "encoder spec": Reader(
        b"st:a/b@main?layer=-1&pool=mean&dtype=auto", change_bytes, "x",
        lambda path: EncoderSpec.parse(path.read_bytes().decode("utf-8", "surrogateescape")),
    ),
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
    "captions of your own.jsonl": Reader(
        _json({"caption": "a", "group": 1}, {"caption": "b", "group": 1}), change_json, "x.jsonl",
        load_captions,
    ),
    "captions of your own.csv": Reader(
        b'caption,group\n"a, b",1\nc,1\nd,2\n', change_bytes, "x.csv", load_captions
    ),
    "captions of your own.txt": Reader(b"a\nb\n\nc\n", change_bytes, "x.txt", load_captions),
    "predictions": Reader(
        _json({"encoders": {"a:b": {
            "rules": {"reader": 0.5}, "scores": {"x": {"bits": [1.0, 2.0, 3.0], "seconds": 1}}}}}),
        change_json, "x.json", lambda path: load_predictions([path]),
    ),
    "questions of DPG": Reader(
        b"item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
        b"question_natural_language\np1,A dog.,k,1,0,entity,whole,entity - whole (dog),A dog?\n"
        b'p1,A dog.,k,2,"1",entity,whole,entity - whole (dog),Is it red?\n',
        change_bytes, "x.csv", load_questions,
    ),
    "statistics of FID": Reader(
        _statistics(), change_bytes, "x.npz", lambda path: read_statistics(path, 3)
    ),
    "listed images": Reader(
        _json({"file_name": "a.png", "text": "x", "id": "1"}, {"file_name": "b.png", "text": "y"}),
        change_json, "captions.jsonl", _read_listed,
    ),
    "scores": Reader(
        _json({"version": 1, "images": "x", "prompts": 1, "seed": 0, "metrics": [], "failed": {}}),
        change_json, "scores.json", lambda path: read_scores(path.parent),
    ),
    "key of a study": Reader(STUDY, change_json, "key.json", _read_answers),
    "answers of a study": Reader(ANSWERS, change_json, "one.json", _read_answers),
    "queries": Reader(_queries(), change_tensors, "x.safetensors", _read_queries),
    "header of a GGUF file": Reader(_gguf(), change_bytes, "x.gguf", read_header),
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
def test_the_unchanged_file_is_read(tmp_path: Path, name: str) -> None:
    """Else nothing but the first check of a reader would be tried."""
    path = tmp_path / READERS[name].name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(READERS[name].content)
    READERS[name].read(path)


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
