"""What a configuration names: network, space, objective, times."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import nn

from .. import registry
from ..errors import ModelError, UsageError
from ..options import flag
from ..training import trainable
from .config import TrainConfig
from .connector import Connector, connectors
from .dit import SIZES, DiT, DiTConfig, dit_config
from .features import Widths
from .loss import check_prediction
from .meanflow import Condition
from .objectives.base import Objective
from .times import LogitNormal, Phases

Shape = tuple[int, int, int]
TOKENS = 64  # patches that the DiT's default patch aims at


def network_config(config: TrainConfig, shape: Shape, widths: Widths) -> DiTConfig:
    """The DiT of a configuration.

    Raises:
        UsageError: if there is no such network, or its patch does not fit the images.
    """
    kind, dash, size = config.network.partition("-")
    numbers = size.split("x")
    own = len(numbers) == 3 and all(number.isdecimal() for number in numbers)
    if kind != "dit" or not dash or not (own or size.upper() in SIZES):
        known = ", ".join(f"dit-{name.lower()}" for name in SIZES)
        raise UsageError(
            f"unknown network '{config.network}'; known: {known}, dit-WIDTHxDEPTHxHEADS, "
            "sana:FOLDER"
        )
    channels, side, _ = shape
    patch = config.patch or (default_patch(side) if config.autoencoder is None else 1)
    made = dit_config(
        "1M" if own else size.upper(),
        side=side,
        patch=patch,
        cond_dim=widths.tokens,
        channels=channels,
        pooled_dim=widths.pooled if config.condition_pooled == "own" else 0,
        prediction=config.prediction,
        velocity_head=has_head(config),
        head_depth=config.head_depth,
        guidance=config.guidance_max > 1,
    )
    if own:
        width, depth, heads = map(int, numbers)
        made = replace(made, width=width, depth=depth, heads=heads)
    return made


def has_head(config: TrainConfig) -> bool:
    """Whether the network has a head for the instantaneous velocity."""
    wanted: bool = registry.get("objective", config.objective).velocity_head
    return wanted or config.velocity_head


def default_patch(side: int) -> int:
    """The smallest divisor of the side with at most TOKENS patches."""
    return next(p for p in range(1, side + 1) if side % p == 0 and (side // p) ** 2 <= TOKENS)


def build_network(
    config: TrainConfig, shape: Shape, widths: Widths, sana: Mapping[str, Any] | None = None
) -> nn.Module:
    """The network with its first weights, which follow from the seed; all but the connector's
    are the same whatever the encoder. Its input is not calibrated yet.

    Args:
        sana: configuration of a SanaTransformer2DModel to build without reading its weights,
            unless adapters are trained, whose checkpoints lack the weights under them.

    Raises:
        UsageError, ModelError: if there is no such network or backbone.
    """
    if config.network.startswith("sana:"):
        net = _sana(config, shape, widths, sana)
    else:
        net = _dit(network_config(config, shape, widths), config.seed)
    if config.condition_scaling == "whitened":
        for connector in connectors(net):
            connector.add_whitening()
    return net


def _dit(made: DiTConfig, seed: int) -> DiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = DiT(
            DiTConfig(**{**asdict(made), "cond_dim": 8, "pooled_dim": 0})
        ).backbone_state()
        net = DiT(made)
    net.load_backbone(backbone)
    return net


def build_time_sampler(config: TrainConfig) -> Phases:
    """(r, t) over a training: r = t up to the switch, then as the configuration says.

    The fields mu, sigma, share, r_mu, r_sigma and uniform_share of a registered sampler are filled
    from the configuration.

    Raises:
        UsageError: if one of the last three is given and the sampler has no such field.
    """
    settings = {"mu": config.mu, "sigma": config.sigma, "share": config.interval_share}
    sampler = registry.get("time-sampler", config.times)
    for name in ("r_mu", "r_sigma", "uniform_share"):
        settings[name] = value = getattr(config, name)
        if value != getattr(TrainConfig, name) and name not in _fields(sampler):
            raise UsageError(
                f"{flag(name)} {value}: --times {config.times} has no such setting; take --times "
                "logit-normal"
            )
    then = sampler(**{name: settings[name] for name in settings.keys() & _fields(sampler)})
    return Phases(
        LogitNormal(config.mu, config.sigma, share=0.0), then, config.switch / config.steps
    )


GUIDANCE = ("omega", "kappa", "guidance_span", "guidance_max")
HEAD = {"velocity_head": "head_at", "head_depth": "head_at"}
"""Options of the network, by the field of an objective that reads them."""
SETTINGS = (
    *GUIDANCE, "head_at", "head_weight", "perceptual", "perceptual_below", "weight_power",
    "weight_eps", *HEAD,
)  # fmt: skip
"""Options that only objectives with a field of that name have."""


def check_objective(config: TrainConfig) -> None:
    """
    Raises:
        UsageError: if a setting does not go with the objective; naming those that have it.
    """
    objective = registry.get("objective", config.objective)
    check_prediction(objective, config.prediction)
    if config.head_at == "instant" and not has_head(config):
        raise UsageError("--head-at instant needs the velocity head: add --velocity-head")
    sana = config.network.startswith("sana:")
    if config.trainable != "all" and not sana:
        raise UsageError(
            f"--trainable {config.trainable} is for a pretrained SANA (--network sana:FOLDER), and "
            f"{config.network} is trained as a whole: leave it out"
        )
    if config.lora_rank != TrainConfig.lora_rank and config.trainable != "lora":
        raise UsageError(f"--lora-rank {config.lora_rank} needs --trainable lora")
    if sana and (has_head(config) or config.guidance_max > 1):
        raise UsageError(
            "a SANA has neither a velocity head nor guidance as an input: leave --velocity-head "
            "and --guidance-max out"
        )
    if config.parent_target and (config.omega, config.kappa, config.guidance_max) != (1, 0, 1):
        raise UsageError("--parent-target and guidance inside the target do not go together")
    for name in SETTINGS:
        value, needed = getattr(config, name), HEAD.get(name, name)
        if value != getattr(TrainConfig, name) and needed not in _fields(objective):
            others = [
                other
                for other in registry.names("objective")
                if needed in _fields(registry.get("objective", other))
            ]
            hint = "; guide when sampling" if name in GUIDANCE else ""
            raise UsageError(
                f"{flag(name)} {value}: objective {config.objective} has no such setting, only "
                f"{', '.join(others)}{hint}"
            )


def build_objective(config: TrainConfig, device: torch.device) -> Objective:
    """The objective after the switch, its fields filled from the configuration.

    Raises:
        UsageError: if a setting makes no sense or does not go with it.
        EncbenchError: if a perceptual loss cannot be loaded.
    """
    check_objective(config)
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("derivative", *SETTINGS)}
    settings |= {"step": config.difference_step, "perceptual": None}
    if config.perceptual != "none":
        from .perceptual import perceptual_loss

        settings["perceptual"] = perceptual_loss(config.perceptual, device)
    objective: type[Objective] = registry.get("objective", config.objective)
    return objective(**{name: settings[name] for name in settings.keys() & _fields(objective)})


def _fields(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def _sana(
    config: TrainConfig, shape: Shape, widths: Widths, known: Mapping[str, Any] | None
) -> nn.Module:
    from .sana import SanaVelocity, diffusers, load_sana

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if known is not None and config.trainable != "lora":
            model = diffusers("A SANA network").SanaTransformer2DModel
            try:
                net = SanaVelocity(model.from_config(dict(known)), widths.tokens, config.sana_times)
            except (TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise ModelError(
                    f"the checkpoint's SANA configuration is damaged: {error}"
                ) from error
        else:
            source, _, revision = config.network.removeprefix("sana:").partition("@")
            net = load_sana(source, widths.tokens, revision or None, times=config.sana_times)
        if net.shape[0] != shape[0]:
            raise UsageError(
                f"{config.network} works on latents of {net.shape[0]} channels, and these have "
                f"{shape[0]}: give its own --autoencoder"
            )
        if config.prediction != "u":
            raise UsageError("a SANA network predicts u: add --prediction u")
        net.train_only(config.trainable, config.lora_rank)
    return net


def build_optimizers(config: TrainConfig, net: nn.Module) -> list[torch.optim.Optimizer]:
    """AdamW for everything; with 'muon', torch's Muon for the blocks' matrices and AdamW for
    the rest (K. Jordan et al., 2024; steps scaled to AdamW's size as in arXiv 2502.16982, so
    that one learning rate serves both)."""
    named = trainable(net)
    matrices = {  # of DiT and of SANA
        name: p
        for name, p in named.items()
        if config.optimizer == "muon" and p.ndim == 2 and "blocks." in name
    }
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    adamw = torch.optim.AdamW(
        [p for name, p in named.items() if name not in matrices],
        betas=(config.beta1, config.beta2),
        fused=True,  # one pass over each tensor
        **common,
    )
    if not matrices:
        return [adamw]
    scaled = "match_rms_adamw"
    return [torch.optim.Muon([*matrices.values()], adjust_lr_fn=scaled, **common), adamw]


def calibrate(net: nn.Module, cond: Condition, spec: str) -> None:
    """Even out the input of a network's connector over features of the encoder ``spec``.

    Raises:
        WhiteningError: if they are to be whitened and cannot be.
    """
    connector: Any = net.connector
    if isinstance(connector, Connector):
        connector.calibrate(cond.tokens, cond.mask, f"the tokens of {spec}")
    elif connector is not None:
        connector.calibrate(cond, spec)


def statistics_pin(net: nn.Module) -> str:
    """sha256 of what the connectors whiten by; '' without whitening."""
    parts = [(c.mean, c.whitener) for c in connectors(net) if c.whitener is not None]
    if not parts:
        return ""
    found = hashlib.sha256()
    for tensor in (tensor for part in parts for tensor in part if tensor is not None):
        found.update(tensor.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()


def sana_config(net: nn.Module) -> dict[str, Any] | None:
    """What :func:`build_network` needs to know of a SANA; None for another network."""
    transformer = getattr(net, "transformer", None)
    if transformer is None:
        return None
    return {k: v for k, v in dict(transformer.config).items() if not k.startswith("_")}


def build_space(config: TrainConfig, device: torch.device) -> Any:
    """Pixels, or the latents of an autoencoder."""
    from .spaces import LatentSpace, PixelSpace

    if config.autoencoder is None:
        return PixelSpace(config.side)
    source, _, revision = config.autoencoder.partition("@")
    return LatentSpace(source, config.side, revision=revision or None, device=device)
