"""Scenes as COCO files, as GenEval prompts and as the default data of a run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scene_parser import parse

from encbench.data.coco import load_coco
from encbench.data.geneval import TASKS
from encbench.data.scenes import coco
from encbench.data.scenes.coco import LABELS, make_scenes
from encbench.data.scenes.default import scene_captions, scene_prompts_long
from encbench.data.scenes.prompts import prompt_held_out, scene_prompts
from encbench.data.scenes.render import masks, render, to_bytes
from encbench.data.scenes.sampler import sample_scenes
from encbench.data.scenes.world import EASY, SHAPES
from encbench.errors import DataError, EncbenchError, StoreError, UsageError
from encbench.vision import load_reencoder

COUNT, SIDE = 30, 48


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes")
    for split in ("probe-test", "generator-train"):
        assert make_scenes(split, out, count=COUNT, size=SIDE) == out
    return out


def files(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_the_same_loader_reads_it(folder):
    found = load_coco(folder, split="probe-test")
    batch = sample_scenes("probe-test", COUNT)
    images = to_bytes(render(batch, SIDE)).numpy()
    visible = masks(batch, SIDE)
    assert found.name == "coco-probe-test"
    assert found.labels == LABELS
    assert not found.notes
    assert Counter(c.image_id for c in found.captions) == dict.fromkeys(range(1, COUNT + 1), 9)
    for i, (record, scene) in enumerate(zip(found.images, batch, strict=True)):
        assert record.path is not None
        assert (np.asarray(Image.open(record.path)) == images[i]).all()
        assert (record.width, record.height, record.license) == (SIDE, SIDE, "Apache-2.0")
        assert record.instances is not None
        assert [x.label for x in record.instances] == [
            f"{o.color} {o.shape}" for o in scene.objects
        ]
        assert [x.area for x in record.instances] == [
            float(visible[i, k].sum()) for k in range(len(scene.objects))
        ]
        for instance, thing in zip(record.instances, scene.objects, strict=True):
            assert np.abs(np.array(instance.box) - np.array(thing.box) * SIDE).max() < 1.5


def test_masks_come_back_as_they_were(folder):
    from pycocotools.coco import COCO

    read = COCO(str(folder / "annotations" / "instances_probe-test.json"))
    visible = masks(sample_scenes("probe-test", COUNT), SIDE)
    for i in range(COUNT):
        found = [read.annToMask(a) for a in read.loadAnns(read.getAnnIds(i + 1))]
        for k, mask in enumerate(found):
            assert torch.equal(torch.from_numpy(mask).bool(), visible[i, k])


def test_captions_keep_to_the_tiers_of_their_split(folder):
    for split, tiers in (("probe-test", "ABC"), ("generator-train", "A")):
        written = json.loads((folder / "annotations" / f"captions_{split}.json").read_text())
        assert {c["tier"] for c in written["annotations"]} == set(tiers)
        assert {c["style"] for c in written["annotations"]} == {"short", "long"}
        for entry in written["annotations"]:
            parse(entry["caption"])


def test_started_again_it_goes_on_and_changes_nothing(folder, tmp_path):
    before = files(folder)
    make_scenes("probe-test", folder, count=COUNT, size=SIDE)
    after = files(folder)
    pictures = [name for name in before if name.endswith(".png")]
    assert {name: before[name] for name in pictures} == {name: after[name] for name in pictures}
    assert {n: b for n, (b, _) in before.items()} == {n: b for n, (b, _) in after.items()}
    with pytest.raises(DataError, match="other settings"):
        make_scenes("probe-test", folder, count=COUNT, size=SIDE, seed=1)


def test_killed_midway_it_leaves_no_half_file(tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_scenes("probe-fit", whole, count=20, size=16)
    calls = 0

    def stop(path: Path, data: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise KeyboardInterrupt
        original(path, data)

    original = coco.write_atomic
    monkeypatch.setattr(coco, "write_atomic", stop)
    with pytest.raises(KeyboardInterrupt):
        make_scenes("probe-fit", broken, count=20, size=16)
    assert len(list(broken.rglob("*.png"))) == 8
    with pytest.raises(DataError):
        load_coco(broken)
    monkeypatch.setattr(coco, "write_atomic", original)
    make_scenes("probe-fit", broken, count=20, size=16)
    assert {n: b for n, (b, _) in files(whole).items()} == {
        n: b for n, (b, _) in files(broken).items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 8}, "--size must be from 16"),
        ({"count": 0}, "--count"),
        ({"split": "probe-tset"}, "probe-test"),
        ({"split": "judge-train", "combos": "both"}, "judge-train"),
    ],
)
def test_bad_arguments_are_named(tmp_path, change, message):
    settings = {"split": "probe-test", "out": tmp_path, "count": 1, "size": 16} | change
    with pytest.raises(EncbenchError, match=message):
        make_scenes(**settings)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_one_line(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StoreError, match="not a folder"):
        make_scenes("probe-test", blocked / "below", count=1, size=16)


# ----------------------------------------------------------------------------------- prompts


def test_prompts_of_every_task():
    found = scene_prompts()
    counts = Counter(prompt.task for prompt in found)
    assert tuple(counts) == TASKS
    assert counts == {
        "single_object": 12, "two_object": 66, "counting": 36, "colors": 94, "position": 100,
        "color_attr": 100,
    }  # fmt: skip
    assert {clause.label for prompt in found for clause in prompt.include} == set(SHAPES)
    assert found == scene_prompts()
    assert found != scene_prompts(seed=1)
    assert any(prompt.text == "a photo of an hourglass" for prompt in found)


def test_prompts_keep_to_their_combinations():
    assert not any(prompt_held_out(p.include) for p in scene_prompts(combos="seen"))
    held = scene_prompts(combos="held-out")
    assert all(prompt_held_out(p.include) for p in held)
    assert Counter(p.task for p in held) == {"colors": 20, "position": 24, "color_attr": 100}
    both = [prompt_held_out(p.include) for p in scene_prompts(combos="both")]
    assert 0 < sum(both) < len(both)
    with pytest.raises(UsageError, match="generator-train"):
        scene_prompts("generator-train", combos="both")
    with pytest.raises(UsageError, match="tier C"):
        scene_prompts("encoder-train", tier="C")
    with pytest.raises(UsageError, match="counting"):
        scene_prompts(per_task={"counting": 37})


@pytest.mark.parametrize("tier", ["A", "B", "C"])
@pytest.mark.parametrize("world", [EASY, None], ids=["easy", "all"])
def test_the_text_of_a_prompt_means_its_clauses(tier, world):
    options = {"world": world} if world else {}
    prompts = scene_prompts(tier=tier, combos="both", **options)
    plain = scene_prompts(combos="both", **options)
    assert [p.include for p in prompts] == [p.include for p in plain]
    for prompt in prompts:
        (claims,) = parse(prompt.text)
        told = [(p.shape, p.color, p.count) for p in claims.phrases]
        asked = [(c.label, c.color, c.count) for c in prompt.include]
        assert sorted(map(str, told)) == sorted(map(str, asked))
        if prompt.task == "position":
            assert claims.relation is not None
            a, relation, b = claims.relation
            assert (told[a][0], relation, told[b][0]) == (
                asked[1][0], prompt.include[1].position[0], asked[0][0]
            )  # fmt: skip
        else:
            assert claims.relation is None


# ------------------------------------------------------------------------------ default data


@pytest.fixture(scope="module")
def captions():
    return scene_captions(images=120, files=False)


def test_default_captions(captions):
    assert len(captions.images) == 120
    assert Counter(c.image_id for c in captions.captions) == dict.fromkeys(range(1, 121), 5)
    assert [c.caption_id for c in captions.captions] == list(range(1, 601))
    batch = list(sample_scenes("probe-test", 120, combos="both"))
    for record, scene in zip(captions.images, batch, strict=True):
        assert record.instances is not None
        assert [i.label for i in record.instances] == [
            f"{o.color} {o.shape}" for o in scene.objects
        ]
        assert {i.label for i in record.instances} <= set(captions.labels)
    for caption in captions.captions:
        parse(caption.text)
    assert scene_captions(images=120, files=False).pin == captions.pin
    assert scene_captions(1, images=120, files=False).pin != captions.pin


def test_default_images_are_drawn_once(tmp_path, monkeypatch):
    monkeypatch.setenv("ENCBENCH_CACHE", str(tmp_path / "cache"))
    found = scene_captions(images=12)
    expected = to_bytes(render(sample_scenes("probe-test", 12, combos="both"), 128)).numpy()
    for record, pixels in zip(found.images, expected, strict=True):
        assert record.path is not None
        assert (np.asarray(Image.open(record.path)) == pixels).all()
    before = files(tmp_path)
    assert len(before) == 12
    assert scene_captions(images=12) == found
    assert files(tmp_path) == before
    assert load_reencoder("pixels").encode(found.images).shape[0] == 12
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("ENCBENCH_CACHE", str(tmp_path / "blocked"))
    with pytest.raises(StoreError, match="not a folder"):
        scene_captions(images=2)


def test_default_labels_tell_images_apart(captions):
    """Near images share objects, random ones hardly ever: room between floor and ceiling."""
    reencoder = load_reencoder("labels").with_labels(captions.labels)
    rows = reencoder.encode(captions.images)
    similar = rows @ rows.T
    assert torch.allclose(similar.diagonal(), torch.ones(120), atol=1e-5)
    similar.fill_diagonal_(0)
    assert similar.mean() < 0.05
    assert similar.max(1).values.mean() > 0.3


def test_golden():
    # a change here changes everybody's default results, so say so in the changelog
    assert scene_captions(files=False).pin[:16] == "8cb621dbbd5b0264"
    assert scene_prompts_long().pin[:16] == "9d8187249e665c6e"


def test_default_prompts():
    found = scene_prompts_long()
    assert found == scene_prompts_long()
    assert found.pin != scene_prompts_long(1).pin
    assert len({p.text for p in found.prompts}) == len(found.prompts) == 150
    for prompt in found.prompts:
        assert 4 <= len(parse(prompt.text)) <= 6
        assert 30 <= len(re.findall(r"[\w-]+", prompt.text)) <= 90


def test_what_trains_on_a_card_needs_no_pycocotools():
    code = (
        "import sys\nfrom encbench.data.scenes import captions, coco, default, prompts, render, "
        "sampler, splits, world\nprint([m for m in ('pycocotools', 'matplotlib', 'transformers') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_contact_sheet_is_drawn_by_one_command(tmp_path):
    path = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "encbench.data.scenes.sheet", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    assert Image.open(path).size[0] > 1000
