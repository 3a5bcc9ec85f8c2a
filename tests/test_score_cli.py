"""``encbench score`` and ``encbench compare``: layouts, one record, resuming, processes."""

import csv
import json

import metric_checkpoints
import numpy as np
import pytest
from checkpoints import clip
from PIL import Image
from test_distributed import run_two

from encbench import cli
from encbench.config import ScoreConfig
from encbench.data.geneval import generate_prompts
from encbench.errors import DataError, RecordError, UsageError
from encbench.metrics.dpg import COLUMNS
from encbench.metrics.folder import read_images
from encbench.metrics.geneval.generate import write_prompts
from encbench.metrics.run import compare_all, read_scores, score_all


def gray(value, size=(16, 16)):
    return Image.new("RGB", size, (int(value),) * 3)


def captions(folder, rows):
    """rows: (file, gray level, text, more keys)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, value, text, more in rows:
        if value is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            gray(value).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": text, **more}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


def styled(folder, shift=0):
    styles = ("anime", "photo")
    return captions(
        folder,
        [
            (f"{s}/{i}-{k}.png", 20 + 10 * i + 100 * (s == "photo") + k + shift, f"{s} {i}",
             {"style": s})
            for s in styles for i in range(8) for k in range(2)
        ],
    )  # fmt: skip


def config(images, out, *metrics, **more):
    return ScoreConfig(images=images, out=out, metrics=metrics, device="cpu", **more)


def test_a_folder_with_captions_by_several_metrics(outside, tmp_path):
    """Images with one caption are of one prompt; styles apart, and all together; one record."""
    images = styled(tmp_path / "images")
    record = score_all(config(images, tmp_path / "out", "brightness", "spread?reference=60"))
    assert read_scores(tmp_path / "out") == record
    bright, spread = record.metrics
    assert (record.prompts, bright.name) == (16, "brightness")
    assert set(bright.scores) == {"anime", "photo", "overall"}
    assert bright.scores["anime"].value == pytest.approx((20 + 35 + 0.5) / 255)
    assert bright.scores["overall"].value == pytest.approx((20 + 35 + 0.5 + 50) / 255)
    assert bright.scores["overall"].low < bright.scores["overall"].value
    assert bright.scores["overall"].n == 16
    assert spread.scores["overall"].value == pytest.approx(105.5 - 60)
    assert spread.scores["overall"].low < 45.5 < spread.scores["overall"].high


def test_scoring_goes_on_and_a_metric_that_fails_stops_no_other(outside, tmp_path, caplog):
    images, out = styled(tmp_path / "images"), tmp_path / "out"
    record = score_all(config(images, out, f"pickscore:{tmp_path}", "brightness"))
    assert [row.spec.name for row in record.metrics] == ["brightness"]
    assert "holds" in record.failed[f"pickscore:{tmp_path}"]
    kept = {p: p.stat().st_mtime_ns for p in (out / "brightness" / "prompts").iterdir()}
    assert len(kept) == 16
    gray(0).save(images / "anime" / "3-0.png")
    again = score_all(config(images, out, "brightness"))
    changed = [p for p, when in kept.items() if p.stat().st_mtime_ns != when]
    assert changed
    assert again.metrics[0].scores["anime"].value < record.metrics[0].scores["anime"].value
    with pytest.raises(DataError, match="vqa needs prompts with clauses"):
        score_all(config(images, out, "vqa?answerer=bright"))


def test_what_is_missing_is_unscored_and_named(outside, tmp_path):
    images = captions(
        tmp_path / "images",
        [("a.png", 10, "one", {}), ("b.png", None, "two", {}), ("c.png", 30, "three", {})],
    )
    long = f"{'x' * 300}.png"  # no file can have this name
    with (images / "captions.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"file_name": long, "text": "four"}) + "\n")
    gray(0).save(images / "spare.png")
    (images / "c.png").write_bytes(b"broken")
    (row,) = score_all(config(images, tmp_path / "out", "brightness")).metrics
    assert row.scores["overall"].value == pytest.approx(10 / 255)  # never zero for the others
    assert (row.scores["overall"].n, row.scores["overall"].unscored) == (1, 3)
    assert set(row.unscored) == {"b.png", "c.png", long}
    assert any("images have no line in captions.jsonl" in note for note in row.notes)
    assert any("2 of 4 images are missing" in note for note in row.notes)


@pytest.mark.parametrize(
    "names", [("a.png", "a.png"), ("a.png", "./a.png"), ("a/b.png", "a//b.png")]
)
def test_an_image_listed_twice_for_a_prompt_is_refused(tmp_path, names):
    rows = [(name, 9, "x", {"id": 7}) for name in names]
    with pytest.raises(DataError, match=r"line 2 of .*captions\.jsonl names .* a second time"):
        read_images(captions(tmp_path, rows))
    other = [(name, 9, "x", {"id": number}) for number, name in enumerate(names)]
    assert len(read_images(captions(tmp_path, other)).prompts) == 2  # of two prompts it may be


@pytest.mark.parametrize(
    "names", [("1.png", "1.jpg"), ("1_0.png", "1_0.webp"), ("1/0.png", "1/0.jpg")]
)
def test_two_files_of_one_name_are_refused(tmp_path, names):
    (tmp_path / "prompts.jsonl").write_text('{"item_id": "1", "text": "a dog"}\n')
    for name in names:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        gray(9).save(tmp_path / "images" / name)
    with pytest.raises(DataError, match="stand for the same item; remove one"):
        read_images(tmp_path / "images", prompts=tmp_path / "prompts.jsonl")


def test_images_named_by_a_prompt_s_id_in_grids_or_alone(outside, tmp_path):
    """2 x 2 images in one file, row by row; then the same as files of their own."""
    rows = [(i, f"text {i}", 1, "0", "entity (x)", "q?") for i in ("dog1", "dog_2", "cat3")]
    path = tmp_path / "q.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    grids, alone = tmp_path / "grids", tmp_path / "alone"
    grids.mkdir()
    alone.mkdir()
    for name, base in (("dog1", 0), ("dog_2", 40)):
        whole = Image.new("RGB", (32, 32))
        for i in range(4):
            whole.paste(gray(base + 10 * i), (i % 2 * 16, i // 2 * 16))
            gray(base + 10 * i).save(alone / f"{name}_{i}.png")
        whole.save(grids / f"{name}.png")
    (alone / "stranger.png").write_bytes((alone / "dog1_0.png").read_bytes())
    found = []
    for images, grid in ((grids, 2), (alone, 1)):
        folder = read_images(images, prompts=path, grid=grid)
        assert [len(folder.samples[p.prompt_id]) for p in folder.prompts] == [4, 4, 4]
        assert [p.name for p in folder.prompts] == ["cat3", "dog1", "dog_2"]
        out = tmp_path / f"out{grid}"
        found.append(score_all(config(images, out, "brightness", prompts=path, grid=grid)))
    for record in found:
        (row,) = record.metrics
        assert row.scores["overall"].value == pytest.approx((15 + 55) / 2 / 255)
        assert (row.scores["overall"].n, row.scores["overall"].unscored) == (2, 4)
        assert any("image 0 of cat3 is missing" in problem for problem in row.unscored.values())
    assert any("named by no id" in note for note in found[1].metrics[0].notes)


@pytest.mark.parametrize(
    ("make", "more", "said"),
    [
        (lambda f: None, {}, "there is no folder"),
        (lambda f: f.mkdir(), {}, "holds no images with prompts"),
        (lambda f: captions(f, []), {}, "holds no lines"),
        (lambda f: captions(f, [("a.png", None, "x", {})]), {}, "none of the 1 images"),
        (lambda f: captions(f, [("../a.png", None, "x", {})]), {}, "does not name a file inside"),
    ],
)
def test_folders_that_cannot_be_read_are_one_line(outside, tmp_path, make, more, said):
    make(tmp_path / "images")
    with pytest.raises(DataError, match=said) as caught:
        score_all(config(tmp_path / "images", tmp_path / "out", "brightness"))
    assert "\n" not in str(caught.value)


def test_names_that_match_no_prompt(tmp_path, outside):
    (tmp_path / "p.jsonl").write_text('{"item_id": "x1", "text": "a dog"}\n')
    (tmp_path / "images").mkdir()
    gray(1).save(tmp_path / "images" / "y.png")
    with pytest.raises(DataError, match=r"no image in .* is named by a prompt's id .*x1\.png"):
        read_images(tmp_path / "images", prompts=tmp_path / "p.jsonl")
    with pytest.raises(UsageError, match="name at least one metric"):
        score_all(config(tmp_path / "images", tmp_path / "out"))
    with pytest.raises(UsageError, match="named twice"):
        score_all(config(tmp_path / "images", tmp_path / "out", "brightness", "brightness"))


def test_comparison_is_paired_for_any_metric(outside, tmp_path):
    """The second model is 7 gray levels brighter on every prompt: the difference has an interval
    of no width, though prompts differ by far more."""
    for name, shift in (("a", 0), ("b", 7)):
        images = styled(tmp_path / name, shift)
        score_all(config(images, tmp_path / f"{name}-out", "brightness", "spread"))
    lines = compare_all(tmp_path / "a-out", tmp_path / "b-out")
    rows = [line.split() for line in lines[1:] if line.startswith("  ")]
    assert [row[0] for row in rows] == ["anime", "photo", "overall", "overall"]
    change = f"{7 / 255:+.4f}"
    assert all(row[3:6] == [change, f"[{change},", f"{change}]"] for row in rows[:3])
    assert rows[3][3:6] == ["+7.0000", "[+7.0000,", "+7.0000]"]
    with pytest.raises(RecordError, match=r"holds no scores\.json"):
        compare_all(tmp_path / "a-out", tmp_path / "none")


@pytest.mark.slow
def test_geneval_layout_and_geneval_beside_others_by_the_command(tmp_path, capsys):
    """GenEval through the same command gives what 'geneval score' gives."""
    prompts = generate_prompts(["circle", "star"], seed=0, per_task={"single_object": 2})
    images = tmp_path / "images"
    write_prompts(prompts, images)
    for samples in sorted(images.glob("*/samples")):
        Image.effect_noise((32, 32), 50).convert("RGB").save(samples / "0000.png")
    model = clip(tmp_path / "clip")

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, arguments), "--device", "cpu"])
        shown = capsys.readouterr()
        assert ended.value.code == 0, shown.err
        return shown.out

    out = run("score", images, "--metrics", "geneval?detector=scenes&colors=none",
              f"clipscore:{model}", "--out", tmp_path / "s")  # fmt: skip
    assert "GenEval (share of correct images)" in out
    assert "CLIPScore" in out
    alone = ("--detector", "scenes", "--colors", "none")
    run("geneval", "score", images, "--out", tmp_path / "g", *alone)
    theirs = json.loads((tmp_path / "g" / "scores.json").read_text())["scores"]
    (ours,) = (r for r in read_scores(tmp_path / "s").metrics if r.spec.name == "geneval")
    assert ours.scores["overall"].value == theirs["overall"]["value"]


@pytest.mark.slow
def test_two_processes_score_as_one_does(outside, tmp_path):
    """The same scores, and the same features, whatever the number of processes."""
    folder = tmp_path / "images"
    rng = np.random.default_rng(0)
    rows = []
    for i in range(80):
        rows.append((f"{i}.png", rng.integers(256), f"a photo of dog {i}", {}))
    captions(folder, rows)
    model = metric_checkpoints.pickscore(tmp_path / "pick")
    metrics = (f"pickscore:{model}", "spread")
    score_all(config(folder, tmp_path / "one", *metrics))
    arguments = ["-m", "encbench", "score", str(folder), "--metrics", *metrics]
    ended = run_two([*arguments, "--device", "cpu", "--out", str(tmp_path / "two")])
    assert [code for code, _ in ended] == [0, 0], ended
    one, two = (read_scores(tmp_path / name) for name in ("one", "two"))
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert a.scores["overall"].value == pytest.approx(b.scores["overall"].value, rel=1e-6)
    features = [np.load(tmp_path / name / "spread" / "features.npy") for name in ("one", "two")]
    assert np.array_equal(*features)
