"""The route of real models, whole: published formats in, verdict out; tiny random weights."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import checkpoints
import decoder_checkpoints
import flow_checkpoints
import geneval_checkpoints
import pytest

from encbench.cli import main
from encbench.confirm.bank import Source, rows_of_run
from encbench.files import write_json
from encbench.records import read_prediction, read_verdict
from encbench.types import Cell


def few(shared: Path, folder: Path, count: int = 12) -> Path:
    """COCO's own captions and files, but only so many images."""
    whole = json.loads((shared / "coco/annotations/captions_val2017.json").read_text("utf-8"))
    there = {path.name: path for path in (shared / "coco/val2017").glob("*.jpg")}
    whole["images"] = [i for i in whole["images"] if i["file_name"] in there][:count]
    kept = {image["id"] for image in whole["images"]}
    whole["annotations"] = [a for a in whole["annotations"] if a["image_id"] in kept]
    write_json(folder / "annotations" / "captions_val2017.json", whole)
    (folder / "val2017").mkdir()
    for image in whole["images"]:
        (folder / "val2017" / image["file_name"]).symlink_to(there[image["file_name"]].resolve())
    return folder


def run(*given: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in given])
    assert not stopped.value.code


@pytest.mark.slow
def test_real_formats_from_ranking_to_verdict(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = few(shared, tmp_path / "coco")
    specs = [
        f"blip3o:{decoder_checkpoints.blip3o(tmp_path / 'tiny-blip3o')}",
        f"t5:{checkpoints.t5(tmp_path / 'tiny-t5')}",
        f"clip:{checkpoints.clip(tmp_path / 'tiny-clip')}",
    ]
    sana = flow_checkpoints.sana(tmp_path / "sana")
    detector = geneval_checkpoints.mask2former(tmp_path / "mask2former")
    out = tmp_path / "run"
    common = ["--out", out, "--store", tmp_path / "store", "--device", "cpu"]
    run(
        "run", "--encoders", *specs, "--coco", coco, "--re-encoder", "pixels", "--probes",
        "retrieval", "--pools", "max", *common,
    )  # fmt: skip

    confirm = [
        "confirm", *common, "--set", f"coco={coco}", "--set", f"network=sana:{sana}", "--set",
        f"autoencoder={sana / 'vae'}", "--set", "side=16", "--set", "batch=4", "--set",
        "warmup=1", "--set", "checkpoint_every=3", "--set", "log_every=1", "--steps", "6",
        "--seeds", "1", "--prompts", shared / "geneval/evaluation_metadata.jsonl", "--per-task",
        "1", "--images", "1", "--detector", f"mask2former:{detector}", "--colors", specs[2],
        *(("--set", "trainable=lora", "--set", "lora_rank=4") if find_spec("peft") else ()),
    ]  # fmt: skip
    run(*confirm)
    verdict = read_verdict(out / "verdict.json")
    assert verdict.prediction == read_prediction(out / "prediction.json").hash
    assert not verdict.failed
    names = {f"{s.partition(':')[0]}:{s.rpartition('/')[2]}" for s in specs}  # no folders
    assert {row.spec.partition("@")[0] for row in verdict.encoders} == {*names, "control:constant"}
    for row in verdict.encoders:
        assert set(row.scores) == {
            Cell("geneval", steps, "file", "seen") for steps in (1, 2, 4, 16)
        }
        assert all(0 <= entry.value <= 1 for entry in row.scores.values())
        assert row.parent
        assert row.gap
        assert (out / row.grid).read_bytes().startswith(b"\x89PNG")
    assert verdict.plan.backbone == ""  # a pretrained network is its own
    assert verdict.plan.train["prediction"] == "u"
    page = (out / "report" / "index.html").read_text("utf-8")
    for word in ("tiny-blip3o", "tiny-t5", "tiny-clip", "The choice"):
        assert word in page

    kept = {p: p.stat().st_mtime_ns for p in (out / "confirm" / "models").rglob("*.safetensors")}
    assert len(kept) >= 4 * 3
    run(*confirm)  # nothing is trained again
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert read_verdict(out / "verdict.json").encoders == verdict.encoders

    rows = rows_of_run(out, Source("real", "", ""))
    assert {row.encoder for row in rows} == {*names, "control:constant"}
    assert all(row.revision for row in rows if not row.control)
