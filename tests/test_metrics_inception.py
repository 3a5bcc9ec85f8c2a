"""FID, KID and the Inception score on random weights in the published file's format."""

import metric_checkpoints
import numpy as np
import pytest
import torch
from PIL import Image

from encbench.errors import DataError, ModelError, UnknownNameError, UsageError
from encbench.metrics import inception, load_metric
from encbench.metrics.fid import FidMetric
from encbench.metrics.inception import FILE, moments
from encbench.metrics.kid import KidMetric
from encbench.types import SetMetric

library = pytest.importorskip("torch_fidelity", reason='pip install "encbench[metrics]"')


def noise(count, seed, size=(40, 30)):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]
    return [Image.fromarray(row) for row in rows]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return metric_checkpoints.inception(tmp_path_factory.mktemp("inception"), patch)


@pytest.fixture
def pinned(weights, tmp_path, monkeypatch):
    """Options that name the weights, and a reference set of 12 images."""
    monkeypatch.setattr(inception, "SHA256", weights[1])
    monkeypatch.setenv("ENCBENCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "reference"
    folder.mkdir()
    for i, image in enumerate(noise(12, 5)):
        image.save(folder / f"{i:02d}.png")
    return folder, f"weights={weights[0]}"


@pytest.mark.slow
def test_features_are_those_of_torch_fidelity(weights, pinned):
    """By both layers, to 1e-5; in a batch as one by one; images of different sizes together."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder, option = pinned
    net = FeatureExtractorInceptionV3(
        "x", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights[0] / FILE)
    )
    images = [*noise(2, 0), *noise(2, 1, (64, 64))]
    expected = [net(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]) for image in images]
    for name, place in ((f"fid:{folder}?{option}", 0), (f"is?{option}", 1)):
        metric = load_metric(name, "cpu")
        assert isinstance(metric, SetMetric)
        assert metric.spec.whole_set
        found = metric.extract([], images)
        theirs = np.concatenate([row[place].numpy() for row in expected])
        size = float(np.abs(theirs).max())
        assert size > 0.01
        assert np.ptp(theirs, axis=0).max() > 1e-3 * size  # images differ
        assert found == pytest.approx(theirs, abs=1e-5 * size)
        assert metric.extract([], images[2:3]) == pytest.approx(found[2:3], abs=1e-5 * size)


@pytest.mark.slow
def test_two_conventions_of_resizing_are_named_and_differ(pinned):
    """clean: Pillow's antialiased bicubic on float channels, as clean-fid has it."""
    folder, option = pinned
    images = noise(1, 0, (600, 500))
    tf1 = load_metric(f"fid:{folder}?{option}", "cpu")
    clean = load_metric(f"fid:{folder}?{option}&resize=clean", "cpu")
    assert "resize=tf1" in tf1.name
    assert "resize=clean" in clean.name
    assert str(folder) not in tf1.name
    channels = np.array(images[0]).transpose(2, 0, 1).astype(np.float32)
    expected = [
        np.asarray(Image.fromarray(c).resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
        for c in channels
    ]
    assert clean._prepare(images[0]).numpy() == pytest.approx(np.stack(expected), abs=1e-4)
    one, other = tf1.extract([], images), clean.extract([], images)
    assert np.abs(one - other).max() > 0.01 * np.abs(one).max()


class Plain(FidMetric):
    """The reductions alone, on given features."""

    def __init__(self, reference):
        self.device = torch.device("cpu")
        self.reference_path = type("Folder", (), {"is_dir": lambda self: True})()
        self.__dict__["reference"] = reference


class PlainKid(KidMetric):
    __init__ = Plain.__init__


def test_fid_is_that_of_torch_fidelity_and_that_of_known_gaussians():
    from torch_fidelity.metric_fid import (
        KEY_METRIC_FID,
        fid_features_to_statistics,
        fid_statistics_to_metric,
    )

    rng = np.random.default_rng(0)
    first = rng.normal(size=(300, 20))
    second = rng.normal(size=(400, 20)) @ rng.normal(size=(20, 20)) + 0.3
    stats = [fid_features_to_statistics(torch.from_numpy(each)) for each in (first, second)]
    expected = fid_statistics_to_metric(*stats, False)[KEY_METRIC_FID]
    assert Plain(second).reduce(first) == pytest.approx(expected, rel=1e-6)
    assert Plain(first).reduce(first) == pytest.approx(0, abs=1e-6)
    large = rng.normal(size=(200_000, 3)) * 2 + 1
    unit = rng.normal(size=(200_000, 3))
    assert Plain(unit).reduce(large) == pytest.approx(3 * 1 + 3 * (2 - 1) ** 2, rel=0.02)
    few = rng.normal(size=(5, 20))  # fewer images than features
    stats = [fid_features_to_statistics(torch.from_numpy(each)) for each in (few, second)]
    expected = fid_statistics_to_metric(*stats, False)[KEY_METRIC_FID]
    assert Plain(second).reduce(few) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(DataError, match="FID needs at least 2 images, not 1"):
        Plain(second).reduce(few[:1])


def test_moments_block_by_block():
    table = np.random.default_rng(0).normal(5, 2, (1000, 7)).astype(np.float32)
    mean, covariance = moments(table, block=64)
    assert mean == pytest.approx(table.mean(0), abs=1e-5)
    assert covariance == pytest.approx(np.cov(table, rowvar=False), abs=1e-5)


def test_kid_over_all_pairs_is_the_mean_that_subsets_estimate():
    from torch_fidelity.metric_kid import kid_features_to_metric

    rng = np.random.default_rng(0)
    first = rng.normal(size=(300, 16)).astype(np.float32)
    second = (rng.normal(size=(300, 16)) + 0.2).astype(np.float32)
    found = kid_features_to_metric(
        torch.from_numpy(first), torch.from_numpy(second), kid_subsets=1, kid_subset_size=300,
        verbose=False,
    )["kernel_inception_distance_mean"]  # fmt: skip
    assert PlainKid(second).reduce(first) == pytest.approx(found, rel=1e-4)
    other = (rng.normal(size=(2500, 16))).astype(np.float32)  # several blocks, no difference
    assert abs(PlainKid(other).reduce(first)) < abs(found) / 5


@pytest.mark.slow
def test_a_reference_set_is_read_once_or_given_as_statistics(pinned, monkeypatch):
    folder, option = pinned
    metric = load_metric(f"fid:{folder}?{option}", "cpu")
    features = metric.extract([], noise(12, 5))
    assert metric.reduce(features) == pytest.approx(0, abs=1e-4)  # the same images
    mean, covariance = moments(features)
    path = folder.parent / "statistics.npz"
    np.savez(path, mu=mean, sigma=covariance)
    given = load_metric(f"fid:{path}?{option}", "cpu")
    other = metric.extract([], noise(3, 9))
    assert given.reduce(other) == pytest.approx(metric.reduce(other), rel=1e-6)
    again = load_metric(f"kid:{folder}?{option}", "cpu")
    monkeypatch.setattr(again, "extract", None)  # the kept features do
    assert again.reference.shape == (12, 2048)
    with pytest.raises(DataError, match="needs a folder of reference images"):
        load_metric(f"kid:{path}?{option}", "cpu").reduce(other)
    np.savez(path, mu=mean[:5], sigma=covariance)
    with pytest.raises(DataError, match="must be of 2048 features"):
        load_metric(f"fid:{path}?{option}", "cpu").reduce(other)


def test_wrong_references_and_weights_are_one_line(weights, pinned, tmp_path, monkeypatch):
    folder, option = pinned
    (tmp_path / "empty").mkdir()
    for text, error, said in (
        ("fid", UsageError, "names no reference set; write fid:FOLDER"),
        (f"fid:{tmp_path}/none", DataError, "there is no reference set"),
        (f"kid:{tmp_path}/empty?{option}", DataError, "holds no images"),
        (f"fid:{folder}?resize=area", UnknownNameError, "unknown resize of fid 'area'"),
        (f"is:{folder}", UsageError, "has no reference set"),
        (f"fid:{folder}?weights={tmp_path}", ModelError, f"holds no {FILE}; download it from"),
    ):
        with pytest.raises(error, match=said):
            load_metric(text, "cpu")
    monkeypatch.setattr(inception, "SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"is not the published file \(sha256 "):
        load_metric(f"fid:{folder}?{option}", "cpu")
