"""Latents that are made once: the same weights as encoding each batch, whoever makes them."""

import logging
import multiprocessing
import os
import signal

import flow_checkpoints
import numpy as np
import packed
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from encbench.errors import DataError
from encbench.flow import latents
from encbench.flow.config import training_config
from encbench.flow.data import Picks, load_training_images, picks
from encbench.flow.latents import LatentCache, LatentsInMemory, LatentsOnDisk
from encbench.flow.spaces import LatentSpace
from encbench.flow.train import train

COUNT = 11
TINY = {
    "side": 16, "network": "dit-16x1x1", "patch": 1, "steps": 4, "batch": 6, "log_every": 0,
    "sample_prompts": 0, "precision": "fp32", "encoder": "control:word-position?dim=16",
    "device": "cpu", "images": 0, "max_broken": 2,
}  # fmt: skip
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    pytest.importorskip("diffusers")
    return flow_checkpoints.kl(tmp_path_factory.mktemp("kl"))


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "images"
    made.mkdir()
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = rng.integers(0, 256, (20, 16, 3), np.uint8)
        Image.fromarray(pixels).save(made / f"{i:02d}.png")
        (made / f"{i:02d}.txt").write_text(f"picture {i}\nthe picture {i}")
    return made


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(latents, "PART", 3)
    monkeypatch.setattr(latents, "WAIT", 0.02)


class Counted(LatentSpace):
    """Says how many images it has encoded."""

    def __init__(self, *args, **more):
        super().__init__(*args, **more)
        self.encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        return super().encode(images)


def fill(folder, autoencoder, store, *, flip=False):
    """The latents of a folder, and how many images had to be encoded."""
    spec = folder if isinstance(folder, str) else f"folder:{folder}"
    data = load_training_images(training_config({**TINY, "data": spec}))
    space = Counted(str(autoencoder), 16)
    return LatentCache(data, space, store, flip=flip).fill(), space.encoded


def weights(config, **more):
    done = train(training_config({**config, **more}))
    return load_file(done.path / "model.safetensors")


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("memory", [1 << 30, 0], ids=["memory", "disk"])
def test_a_training_is_that_of_encoding_each_batch(
    folder, autoencoder, tmp_path, monkeypatch, small_parts, memory
):
    """Bit for bit, with images mirrored and two of them broken."""
    monkeypatch.setattr(latents, "IN_MEMORY", memory)
    for name in ("03.png", "10.png"):
        (folder / name).write_bytes(b"no image")
    config = {**TINY, "autoencoder": str(autoencoder), "folder": folder, "flip": True}
    each = weights(config, out=tmp_path / "each")
    kept = weights(config, out=tmp_path / "kept", store=tmp_path / "store")
    assert same(each, kept)
    assert not same(each, weights(config, out=tmp_path / "straight", flip=False))
    found, encoded = fill(folder, autoencoder, tmp_path / "store", flip=True)
    assert isinstance(found, LatentsInMemory if memory else LatentsOnDisk)
    assert encoded == 0
    chosen = Picks(np.array([10, 3, 4]), np.array([20, 6, 9]), np.array([True, False, False]))
    read = found.read(chosen)
    assert list(read.texts) == [0, 8, 9]  # the next image stands in, with its first caption
    space = LatentSpace(str(autoencoder), 16)
    pixels = load_training_images(training_config(config)).read(chosen).pixels
    assert torch.equal(read.pixels, space.encode(pixels / 255))
    with pytest.raises(DataError, match="2 images of images cannot be read, and --max-broken"):
        weights(config, out=tmp_path / "strict", store=tmp_path / "store", max_broken=1)


def test_mirrored_images_follow_from_the_seed(folder):
    data = load_training_images(training_config({**TINY, "folder": folder}))
    drawn = picks(data, 5, 64, seed=1, flip=True)
    assert 16 < drawn.mirrored.sum() < 48
    assert np.array_equal(drawn.mirrored, picks(data, 5, 64, seed=1, flip=True).mirrored)
    assert np.array_equal(drawn.part(slice(8, 16)).mirrored, drawn.mirrored[8:16])
    plain = picks(data, 5, 64, seed=1)
    assert plain.mirrored is None
    assert np.array_equal(plain.images, drawn.images)
    one, other = data.read(plain).pixels, data.read(drawn).pixels
    for row, is_mirrored in enumerate(drawn.mirrored):
        assert torch.equal(other[row], one[row].flip(-1) if is_mirrored else one[row])


def test_latents_are_found_by_content(folder, autoencoder, tmp_path, small_parts):
    store = tmp_path / "store"
    first, encoded = fill(folder, autoencoder, store)
    assert encoded == COUNT
    pairs = [(p.name, p.read_bytes(), ["a"]) for p in sorted(folder.glob("*.png"))]
    tars, encoded = fill(packed.write_tars(tmp_path / "tars", pairs), autoencoder, store)
    assert encoded == 0
    assert torch.equal(tars.latents, first.latents)
    Image.new("RGB", (16, 16), (9, 9, 9)).save(folder / "0.png")
    (folder / "0.txt").write_text("gray")
    more, encoded = fill(folder, autoencoder, store)
    assert encoded == 1  # all later ones are in other parts now
    assert torch.equal(more.latents[0, 1:], first.latents[0])
    _, encoded = fill(folder, autoencoder, store, flip=True)
    assert encoded == COUNT + 1  # the mirrored ones only
    other = flow_checkpoints.kl(tmp_path / "other", shift=None)
    assert fill(folder, other, store)[1] == COUNT + 1


def test_a_damaged_file_is_made_again(folder, autoencoder, tmp_path, small_parts, caplog):
    first, _ = fill(folder, autoencoder, tmp_path / "store")
    large = sorted(tmp_path.rglob("*.latents.safetensors"))
    large[0].write_bytes(large[0].read_bytes()[:-8] + bytes(8))
    large[1].write_bytes(b"")
    with caplog.at_level(logging.WARNING, logger="encbench"):
        again, encoded = fill(folder, autoencoder, tmp_path / "store")
    assert encoded in (5, 6)  # parts of three, and one of two
    assert caplog.text.count("damaged shard") == 2
    assert torch.equal(again.latents, first.latents)


def test_killed_it_goes_on_with_what_is_missing(folder, autoencoder, tmp_path, small_parts):
    store, inner = tmp_path / "store", LatentSpace.encode

    def encode(self, images):
        encode.calls += 1
        if encode.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(self, images)

    encode.calls = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatentSpace, "encode", encode)
        child = FORK.Process(target=fill, args=(folder, autoencoder, store))
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL
    resumed, encoded = fill(folder, autoencoder, store)
    assert encoded == COUNT - 2 * 3
    assert torch.equal(resumed.latents, fill(folder, autoencoder, tmp_path / "new")[0].latents)


def _fill_and_tell(queue, *how):
    found, encoded = fill(*how)
    queue.put((encoded, found.latents.numpy().tobytes()))


def test_two_processes_share_the_work(folder, autoencoder, tmp_path, small_parts):
    """Each image is encoded once, and both get all latents."""
    queue = FORK.Queue()
    how = (queue, folder, autoencoder, tmp_path / "store")
    children = [FORK.Process(target=_fill_and_tell, args=how) for _ in range(2)]
    for child in children:
        child.start()
    found = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert sum(encoded for encoded, _ in found) == COUNT
    assert found[0][1] == found[1][1]


def test_a_training_of_less_than_a_round_keeps_nothing(folder, autoencoder, tmp_path, caplog):
    config = {**TINY, "autoencoder": str(autoencoder), "folder": folder, "steps": 1}
    with caplog.at_level(logging.INFO, logger="encbench"):
        weights(config, out=tmp_path / "out", store=tmp_path / "store")
    assert "no image comes twice, so latents are not kept" in caplog.text
    assert not list(tmp_path.rglob("*.latents.safetensors"))
