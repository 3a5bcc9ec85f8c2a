"""Pixels and latents, and the perceptual losses."""

import flow_checkpoints
import pytest
import torch

from encbench.errors import DownloadError, ModelError, UsageError
from encbench.flow.perceptual import perceptual_loss, same_crops
from encbench.flow.spaces import LatentSpace, PixelSpace
from encbench.vision.dino import load_timm


def images(count: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_pixels_go_there_and_back():
    space = PixelSpace(16)
    x = space.encode(images())
    assert space.shape == (3, 16, 16)
    assert -1 <= x.min() < -0.9 < 0.9 < x.max() <= 1
    torch.testing.assert_close(space.decode(x), images())
    assert space.decode(x * 3).max() == 1
    with pytest.raises(UsageError, match="16 x 16 pixels, not 3 x 8 x 8"):
        space.encode(images(side=8))


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    pytest.importorskip("diffusers")
    root = tmp_path_factory.mktemp("autoencoders")
    flow_checkpoints.sana(root / "dc-in-a-pipeline")
    flow_checkpoints.kl(root / "kl")
    flow_checkpoints.kl(root / "kl-no-shift", shift=None)
    return root


@torch.no_grad()
def direct(root, name):
    """Encode and decode as diffusers' pipelines do."""
    import diffusers

    if name == "dc-in-a-pipeline":
        model = diffusers.AutoencoderDC.from_pretrained(root / name / "vae")
        latent = model.encode(images() * 2 - 1).latent
    else:
        model = diffusers.AutoencoderKL.from_pretrained(root / name)
        latent = model.encode(images() * 2 - 1).latent_dist.mode()
    shift = model.config.get("shift_factor") or 0.0
    decoded = model.decode(latent).sample
    return (latent - shift) * model.config.scaling_factor, (decoded / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("name", ["dc-in-a-pipeline", "kl", "kl-no-shift"])
def test_latents_are_diffusers_own(autoencoders, name):
    space = LatentSpace(str(autoencoders / name), 16)
    latent, decoded = direct(autoencoders, name)
    x = space.encode(images())
    assert space.shape == (4, 4, 4) == x.shape[1:]
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, latent)
    torch.testing.assert_close(space.decode(x), decoded)
    assert not any(weight.requires_grad for weight in space.model.parameters())


def test_a_latent_does_not_depend_on_the_images_beside_it(autoencoders):
    space = LatentSpace(str(autoencoders / "kl"), 16)
    many = images(11)
    together = space.encode(many)
    assert torch.equal(space.encode(many[[9, 2]]), together[[9, 2]])


def test_what_is_no_autoencoder_is_told(autoencoders, tmp_path):
    with pytest.raises(ModelError, match="there is no folder"):
        LatentSpace(str(tmp_path / "nowhere"), 16)
    with pytest.raises(ModelError, match="says: SanaTransformer2DModel"):
        LatentSpace(str(autoencoders / "dc-in-a-pipeline" / "transformer"), 16)
    with pytest.raises(UsageError, match="by 4: side 18"):
        LatentSpace(str(autoencoders / "kl"), 18)
    with pytest.raises(UsageError, match="16 x 16 pixels, not 3 x 8 x 8"):
        LatentSpace(str(autoencoders / "kl"), 16).encode(images(side=8))
    broken = flow_checkpoints.kl(tmp_path / "broken")
    weights = broken / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="diffusers cannot load"):
        LatentSpace(str(broken), 16)


# ---------------------------------------------------------------------- perceptual losses


@pytest.fixture(scope="module")
def convnext(tmp_path_factory):
    return flow_checkpoints.convnext(tmp_path_factory.mktemp("convnext"))


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """VGG-16 with random weights, as timm publishes it."""
    pytest.importorskip("lpips")
    return flow_checkpoints.vgg(tmp_path_factory.mktemp("vgg"))


CROPS = torch.tensor([[0.99, 0.5, 0.5, 0.5], [0.5, 0.1, 0.9, 0.0], [0.4, 0.9, 0.0, 0.9]])


def check(distance):
    """It is 0 for equal images, each row's own, and has the weight's gradient: d / (sg(d) + .01)
    has the same value for any large d, so that only its slope says what it is of."""
    x = images() * 2 - 1
    near = (x + 0.05 * torch.randn_like(x)).requires_grad_()
    assert distance(x, x, CROPS).abs().max() < 1e-6
    values = distance(near, x, CROPS)
    assert values.shape == (3,)
    one = distance(near[1:2], x[1:2], CROPS[1:2])
    torch.testing.assert_close(one, values[1:2], rtol=1e-4, atol=1e-6)
    values.sum().backward()
    assert near.grad.abs().sum() > 0


def test_both_images_get_the_same_crop():
    """By hand: the corner of a known square, whose pixels say where they come from."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = torch.stack([rows, columns, rows + columns])
    pair = torch.stack([image, 2 * image])[None].expand(2, -1, -1, -1, -1)
    # area .54 of 1,024 pixels, ratio 1 (the middle of its logarithm): 24 x 24; then the smallest
    uniform = torch.tensor([[0.5, 0.5, 0.999, 0.0], [0.0, 0.5, 0.0, 0.999]])
    side = round((32 * 32 * (0.08 + 0.5 * 0.92)) ** 0.5)
    found = same_crops(pair, uniform)
    assert found.shape == (2, 2, 3, 224, 224)
    torch.testing.assert_close(found[:, 1], 2 * found[:, 0])
    inner = slice(30, -30)  # away from the border, where a bicubic kernel is cut off
    step, at = side / 224, (torch.arange(224.0) + 0.5) * side / 224 - 0.5
    torch.testing.assert_close(found[0, 0, 0, inner, 0], at[inner] + 32 - side, rtol=0, atol=1e-2)
    torch.testing.assert_close(found[0, 0, 1, 0, inner], at[inner], rtol=0, atol=1e-2)
    small = round((32 * 32 * 0.08) ** 0.5)
    assert found[1, 0, 0].max() < small
    assert found[1, 0, 1].min() > 32 - small - 1.5 * step


def test_features_of_a_convnext_measure_how_far_images_are(convnext):
    """Against timm's own layers: the mean over positions, normalized, before the classes."""
    import timm

    check(perceptual_loss(f"convnext:{convnext}"))
    x, y = images(2) * 2 - 1, 1 - images(2) * 2
    network = load_timm(convnext)
    known = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in known)
    crops = same_crops(torch.stack([x, y], 1), CROPS[:2])

    def pooled(image):
        last = network.forward_features(((image + 1) / 2 - mean) / std).mean((2, 3))
        norm = network.head.norm
        return torch.nn.functional.layer_norm(last, last.shape[1:], norm.weight, norm.bias, 1e-6)

    apart = (pooled(crops[:, 0]) - pooled(crops[:, 1])).square().sum(1)
    found = perceptual_loss(f"convnext:{convnext}")(x, y, CROPS[:2])
    torch.testing.assert_close(found, 0.1 * apart / (apart + 0.01), rtol=1e-4, atol=1e-6)


def test_lpips_reads_the_weights_it_is_given_and_terms_add_up(vgg, convnext):
    """Its last activation is that of torchvision's VGG with these weights; the gradient of each
    term is its distance's over that plus .01."""
    from safetensors.torch import load_file
    from torchvision.models.vgg import cfgs, make_layers

    from encbench.flow.perceptual import _lpips

    lpips = _lpips(vgg).eval().requires_grad_(False)
    layers, given = make_layers(cfgs["D"]), load_file(vgg / "model.safetensors")
    layers.load_state_dict({name.removeprefix("features."): given[name] for name in given})
    x, y = images(1) * 2 - 1, (1 - images(1) * 2).requires_grad_()
    torch.testing.assert_close(lpips.network.net(x)[-1], layers[:30](x))

    both = perceptual_loss(f"lpips:{vgg}+convnext:{convnext}")
    own = both(y, x, CROPS[:1]) - perceptual_loss(f"convnext:{convnext}")(y, x, CROPS[:1])
    apart = lpips(*same_crops(torch.stack([y, x], 1), CROPS[:1]).unbind(1))
    torch.testing.assert_close(own, 0.4 * apart / (apart + 0.01))
    slope, plain = (torch.autograd.grad(of.sum(), y, retain_graph=True)[0] for of in (own, apart))
    torch.testing.assert_close(slope, 0.4 * plain / (apart.detach() + 0.01), rtol=1e-3, atol=1e-6)


def test_a_perceptual_loss_that_cannot_be_is_told(convnext, tmp_path):
    with pytest.raises(UsageError, match="unknown perceptual loss 'ssim'; known: lpips, convnext"):
        perceptual_loss("ssim")
    with pytest.raises(ModelError, match="holds no VGG-16"):
        perceptual_loss(f"lpips:{convnext}")
    with pytest.raises(ModelError, match="there is no folder"):
        perceptual_loss(f"convnext:{tmp_path / 'nowhere'}")
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="says: resnet18"):
        perceptual_loss(f"convnext:{tmp_path}")
    with pytest.raises(UsageError, match="train in pixels"):
        perceptual_loss(f"convnext:{convnext}")(*[torch.zeros(1, 4, 8, 8)] * 2, CROPS[:1])
    with pytest.raises(DownloadError, match=r"needs the network timm/vgg16.tv_in1k.*lpips:FOLDER"):
        perceptual_loss("lpips")
