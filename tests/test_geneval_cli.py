"""``encbench geneval``, with tiny models; bad input in one line each."""

import json
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import open_clip
from geneval_checkpoints import mask2former
from PIL import Image

from encbench import cli
from encbench.data.geneval import load_geneval


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["geneval", *map(str, arguments)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, " ".join(shown.err.split())

    return call


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("models")
    clip, detector = open_clip(base / "clip"), mask2former(base / "m2f")
    return ["--detector", f"mask2former:{detector}", "--colors", f"clip:{clip}", "--device", "cpu"]


@pytest.fixture
def images(tmp_path, run):
    """Prompts laid out by the command, with two images each."""
    folder = tmp_path / "images"
    assert run("prompts", "--out", folder, "--per-task", "2", "--seed", "3")[0] == 0
    rng = np.random.default_rng(0)
    for samples in sorted(folder.glob("*/samples")):
        for name in ("0000.png", "0001.png"):
            blocks = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((48, 48), 0).save(samples / name)
    return folder


def test_prompts(run, tmp_path, shared):
    code, out, _ = run("prompts", "--out", tmp_path / "p.jsonl", "--per-task", "counting=5")
    assert (code, out.startswith("5 prompts are in")) == (0, True)
    assert {p.task for p in load_geneval(tmp_path / "p.jsonl")} == {"counting"}
    published = shared / "geneval" / "evaluation_metadata.jsonl"
    assert run("prompts", "--from", published, "--out", tmp_path / "folders")[0] == 0
    last = (tmp_path / "folders" / "00552" / "metadata.jsonl").read_text()
    assert last == published.read_text().splitlines()[-1] + "\n"


def test_score_compare_and_gallery(run, images, models, tmp_path, check_answer):
    code, out, err = run("score", images, "--out", tmp_path / "s", *models)
    assert code == 0, err
    assert "overall" in out
    assert "these are 12 prompts" in out
    assert len((tmp_path / "s" / "results.jsonl").read_text().splitlines()) == 24
    again = run("score", images, "--out", tmp_path / "s", *models)
    assert again[1] == out
    code, out, err = run("compare", tmp_path / "s", tmp_path / "s")
    assert (code, "+0.000" in out) == (0, True), err
    code, out, err = run("compare", tmp_path / "s", tmp_path / "s", "--detectors")
    assert code == 0, err
    assert "all images" in out
    for kind, flags in (("comparison", []), ("agreement", ["--detectors"])):
        code, out, err = run("compare", tmp_path / "s", tmp_path / "s", *flags, "--json")
        assert (code, check_answer(out)["kind"]) == (0, kind), err
    code, out, err = run("gallery", tmp_path / "s")
    assert code == 0, err
    assert (tmp_path / "s" / "gallery.html").is_file()
    assert out == f"open {tmp_path / 's' / 'gallery.html'}\n"
    assert (tmp_path / "s" / "breakdown.csv").read_text().startswith("by,value,prompts,images")


def broken_line(folder):
    (folder / "00001" / "metadata.jsonl").write_text('{"tag": "colors"\n')


def strange_color(folder):
    path = folder / "00006" / "metadata.jsonl"
    record = json.loads(path.read_text())
    record["include"][0]["color"] = "mauve"
    path.write_text(json.dumps(record))


def strange_class(folder):
    path = folder / "00001" / "metadata.jsonl"
    record = json.loads(path.read_text())
    record["include"][0]["class"] = "unicorn"
    path.write_text(json.dumps(record))


def no_images(folder):
    for path in folder.glob("*/samples/*"):
        path.unlink()


def all_broken(folder):
    for path in folder.glob("*/samples/*"):
        path.write_bytes(b"not a picture")


def other_layout(folder):
    for path in folder.iterdir():
        path.rename(folder / f"prompt-{path.name}")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (other_layout, "is not in GenEval's layout: it has no numbered folder; expected 00000/"),
        (broken_line, "00001/metadata.jsonl is not valid JSON"),
        (strange_class, "needs the class 'unicorn', which mask2former:"),
        (strange_color, "has the color the text 'mauve', not one of red, orange, yellow"),
        (no_images, "holds no images that can be used: nothing is in any samples folder"),
        (all_broken, "could be scored: cannot read the image 00000/samples/0000.png"),
    ],
)
def test_bad_folders_end_with_one_line(run, images, models, tmp_path, spoil, said):
    spoil(images)
    code, _, err = run("score", images, "--out", tmp_path / "s", *models)
    assert code == 1
    assert said in err
    assert err.startswith("encbench: ")
    assert err.count("encbench: ") == 1


def test_other_bad_input(run, images, models, tmp_path):
    out = ["--out", tmp_path / "s"]
    for arguments, status, said in (
        (["score", tmp_path / "none", *out, *models], 1, "there is no folder"),
        (["score", images, *out, "--detector", "yolo"], 2, "unknown detector 'yolo'"),
        (["score", images, *out, *models, "--colors", "clipp:x"], 2, "unknown encoder 'clipp'"),
        (["compare", tmp_path, tmp_path], 1, "holds no scores"),
        (["gallery", tmp_path], 1, "holds no scores"),
        (["prompts", "--out", tmp_path / "p", "--per-task", "x=1"], 2, "unknown GenEval task 'x'"),
    ):
        code, _, err = run(*arguments)
        assert (code, said in err) == (status, True), err


def test_list_shows_metrics_and_detectors(capsys):
    for kind, names in (
        ("metrics", ("geneval", "GenEval: are the objects there")),
        ("detectors", ("mask2former", "scenes", "python:MODULE:NAME")),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(["list", kind])
        assert ended.value.code == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert all(name in shown for name in names), shown


def test_loading_it_loads_no_library_that_a_gpu_machine_may_lack():
    names = ("faiss", "open_clip", "diffusers", "pycocotools")
    code = "import importlib, pkgutil, sys, encbench.metrics as metrics\n"
    code += "for part in pkgutil.walk_packages(metrics.__path__, metrics.__name__ + '.'):\n"
    code += "    importlib.import_module(part.name)\n"
    code += "assert 'encbench.metrics.geneval.gallery' in sys.modules\n"
    code += f"print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
