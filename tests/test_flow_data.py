"""What a training reads: scenes, COCO, folders, text features; what is broken is told."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from encbench.data.scenes.dataset import training_scenes
from encbench.data.scenes.world import GRID
from encbench.errors import DataError, EncbenchError, ProcessError, UsageError
from encbench.flow.config import TrainConfig, training_config
from encbench.flow.data import (
    Files,
    Picks,
    folder_images,
    load_batches,
    load_training_images,
    picks,
    training_images,
)
from encbench.flow.features import Bank, Encoded, PromptEncoder, PromptFeatures, Widths, check_fits

CPU = torch.device("cpu")


def chosen(*images):
    return Picks(np.array(images), np.arange(len(images)))


def pictures(folder, count=6, side=20):
    """Images of one color each, so that it is known which one was read."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        color = (20 * i, 10, 250 - 20 * i)
        Image.new("RGB", (side, side + 8), color).save(folder / f"{i}.png")
    return folder


# -------------------------------------------------------------------------------- scenes


def scene_images(world, count, side, **how):
    return training_images(training_scenes(world, count, **how), side)


def test_scenes_are_the_training_split_in_tier_a():
    data = scene_images(GRID, 60, 16, captions=2, long_share=0.5, seed=1)
    assert data.images.shape == (60, 3, 16, 16)
    assert data.images.dtype == torch.uint8
    assert [len(row) for row in data.of] == [2] * 60
    assert len(set(data.texts)) == len(data.texts)
    told = " ".join(data.texts).lower()
    assert "circle" in told
    assert not any(word in told for word in ("disc", "crimson", "behold", "drawn"))  # tiers B, C
    long = sum(len(text.split()) > 20 for text in data.texts)
    assert 0.3 < long / len(data.texts) < 0.7


def test_scenes_follow_from_the_seed_and_their_count_changes_none():
    one, more = (scene_images(GRID, n, 16, seed=3) for n in (20, 30))
    assert torch.equal(one.images, more.images[:20])
    assert [one.texts[i] for row in one.of for i in row] == [
        more.texts[i] for row in more.of[:20] for i in row
    ]
    assert one.pin != more.pin
    assert not torch.equal(one.images, scene_images(GRID, 20, 16, seed=4).images)


def test_every_image_comes_once_before_any_comes_again():
    data = scene_images(GRID, 10, 8, captions=3)
    seen = np.concatenate([picks(data, step, 4, seed=0).images for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])
    again = picks(data, 3, 4, seed=0)
    assert np.array_equal(again.images, seen[12:16])
    assert all(text in data.of[image] for image, text in zip(*again[:2], strict=True))
    other = np.concatenate([picks(data, step, 4, seed=1).images for step in range(5)])
    assert list(other) != list(seen)
    assert np.array_equal(again.part(slice(1, 3)).images, again.images[1:3])


# --------------------------------------------------------------------------------- files


def test_a_folder_with_texts_beside(tmp_path):
    folder = pictures(tmp_path / "my")
    for i in range(5):  # the last one has none
        (folder / f"{i}.txt").write_text(f"color {i}\n\nthe color {i}\n")
    data = load_training_images(training_config({"folder": folder, "side": 16, "images": 0}))
    assert len(data.of) == 5
    assert [data.texts[i] for i in data.of[2]] == ["color 2", "the color 2"]
    assert data.notes == ("1 images without a caption were left out",)
    pixels, texts = data.read(chosen(2, 0))
    assert pixels[:, :, 8, 8].tolist() == [[40, 10, 210], [0, 10, 250]]
    assert pixels.shape == (2, 3, 16, 16)
    assert list(texts) == [0, 1]
    fewer = load_training_images(training_config({"folder": folder, "side": 16, "images": 3}))
    assert len(fewer.of) == 3
    assert fewer.pin != data.pin


def test_a_folder_with_a_list(tmp_path):
    folder = pictures(tmp_path / "my" / "a").parent
    rows = [{"file_name": f"a/{i}.png", "text": f"color {i}"} for i in (3, 1)]
    rows.append({"file_name": "a/3.png", "text": "again"})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_training_images(training_config({"folder": folder, "side": 8}))
    assert [[data.texts[i] for i in row] for row in data.of] == [["color 3", "again"], ["color 1"]]
    assert data.read(chosen(1)).pixels[0, 0, 0, 0] == 20


def test_lists_and_folders_that_are_wrong(tmp_path):
    folder = pictures(tmp_path / "my", 2)
    config = training_config({"folder": folder, "side": 8})
    with pytest.raises(DataError, match=r"holds no image with a caption.*put a \.txt"):
        load_training_images(config)
    path = folder / "captions.jsonl"
    for line, said in (
        ("{", r"line 1 of .*captions\.jsonl is not valid JSON"),
        ('{"file_name": "0.png"}', r"line 1 of .* has no 'text'"),
        (
            '{"file_name": "../0.png", "text": "a"}',
            "not name a file inside the folder; refused",
        ),
    ):
        path.write_text(line)
        with pytest.raises(DataError, match=said):
            load_training_images(config)
    with pytest.raises(DataError, match="there is no folder"):
        load_training_images(training_config({"folder": tmp_path / "none"}))
    with pytest.raises(UsageError, match="the number of scenes must be at least 1"):
        load_training_images(training_config({"images": 0}))


@pytest.mark.parametrize("mark", "\u2028\u2029\x85\x0b\x0c")
def test_captions_end_at_line_feeds_only(tmp_path, mark):
    folder = pictures(tmp_path / "my", 2)
    (folder / "0.txt").write_text(f"a dog{mark}on a mat\r\n")
    data = folder_images(TrainConfig(folder=folder, images=0))
    assert data.texts == (f"a dog{mark}on a mat",)
    row = json.dumps({"file_name": "1.png", "text": f"a cat{mark}there"}, ensure_ascii=False)
    (folder / "captions.jsonl").write_text(row + "\n")
    data = load_training_images(training_config({"folder": folder, "side": 8}))
    assert data.texts == (f"a cat{mark}there",)


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_empty_captions_are_left_out_and_counted(tmp_path, empty):
    folder = pictures(tmp_path / "my", 2)
    rows = [{"file_name": "0.png", "text": "a"}, {"file_name": "1.png", "text": empty}]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_training_images(training_config({"folder": folder, "side": 8}))
    assert (data.texts, data.notes) == (("a",), ("1 images without a caption were left out",))


def test_two_images_with_one_text_are_refused(tmp_path):
    folder = pictures(tmp_path / "my", 2)
    Image.new("RGB", (9, 9)).save(folder / "1.jpg")
    (folder / "1.txt").write_text("a dog")
    with pytest.raises(DataError, match=r"1\.jpg and 1\.png stand for the same item"):
        load_training_images(training_config({"folder": folder, "side": 8}))


def test_a_data_set_is_named_by_a_spec(tmp_path):
    folder = pictures(tmp_path / "my?images=3@home", 2)
    (folder / "0.txt").write_text("a dog")
    one = load_training_images(training_config({"data": f"folder:{folder}", "side": 8}))
    other = load_training_images(training_config({"folder": folder, "side": 8}))
    assert (one.pin, one.texts) == (other.pin, other.texts)
    scenes = {"images": 5, "side": 8}
    assert (
        load_training_images(training_config({"data": "scenes:scenes-grid", **scenes})).pin
        == load_training_images(training_config({"world": "scenes-grid", **scenes})).pin
        == scene_images(GRID, 5, 8).pin
    )
    with pytest.raises(UsageError, match="--data, --coco and --folder"):
        training_config({"data": "scenes", "folder": folder})
    with pytest.raises(UsageError, match="unknown dataset 'cocoa'; did you mean coco"):
        load_training_images(training_config({"data": "cocoa:x"}))


def test_broken_images_are_named_counted_and_left_out_up_to_a_limit(tmp_path, caplog):
    folder = pictures(tmp_path / "my")
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"color {i}")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:40])
    (folder / "4.png").write_bytes(b"no image")
    caplog.set_level("WARNING", "encbench")
    data = load_training_images(training_config({"folder": folder, "side": 8, "max_broken": 2}))
    pixels, texts = data.read(Picks(np.array([0, 1, 4]), np.array([0, 1, 4])))
    assert pixels[:, 0, 0, 0].tolist() == [0, 40, 100]  # the next image stands in
    assert [data.texts[i] for i in texts] == ["color 0", "color 2", "color 5"]  # with its own text
    assert "1.png" in caplog.text
    assert "4.png" in caplog.text
    assert "left out (broken image 2)" in caplog.text
    strict = load_training_images(training_config({"folder": folder, "side": 8, "max_broken": 1}))
    with pytest.raises(DataError, match="2 images of my cannot be read, and --max-broken"):
        strict.read(chosen(0, 1, 2, 3, 4, 5))


def test_batches_are_the_same_with_any_number_of_workers(tmp_path, caplog):
    folder = pictures(tmp_path / "my")
    for i in range(6):
        (folder / f"{i}.txt").write_text(f"color {i}\nthe color {i}")
    (folder / "1.png").write_bytes(b"no image")
    config = training_config({"folder": folder, "side": 8, "max_broken": 1})
    read = []
    for workers in (0, 2):
        data = load_training_images(config)
        chosen = [picks(data, step, 4, seed=0) for step in range(6)]
        read.append(list(load_batches(data, chosen, workers)))
        assert list(data.broken) == [1]
        assert caplog.text.count("left out (broken image 1)") == workers // 2 + 1
    assert len(read[0]) == 6
    for one, other in zip(*read, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert list(one.texts) == list(other.texts)
    strict = load_training_images(training_config({"folder": folder, "side": 8, "max_broken": 0}))
    with pytest.raises(DataError, match="1 images of my cannot be read, and --max-b"):
        list(load_batches(strict, chosen, 2))


def test_a_worker_that_is_killed_is_one_line(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "my")
    (folder / "0.txt").write_text("color")
    data = load_training_images(training_config({"folder": folder, "side": 8}))
    monkeypatch.setattr(Files, "load", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ProcessError, match="was killed, perhaps for lack of memory") as caught:
        list(load_batches(data, [chosen(0)], 1))
    assert "\n" not in str(caught.value)


def test_coco(shared):
    data = load_training_images(training_config({"coco": shared / "coco", "side": 24, "images": 5}))
    assert data.name.startswith("coco-")
    assert len(data.of) == 5
    assert all(len(row) >= 4 for row in data.of)
    pixels, _ = data.read(chosen(0, 4))
    assert pixels.shape == (2, 3, 24, 24)
    assert float(pixels.float().std()) > 10


# -------------------------------------------------------------------------------- features


def test_a_bank_gives_padded_conditions():
    texts = [
        PromptFeatures(torch.full((n, 4), float(n)), torch.full((2,), float(n))) for n in (3, 9, 1)
    ]
    bank = Bank.of(texts)
    assert bank.widths == Widths(4, 2)
    assert bank.tokens.dtype == torch.float16
    cond = bank.conditions(np.array([2, 0, 2]), CPU)
    assert cond.tokens.shape == (3, 8, 4)
    assert cond.mask.sum(1).tolist() == [1, 3, 1]
    assert cond.tokens[1].sum(1).tolist() == [12.0] * 3 + [0.0] * 5
    assert cond.pooled is not None
    assert cond.pooled[:, 0].tolist() == [1, 3, 1]
    assert bank.conditions(np.array([1]), CPU).tokens.shape == (1, 16, 4)
    assert torch.equal(bank.text(1).tokens, texts[1].tokens)
    assert Bank.of(texts, most=2).starts.tolist() == [0, 2, 4, 5]
    large = Bank.of([PromptFeatures(torch.full((1, 2), 1e5), None)])  # of a size that float16 lacks
    assert large.tokens.dtype == torch.float32
    assert large.conditions(np.array([0]), CPU).pooled is None


def test_features_from_the_store_or_as_they_come(minilm, tmp_path):
    texts = ["a red circle", "two blue stars on a black background", "a red circle and a star"]
    encoder = PromptEncoder(f"st:{minilm}", tmp_path, CPU)
    bank = encoder.bank(texts)
    assert bank.widths == encoder.widths
    assert bank.widths.tokens == 384
    index = np.array([2, 0])
    stored = bank.conditions(index, CPU)
    direct = Encoded(encoder, texts).conditions(index, CPU)
    assert torch.equal(stored.mask, direct.mask)
    assert float((stored.tokens - direct.tokens).abs().max()) < 5e-3  # float16
    alone = encoder.alone(texts[:1])[0]
    assert torch.allclose(alone.tokens, bank.text(0).tokens, atol=5e-3)
    again = PromptEncoder(f"st:{minilm}", tmp_path, CPU)
    assert torch.equal(again.bank(texts).tokens, bank.tokens)


def test_encoders_that_cannot_be_conditions():
    with pytest.raises(UsageError, match="shuffles embeddings"):
        PromptEncoder("control:shuffle(control:random)", None, CPU)
    with pytest.raises(
        EncbenchError, match="of width 4, and the model takes width 8 with a pooled"
    ):
        check_fits(Widths(4, 0), 8, 2, "control:random", "this checkpoint")
