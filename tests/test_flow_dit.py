"""The DiT and its connector: masks, times, derivatives, a backbone for every encoder."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from encbench.errors import ModelError, UsageError
from encbench.flow.connector import Connector
from encbench.flow.dit import SIZES, DiT, DiTConfig, dit_config
from encbench.flow.ema import EMA
from encbench.flow.meanflow import Condition


def config(**others) -> DiTConfig:
    base = {"side": 8, "channels": 3, "patch": 2, "width": 16, "depth": 2, "heads": 2}
    return DiTConfig(**(base | {"cond_dim": 12, "mix": 4} | others))


def network(**others) -> DiT:
    """Float64, all weights random, so that nothing is hidden by a zero."""
    torch.manual_seed(0)
    net = DiT(config(**others)).double()
    for weight in net.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return net


def inputs(net: DiT, rows: int = 3):
    torch.manual_seed(1)
    c = net.config
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()[:rows]
    pooled = torch.randn(rows, c.pooled_dim).double() if c.pooled_dim else None
    cond = Condition(torch.randn(rows, 5, c.cond_dim).double(), mask, pooled)
    z = torch.randn(rows, c.channels, c.side, c.side).double()
    return (
        z,
        torch.tensor([0.1, 0.2, 0.3]).double()[:rows],
        torch.tensor([0.5, 0.9, 0.3]).double()[:rows],
        cond,
    )


VARIANTS = [
    {},
    {"pooled_dim": 7, "prediction": "u"},
    {"patch": 1, "mix": 0, "cross_every": 2},
    {"patch": 1, "side": 4},
    {"patch": 4, "mix": 0},
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_output_has_the_inputs_shape_and_rows_do_not_meet(variant):
    net = network(**variant)
    z, r, t, cond = inputs(net)
    whole = net(z, r, t, cond)
    assert whole.shape == z.shape
    for row in range(len(z)):
        one = slice(row, row + 1)
        alone = net(z[one], r[one], t[one], cond.rows(one))
        torch.testing.assert_close(alone, whole[one])


@pytest.mark.parametrize("pooled", [0, 7])
def test_padding_changes_nothing_and_real_tokens_do(pooled):
    net = network(pooled_dim=pooled)
    z, r, t, cond = inputs(net)
    before = net(z, r, t, cond)
    noise = torch.randn_like(cond.tokens) * 100
    other = torch.where(cond.mask[..., None], cond.tokens, noise)
    torch.testing.assert_close(net(z, r, t, Condition(other, cond.mask, cond.pooled)), before)
    longer = torch.cat([cond.tokens, noise], 1)
    mask = torch.cat([cond.mask, torch.zeros_like(cond.mask)], 1)
    torch.testing.assert_close(net(z, r, t, Condition(longer, mask, cond.pooled)), before)
    changed = net(z, r, t, Condition(cond.tokens + 1.0, cond.mask, cond.pooled))
    assert (changed - before).flatten(1).abs().amax(1).min() > 1e-3


def test_without_a_prompt_all_rows_are_the_same():
    net = network(pooled_dim=7)
    z, r, t, cond = inputs(net)
    none = cond.drop(torch.ones(3).bool())
    same = [part[:1].expand(3, *part.shape[1:]) for part in (z, r, t)]
    out = net(*same, none)
    torch.testing.assert_close(out, out[:1].expand_as(out))


def test_the_interval_counts_only_where_there_is_one():
    net = network()
    z, r, t, cond = inputs(net)
    with torch.no_grad():
        before, still = net(z, r, t, cond), net(z, t, t, cond)
        for weight in net.time.interval.parameters():
            weight.mul_(2)
        torch.testing.assert_close(net(z, t, t, cond), still)
    gap = (net(z, r, t, cond) - before).flatten(1).abs().amax(1)
    assert gap[:2].min() > 1e-3  # row 2 has r = t


def test_it_begins_as_nothing_and_every_weight_is_then_reached():
    torch.manual_seed(0)
    net = DiT(config(velocity_head=True, pooled_dim=5))
    z, r, t, cond = inputs(net)
    z, r, t = z.float(), r.float(), t.float()
    cond = Condition(cond.tokens.float(), cond.mask, cond.pooled.float())
    assert net(z, r, t, cond).abs().max() == 0
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        sum((out - 1).square().mean() for out in net.with_velocity(z, r, t, cond)).backward()
        optimizer.step()
    for name, weight in net.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("variant", [*VARIANTS, {"velocity_head": True}])
def test_the_jvp_equals_a_central_difference(variant):
    net = network(**variant)
    z, r, t, cond = inputs(net)
    v = torch.randn_like(z)
    h = 1e-6
    with torch.no_grad():
        with sdpa_kernel(SDPBackend.MATH):
            value, slope = torch.func.jvp(
                lambda z, r, t: net(z, r, t, cond),
                (z, r, t),
                (v, torch.zeros_like(r), torch.ones_like(t)),
            )
        difference = (net(z + h * v, r, t + h, cond) - net(z - h * v, r, t - h, cond)) / (2 * h)
    torch.testing.assert_close(value, net(z, r, t, cond))
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-5 * slope.abs().max().item())


def test_the_velocity_head_gives_a_velocity():
    net = network(velocity_head=True, prediction="x")
    z, r, t, cond = inputs(net)
    prediction, v = net.with_velocity(z, r, t, cond)
    torch.testing.assert_close(prediction, net(z, r, t, cond))
    with torch.no_grad():  # a head that says x_hat = z says there is no velocity
        for weight in net.velocity.parameters():
            weight.zero_()
    _, v = net.with_velocity(z, r, t, cond)
    torch.testing.assert_close(v, z / t.clamp(min=0.05)[:, None, None, None])
    with pytest.raises(UsageError, match="velocity_head=True"):
        network().with_velocity(z, r, t, cond)


def test_one_backbone_takes_any_encoder():
    first, second = network(cond_dim=12), network(cond_dim=20, pooled_dim=6)
    state = first.backbone_state()
    assert not [name for name in state if name.startswith("connector")]
    connector = {name: value.clone() for name, value in second.connector.state_dict().items()}
    second.load_backbone(state)
    for name, value in second.backbone_state().items():
        assert torch.equal(value, state[name])
    for name, value in second.connector.state_dict().items():
        assert torch.equal(value, connector[name])
    z, r, t, cond = inputs(second)
    assert second(z, r, t, cond).shape == z.shape


def test_a_backbone_of_another_network_is_refused():
    state = network().backbone_state()
    with pytest.raises(ModelError, match="the sizes differ"):
        network(width=32).load_backbone(state)
    with pytest.raises(ModelError, match=r"lacks blocks\.2"):
        network(depth=3).load_backbone(state)
    with pytest.raises(ModelError, match=r"has blocks\.1"):
        network(depth=1).load_backbone(state)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"patch": 3}, "not a multiple of patch"),
        ({"heads": 3}, "not a multiple of 4 x 3 heads"),
        ({"depth": 0}, "depth must be a whole number of at least 1"),
        ({"prediction": "v"}, "unknown prediction"),
    ],
)
def test_impossible_configurations_are_refused(change, says):
    with pytest.raises(UsageError, match=says):
        config(**change)


def test_what_does_not_fit_is_told():
    net = network(pooled_dim=7)
    z, r, t, cond = inputs(net)
    with pytest.raises(UsageError, match="3 x 8 x 8, not 3 x 4 x 4"):
        net(z[..., :4, :4], r, t, cond)
    with pytest.raises(UsageError, match="12: use the encoder that it was trained with"):
        net(z, r, t, Condition(cond.tokens[..., :5], cond.mask, cond.pooled))
    with pytest.raises(UsageError, match="pooled vector of width 7"):
        net(z, r, t, Condition(cond.tokens, cond.mask))
    with pytest.raises(UsageError, match="known: 1M, 3M"):
        dit_config("7B", side=32, patch=8, cond_dim=8)


@pytest.mark.parametrize("size", SIZES)
def test_presets_have_about_the_parameters_that_they_say(size):
    with torch.device("meta"):
        net = DiT(dit_config(size, side=32, patch=4, cond_dim=384))
    count = sum(weight.numel() for weight in net.parameters())
    count -= sum(weight.numel() for weight in net.connector.parameters())
    assert 0.9 < count / (int(size[:-1]) * 1e6) < 1.2


def test_a_calibrated_connector_reads_all_encoders_in_one_size():
    torch.manual_seed(0)
    connector = Connector(6, 16)
    sizes = torch.tensor([0.01, 1.0, 50.0, 3.0, 0.2, 7.0])
    features = torch.randn(40, 5, 6) * sizes
    mask = torch.rand(40, 5) < 0.7
    mask[:, 0] = True
    features[~mask] = 1e6  # padding has no say
    connector.calibrate(features, mask)
    seen = (features[mask] * connector.scale).square().mean(0).sqrt()
    torch.testing.assert_close(seen[1:], torch.ones(5))
    assert seen[0] < 1  # far smaller than the rest: held to be dead
    out = connector(torch.zeros(2, 6))
    assert torch.equal(out[0], out[1])


def test_the_mean_of_weights_follows_its_formula_and_comes_back_exactly():
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 2)
    net.bias.requires_grad_(False)
    ema, expected = EMA(net, 0.5), net.weight.detach().clone()
    for step in range(4):
        with torch.no_grad():
            net.weight.add_(1.0)
        ema.update(net)
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * net.weight.detach()
    torch.testing.assert_close(ema.network(net).weight.detach(), expected)
    assert set(ema.state_dict()) == {"weight", "n_averaged"}  # the frozen bias is the network's
    again = EMA(torch.nn.Linear(3, 2).requires_grad_(True), 0.5)
    with pytest.raises(ModelError, match="lacks bias"):
        again.load_state_dict(ema.state_dict())
    other = EMA(net, 0.5)
    other.load_state_dict({name: value.clone() for name, value in ema.state_dict().items()})
    for one in (ema, other):
        with torch.no_grad():
            net.weight.fill_(0.25)
        one.update(net)
    assert torch.equal(ema.state_dict()["weight"], other.state_dict()["weight"])
    assert other.state_dict()["n_averaged"] == 5
    with pytest.raises(UsageError, match="decay"):
        EMA(net, 1.0)
