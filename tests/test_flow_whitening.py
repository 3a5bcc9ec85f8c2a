"""Whitened features: what they are, what a checkpoint keeps of them, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_flow_train import TINY, curve, same, weights

from encbench.confirm.bank import features_of, recipe_hash
from encbench.errors import EncbenchError, ModelError, UsageError
from encbench.files import digest_file, read_json, write_json
from encbench.flow import checkpoint as files
from encbench.flow.config import LATER, training_config
from encbench.flow.connector import Connector, TextConnector
from encbench.flow.data import load_training_images
from encbench.flow.features import Bank, PromptFeatures
from encbench.flow.meanflow import Condition
from encbench.flow.sample import load_checkpoint, sample_images
from encbench.flow.train import train
from encbench.flow.trainer import TrainingResult
from encbench.flow.whitening import LEAST_SHRINKAGE, WhiteningError, fit_whitening
from encbench.records import read_verdict

CPU = torch.device("cpu")


def slow_features(rows: int, width: int = 12, seed: int = 0) -> torch.Tensor:
    """Correlated rows off the origin, whose sizes fall from 10 to .03."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    sizes = torch.logspace(1, -1.5, width)
    return torch.randn(rows, width, generator=generator) * sizes @ mix + 2


def test_whitened_rows_have_the_covariance_that_the_shrinkage_leaves() -> None:
    rows = slow_features(4000)
    white = fit_whitening(rows, "rows").apply(rows).double()
    assert float(white.mean(0).abs().max()) < 1e-3
    held = torch.linalg.eigvalsh(torch.cov(rows.double().T, correction=0))
    shrunk = (1 - LEAST_SHRINKAGE) * held + LEAST_SHRINKAGE * held.mean()
    found = torch.linalg.eigvalsh(torch.cov(white.T, correction=0))
    torch.testing.assert_close(found, held / shrunk, rtol=0.05, atol=1e-4)
    assert held.max() / held.min() > 1e4 > 100 > found.max() / found.min()


def test_zca_turns_nothing_where_nothing_is_correlated() -> None:
    sizes = torch.tensor([5.0, 3, 2, 4])
    rows = torch.randn(5000, 4, generator=torch.Generator().manual_seed(0)) * sizes
    matrix = fit_whitening(rows, "rows").matrix
    torch.testing.assert_close(matrix, torch.diag(1 / sizes), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.randn(63, 3), "the tokens of x: 63 are too few to whiten by, at least 64"),
        (
            torch.randn(80, 80),
            "80 are fewer than needed to whiten 80 dimensions; give",
        ),
        (torch.full((500, 3), 7.3), "are all the same, so there is nothing to whiten"),
        (torch.zeros(500, 3), "are all the same"),
        (torch.full((500, 3), torch.nan), "are not finite"),
    ],
)
def test_what_cannot_be_whitened_is_one_line(rows: torch.Tensor, message: str) -> None:
    with pytest.raises(WhiteningError, match=message) as caught:
        fit_whitening(rows, "the tokens of x")
    assert "\n" not in str(caught.value)


def test_a_singular_covariance_is_reported_and_enlarges_no_noise(caplog) -> None:
    rows = torch.randn(900, 3) @ torch.randn(3, 20) + 4
    with caplog.at_level("WARNING", "encbench"):
        white = fit_whitening(rows, "the tokens of x")
    assert "the tokens of x vary in 3 of 20 directions only" in caplog.text
    spread = torch.linalg.svdvals(torch.cov(white.apply(rows).T))
    assert spread[2] > 0.5
    assert spread[3] < 1e-6


@pytest.mark.parametrize("pooled", [0, 5])
def test_folding_changes_nothing_and_no_condition_stays_one_vector(pooled: int) -> None:
    torch.manual_seed(0)
    connector = TextConnector(12, pooled, 16)
    for part in (connector.tokens, connector.pooled):
        if part is not None:
            part.add_whitening()
    tokens = slow_features(400 * 6).view(400, 6, 12)
    mask = torch.rand(400, 6) < 0.7
    mask[:, 0] = True
    tokens[~mask] = 0
    cond = Condition(tokens, mask, slow_features(400, 5, seed=1) if pooled else None)
    connector.calibrate(cond)
    sent = connector.tokens._whiten(tokens) * connector.tokens.scale
    assert not sent[~mask].any()  # padding stays zero
    torch.testing.assert_close(sent[mask].square().mean(0), torch.ones(12), atol=1e-3, rtol=0)
    dropped = connector(cond.drop(torch.ones(400, dtype=torch.bool)))
    assert torch.equal(dropped.tokens[0, 0], dropped.tokens[3, 2])
    before = connector(cond)
    torch.testing.assert_close(
        dropped.tokens[0, 0],
        connector.tokens.norm(
            connector.tokens.second(
                torch.nn.functional.gelu(connector.tokens.first.bias, approximate="tanh")
            )
        ),
    )
    for part in (connector.tokens, connector.pooled):
        if part is not None:
            part.fold_whitening()
            part.fold_whitening()  # a second time changes nothing
            assert part.whitener is None
            assert torch.equal(part.scale, torch.ones(part.cond_dim))
    after, none = connector(cond), connector(cond.drop(torch.ones(400, dtype=torch.bool)))
    for old, new in ((before, after), (dropped, none)):
        torch.testing.assert_close(new.tokens, old.tokens, atol=1e-5, rtol=0)
        torch.testing.assert_close(new.pooled, old.pooled, atol=1e-5, rtol=0)
    # the folded layer is the published one: on real tokens nothing else is done
    raw = connector.tokens.first(tokens[mask])
    seen = connector.tokens
    expected = seen.norm(seen.second(torch.nn.functional.gelu(raw, approximate="tanh")))
    assert torch.equal(expected, seen(tokens[mask]))


def test_rms_and_none_are_what_they_were() -> None:
    torch.manual_seed(0)
    plain = Connector(6, 16)
    assert set(plain.state_dict()) == {
        "scale", "first.weight", "first.bias", "second.weight", "second.bias", "norm.weight",
    }  # fmt: skip
    plain.calibrate(torch.randn(100, 4, 6) * 3)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    plain.fold_whitening()
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


# ----------------------------------------------------------------------------- trainings


@pytest.fixture(scope="module")
def features():
    """Of 80 captions, with a pooled vector."""
    config = training_config({**TINY, "captions": 2})
    data = load_training_images(config)
    rows = slow_features(6 * len(data.texts))
    pooled = slow_features(len(data.texts), 5, seed=1)
    texts = [PromptFeatures(rows[6 * i : 6 * i + 3 + i % 4], pooled[i]) for i in range(len(pooled))]
    return data, Bank.of(texts)


def trained(features, out, **others) -> TrainingResult:
    data, bank = features
    values = {**TINY, "captions": 2, "condition_scaling": "whitened", "out": out, **others}
    return train(training_config(values), data=data, features=bank, device=CPU)


@pytest.fixture(scope="module")
def whitened(features, tmp_path_factory):
    out = tmp_path_factory.mktemp("whitened") / "run"
    return trained(features, out), out


def test_a_checkpoint_holds_the_statistics_and_a_stopped_training_goes_on(
    features, whitened, tmp_path
) -> None:
    done, out = whitened
    state = files.read_state(done.path)
    assert len(state.encoder.statistics) == 64
    held = load_file(done.path / "model.safetensors")
    data, bank = features
    numbers = np.arange(len(data.texts))
    cond = bank.conditions(numbers, CPU)
    found = fit_whitening(cond.tokens[cond.mask], "tokens")
    assert torch.equal(held["connector.tokens.whitener"], found.matrix)
    assert torch.equal(held["connector.tokens.mean"], found.mean)
    assert held["connector.pooled.whitener"].shape == (5, 5)
    plain = trained(features, tmp_path / "plain", condition_scaling="rms")
    assert files.read_state(plain.path).encoder.statistics == ""
    assert not [n for n in load_file(plain.path / "model.safetensors") if "whitener" in n]

    # stopped after step 8: the same weights and log
    class Stopped(Exception):
        pass

    def stop(moment) -> None:
        raise Stopped

    config = training_config(
        {**TINY, "captions": 2, "condition_scaling": "whitened", "out": tmp_path / "again"}
    )
    with pytest.raises(Stopped):
        train(config, data=data, features=bank, device=CPU, callback=stop, at={9})
    again = trained(features, tmp_path / "again")
    assert same(weights(done.path), weights(again.path))
    assert curve(out) == curve(tmp_path / "again")
    with pytest.raises(UsageError, match="--condition-scaling was whitened, is rms"):
        trained(features, out, condition_scaling="rms")


def test_a_loaded_checkpoint_is_folded_and_samples_the_same(features, whitened) -> None:
    done, _ = whitened
    model = load_checkpoint(done.path, CPU)
    assert model.net.connector.tokens.whitener is None
    assert model.net.connector.pooled.whitener is None
    texts = [features[1].text(i) for i in range(5)]
    images = sample_images(model.net, model.space, texts, range(5), steps=2, device=CPU)
    unfolded = load_checkpoint(done.path, CPU)
    state = load_file(done.path / "model.safetensors") | {
        name: value
        for name, value in load_file(done.path / "ema.safetensors").items()
        if name != "n_averaged"
    }
    for name in ("tokens", "pooled"):
        getattr(unfolded.net.connector, name).add_whitening()
    unfolded.net.load_state_dict(state)
    others = sample_images(unfolded.net, unfolded.space, texts, range(5), steps=2, device=CPU)
    assert int((images.int() - others.int()).abs().max()) <= 1
    cond = features[1].conditions(np.arange(20), CPU)
    for one, other in zip(model.net.connector(cond), unfolded.net.connector(cond), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_other_statistics_than_the_trainings_are_refused(whitened, tmp_path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(whitened[0].path, copy)
    file = copy / "model.safetensors"
    state = load_file(file)
    state["connector.tokens.whitener"][0, 0] += 1
    save_file(state, file)
    told = read_json(copy / "state.json")
    told["files"]["model.safetensors"] = digest_file(file)
    write_json(copy / "state.json", told)
    with pytest.raises(ModelError, match="would be whitened by other statistics"):
        load_checkpoint(copy, CPU)


def test_a_training_without_the_pooled_vector(features, tmp_path) -> None:
    done = trained(features, tmp_path / "run", condition_pooled="mean")
    assert not [n for n in load_file(done.path / "model.safetensors") if "connector.pooled" in n]
    assert files.read_state(done.path).encoder.pooled == 5  # the encoder has one all the same
    model = load_checkpoint(done.path, CPU)
    texts = [features[1].text(0)]
    assert sample_images(model.net, model.space, texts, [0], steps=1, device=CPU).shape[0] == 1


def test_what_a_training_cannot_whiten_is_one_line(tmp_path) -> None:
    given = {**TINY, "condition_scaling": "whitened", "out": tmp_path / "run"}
    with pytest.raises(WhiteningError, match=r"the tokens of control:constant.* are all the same"):
        train(training_config({**given, "encoder": "control:constant?dim=16", "images": 80}))
    few = {**given, "images": 5, "encoder": "control:random?dim=16"}
    with pytest.raises(EncbenchError, match="are too few to whiten by"):
        train(training_config({**few, "out": tmp_path / "few"}))


# -------------------------------------------------------------------- configurations, bank


def test_the_default_is_written_as_in_older_files() -> None:
    plain = training_config({})
    assert not LATER.keys() & plain.as_dict().keys()
    old = {**plain.as_dict()}
    assert plain.same_training(old) == []
    other = replace(plain, condition_scaling="whitened")
    assert other.as_dict()["condition_scaling"] == "whitened"
    assert other.same_training(old) == ["--condition-scaling was rms, is whitened"]
    assert plain.same_training(other.as_dict()) == ["--condition-scaling was whitened, is rms"]
    with pytest.raises(UsageError, match="unknown --condition-scaling 'zca'"):
        training_config({"condition_scaling": "zca"})


def test_arms_of_the_bank_have_one_recipe_and_name_what_was_done() -> None:
    from test_confirm_bank import GOLDEN

    plan = read_verdict(GOLDEN).plan
    arms = [
        {"condition_scaling": "whitened"},
        {"condition_pooled": "mean"},
        {"condition_scaling": "rms", "condition_pooled": "own"},
    ]
    plans = [replace(plan, train={**plan.train, **arm}) for arm in arms]
    assert {recipe_hash(p) for p in plans} == {recipe_hash(plan)}
    assert [features_of(p) for p in (plan, *plans)] == [
        "", "condition_scaling=whitened", "condition_pooled=mean", "",
    ]  # fmt: skip
