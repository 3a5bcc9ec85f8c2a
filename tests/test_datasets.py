"""What is checked of datasets and prompt sets, whoever brings them."""

import multiprocessing
import os
import signal
import socket

import packed
import pytest
import torch
from safetensors.torch import load_file

from encbench.config import run_config
from encbench.data.datasets import (
    DatasetUse,
    captions_by_image,
    check_dataset,
    load_dataset,
    load_prompt_set,
)
from encbench.data.spec import DatasetSpec
from encbench.errors import DataError, UsageError
from encbench.flow import trainer
from encbench.flow.config import training_config
from encbench.flow.train import train
from encbench.pipeline import probe_all
from encbench.records import read_record
from encbench.types import Caption, CaptionSet, ImageRecord, ImageTextDataset


@pytest.mark.parametrize(
    ("images", "captions", "words"),
    [
        ([1, 1], [(1, 1)], "an id appears twice"),
        ([1], [(1, 1), (1, 1)], "an id appears twice"),
        ([1], [(1, 2)], "caption 1 belongs to image 2, which does not exist"),
        ([2**63], [(1, 2**63)], "at most 64 bits"),
        (["a"], [(1, "a")], "at most 64 bits"),
    ],
)
def test_a_data_set_that_breaks_the_contract_is_one_line(images, captions, words):
    records = [ImageRecord.__new__(ImageRecord) for _ in images]
    for record, number in zip(records, images, strict=True):
        object.__setattr__(record, "image_id", number)
    texts = [Caption.__new__(Caption) for _ in captions]
    for text, (number, image) in zip(texts, captions, strict=True):
        for key, value in (("caption_id", number), ("image_id", image), ("text", "a")):
            object.__setattr__(text, key, value)

    class Theirs:
        name, pin, labels, notes = "theirs", "0", (), ()

    theirs = Theirs()
    theirs.images, theirs.captions = records, texts
    with pytest.raises(DataError, match=words):
        check_dataset(theirs, "theirs")


def test_a_caption_set_is_a_data_set():
    assert isinstance(CaptionSet("a", "0", (), ()), ImageTextDataset)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cocoo:x", "unknown dataset 'cocoo'; did you mean coco"),
        ("coco:x?splt=a", "unknown option of the dataset 'coco' 'splt'"),
        ("folder:x?split=a", "the dataset 'folder' has no options"),
        ("scenes:scenes-hard", "unknown world 'scenes-hard'"),
        ("scenes?captions=many", "captions and long must be numbers"),
        ("scenes?long=2", "long from 0 to 1"),
        (":x", "':x' names no family"),
        ("coco:x@main", "has no revision"),
    ],
)
def test_specs_that_make_no_sense(text, words):
    with pytest.raises(UsageError, match=words):
        load_dataset(text, DatasetUse(training=True, count=2))


def test_prompt_sets_are_read_by_spec(shared):
    assert load_prompt_set(f"dpg:{shared / 'dpg' / 'prompts.jsonl'}").name == "dpg-bench"
    assert len(load_prompt_set(DatasetSpec("geneval", str(shared / "geneval"))).prompts) == 553
    assert load_prompt_set("scenes").name == "scenes-long"


FORK = multiprocessing.get_context("fork")
TINY = {
    "side": 16, "patch": 4, "network": "dit-16x1x1", "steps": 4, "batch": 32, "log_every": 0,
    "sample_prompts": 0, "precision": "fp32", "encoder": "control:word-position?dim=16",
    "device": "cpu", "images": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def photographs(shared, tmp_path_factory):
    """The real COCO images in a folder, as tars and as parquet; their specs. A line break within a
    caption, which a .txt cannot hold, becomes a space."""
    root = tmp_path_factory.mktemp("photographs")
    data = load_dataset(f"coco:{shared / 'coco'}", DatasetUse(allow_missing=True))
    texts = captions_by_image(data)
    there = [image for image in data.images if image.path is not None]
    pairs = [
        (i.file_name, i.path.read_bytes(), [" ".join(c.text.split()) for c in texts[i.image_id]])
        for i in there
    ]
    assert len(pairs) == 79
    (root / "files").mkdir()
    for name, content, lines in pairs:
        (root / "files" / name).write_bytes(content)
        (root / "files" / name).with_suffix(".txt").write_text("\n".join(lines))
    packed_specs = (
        packed.write_tars(root / "tars", pairs), packed.write_parquet(root / "tables", pairs)
    )  # fmt: skip
    return (f"folder:{root / 'files'}", *packed_specs)


@pytest.fixture(scope="module")
def from_files(photographs, tmp_path_factory):
    """What is trained on the loose files."""
    out = tmp_path_factory.mktemp("files")
    done = train(training_config({**TINY, "data": photographs[0], "out": out}))
    return load_file(done.path / "model.safetensors")


@pytest.mark.parametrize("number", [1, 2], ids=["tars", "parquet"])
def test_photographs_in_large_files_train_as_loose_files_do(
    photographs, from_files, tmp_path, number
):
    if number == 2:
        pytest.importorskip("datasets")
    done = train(training_config({**TINY, "data": photographs[number], "out": tmp_path}))
    other = load_file(done.path / "model.safetensors")
    assert all(torch.equal(other[name], tensor) for name, tensor in from_files.items())


def test_workers_and_a_stop_in_mid_epoch_change_no_bit(photographs, from_files, tmp_path):
    """Two workers on tars, stopped after three of four steps; resumed without workers."""
    config = {**TINY, "data": photographs[1], "out": tmp_path, "checkpoint_every": 1}

    def stop(moment):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(training_config({**config, "workers": 2}), callback=stop, at=(3,))
    assert not multiprocessing.active_children()
    done = train(training_config({**config, "workers": 0}))
    other = load_file(done.path / "model.safetensors")
    assert all(torch.equal(other[name], tensor) for name, tensor in from_files.items())


def test_killed_with_two_workers_in_mid_epoch_it_ends_with_the_same_bits(
    photographs, from_files, tmp_path
):
    """A real SIGKILL in the second round of the images, before the step's checkpoint."""
    config = {**TINY, "data": photographs[1], "out": tmp_path, "checkpoint_every": 1}

    def kill(moment):
        os.kill(os.getpid(), signal.SIGKILL)

    def begin():
        train(training_config({**config, "workers": 2}), callback=kill, at=(3,))

    child = FORK.Process(target=begin)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()][-1:] == ["00000002"]
    done = train(training_config({**config, "workers": 1}))
    other = load_file(done.path / "model.safetensors")
    assert all(torch.equal(other[name], tensor) for name, tensor in from_files.items())


def seen_by(rank, size, port, values, queue):
    """What each step of one process of a training sees: images by their bytes, and captions."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    seen, inner = [], trainer.load_batches

    def looked_at(*how, **more):
        for pairs in inner(*how, **more):
            rows = zip(pairs.pixels, pairs.texts, strict=True)
            seen.append([(hash(image.numpy().tobytes()), int(text)) for image, text in rows])
            yield pairs

    trainer.load_batches = looked_at
    train(training_config(values))
    queue.put((rank, seen))


def test_two_processes_see_together_what_one_sees(photographs, tmp_path):
    """In each part of each step, the first process's images and then the second's, from tars and
    with workers."""
    values = {**TINY, "data": photographs[1], "accumulate": 2}
    found = {}
    for size in (1, 2):
        queue = FORK.Queue()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        how = (size, port, {**values, "out": tmp_path / str(size)}, queue)
        children = [FORK.Process(target=seen_by, args=(rank, *how)) for rank in range(size)]
        for child in children:
            child.start()
        found[size] = dict(queue.get(timeout=120) for _ in children)
        for child in children:
            child.join()
    assert len(found[1][0]) == 2 * TINY["steps"]
    assert found[1][0] == [a + b for a, b in zip(found[2][0], found[2][1], strict=True)]


def test_photographs_in_large_files_rank_as_loose_files_do(photographs, tmp_path):
    scores = []
    for number, spec in enumerate(photographs):
        out = tmp_path / str(number)
        config = run_config(
            {
                "data": spec, "out": out, "encoders": ["control:bag-of-words"],
                "probes": ["retrieval"], "re_encoder": "pixels", "store": tmp_path / "store",
                "device": "cpu",
            }
        )  # fmt: skip
        paths, failures = probe_all(config)
        assert not failures
        scores.append([read_record(path).scores for path in sorted(paths)])
    assert scores[0][0]["published@2"].n == 79
    assert scores[1] == scores[0] == scores[2]
