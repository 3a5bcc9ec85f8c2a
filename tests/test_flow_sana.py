"""A pretrained SANA as a MeanFlow network, on a tiny one in the published layout."""

import builtins
import json

import flow_checkpoints
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from encbench.errors import MissingLibraryError, ModelError, UsageError
from encbench.flow.config import TrainConfig
from encbench.flow.derivative import STEPS, total_derivative
from encbench.flow.meanflow import Condition
from encbench.flow.networks import build_objective
from encbench.flow.sample import parse_steps
from encbench.flow.sana import load_sana

pytest.importorskip("diffusers")
WIDTH = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return flow_checkpoints.sana(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="module")
def net(folder):
    return load_sana(str(folder), WIDTH, times="scaled")


@pytest.fixture(scope="module")
def parent(folder):
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel.from_pretrained(folder / "transformer")


def inputs(width: int = WIDTH):
    torch.manual_seed(1)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]).bool()
    cond = Condition(torch.randn(3, 5, width), mask)
    return torch.randn(3, 4, 4, 4), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 1, 0.3]), cond


@torch.no_grad()
def test_at_r_equal_t_it_is_its_parent(net, parent):
    z, _, t, cond = inputs()
    tokens = net.connector(cond.tokens)
    expected = parent(z, tokens, t * 1000, encoder_attention_mask=cond.mask, return_dict=False)[0]
    torch.testing.assert_close(net(z, t, t, cond), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_sanas_own_encoder_needs_no_connector(folder, parent):
    net = load_sana(str(folder), None, times="scaled")
    z, r, t, cond = inputs(24)
    expected = parent(
        z, cond.tokens, t * 1000, encoder_attention_mask=cond.mask, return_dict=False
    )[0]
    torch.testing.assert_close(net(z, t, t, cond), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="10 wide, but this SANA takes 24"):
        net(z, r, t, inputs(10)[3])
    with pytest.raises(UsageError, match="no connector to train"):
        net.train_only("connector")


def test_the_parents_network_stays_at_r_equal_t_while_the_interval_learns(folder):
    net = load_sana(str(folder), WIDTH, times="scaled")
    z, r, t, cond = inputs()
    with torch.no_grad():
        still, moving = net(z, t, t, cond), net(z, r, t, cond)
        for weight in net.transformer.time_embed.interval.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        torch.testing.assert_close(net(z, t, t, cond), still, rtol=1e-5, atol=1e-5)
        gap = (net(z, r, t, cond) - moving).flatten(1).abs().amax(1)
    assert gap[:2].min() > 1e-3  # row 2 has r = t


@torch.no_grad()
def test_padding_changes_nothing(net):
    z, r, t, cond = inputs()
    noise = torch.randn_like(cond.tokens) * 10
    longer = torch.cat([torch.where(cond.mask[..., None], cond.tokens, noise), noise], 1)
    mask = torch.cat([cond.mask, torch.zeros_like(cond.mask)], 1)
    before = net(z, r, t, cond)
    torch.testing.assert_close(net(z, r, t, Condition(longer, mask)), before, rtol=1e-5, atol=1e-5)
    assert (net(z, r, t, Condition(cond.tokens + 1, cond.mask)) - before).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("scale", "h", "tolerance"), [(1e-3, 1e-3, 1e-3), (1.0, 3e-5, 3e-3)])
def test_the_jvp_equals_a_central_difference(tmp_path, scale, h, tolerance):
    """In float32, as SANA computes its times and attention; at its x1000 scale of time the
    derivative is larger and the step has to be smaller."""
    flow_checkpoints.sana(tmp_path, timestep_scale=scale)
    net = load_sana(str(tmp_path), WIDTH, times="scaled")
    z, r, t, cond = inputs()
    v = torch.randn_like(z)
    with sdpa_kernel(SDPBackend.MATH):
        value, slope = torch.func.jvp(
            lambda z, r, t: net(z, r, t, cond),
            (z, r, t),
            (v, torch.zeros_like(r), torch.ones_like(t)),
        )
    difference = (net(z + h * v, r, t + h, cond) - net(z - h * v, r, t - h, cond)) / (2 * h)
    torch.testing.assert_close(value, net(z, r, t, cond), rtol=1e-4, atol=1e-5)
    assert (slope - difference).norm() < tolerance * slope.norm()


@torch.no_grad()
def test_the_default_step_suits_its_scale_of_time(tmp_path):
    flow_checkpoints.sana(tmp_path, timestep_scale=1.0)
    net = load_sana(str(tmp_path), WIDTH, times="scaled")
    z, r, t, cond = inputs()
    v = torch.randn_like(z)
    network = f"sana:{tmp_path}"
    config = TrainConfig("control:constant", tmp_path, network=network, sana_times="scaled")
    own = build_objective(config, torch.device("cpu"))
    assert own.derivative == "central"
    unscaled = TrainConfig("control:constant", tmp_path, network=network)  # by default
    assert unscaled.difference_step == STEPS["central"]
    plain = TrainConfig("control:constant", tmp_path).as_dict()
    assert "sana_times" not in plain  # hashes of other networks' trainings stay

    def field(z, r, t):
        return net(z, r, t, cond)

    exact = total_derivative(field, z, r, t, v, mode="jvp")

    def error(step):
        found = total_derivative(field, z, r, t, v, mode="central", step=step)
        return float((found - exact).norm() / exact.norm())

    assert error(own.step) < 5e-3
    assert error(None) > 10 * error(own.step)


@torch.no_grad()
def test_unscaled_times_are_emfs(folder, parent):
    """Two copies of the embedding, of t and of t - r as they are, added (arXiv 2604.18168)."""
    net = load_sana(str(folder), WIDTH, times="unscaled")
    _, r, t, _ = inputs()
    emb, made = parent.time_embed.emb, net.transformer.time_embed
    expected = sum(emb.timestep_embedder(emb.time_proj(part).float()) for part in (t, t - r))
    found = made(torch.stack([t, t - r], 1) * net.scale, hidden_dtype=torch.float32)
    torch.testing.assert_close(found[1], expected)
    torch.testing.assert_close(found[0], parent.time_embed.linear(expected * expected.sigmoid()))


def test_times_in_other_units_make_a_gentler_derivative(folder, parent):
    """Rescaled: the ridge regression's own normal equations hold, it is nearer to the parent at
    r = t than unscaled times are, and both have a smaller du/dt than times 1,000."""
    nets = {w: load_sana(str(folder), WIDTH, times=w) for w in ("scaled", "unscaled", "rescaled")}
    connector = nets["scaled"].connector.state_dict()
    z, r, t, cond = inputs()
    t, v = torch.tensor([0.4, 0.8, 0.6]), torch.zeros_like(z)
    apart, steep = {}, {}
    for way, net in nets.items():
        net.connector.load_state_dict(connector)
        with torch.no_grad():
            apart[way] = (net(z, t, t, cond) - nets["scaled"](z, t, t, cond)).norm()
        derivative = total_derivative(lambda z, r, t, n=net: n(z, r, t, cond), z, r, t, v)
        steep[way] = derivative.square().mean().sqrt()
    assert apart["scaled"] < 1e-5
    assert apart["rescaled"] < apart["unscaled"]
    assert steep["rescaled"] < steep["scaled"] / 5
    assert steep["unscaled"] < steep["scaled"] / 5

    own, given = nets["rescaled"].transformer.time_embed.end, parent.time_embed.emb
    times = torch.linspace(0, 1, 1025)
    with torch.no_grad():
        proj = own.time_proj(times).float()
        hidden = own.timestep_embedder.act(own.timestep_embedder.linear_1(proj)).double()
        wanted = given.timestep_embedder(given.time_proj(1000 * times).float()).double()
    last = own.timestep_embedder.linear_2
    x, y = hidden - hidden.mean(0), wanted - wanted.mean(0)
    ridge = 1e-4 * x.square().sum(0).mean()
    weight = last.weight.detach().double().T
    residual = x.T @ (y - x @ weight) - ridge * weight
    assert residual.abs().max() < 1e-4 * (x.T @ y).abs().max()


def test_steps_with_sanas_shift():
    shifted = parse_steps("4@3")
    scheduler = pytest.importorskip("diffusers").FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    assert shifted == pytest.approx(scheduler.sigmas.tolist())
    assert parse_steps("4@1") == (1.0, 0.75, 0.5, 0.25, 0.0)
    for wrong in ("4@", "4@x", "@3", "4@0", "1,.5@3"):
        with pytest.raises(UsageError, match="--steps"):
            parse_steps(wrong)


def test_the_parts_to_train(net):
    def names():
        return {name for name, weight in net.named_parameters() if weight.requires_grad}

    try:
        net.train_only("connector")
        assert names() == {f"connector.{name}" for name, _ in net.connector.named_parameters()}
        chosen = net.train_only("emf")
        assert len(chosen) == len(names())
        parts = {".".join(name.split(".")[:2]) for name in names() if name.startswith("trans")}
        assert parts == {
            "transformer.transformer_blocks", "transformer.time_embed",
            "transformer.scale_shift_table",
        }  # fmt: skip
        assert any(name.startswith("connector.") for name in names())
        with pytest.raises(UsageError, match="known: emf, all, lora, connector"):
            net.train_only("half")
    finally:
        net.train_only("all")
    assert names() == {name for name, _ in net.named_parameters()}
    assert not [name for name in net.backbone_state() if name.startswith("connector.")]


def test_what_is_no_sana_is_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="there is no folder"):
        load_sana(str(tmp_path / "nowhere"), WIDTH, times="scaled")
    with pytest.raises(ModelError, match="says: AutoencoderDC"):
        load_sana(str(folder / "vae"), WIDTH, times="scaled")
    flow_checkpoints.sana(tmp_path / "sprint", guidance_embeds=True)
    with pytest.raises(UsageError, match="SANA-Sprint"):
        load_sana(str(tmp_path / "sprint"), WIDTH, times="scaled")
    part = flow_checkpoints.sana(tmp_path / "bad") / "transformer"
    (part / "diffusion_pytorch_model.safetensors").rename(part / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled ones are not read"):
        load_sana(str(tmp_path / "bad"), WIDTH, times="scaled")
    (part / "diffusion_pytorch_model.bin").rename(part / "diffusion_pytorch_model.safetensors")
    said = json.loads((part / "config.json").read_text())
    (part / "config.json").write_text(json.dumps(said | {"num_layers": 3}))
    with pytest.raises(ModelError, match=r"transformer_blocks\.2"):
        load_sana(str(tmp_path / "bad"), WIDTH, times="scaled")
    z, r, t, cond = inputs()
    with pytest.raises(UsageError, match="latents of 4 channels, not 3"):
        load_sana(str(folder), WIDTH, times="scaled")(z[:, :3], r, t, cond)

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "diffusers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingLibraryError, match=r'pip install "encbench\[diffusers\]"'):
        load_sana(str(folder), WIDTH, times="scaled")
