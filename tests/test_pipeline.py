"""The whole way: probes, records, ranking, report; what fails, what resumes, what is refused."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from encbench.cli import main
from encbench.config import RunConfig
from encbench.encoders.control import CONTROLS
from encbench.encoders.local import read_places
from encbench.files import digest_files
from encbench.pipeline import names_of, specs_of
from encbench.records import find_records, read_items, read_prediction, read_record
from encbench.zoo.catalog import ENCODERS

CUSTOM = '''
import numpy as np, torch, os, time, zlib
from encbench.types import EncoderCard, TextFeatures

class Words:
    """A small encoder of hashed words."""
    def __init__(self):
        self.card = EncoderCard("python:words", "python", "words", "0", 64, 40, parameters=64)
    def encode(self, prompts):
        time.sleep(float(os.environ.get("SLOW", "0")))
        rows, cut = [], []
        for p in prompts:
            words = p.lower().split() or ["nothing"]
            seeds = [zlib.crc32(w.encode("utf-8", "replace")) for w in words[:40]]
            rows.append(torch.tensor(
                np.mean([np.random.default_rng(s).standard_normal(64) for s in seeds], axis=0)
            ).float())
            cut.append(len(words) > 40)
        tokens = torch.stack(rows)[:, None]
        mask = torch.ones(len(prompts), 1, dtype=torch.bool)
        return TextFeatures(tokens, mask, torch.tensor(cut))

class Bad(Words):
    def encode(self, prompts):
        made = super().encode(prompts)
        if len(prompts) > 1:
            made.tokens[0] = float("nan")
        return made

class Narrow(Words):
    def encode(self, prompts):
        made = super().encode(prompts)
        tokens = made.tokens[..., :32] if len(prompts) > 1 else made.tokens
        return TextFeatures(tokens, made.mask, made.truncated)

class Raises(Words):
    """Whatever an encoder, a tokenizer or a library may raise."""
    kind = RuntimeError
    def encode(self, prompts):
        raise self.kind("the custom code fell over")

for kind in (IndexError, OverflowError, AssertionError, MemoryError, RecursionError, SystemExit):
    globals()[f"Raises{kind.__name__}"] = type("Raises", (Raises,), {"kind": kind})

class Leaves(Words):
    def __init__(self):
        raise SystemExit(0)
'''
BROKEN = {
    "Bad": "NaN", "Narrow": "64", "Raises": "RuntimeError: the custom code fell over",
    "RaisesIndexError": "IndexError", "RaisesOverflowError": "OverflowError",
    "RaisesAssertionError": "AssertionError", "RaisesMemoryError": "MemoryError",
    "RaisesRecursionError": "RecursionError", "RaisesSystemExit": "called sys.exit(",
    "Leaves": "called sys.exit(0)",
}  # fmt: skip
"""Encoders above that fail, and what their line says."""


@pytest.fixture(scope="module")
def custom(tmp_path_factory) -> str:
    """Spec of the file with custom encoders, without the attribute."""
    path = tmp_path_factory.mktemp("custom") / "mine.py"
    path.write_text(CUSTOM)
    return f"python:{path}"


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return caught.value.code or 0


def scores(out: Path) -> dict[str, str]:
    """All scores and items of a run, as the bytes on disk say them."""
    found = {}
    for path in find_records(out):
        record = json.loads(path.read_text())
        items = path.with_name(record["items"]).read_bytes()
        name = path.relative_to(out).as_posix()
        found[name] = json.dumps([record["scores"], record["key"]]) + items.hex()
    return found


SMALL = (
    "--re-encoder", "labels", "--queries", "60", "--draws", "2", "--shares", "0.3", "0.5", "0.7",
    "--limit", "30",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(custom, tmp_path_factory) -> Path:
    """A small run on the embedded scenes, uninterrupted."""
    out = tmp_path_factory.mktemp("finished")
    store = str(out / "store")
    with pytest.raises(SystemExit) as caught:
        main(["run", "--encoders", f"{custom}:Words", "--out", str(out), "--store", store, *SMALL])
    assert not caught.value.code
    return out


def test_a_run_leaves_everything_a_reader_wants(finished, custom):
    prediction = read_prediction(finished / "prediction.json")
    specs = [row.spec for row in prediction.order]
    assert public(custom) in specs
    assert {*CONTROLS, f"control:shuffle({public(custom)})"} <= set(specs)
    assert prediction.advice.use == public(custom)
    assert prediction.rule.name == "reader"
    assert [o.rule.name for o in prediction.others] == ["emf-retrieval", "reader-other-words"]
    assert all(len(o.order) == len(prediction.order) for o in prediction.others)
    assert {"published@2", "published"} <= {r.score for r in prediction.rivals}
    for name in ("index.html", "report.md", "ranking.csv", "ranking.tex"):
        assert (finished / "report" / name).stat().st_size > 100
    for path in find_records(finished):
        record = read_record(path)
        assert record.scores
        assert record.provenance["packages"]["torch"]
        assert len(read_items(path, record)) > 0
        for row in record.scores.values():
            assert row.low - 1e-9 <= row.value <= row.high + 1e-9


def test_controls_say_what_they_must(finished):
    by_name = {}
    for path in find_records(finished):
        record = read_record(path)
        if not record.variant:
            by_name[record.name, record.probe.name] = record.scores
    assert by_name["constant", "ablation"]["published"].value == 1
    assert by_name["constant", "ablation"]["calibrated"].value == 0
    (ours,) = (v for (n, p), v in by_name.items() if p == "ablation" and n == "mine.py:Words")
    for control in ("constant", "random", "shuffle(mine.py:Words)"):
        assert ours["calibrated"].low > by_name[control, "ablation"]["calibrated"].high
    against = [p for p in read_prediction(finished / "prediction.json").pairs if "control" in p.b]
    assert len(against) == 3
    assert all(pair.difference > 0 and pair.distinguishable for pair in against)


def test_the_same_command_does_nothing_again(finished, custom, capsys):
    before = {p: p.stat().st_mtime_ns for p in find_records(finished)}
    prediction = (finished / "prediction.json").read_bytes()
    store = str(finished / "store")
    code = run(
        "run", "--encoders", f"{custom}:Words", "--out", str(finished), "--store", store, *SMALL
    )
    assert code == 0
    assert {p: p.stat().st_mtime_ns for p in find_records(finished)} == before
    assert (finished / "prediction.json").read_bytes() == prediction


def test_rank_and_report_alone_give_the_same(finished, capsys):
    prediction = (finished / "prediction.json").read_bytes()
    assert run("rank", str(finished)) == 0
    assert (finished / "prediction.json").read_bytes() == prediction
    assert run("report", str(finished)) == 0
    assert "index.html" in capsys.readouterr().out


@pytest.mark.slow
def test_four_kills_leave_the_same_bytes(custom, tmp_path):
    """SIGKILL at four random moments, started again each time: byte-identical scores."""
    command = [
        sys.executable, "-m", "encbench", "run", "--encoders", f"{custom}:Words",
        "--out", str(tmp_path / "out"), "--store", str(tmp_path / "store"), *SMALL,
        "--limit", "16", "--probes", "retrieval", "ablation", "minimal-pairs",
    ]  # fmt: skip
    rng = random.Random(0)
    killed = 0
    environment = {**os.environ, "SLOW": "0.1"}

    def written() -> int:
        return sum(path.is_file() for path in tmp_path.rglob("*"))

    # Both runs are processes of their own: low bits depend on how many threads BLAS has.
    while killed < 4:
        goal = written() + rng.randint(0, 10)  # so that each life gets some way, but not far
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while written() < goal and process.poll() is None:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        assert process.poll() is None, "it came to its end before it was killed four times"
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert list((tmp_path / "store").rglob("*.safetensors"))
    subprocess.run(command, check=True, capture_output=True)
    whole = [word.replace(str(tmp_path), str(tmp_path / "whole")) for word in command]
    subprocess.run(whole, check=True, capture_output=True)
    assert scores(tmp_path / "out") == scores(tmp_path / "whole" / "out")


def test_bad_encoders_lose_nothing_else(custom, tmp_path, capsys):
    """Whatever they raise becomes one line for each, and the others get their ranking."""
    (tmp_path / "leaves.py").write_text("import sys; sys.exit(0)")
    broken = {f"{custom}:{name}": said for name, said in BROKEN.items()}
    broken[f"python:{tmp_path}/leaves.py:Any"] = "called sys.exit(0)"
    code = run(
        "run", "--encoders", *broken, f"{custom}:Words", "--out", str(tmp_path / "run"),
        "--store", str(tmp_path / "store"), "--probes", "retrieval", *SMALL, "--limit", "60",
    )  # fmt: skip
    err = capsys.readouterr().err
    assert code == 1
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("encbench: ")]
    assert len(lines) == len(broken)
    prediction = read_prediction(tmp_path / "run" / "prediction.json")
    assert prediction.advice.use == public(custom)
    for (spec, said), line, row in zip(broken.items(), lines, prediction.failed, strict=True):
        name = f"python:{spec.rpartition('/')[2]}"
        assert row.spec == name
        assert line.startswith(f"encbench: {name} failed: ")
        assert said in line
        assert str(tmp_path) not in row.error
    assert {row.spec for row in prediction.order} >= {public(custom), *CONTROLS}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--probes", "minimal-pairs"],
            "by the reader or retrieval probe, which --probes leaves out; add it",
        ),
        (["--rule", "reader", "--probes", "retrieval"], "by the reader probe, which --probes"),
        (["--rule", "readers"], "unknown rule 'readers'; did you mean reader"),
        (
            ["--probes", "ablation", "diagnostics"],
            "or measure without ranking: encbench probe",
        ),
        (
            ["--dpg", "{prompts}", "--rule", "emf-retrieval"],
            "rule emf-retrieval needs captions, and none were given: add --coco FOLDER",
        ),
    ],
)
def test_a_run_that_cannot_rank_is_refused_before_the_work(tmp_path, capsys, flags, said):
    (tmp_path / "prompts.jsonl").write_text('{"item_id": "1", "text": "a red cat and a dog"}\n')
    flags = [flag.format(prompts=tmp_path / "prompts.jsonl") for flag in flags]
    assert run("run", "--encoders", "control:constant", "--out", str(tmp_path / "run"), *flags) == 2
    assert said in only_line(capsys)
    assert not (tmp_path / "run").exists()


def test_records_name_a_local_encoder_by_its_name_and_content(finished, custom):
    """Nothing that is shared says where the encoder lay; what resuming needs lies beside it."""
    place = custom.partition(":")[2]
    for path in [*find_records(finished), finished / "prediction.json"]:
        assert str(Path(place).parent) not in path.read_text()
        assert str(finished) not in path.read_text()
    assert read_places(finished)[public(custom)] == f"{custom}:Words"


def public(custom: str) -> str:
    """The spec of the words encoder as records hold it."""
    path = Path(custom.partition(":")[2])
    return f"python:{path.name}:Words@{digest_files([path])[:12]}"


def coco(root: Path, images: int = 12, **change) -> Path:
    """A small folder in COCO's layout, whole but for what ``change`` breaks."""
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    records = [
        {"id": i, "file_name": f"{i:012d}.jpg", "width": 40, "height": 30} for i in range(images)
    ]
    for i, record in enumerate(records):
        Image.new("RGB", (40, 30), (20 * i, 255 - 20 * i, 100)).save(
            root / "val2017" / record["file_name"]
        )
    captions = [
        {"id": 10 * i + j, "image_id": i, "caption": f"picture {i} of thing {i % 4} worded {j}"}
        for i in range(images)
        for j in range(3)
    ]
    records[0] |= change.get("first_image", {})
    body = {"images": records, "annotations": captions, "info": {}, "licenses": []}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(body))
    return root


def coco_run(folder: Path, out: Path, custom: str, *more: str) -> int:
    """Small, and by the probes of both rules, unless ``more`` names others."""
    more = more if "--probes" in more else ("--probes", "retrieval", "reader", *more)
    return run(
        "run", "--encoders", f"{custom}:Words", "--coco", str(folder), "--re-encoder", "pixels",
        "--ks", "1", "2", "--limit", "12", "--out", str(out), "--store", str(out / "store"), *more,
    )  # fmt: skip


def only_line(capsys) -> str:
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("encbench: ")]
    return line


def test_images_are_retrieved_and_shown(custom, tmp_path):
    assert coco_run(coco(tmp_path / "coco"), tmp_path / "out", custom) == 0
    prediction = read_prediction(tmp_path / "out" / "prediction.json")
    assert prediction.rule.metric == "readable-entropy"
    assert prediction.others[0].rule.metric == "scaled@2"
    assert list((tmp_path / "out" / "media").glob("*.jpg"))
    assert "data:image/jpeg" in (tmp_path / "out" / "report" / "index.html").read_text()


def test_a_probe_that_reads_no_image_needs_no_re_encoder(custom, tmp_path, monkeypatch):
    """Nothing is fetched for it, and its record stays when other probes join."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder, out = coco(tmp_path / "coco"), tmp_path / "out"
    alone = ("--re-encoder", "dinov3", "--probes", "diagnostics", "--limit", "12")
    words = ("--encoders", f"{custom}:Words", "--coco", str(folder), "--out", str(out))
    assert run("probe", *words, *alone, "--store", str(out / "store")) == 0
    (before,) = [p for p in find_records(out) if "Words" in str(p) and "shuffle" not in str(p)]
    written = before.read_bytes()
    assert coco_run(folder, out, custom, "--probes", "diagnostics", "retrieval") == 0
    assert before.read_bytes() == written


def test_a_gallery_that_a_kill_took_is_made_again(custom, tmp_path):
    """As if the run had been killed after its records and before their pictures."""
    folder, media = coco(tmp_path / "coco"), tmp_path / "out" / "media"
    assert coco_run(folder, tmp_path / "out", custom) == 0
    before = {path.name: path.read_bytes() for path in media.iterdir()}
    shutil.rmtree(media)
    assert coco_run(folder, tmp_path / "out", custom) == 0
    assert {path.name: path.read_bytes() for path in media.iterdir()} == before


def test_a_truncated_image_is_named_and_may_be_unscored(custom, tmp_path, capsys):
    folder = coco(tmp_path / "coco")
    broken = folder / "val2017" / "000000000003.jpg"
    broken.write_bytes(broken.read_bytes()[:-200])
    assert coco_run(folder, tmp_path / "out", custom) == 1
    assert "000000000003.jpg" in only_line(capsys)
    assert coco_run(folder, tmp_path / "out", custom, "--allow-missing-images") == 0
    record = next(
        read_record(p) for p in find_records(tmp_path / "out") if p.name == "retrieval.main.json"
    )
    assert record.scores["scaled@2"].unscored == 1
    assert record.scores["scaled@2"].n == 11


def test_an_escaping_file_name_is_refused(custom, tmp_path, capsys):
    folder = coco(tmp_path / "coco", first_image={"file_name": "../../etc/passwd"})
    assert coco_run(folder, tmp_path / "out", custom) == 1
    assert "../../etc/passwd" in only_line(capsys)


def test_k_beyond_the_gallery_is_told(custom, tmp_path, capsys):
    folder = coco(tmp_path / "coco", images=5)
    assert coco_run(folder, tmp_path / "out", custom, "--ks", "50") != 0
    assert "k = 50 is larger than the gallery" in capsys.readouterr().err


def test_a_damaged_record_is_measured_again(custom, tmp_path, capsys):
    folder, out = coco(tmp_path / "coco"), tmp_path / "out"
    assert coco_run(folder, out, custom) == 0
    before = scores(out)
    path = find_records(out)[0]
    path.write_text(path.read_text()[:50])
    assert run("rank", str(out)) == 1
    assert path.name in only_line(capsys)
    assert coco_run(folder, out, custom) == 0
    assert scores(out) == before


def test_an_unwritable_place_is_one_line(custom, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert run("run", "--encoders", f"{custom}:Words", "--out", str(blocked / "out"), *SMALL) == 1
    only_line(capsys)
    where = ("--out", str(tmp_path / "out"), "--store", str(blocked / "store"))
    assert run("run", "--encoders", f"{custom}:Words", *where, *SMALL) == 1
    assert "store" in only_line(capsys)


def test_full_disk_keeps_what_is_done(custom, tmp_path, capsys, monkeypatch):
    import errno

    from encbench import files

    count, real = [0], os.fsync

    def fills_up(handle: int) -> None:
        count[0] += 1
        if count[0] > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    words = (
        "run", "--encoders", f"{custom}:Words", "--out", str(tmp_path / "out"),
        "--store", str(tmp_path / "store"), "--probes", "retrieval", *SMALL,
    )  # fmt: skip
    monkeypatch.setattr(files.os, "fsync", fills_up)
    assert run(*words) == 1
    assert "the disk is full" in only_line(capsys)
    monkeypatch.setattr(files.os, "fsync", real)
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.safetensors")}
    assert len(kept) > 3
    assert run(*words) == 0
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())


def test_every_run_has_all_controls_and_a_shuffle_of_each_candidate():
    specs = specs_of(RunConfig(encoders=("st:/a/b", "control:constant", "st:/a/c")))
    assert [str(s) for s in specs] == [
        "st:/a/b", "st:/a/c", "control:constant",
        *[c for c in CONTROLS if c != "control:constant"],
        "control:shuffle(st:/a/b)", "control:shuffle(st:/a/c)",
    ]  # fmt: skip


def test_names_are_short_and_unique():
    texts = (
        "st:/models/mini",
        "st:/other/mini",
        "t5:google/t5-v1_1-xl?layer=penultimate",
        "t5:google/t5-v1_1-xl",
    )
    specs = specs_of(RunConfig(encoders=texts))
    names = names_of(specs)
    assert len(set(names.values())) == len(specs)
    by_text = {str(s): n for s, n in names.items()}
    assert by_text["control:constant"] == "constant"
    assert by_text["t5:google/t5-v1_1-xl?layer=penultimate"] == "t5-v1_1-xl?layer=penultimate"


def test_without_encoders_and_data_the_zoo_is_ranked(tmp_path):
    specs = [str(spec) for spec in specs_of(RunConfig(), known=False)]
    assert tuple(specs[: len(ENCODERS)]) == ENCODERS
    assert {*CONTROLS} <= set(specs)
    shuffles = [spec for spec in specs if "shuffle" in spec]
    assert shuffles == [f"control:shuffle({spec})" for spec in ENCODERS if "step" not in spec]
    alone = ("zoo:mini-t5?step=3pct",)  # no other step of it: it keeps its own shuffle
    assert any("shuffle" in str(s) for s in specs_of(RunConfig(encoders=alone), known=False))
    assert not [s for s in specs_of(RunConfig(coco=tmp_path)) if s.family != "control"]
