"""Laws of MeanFlow, in float64: what must hold whatever is trained."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pytest
import torch
from flow_fields import Gaussian, Linear, Mixture, Rotation, no_condition
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from encbench import registry
from encbench.errors import ModelError, UsageError
from encbench.flow import derivative, meanflow
from encbench.flow.derivative import total_derivative
from encbench.flow.dit import DiT, DiTConfig
from encbench.flow.loss import LossModule, objective_loss
from encbench.flow.meanflow import Condition, average_velocity, sample_flow
from encbench.flow.objectives.base import UNIFORM, Batch
from encbench.flow.objectives.emf import EMF
from encbench.flow.objectives.imf import IMF
from encbench.flow.objectives.meanflow import MeanFlow
from encbench.flow.objectives.pmf import PMF
from encbench.flow.times import EMFSchedule, LogitNormal, Phases, Uniform, flow_matching_first

OBJECTIVES = {name: registry.get("objective", name) for name in registry.names("objective")}
SAMPLERS = {name: registry.get("time-sampler", name) for name in registry.names("time-sampler")}
MODES = get_args(derivative.Mode)
B, D, W = 24, 3, 5


class Net(nn.Module):
    """A smooth network with attention over the prompt, so that every mode has work to do."""

    def __init__(self, prediction="u", velocity_head=False, heads=1):
        super().__init__()
        self.prediction, self.velocity_head, self.heads = prediction, velocity_head, heads
        self.first = nn.Linear(D + 2 + W, 16)
        self.key, self.last = nn.Linear(W, 16), nn.Linear(16, 2 * D)
        self.calls = []

    def both(self, z, r, t, cond):
        self.calls.append((len(z), torch.is_grad_enabled(), z.dtype))
        inner = torch.cat([z, r[:, None], t[:, None], cond.pooled], 1)
        hidden = torch.tanh(self.first(inner))[:, None]
        keys = self.key(cond.tokens)
        mixed = nn.functional.scaled_dot_product_attention(
            hidden, keys, keys, attn_mask=cond.mask[:, None]
        )
        return self.last(torch.sin(2 * hidden + mixed))[:, 0].chunk(2, 1)

    def forward(self, z, r, t, cond):
        return self.both(z, r, t, cond)[0]

    def with_velocity(self, z, r, t, cond):
        return self.both(z, r, t, cond)


class AsX(nn.Module):
    """The same function as a network of u, which says x instead."""

    prediction = "x"

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, z, r, t, cond):
        return z - t.clamp(min=meanflow.T_CLIP)[:, None] * self.net(z, r, t, cond)


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Net().double()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(2)
    x, noise = torch.randn(2, B, D, generator=g, dtype=torch.float64)
    t = torch.rand(B, generator=g, dtype=torch.float64) * 0.9 + 0.1
    r = torch.rand(B, generator=g, dtype=torch.float64) * t
    tokens = torch.randn(B, 4, W, generator=g, dtype=torch.float64)
    mask = torch.arange(4) < torch.randint(1, 5, (B, 1), generator=g)
    pooled = torch.randn(B, W, generator=g, dtype=torch.float64)
    return x, noise, r, t, Condition(tokens, mask, pooled)


def fitting(objective, net):
    return AsX(net) if objective.prediction == "x" else net


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------ objectives


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_says_its_name_and_what_it_is(name):
    assert OBJECTIVES[name].name == name
    assert OBJECTIVES[name].__doc__.strip()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_at_r_equal_t_every_loss_is_flow_matchings(name, mode, net, batch):
    x, noise, _, t, cond = batch
    objective = OBJECTIVES[name](derivative=mode, weight_power=0.0)
    terms = objective_loss(fitting(objective, net), x, cond, noise, t, t, objective=objective)
    z = (1 - t)[:, None] * x + t[:, None] * noise
    expected = (net(z, t, t, cond) - (noise - x)).square().mean()
    close(terms.loss, expected)
    close(terms.error.mean(), expected)
    assert not terms.interval.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["meanflow", "emf", "imf", "pmf"])
def test_loss_and_gradient_are_the_formulas(name, mode, net, batch):
    """Against the formula written out, with the derivative by another way (autograd's)."""
    x, noise, r, t, cond = batch
    r = torch.where(torch.arange(B) % 2 == 0, t, r)
    step = {"jvp": None, "central": 1e-4, "forward": 1e-7}[mode]
    objective = OBJECTIVES[name](derivative=mode, step=step, weight_power=0.75)
    used = fitting(objective, net)
    terms = objective_loss(used, x, cond, noise, r, t, objective=objective)
    terms.loss.backward()
    got = torch.cat([p.grad.flatten() for p in net.parameters()])

    z, v = (1 - t)[:, None] * x + t[:, None] * noise, noise - x
    with torch.no_grad():
        tangent = net(z, t, t, cond) if name in ("imf", "pmf") else v
    with sdpa_kernel(SDPBackend.MATH):
        _, dudt = torch.autograd.functional.jvp(
            lambda z, t: net(z, r, t, cond), (z, t), (tangent, torch.ones_like(t))
        )
    u = net(z, r, t, cond)
    error = (u - (v - (t - r)[:, None] * dudt.detach())).square()
    summed = error.sum(1)
    expected = (summed / (summed.detach() + 1e-3) ** 0.75).mean() * D ** (0.75 - 1)
    net.zero_grad()
    expected.backward()
    close(terms.loss, expected, 1e-5)
    close(got, torch.cat([p.grad.flatten() for p in net.parameters()]), 1e-5)
    close(terms.error, error.mean(1), 1e-5)
    close(terms.gap, (u - v).norm(dim=1) / v.norm(dim=1))
    assert terms.interval.tolist() == [i % 2 == 1 for i in range(B)]


@pytest.mark.parametrize("mode", MODES)
def test_one_forward_has_a_graph_and_the_rest_only_rows_with_an_interval(mode, net, batch):
    x, noise, r, t, cond = batch
    r = torch.where(torch.arange(B) < 18, t, r)
    objective_loss(net, x, cond, noise, r, t, objective=IMF(derivative=mode))
    with_graph = [call for call in net.calls if call[1]]
    without = [call for call in net.calls if not call[1]]
    assert [call[0] for call in with_graph] == [B]
    assert {call[0] for call in without} == {6}
    # the tangent's forward, and those of the derivative; one-sided reuses the main forward's u
    assert len(without) == 1 + {"jvp": 1, "central": 2, "forward": 1}[mode]


def test_adaptive_weight_sums_over_an_image(batch):
    """p = 1: loss of err / (err + eps), so nearly 1 for any large error; its gradient is not 0."""
    error = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    value = EMF(weight_power=1.0, weight_eps=1e-3).weigh(error)
    summed = error.detach().square().sum((1, 2, 3))
    close(value, (summed / (summed + 1e-3)).mean())
    value.backward()
    close(error.grad, 2 * error.detach() / (summed + 1e-3)[:, None, None, None] / 4)
    close(EMF(weight_power=0.0).weigh(error), error.square().mean())


def test_pmf_below_the_clip_has_a_target_that_a_perfect_network_meets(batch):
    x, noise, _, _, cond = batch

    class Perfect(nn.Module):
        prediction = "x"

        def forward(self, z, r, t, cond):
            return x

    t = torch.linspace(0.0, 0.2, B, dtype=torch.float64)
    terms = objective_loss(Perfect(), x, cond, noise, t, t, objective=PMF())
    close(terms.error, torch.zeros(B, dtype=torch.float64))


@pytest.mark.parametrize("name", ["meanflow", "imf"])
def test_x_and_u_prediction_are_the_same_function(name, net, batch):
    x, noise, r, t, cond = batch
    z = (1 - t)[:, None] * x + t[:, None] * noise
    close(average_velocity(AsX(net), z, r, t, cond), net(z, r, t, cond))
    objective = OBJECTIVES[name]()
    first, second = (
        objective_loss(n, x, cond, noise, r, t, objective=objective) for n in (net, AsX(net))
    )
    close(first.loss, second.loss)
    close(sample_flow(net, cond, noise, 3), sample_flow(AsX(net), cond, noise, 3))


def test_a_velocity_head_gives_the_tangent_and_learns(batch):
    x, noise, r, t, cond = batch
    torch.manual_seed(3)
    net = Net(velocity_head=True).double()
    objective = IMF(weight_power=0.0, head_weight=0.5)
    terms = objective_loss(net, x, cond, noise, r, t, objective=objective)
    assert [call[:2] for call in net.calls] == [(B, True), (B, False)]
    z, v = (1 - t)[:, None] * x + t[:, None] * noise, noise - x
    u, own = net.both(z, r, t, cond)
    dudt = total_derivative(lambda z, r, t: net(z, r, t, cond), z, r, t, own)
    main = (u + (t - r)[:, None] * dudt - v).square().mean()
    close(terms.loss, main + 0.5 * (own - v).square().mean())
    close(terms.error.mean(), main)
    terms.loss.backward()
    assert net.last.bias.grad[D:].abs().min() > 0  # of the head


def test_perceptual_loss_sees_the_predicted_image_where_noise_is_low(net, batch):
    """x_hat = z - t u: the network's output above the clip of t, a mixture with z below it."""
    x, noise, r, t, cond = batch
    t, r = t.clone(), r.clone()
    t[:4], r[:4] = torch.linspace(0.0, 0.04, 4, dtype=torch.float64), 0.0
    uniform = torch.rand(B, UNIFORM, dtype=torch.float64)
    seen = []

    def distance(x_hat, truth, crops):
        seen.append((x_hat, crops))
        return (x_hat - truth).abs().mean(1)

    plain, with_it = (
        objective_loss(AsX(net), x, cond, noise, r, t, objective=PMF(perceptual=p), uniform=uniform)
        for p in (None, distance)
    )
    low = t < 0.8
    z = (1 - t)[:, None] * x + t[:, None] * noise
    output = AsX(net)(z, r, t, cond)
    share = (t / 0.05).clamp(max=1)[:, None]
    close(seen[0][0], (share * output + (1 - share) * z)[low])
    assert (share < 1).sum() == 4
    assert torch.equal(seen[0][1], uniform[low, :4])
    close(with_it.loss - plain.loss, distance(seen[0][0], x[low], None).sum() / B)
    close(with_it.error, plain.error)
    all_noise = torch.full_like(t, 0.9)
    terms = objective_loss(AsX(net), x, cond, noise, all_noise, all_noise,
                 objective=PMF(perceptual=distance))  # fmt: skip
    assert math.isfinite(terms.loss.item())


@pytest.fixture
def dit():
    """A small DiT with a head of one block of its own and guidance as an input, no weight zero."""
    torch.manual_seed(7)
    config = DiTConfig(
        side=4, channels=2, patch=2, width=16, depth=3, heads=2, cond_dim=W, pooled_dim=W, mix=4,
        velocity_head=True, head_depth=1, guidance=True,
    )  # fmt: skip
    made = DiT(config).double()
    for weight in made.parameters():
        if not weight.any():
            nn.init.normal_(weight, std=0.1)
    return made


def test_a_guided_head_is_imfs_equations(dit, batch):
    """iMF (arXiv 2512.02012, sections 3.2 and 3.3) and pMF row by row, from the equations: V = u +
    (t - r) sg(du/dt) along v_c, target v + (1 - 1/w)(v_c - v_none), both of the head at r = t."""
    *_, r, t, cond = batch
    g = torch.Generator().manual_seed(3)
    x, noise = torch.randn(2, B, 2, 4, 4, generator=g, dtype=torch.float64)
    uniform = torch.rand(B, UNIFORM, generator=g, dtype=torch.float64)
    r, drop = torch.where(torch.arange(B) % 3 == 0, t, r), torch.arange(B) % 5 == 4
    objective = PMF(
        head_at="instant", guidance_max=8.0, head_weight=0.5, weight_power=0.5, weight_eps=0.01
    )
    terms = objective_loss(
        dit, x, cond, noise, r, t, objective=objective, drop=drop, uniform=uniform
    )
    terms.loss.backward()
    got = {name: p.grad.clone() for name, p in dit.named_parameters() if p.grad is not None}
    assert any(name.startswith("head.0.") for name in got)
    assert "guidance.0.weight" in got

    def velocities(z, r, t, row, w, low, high, nothing=False):
        one = cond.rows(slice(row, row + 1))
        one = one.drop(torch.tensor([True])) if nothing else one
        one = one.guided(torch.stack([1 - 1 / w, *map(torch.as_tensor, (low, high))]))
        prediction, v = dit.with_velocity(z, r, t, one)
        return (z - prediction) / t.clamp(min=0.05), v

    losses, whole, inside = [], 0, 0
    for i in range(B):
        row = slice(i, i + 1)
        z = (1 - t[row]) * x[row] + t[row] * noise[row]
        v = (z - x[row]) / t[row].clamp(min=0.05)
        w, low, high = 8 ** uniform[i, 4], uniform[i, 5] / 2, 0.5 + uniform[i, 6] / 2
        if r[i] == t[i]:
            low, high, whole = 0.0, 1.0, whole + 1
        at = w if low <= t[i] <= high else torch.ones_like(w)
        inside += int(at > 1 and r[i] < t[i])
        ends = t[row], t[row]
        with torch.no_grad():
            v_c = velocities(z, *ends, i, at, 0.0, 1.0, bool(drop[i]))[1]
            v_none = velocities(z, *ends, i, torch.ones_like(w), 0.0, 1.0, True)[1]
        target = v if drop[i] else v + (1 - 1 / at) * (v_c - v_none)
        u, head = velocities(z, r[row], t[row], i, w, low, high, bool(drop[i]))
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            rest = {"row": i, "w": w, "low": low, "high": high, "nothing": bool(drop[i])}
            _, dudt = torch.func.jvp(
                lambda z, t, r=r[row], rest=rest: velocities(z, r, t, **rest)[0],
                (z, t[row]), (v_c, torch.ones(1, dtype=torch.float64)),
            )  # fmt: skip
        big_v = u + (t[i] - r[i]) * dudt.detach()
        for made, share in ((big_v, 1.0), (head, 0.5)):
            summed = (made - target).square().sum()
            losses.append(share * summed / (summed.detach() + 0.01) ** 0.5 * 32 ** (0.5 - 1))
    assert 0 < whole < B
    assert 0 < inside < B - whole
    loss = torch.stack(losses).sum() / B
    close(terms.loss, loss, 1e-9)
    dit.zero_grad()
    loss.backward()
    for name, p in dit.named_parameters():
        close(got.get(name), p.grad, 1e-7) if p.grad is not None else None


def test_a_head_branches_off_before_the_last_blocks(dit, batch):
    """Its own blocks give v, the last of the trunk u; unguided is the default."""
    *_, r, t, cond = batch
    z = torch.randn(B, 2, 4, 4, dtype=torch.float64)
    u, v = dit.with_velocity(z, r, t, cond)
    close(dit(z, r, t, cond), u)
    close(dit(z, r, t, cond.guided((0.0, 0.0, 1.0))), u)
    assert (dit(z, r, t, cond.guided((0.5, 0.2, 0.8))) - u).abs().max() > 1e-3
    with torch.no_grad():
        dit.head[0].attention.out.weight.zero_()
    after, moved = dit.with_velocity(z, r, t, cond)
    assert torch.equal(after, u)
    assert (moved - v).abs().max() > 1e-6
    with pytest.raises(UsageError, match="of at least as many, not 3"):
        replace(dit.config, head_depth=4)
    with pytest.raises(UsageError, match="needs --velocity-head"):
        replace(dit.config, velocity_head=False)
    plain = DiT(replace(dit.config, velocity_head=False, head_depth=0, guidance=False)).double()
    other = DiT(dit.config).double()
    other.load_state_dict(other.with_head(plain.state_dict()))
    guided = cond.guided((0.5, 0.2, 0.8))
    for found in (*other.with_velocity(z, r, t, guided)[:1], other(z, r, t, cond)):
        close(found, plain(z, r, t, cond))
    x_hat = z - t.clamp(min=0.05)[:, None, None, None] * other.with_velocity(z, r, t, cond)[1]
    close(x_hat, plain(z, r, t, cond))
    with pytest.raises(ModelError, match="the backbone has no velocity head: train one with"):
        dit.load_backbone(plain.backbone_state())


def test_without_head_or_guidance_the_same_seed_gives_the_same_weights(dit):
    made = []
    for more in ({}, {"velocity_head": False, "head_depth": 0, "guidance": False}):
        torch.manual_seed(5)
        made.append(DiT(replace(dit.config, **more)).state_dict())
    assert all(torch.equal(made[0][name], weight) for name, weight in made[1].items())


# -------------------------------------------------------------------------------- guidance


def test_guidance_of_one_is_no_guidance(net, batch):
    x, noise, r, t, cond = batch
    plain = objective_loss(net, x, cond, noise, r, t, objective=MeanFlow())
    calls = len(net.calls)
    one = objective_loss(net, x, cond, noise, r, t, objective=MeanFlow(omega=1.0, kappa=0.0))
    assert torch.equal(plain.loss, one.loss)
    assert len(net.calls) == 2 * calls  # and costs nothing
    z = (1 - t)[:, None] * x + t[:, None] * noise
    almost = MeanFlow(omega=1 + 1e-12).target(Batch(net, x, noise, z, r, t, cond))
    close(almost, noise - x)


def test_guidance_in_the_target_is_its_formula(net, batch):
    x, noise, _, t, cond = batch
    drop = torch.arange(B) % 3 == 0
    objective = MeanFlow(omega=0.5, kappa=0.75, guidance_span=(0.3, 0.9))
    kept = cond.drop(drop)
    z, v = (1 - t)[:, None] * x + t[:, None] * noise, noise - x
    found = objective.target(Batch(net, x, noise, z, t, t, kept, drop))
    given = net(z, t, t, cond)
    none = net(z, t, t, cond.drop(torch.ones(B, dtype=torch.bool)))
    inside = (t >= 0.3) & (t <= 0.9) & ~drop
    assert 0 < inside.sum() < B
    expected = torch.where(inside[:, None], 0.5 * v + 0.75 * given - 0.25 * none, v)
    close(found, expected)
    # a network that fits it has v_guided = w v + (1 - w) none with w = omega / (1 - kappa)
    guided = 2 * v - none
    close(0.5 * v + 0.75 * guided - 0.25 * none, guided)
    terms = objective_loss(net, x, cond, noise, t, t, objective=objective, drop=drop)
    close(terms.error, (net(z, t, t, kept) - expected).square().mean(1))


def test_a_dropped_prompt_leaves_nothing(batch):
    *_, cond = batch
    drop = torch.arange(B) < 2
    gone = cond.drop(drop)
    assert not gone.tokens[:2].any()
    assert not gone.pooled[:2].any()
    assert gone.mask[:2].tolist() == [[True, False, False, False]] * 2
    assert torch.equal(gone.tokens[2:], cond.tokens[2:])
    assert torch.equal(gone.mask[2:], cond.mask[2:])
    both = cond.and_without()
    assert torch.equal(both.rows(slice(0, B)).tokens, cond.tokens)
    assert not both.tokens[B:].any()


# ------------------------------------------------------------------------------ derivative


def test_jvp_equals_central_difference(net, batch):
    x, noise, r, t, cond = batch
    z = (1 - t)[:, None] * x + t[:, None] * noise

    def u(z, r, t):
        return net(z, r, t, cond)

    exact = total_derivative(u, z, r, t, noise - x, mode="jvp")
    close(total_derivative(u, z, r, t, noise - x, mode="central", step=3e-6), exact, 1e-9)
    close(total_derivative(u, z, r, t, noise - x, mode="forward", step=1e-8), exact, 1e-5)
    base = u(z, r, t)
    one_sided = total_derivative(u, z, r, t, noise - x, mode="forward", step=1e-8, base=base)
    close(one_sided, exact, 1e-5)
    assert not exact.requires_grad


def test_jvp_equals_torchs_own_on_a_network_with_all_its_layers(batch):
    """The rules for linear layers, convolutions, RMSNorm, attention, masked or not; fallbacks."""
    _, _, r, t, cond = batch
    torch.manual_seed(0)
    gain = torch.rand(8, dtype=torch.float64)
    layers = {k: nn.Linear(8, 8).double() for k in ("q", "k", "v")} | {
        "w": nn.Linear(W, 8).double()
    }
    conv = nn.Conv2d(2, 2, 3, padding=1, stride=1).double()
    causal = {"is_causal": True}

    def u(z, r, t):
        attend = nn.functional.scaled_dot_product_attention
        x = conv(z).flatten(2) * torch.cos(t - r)[:, None, None]
        text = layers["w"](cond.tokens)
        x = x + attend(x, text, text, attn_mask=cond.mask[:, None])
        x = x + attend(layers["q"](x), layers["k"](x), layers["v"](x))
        x = x + attend(x, x, x, attn_mask=torch.full((2, 2), 0.3, dtype=torch.float64).tril())
        x = (
            x
            + attend(text.mean(1, keepdim=True), text, layers["v"](text))
            + attend(x, x, x, **causal)
        )
        norm = nn.functional.rms_norm
        x = norm(x, (8,), gain) + norm(x, (8,), eps=0.1) + norm(x, x.shape[1:])
        return x.unflatten(2, (4, 2))

    g = torch.Generator().manual_seed(5)
    z, v = torch.randn(2, B, 2, 4, 2, generator=g, dtype=torch.float64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        theirs = torch.func.jvp(lambda z, t: u(z, r, t), (z, t), (v, torch.ones_like(t)))[1]
    close(total_derivative(u, z, r, t, v), theirs, 1e-12)
    constant = total_derivative(lambda z, r, t: torch.ones_like(z), z, r, t, v)
    assert not constant.any()


@pytest.mark.parametrize(("mode", "order"), [("central", 2), ("forward", 1)])
def test_error_falls_with_the_order_that_is_stated(mode, order, net, batch):
    """Also where t + h lies beyond 1 or t - h below 0, which no point of the difference does."""
    x, noise, r, t, cond = batch
    t = t.clone()
    t[:4], t[4:8], r = 1.0, 0.999, r.clone()
    t[8:12], r[8:12] = 0.001, 0.0
    seen = []

    def u(z, r, t):
        seen.append(t)
        return net(z, r, t, cond)

    z = (1 - t)[:, None] * x + t[:, None] * noise
    exact = total_derivative(u, z, r, t, noise - x)
    errors = [
        (total_derivative(u, z, r, t, noise - x, mode=mode, step=h) - exact).norm(dim=1)
        for h in (0.02, 0.01)
    ]
    ratio = errors[0] / errors[1]
    assert (ratio.log2() - order).abs().median() < 0.1
    assert (ratio[:12].log2() - order).abs().median() < 0.2
    assert all(times.min() >= 0 and times.max() <= 1 for times in seen)


@pytest.mark.parametrize(("mode", "most"), [("jvp", 1e-5), ("central", 1e-3), ("forward", 2e-2)])
def test_error_of_each_mode_in_float32_with_its_default_step(mode, most, net, batch):
    x, noise, r, t, cond = batch
    z = (1 - t)[:, None] * x + t[:, None] * noise
    exact = total_derivative(lambda z, r, t: net(z, r, t, cond), z, r, t, noise - x)
    single = net.float()
    low = Condition(cond.tokens.float(), cond.mask, cond.pooled.float())
    found = total_derivative(
        lambda z, r, t: single(z, r, t, low),
        *(part.float() for part in (z, r, t, noise - x)),
        mode=mode,
    )
    assert (found - exact).norm() / exact.norm() < most


@pytest.mark.parametrize("mode", MODES)
def test_under_autocast_the_derivative_is_computed_in_float32(mode, net, batch):
    x, noise, r, t, cond = (
        part.float() if isinstance(part, torch.Tensor) else part for part in batch
    )
    cond = Condition(cond.tokens.float(), cond.mask, cond.pooled.float())
    net = net.float()
    types = []
    net.last.register_forward_hook(lambda _m, _i, out: types.append((out.dtype, out.requires_grad)))
    with torch.autocast("cpu", torch.bfloat16):
        terms = objective_loss(net, x, cond, noise, r, t, objective=MeanFlow(derivative=mode))
    assert types[0] == (torch.bfloat16, True)
    assert {dtype for dtype, _ in types[1:]} == {torch.float32}
    assert len(types) == 1 + {"jvp": 1, "central": 2, "forward": 2}[mode]
    assert terms.loss.dtype == torch.float32


def single(batch):
    x, noise, r, t, cond = (p.float() if isinstance(p, torch.Tensor) else p for p in batch)
    return x, Condition(cond.tokens.float(), cond.mask, cond.pooled.float()), noise, r, t


@pytest.mark.parametrize("mode", MODES)
def test_a_network_that_is_coarse_inside_the_derivative_is_refused(mode, net, batch):
    """It turns on autocast in its own forward, where nobody outside can turn it off."""

    class Coarse(nn.Module):
        prediction = "u"

        def __init__(self):
            super().__init__()
            self.net = net.float()

        def forward(self, z, r, t, cond):
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(z, r, t, cond)

    with pytest.raises(UsageError, match="the network computes in bfloat16 inside du/dt"):
        objective_loss(Coarse(), *single(batch), objective=EMF(mode))


def test_tensor_float_that_cannot_be_turned_off_is_refused(monkeypatch):
    device = torch.device("cuda")
    derivative._check_difference(2**-12, torch.float32, device)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    with pytest.raises(UsageError, match="NVIDIA_TF32_OVERRIDE=1 forces TensorFloat-32"):
        derivative._check_difference(2**-12, torch.float32, device)


PRECISIONS = """
import json, os, sys, torch
from encbench.flow.derivative import lacks_precision, total_derivative
b = torch.backends

def read(*names):
    values = []
    for name in names:
        try:
            values.append(eval(name))
        except RuntimeError:  # torch's own: the older and the newer switch disagree
            values.append("refused")
    return values

NEWER = ("b.cuda.matmul", "b.cudnn.conv", "b.mkldnn.matmul", "b.mkldnn.conv")
ALL = [f"{name}.fp32_precision" for name in ("b", "b.cudnn", "b.cudnn.rnn", "b.mkldnn", *NEWER)]
ALL += ["b.cuda.matmul.allow_tf32", "b.cudnn.allow_tf32", "torch.get_float32_matmul_precision()"]
z, t = torch.ones(2, 3), torch.full((2,), 0.5)
for line in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    exec(line)
    coarse = {kind: lacks_precision(torch.device(kind)) for kind in ("cpu", "cuda")}
    before, inside = read(*ALL), []

    def u(z, r, t):
        inside.append(read(*(f"{name}.fp32_precision" for name in NEWER)))
        return z * t[:, None]

    for mode in ("jvp", "central", "forward"):
        total_derivative(u, z, t, t, z, mode=mode)
    print(json.dumps([line, coarse, inside, before, read(*ALL)]), flush=True)
    os._exit(0)
"""
WAYS = {  # how TensorFloat-32 or bfloat16 is switched on or off, and where products are coarse then
    "pass": {"cuda"},  # torch's default: in convolutions of cuDNN
    "b.fp32_precision = 'tf32'": {"cuda", "cpu"},
    "b.fp32_precision = 'ieee'": set(),
    "b.cuda.matmul.fp32_precision = 'tf32'": {"cuda"},
    "b.cudnn.conv.fp32_precision = 'ieee'": set(),
    "b.cudnn.fp32_precision = 'tf32'": {"cuda"},
    "b.mkldnn.matmul.fp32_precision = 'bf16'": {"cuda", "cpu"},
    "b.cuda.matmul.allow_tf32 = True": {"cuda"},
    "b.cudnn.allow_tf32 = False": set(),
    "torch.set_float32_matmul_precision('high')": {"cuda", "cpu"},
    "torch.set_float32_matmul_precision('medium')": {"cuda", "cpu"},
    "b.cuda.matmul.allow_tf32 = True; b.cuda.matmul.fp32_precision = 'ieee'": {"cuda"},
    "b.cudnn.allow_tf32 = False; b.fp32_precision = 'tf32'": {"cuda", "cpu"},
}


@pytest.fixture(scope="module")
def precisions():
    """What each way does, in a process of its own: the switches are the process's."""
    done = subprocess.run(
        [sys.executable, "-c", PRECISIONS, *WAYS], capture_output=True, text=True, check=True
    )
    return {line[0]: line[1:] for line in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("way", WAYS)
def test_the_derivative_is_in_full_precision_and_the_users_choice_stays(way, precisions):
    coarse, inside, before, after = precisions[way]
    assert {kind for kind, is_coarse in coarse.items() if is_coarse} == WAYS[way]
    assert inside
    assert not {"tf32", "bf16"} & {value for row in inside for value in row}
    assert before == after


def test_autocast_lacks_precision():
    assert not derivative.lacks_precision(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert derivative.lacks_precision(torch.device("cpu"))


# ---------------------------------------------------------------------------- known fields


def fields():
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(2, 2, generator=g, dtype=torch.float64)
    center = torch.tensor([1.0, -0.5], dtype=torch.float64)
    means = torch.stack([center, -center, center.flip(0)])
    scales = torch.tensor([0.5, 0.4, 0.6], dtype=torch.float64)
    return {
        "linear": Linear(matrix),
        "rotation": Rotation(),
        "Gaussian": Gaussian(center, 0.3),
        "mixture": Mixture(means, scales, steps=60),
    }


@pytest.mark.parametrize("name", list(fields()))
def test_the_identity_holds_for_known_fields(name):
    field = fields()[name]
    g = torch.Generator().manual_seed(1)
    z = torch.randn(32, 2, generator=g, dtype=torch.float64)
    t = 0.05 + 0.95 * torch.rand(32, generator=g, dtype=torch.float64)
    r = t * torch.rand(32, generator=g, dtype=torch.float64)
    cond = no_condition(32)
    v = field.velocity(z, t)
    for mode, step in (("jvp", None), ("central", 1e-4)):
        dudt = total_derivative(
            lambda z, r, t: average_velocity(field, z, r, t, cond), z, r, t, v,
            mode=mode, step=step,
        )  # fmt: skip
        close(field(z, r, t, cond), v - (t - r)[:, None] * dudt, 1e-6)


@pytest.mark.parametrize("name", list(fields()))
def test_one_step_equals_a_thousand(name):
    field = fields()[name]
    g = torch.Generator().manual_seed(2)
    noise = torch.randn(16, 2, generator=g, dtype=torch.float64)
    cond = no_condition(16)
    one = sample_flow(field, cond, noise, 1)
    if name == "mixture":
        # a network of the instantaneous velocity, integrated in 1,000 midpoint steps
        z, h = noise, 1e-3
        for i in range(1000):
            t = torch.full((16,), 1 - i * h, dtype=torch.float64)
            half = z - h / 2 * field.velocity(z, t)
            z = z - h * field.velocity(half, t - h / 2)
        close(one, z, 1e-5)
        close(one, sample_flow(field, cond, noise, [1.0, 0.7, 0.2, 0.0]), 1e-6)
    else:
        close(one, sample_flow(field, cond, noise, 1000), 1e-9)


def test_samples_of_a_known_field_are_the_data():
    g = torch.Generator().manual_seed(3)
    noise = torch.randn(20_000, 2, generator=g, dtype=torch.float64)
    field = fields()["Gaussian"]
    x = sample_flow(field, no_condition(len(noise)), noise, 1)
    close(x.mean(0), field.mean, 0.01)
    close(x.std(0), torch.full((2,), 0.3, dtype=torch.float64), 0.01)


# --------------------------------------------------------------------------------- sampler


def test_batched_guidance_equals_two_calls(net, batch):
    _, noise, _, _, cond = batch
    found = sample_flow(net, cond, noise, 2, guidance=3.0)
    assert [call[0] for call in net.calls] == [2 * B, 2 * B]
    none = cond.drop(torch.ones(B, dtype=torch.bool))
    z = noise
    for r, t in ((0.5, 1.0), (0.0, 0.5)):
        ends = torch.full((B,), r, dtype=torch.float64), torch.full((B,), t, dtype=torch.float64)
        u, free = net(z, *ends, cond), net(z, *ends, none)
        z = z - (t - r) * (free + 3.0 * (u - free))
    close(found, z)
    quarters = sample_flow(net, cond, noise, [1.0, 0.75, 0.5, 0.25, 0.0])
    close(sample_flow(net, cond, noise, 4, guidance=1.0), quarters)


@pytest.mark.parametrize("steps", [1, 2, 3, 16])
def test_a_step_is_a_forward_and_an_image_does_not_depend_on_its_batch(steps, net, batch):
    _, noise, _, _, cond = batch
    whole = sample_flow(net, cond, noise, steps)
    assert len(net.calls) == steps
    first = sample_flow(net, cond.rows(slice(0, 5)), noise[:5], steps)
    close(whole[:5], first)
    assert not whole.requires_grad


def test_grid_runs_from_noise_to_data():
    assert meanflow.time_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert meanflow.time_grid([1.0, 0.3, 0.0]) == [1.0, 0.3, 0.0]
    for wrong in (0, -1, [1.0], [0.9, 0.0], [1.0, 0.5], [1.0, 0.5, 0.5, 0.0], []):
        with pytest.raises(UsageError, match="sampling"):
            meanflow.time_grid(wrong)


def test_loss_as_a_module_is_the_loss(net, batch):
    x, noise, r, t, cond = batch
    objective, drop = IMF(), torch.arange(B) % 4 == 0
    module = LossModule(net, objective)
    direct = objective_loss(net, x, cond, noise, r, t, objective=objective, drop=drop)
    assert torch.equal(module(x, cond, noise, r, t, drop).loss, direct.loss)
    assert len(list(module.parameters())) == len(list(net.parameters()))


# ----------------------------------------------------------------------------------- times


def test_emf_schedule_at_its_ends_and_middle():
    schedule = EMFSchedule()
    assert schedule.at(0.0) == LogitNormal(-0.5, 1.0, 0.25)
    assert schedule.at(0.5) == LogitNormal(0.0, 1.5, 0.5)
    assert schedule.at(1.0) == LogitNormal(0.5, 2.0, 0.75)
    for progress, share in ((0.0, 0.25), (0.5, 0.5), (1.0, 0.75)):
        r, t = schedule.sample(1000, progress, torch.Generator().manual_seed(0))
        assert (r < t).sum() == 1000 * share


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("progress", [0.0, 0.7, 1.0])
def test_times_are_ordered_and_seeded(name, progress):
    sampler = SAMPLERS[name]()
    first, again = (
        sampler.sample(1000, progress, torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(first.t, again.t)
    assert torch.equal(first.r, again.r)
    r, t = first
    assert r.dtype == t.dtype == torch.float32
    assert (r >= 0).all() and (r <= t).all() and (t <= 1).all()  # noqa: PT018
    assert 0 < (r < t).sum() < 1000


@pytest.mark.parametrize(
    "sampler", [Uniform(0.3), LogitNormal(share=0.3), LogitNormal(0.8, 0.8, 0.3)]
)
def test_times_have_their_share(sampler):
    r, t = sampler.sample(10_000, 0.0, torch.Generator().manual_seed(4))
    assert (r < t).sum() == 3000
    assert 0.2 < (r < t)[:1000].float().mean() < 0.4  # in no order


def test_logit_normal_is_one():
    for share, mean in ((0.0, 0.0), (1.0, 1 / math.sqrt(math.pi))):
        r, t = LogitNormal(-0.4, 2.0, share).sample(100_000, 0.0, torch.Generator().manual_seed(0))
        assert abs((t.double().logit().mean() + 0.4) / 2 - mean) < 0.02
        ends = torch.cat([r, t]).double().logit()
        if share:
            assert abs(ends.mean() + 0.4) < 0.02
            assert abs(ends.std() - 2.0) < 0.02


def test_one_of_the_draws_can_have_its_own_distribution_and_some_are_uniform():
    g = torch.Generator().manual_seed(0)
    plain = LogitNormal(0.4, 1.0, 1.0).sample(50_000, 0.0, torch.Generator().manual_seed(1))
    same = LogitNormal(0.4, 1.0, 1.0, r_mu=0.4, r_sigma=1.0)
    assert torch.equal(same.sample(50_000, 0.0, torch.Generator().manual_seed(1)).t, plain.t)
    r, t = LogitNormal(3.0, 0.5, 1.0, r_mu=-3.0, r_sigma=0.25).sample(50_000, 0.0, g)
    for ends, mu, sigma in ((t, 3.0, 0.5), (r, -3.0, 0.25)):  # so far apart that they never swap
        logits = ends.double().logit()
        assert abs(logits.mean() - mu) < 0.02
        assert abs(logits.std() - sigma) < 0.02
    r, t = LogitNormal(4.0, 0.1, 1.0, uniform_share=0.2).sample(50_000, 0.0, g)
    outside = (r < 0.95).double().mean()  # of two uniform draws the smaller one, nearly always
    assert abs(outside - 0.2 * (1 - 0.05**2)) < 0.01
    assert abs(t[r < 0.95].double().mean() - 2 / 3) < 0.02
    assert EMFSchedule(uniform_share=0.1).at(0.3).uniform_share == 0.1


def test_the_parents_velocity_in_place_of_the_datas(net, batch):
    """v and the tangent where r < t; elsewhere the data's. And du/dt fades in."""
    x, noise, r, t, cond = batch
    rows = torch.arange(B) % 2 == 1
    r = torch.where(rows, r, t)
    torch.manual_seed(9)
    parent = Net().double()
    z = (1 - t)[:, None] * x + t[:, None] * noise
    own = parent(z, t, t, cond)
    for warmth in (1.0, 0.25):
        terms = objective_loss(
            net, x, cond, noise, r, t, objective=EMF(), parent=parent, warmth=warmth
        )
        v = torch.where(rows[:, None], own, noise - x)
        u, dudt = net(z, r, t, cond), total_derivative(
            lambda z, r, t: net(z, r, t, cond), z, r, t, own
        )  # fmt: skip
        error = u - v + warmth * ((t - r)[:, None] * dudt)
        close(terms.error, error.square().mean(1))
    terms.loss.backward()
    assert all(p.grad is None for p in parent.parameters())


def test_the_share_holds_on_average_in_small_batches():
    g = torch.Generator().manual_seed(0)
    sampler = LogitNormal(share=0.3)
    counts = [int((lambda p: (p.r < p.t).sum())(sampler.sample(2, 0.0, g))) for _ in range(2000)]
    assert set(counts) == {0, 1}
    assert abs(sum(counts) / 4000 - 0.3) < 0.02


def test_phases_begin_with_flow_matching():
    schedule = Phases()
    assert schedule.switch == 0.6
    g = torch.Generator().manual_seed(0)
    r, t = schedule.sample(500, 0.59, g)
    assert torch.equal(r, t)
    r, t = schedule.sample(500, 0.6, g)
    assert (r < t).sum() == 250
    # each phase sees its own progress
    phases = Phases(Uniform(0.0), EMFSchedule(), 0.5)
    for progress, share in ((0.5, 0.25), (0.75, 0.5), (1.0, 0.75)):
        r, t = phases.sample(400, progress, g)
        assert (r < t).sum() == 400 * share
    short = flow_matching_first(LogitNormal(0.8, 0.8, 0.5), switch=0.25)
    assert short == Phases(LogitNormal(0.8, 0.8, 0.0), LogitNormal(0.8, 0.8, 0.5), 0.25)
    assert replace(short, switch=1.0).sample(4, 1.0, g).t.shape == (4,)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: registry.get("objective", "mean-flow"), "did you mean meanflow"),
        (lambda: MeanFlow(derivative="backward"), "no derivative 'backward'"),
        (lambda: IMF(kappa=1.0), "kappa"),
        (lambda: EMF(weight_eps=0.0), "adaptive weight"),
        (lambda: MeanFlow(guidance_span=(0.8, 0.2)), "--guidance-span takes two times"),
        (lambda: MeanFlow(guidance_max=8.0, kappa=0.5), "either --guidance-max or"),
        (lambda: Uniform(share=1.1), "share"),
        (lambda: LogitNormal(sigma=0.0), "sigma"),
        (lambda: LogitNormal(uniform_share=1.5), "share of uniform times"),
        (lambda: EMFSchedule(shares=(0.25, 2.0)), "share"),
        (lambda: Phases(switch=2.0), "switch"),
    ],
)
def test_impossible_settings_are_one_line(make, words):
    with pytest.raises(UsageError, match=words):
        make()


def test_what_does_not_fit_is_one_line(net, batch):
    x, noise, r, t, cond = batch
    with pytest.raises(UsageError, match="pmf needs a network that predicts x"):
        objective_loss(net, x, cond, noise, r, t, objective=PMF())
    with pytest.raises(UsageError, match="this network has none: train it with --velocity-head"):
        objective_loss(net, x, cond, noise, r, t, objective=IMF(head_at="instant"))
    for step in (0.0, 1e-15):
        with pytest.raises(UsageError, match=r"step .* is lost in the rounding of float64"):
            total_derivative(net, x, r, t, noise, mode="central", step=step)
    with pytest.raises(UsageError, match=r"rounding of float32: use .* of at least 7.6e-06"):
        objective_loss(net.float(), *single(batch), objective=EMF("forward", 2**-18))
    with pytest.raises(UsageError, match="step"):
        total_derivative(net, x, r, t, noise, mode="central", step=0.0)
    with pytest.raises(UsageError, match="no derivative"):
        total_derivative(net, x, r, t, noise, mode="exact")
