"""MeanFlow in two dimensions: one step is as good as many."""

import pytest
import torch

from encbench.flow import toy
from encbench.flow.objectives.meanflow import MeanFlow


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    objective = MeanFlow("forward", weight_power=0.5)
    return toy.train_toy(toy.ToyNet(), objective, steps=1200, batch=256)


@pytest.mark.slow
def test_one_step_is_nearly_as_good_as_64(trained):
    found = toy.distances(trained, steps=(1, 64), n=2000)
    for label, row in found.items():
        assert row[64] < 0.25, label  # it has learned the density: untrained it is near 1
        assert row[1] <= 1.5 * row[64], label


@pytest.mark.slow
def test_the_label_decides(trained):
    """Samples of a label are nearer to its own density than to the others."""
    g = torch.Generator().manual_seed(3)
    data = [toy.density(torch.full((2000,), place), g) for place in range(len(toy.LABELS))]
    table = torch.tensor(
        [
            [
                toy.sliced_wasserstein(toy.draw_points(trained, place, 2000, 1), other)
                for other in data
            ]
            for place in range(len(toy.LABELS))
        ]
    )
    own = table.diagonal().mean()
    others = (table.sum() - table.diagonal().sum()) / (table.numel() - len(table))
    assert own < 0.7 * others


def test_figure_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(toy, "STEPS", (1, 2))
    path = tmp_path / "new" / "flow.png"
    toy.plot_toy(toy.ToyNet(width=8, depth=1), path, n=50)
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_sliced_wasserstein_of_a_shift_and_of_nothing():
    points = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    assert toy.sliced_wasserstein(points, points.flip(0)) == 0
    # a shift s has distance |s . line| on each line, |s| / sqrt 2 in root mean square
    moved = toy.sliced_wasserstein(points, points + torch.tensor([3.0, 4.0]))
    assert moved == pytest.approx(5 / 2**0.5, rel=1e-5)


def test_densities_are_seeded_and_of_about_one_size():
    label = torch.arange(4).repeat(2000)
    first, again = (toy.density(label, torch.Generator().manual_seed(1)) for _ in "ab")
    assert torch.equal(first, again)
    for place in range(4):
        part = first[label == place]
        assert part.abs().max() < 2.4
        assert 0.5 < part.square().mean().sqrt() < 1.5
