"""A diffusion transformer for small images, conditioned on text.

Blocks as in DiT (arXiv 2212.09748) with cross-attention to text tokens as in PixArt (arXiv
2310.00426), RMSNorm, queries and keys normalized, SwiGLU. Every operation has a forward-mode
derivative (attention under the math kernel), none works in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..checkpoint import check_weights
from ..errors import ModelError, UsageError
from .connector import EPS, TextCondition, TextConnector
from .meanflow import T_CLIP, UNGUIDED, Condition

SIZES: Mapping[str, tuple[int, int, int]] = {
    "1M": (96, 5, 3),
    "3M": (160, 5, 5),
    "10M": (256, 7, 4),
    "35M": (384, 10, 6),
    "150M": (768, 11, 12),
}
"""Width, depth and heads by about how many parameters they make (without the connector)."""

FREQUENCIES = 32
TURNS = 8.0


@dataclass(frozen=True)
class DiTConfig:
    """A network in numbers.

    Attributes:
        side: of the square image or latent.
        channels: of the image or latent.
        patch: side of a patch; ``side`` must be a multiple.
        width: of the tokens.
        depth: number of blocks.
        heads: of attention; ``width`` must be a multiple.
        cond_dim: width of the encoder's tokens.
        pooled_dim: width of the encoder's pooled vector; 0 = none.
        prediction: what the output means: the average velocity or the clean image.
        velocity_head: also predict the instantaneous velocity (pMF, iMF).
        head_depth: blocks of the head's own, which branch off before as many last blocks.
        guidance: guidance is an input (:attr:`Condition.guidance`).
        cross_every: every how many blocks there is cross-attention, counted from the first.
        mix: channels of the convolutions after the last block, which see over the borders of
            patches; 0 = none.
    """

    side: int
    channels: int
    patch: int
    width: int
    depth: int
    heads: int
    cond_dim: int
    pooled_dim: int = 0
    prediction: str = "x"
    velocity_head: bool = False
    cross_every: int = 1
    mix: int = 0
    head_depth: int = 0
    guidance: bool = False

    def __post_init__(self) -> None:
        for name, least in (("side", 1), ("channels", 1), ("patch", 1), ("width", 4)):
            self._at_least(name, least)
        for name, least in (("depth", 1), ("heads", 1), ("cond_dim", 1), ("cross_every", 1)):
            self._at_least(name, least)
        for name in ("pooled_dim", "mix", "head_depth"):
            self._at_least(name, 0)
        if self.side % self.patch:
            raise UsageError(f"side {self.side} is not a multiple of patch {self.patch}")
        if self.width % (4 * self.heads):
            raise UsageError(f"width {self.width} is not a multiple of 4 x {self.heads} heads")
        if self.prediction not in ("u", "x"):
            raise UsageError(f"unknown prediction '{self.prediction}'; known: u, x")

        if self.head_depth > (self.depth if self.velocity_head else 0):
            raise UsageError(
                f"a velocity head of {self.head_depth} blocks needs --velocity-head and a network "
                f"of at least as many, not {self.depth}"
            )

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or value < least:
            raise UsageError(f"{name} must be a whole number of at least {least}, not {value!r}")

    @property
    def tokens(self) -> int:
        """Number of patches."""
        return (self.side // self.patch) ** 2


def dit_config(size: str, *, side: int, patch: int, cond_dim: int, **others: Any) -> DiTConfig:
    """A configuration by size (:data:`SIZES`); ``others`` are further fields of DiTConfig.

    Raises:
        UsageError: if the size is unknown or a field is impossible.
    """
    if size not in SIZES:
        raise UsageError(f"unknown size '{size}'; known: {', '.join(SIZES)}")
    width, depth, heads = SIZES[size]
    base = DiTConfig(
        side=side,
        channels=3,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        cond_dim=cond_dim,
        mix=16 if patch > 1 else 0,
    )
    return replace(base, **others)


def rms(x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """RMSNorm (arXiv 1910.07467) without weights."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def dense(into: int, out: int, *, zero: bool = False) -> nn.Linear:
    """A linear layer, Xavier-uniform or zero at first, its bias zero."""
    layer = nn.Linear(into, out)
    nn.init.zeros_(layer.weight) if zero else nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class TimeEmbedding(nn.Module):
    """The end t and the interval t - r of [r, t], each by its own small network, summed.

    The features of the interval, sin(w d) and 1 - cos(w d), and its network without biases
    vanish at d = 0: there the network is one of t alone, as in flow matching, all through
    training. Times stay in [0, 1] and the fastest feature makes TURNS turns in it, which
    keeps du/dt small.
    """

    rates: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        turns = torch.logspace(math.log10(0.25), math.log10(TURNS), FREQUENCIES)
        self.register_buffer("rates", 2 * math.pi * turns, persistent=False)
        self.end = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.interval = nn.Sequential(
            nn.Linear(2 * FREQUENCIES, width, bias=False),
            nn.SiLU(),
            nn.Linear(width, width, bias=False),
        )

    def forward(self, r: Float[Tensor, " B"], t: Float[Tensor, " B"]) -> Float[Tensor, "B W"]:
        end = t[:, None] * self.rates
        gap = (t - r)[:, None] * self.rates
        embedding: Tensor = self.end(torch.cat([end.sin(), end.cos()], 1)) + self.interval(
            torch.cat([gap.sin(), 1 - gap.cos()], 1)
        )
        return embedding


def _heads(x: Float[Tensor, "B N W"], heads: int) -> Float[Tensor, "B H N d"]:
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


class Attention(nn.Module):
    """Self-attention; queries and keys are normalized per head and scaled by learned vectors."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = dense(width, 3 * width)
        self.gain = nn.Parameter(torch.ones(2, 1, width // heads))
        self.out = dense(width, width)

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        qk, v = self.qkv(x).split((2 * x.shape[-1], x.shape[-1]), dim=-1)
        q, k = (rms(qk.unflatten(-1, (2, self.heads, -1))) * self.gain).unbind(2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), _heads(v, self.heads)
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class CrossAttention(nn.Module):
    """Attention from image tokens to the real text tokens; begins as nothing."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.RMSNorm(width, eps=EPS)
        self.q = dense(width, width)
        self.kv = dense(width, 2 * width)
        self.q_gain = nn.Parameter(torch.ones(width // heads))
        self.k_gain = nn.Parameter(torch.ones(width // heads))
        self.out = dense(width, width, zero=True)

    def forward(self, x: Float[Tensor, "B N W"], text: TextCondition) -> Float[Tensor, "B N W"]:
        q = rms(_heads(self.q(self.norm(x)), self.heads)) * self.q_gain
        k, v = self.kv(text.tokens).chunk(2, dim=-1)
        k = rms(_heads(k, self.heads)) * self.k_gain
        mixed = F.scaled_dot_product_attention(
            q, k, _heads(v, self.heads), attn_mask=text.mask[:, None, None]
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """SwiGLU (arXiv 2002.05202) with as many weights as a layer four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(round(width * 8 / 3 / 32), 1) * 32
        self.into = dense(width, 2 * hidden)
        self.out = dense(hidden, width)

    def forward(self, x: Float[Tensor, "B N W"]) -> Float[Tensor, "B N W"]:
        gate, value = self.into(x).chunk(2, dim=-1)
        out: Tensor = self.out(F.silu(gate) * value)
        return out


class Block(nn.Module):
    """Self-attention, cross-attention, SwiGLU; the first and last modulated by time and pooled
    text and gated, the gates zero at first (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.modulation = dense(width, 6 * width, zero=True)
        self.attention = Attention(width, heads)
        self.cross = CrossAttention(width, heads) if cross else None
        self.mlp = SwiGLU(width)

    def forward(
        self, x: Float[Tensor, "B N W"], c: Float[Tensor, "B W"], text: TextCondition
    ) -> Float[Tensor, "B N W"]:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate * self.attention(torch.addcmul(shift, rms(x), 1 + scale))
        if self.cross is not None:
            x = x + self.cross(x, text)
        out: Tensor = x + gate2 * self.mlp(torch.addcmul(shift2, rms(x), 1 + scale2))
        return out


class Output(nn.Module):
    """Tokens to an image: a modulated linear layer and, if ``mix``, two 3 x 3 convolutions over
    its features and the input, whose result is added. Zero at first.

    The convolutions see 2 x 2 pixels as one cell, a quarter of the work and twice the reach.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.fold = 1 if config.patch % 2 else 2
        self.channels = config.channels * self.fold**2
        self.cells = config.side // config.patch
        self.per_patch = config.patch // self.fold
        self.modulation = dense(config.width, 2 * config.width, zero=True)
        self.linear = dense(config.width, self.per_patch**2 * (self.channels + config.mix))
        nn.init.zeros_(self.linear.weight[: self.per_patch**2 * self.channels])
        self.first = self.second = None
        if config.mix:
            self.style = dense(config.width, 2 * config.mix, zero=True)
            self.first = nn.Conv2d(2 * self.channels + config.mix, config.mix, 3, padding=1)
            self.second = nn.Conv2d(config.mix, self.channels, 3, padding=1)
            for weight in self.second.parameters():
                nn.init.zeros_(weight)

    def forward(
        self, x: Float[Tensor, "B N W"], c: Float[Tensor, "B W"], z: Float[Tensor, "B C S S"]
    ) -> Float[Tensor, "B C S S"]:
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=-1)
        x = self.linear(torch.addcmul(shift, rms(x), 1 + scale))
        cells = x.transpose(1, 2).unflatten(2, (self.cells, self.cells))
        cells = F.pixel_shuffle(cells, self.per_patch)
        out = cells[:, : self.channels]
        if self.first is not None and self.second is not None:
            shift, scale = self.style(c)[:, :, None, None].chunk(2, dim=1)
            hidden = self.first(torch.cat([cells, F.pixel_unshuffle(z, self.fold)], 1))
            out = out + self.second(F.silu(torch.addcmul(shift, hidden, 1 + scale)))
        return F.pixel_shuffle(out, self.fold)


class DiT(nn.Module):
    """A VelocityNet of any size from 1M parameters.

    ``connector`` is the only part that depends on the encoder; :meth:`backbone_state` is
    everything else.
    """

    positions: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.prediction = cast(Literal["u", "x"], config.prediction)
        self.velocity_head, self.guided = config.velocity_head, config.guidance
        self.recompute = False  # activations of the blocks in the backward pass
        width = config.width
        self.connector = TextConnector(config.cond_dim, config.pooled_dim, width)
        self.patches = dense(config.channels * config.patch**2, width)
        self.register_buffer("positions", position_grid(config.side // config.patch, width), False)
        self.time = TimeEmbedding(width)
        self.text = dense(width, width)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, number % config.cross_every == 0)
            for number in range(config.depth)
        )
        self.output = Output(config)
        self.velocity = Output(config) if config.velocity_head else None
        shared = self.shared = config.depth - config.head_depth
        self.head = nn.ModuleList(
            Block(width, config.heads, number % config.cross_every == 0)
            for number in range(shared, config.depth)
        )
        self.guidance = None
        if config.guidance:  # nothing at first, and all through training where there is none
            first, second = (nn.Linear(w, width, bias=False) for w in (3, width))
            nn.init.zeros_(second.weight)
            self.guidance = nn.Sequential(first, nn.SiLU(), second)

    def forward(
        self,
        z: Float[Tensor, "B C S S"],
        r: Float[Tensor, " B"],
        t: Float[Tensor, " B"],
        cond: Condition,
    ) -> Float[Tensor, "B C S S"]:
        """
        Raises:
            UsageError: if image or condition have another size than the network.
        """
        x, c, text = self._trunk(z, r, t, cond)
        return self._end(list(self.blocks)[self.shared :], self.output, x, c, text, z)

    def with_velocity(
        self,
        z: Float[Tensor, "B C S S"],
        r: Float[Tensor, " B"],
        t: Float[Tensor, " B"],
        cond: Condition,
    ) -> tuple[Float[Tensor, "B C S S"], Float[Tensor, "B C S S"]]:
        """The prediction, and the instantaneous velocity at (z, t) by the auxiliary head, which
        predicts in the same way (pMF, section 4.3).

        Raises:
            UsageError: if the network has no such head.
        """
        if self.velocity is None:
            raise UsageError("this network has no velocity head; make it with velocity_head=True")
        x, c, text = self._trunk(z, r, t, cond)
        v = self._end(self.head, self.velocity, x, c, text, z)
        if self.prediction == "x":
            v = (z - v) / t.clamp(min=T_CLIP)[:, None, None, None]
        return self._end(list(self.blocks)[self.shared :], self.output, x, c, text, z), v

    def _trunk(
        self, z: Tensor, r: Tensor, t: Tensor, cond: Condition
    ) -> tuple[Float[Tensor, "B N W"], Float[Tensor, "B W"], TextCondition]:
        """The tokens where the head branches off, and what the blocks are modulated by."""
        config = self.config
        if z.shape[1:] != (config.channels, config.side, config.side):
            raise UsageError(
                f"this network is for {config.channels} x {config.side} x {config.side}, "
                f"not {' x '.join(map(str, z.shape[1:]))}"
            )
        text: TextCondition = self.connector(cond)
        c = self.time(r, t) + self.text(text.pooled)
        if self.guidance is not None:
            given = t.new_tensor([UNGUIDED]) if cond.guidance is None else cond.guidance
            c = c + self.guidance(given.to(c.dtype) - given.new_tensor(UNGUIDED))
        c = F.silu(c)
        patches = F.pixel_unshuffle(z, config.patch).flatten(2).transpose(1, 2)
        x = self.patches(patches) + self.positions
        return self._through(list(self.blocks)[: self.shared], x, c, text), c, text

    def _end(
        self, blocks: Iterable[nn.Module], output: nn.Module, x: Tensor, c: Tensor,
        text: TextCondition, z: Tensor,
    ) -> Tensor:  # fmt: skip
        out: Tensor = output(self._through(blocks, x, c, text), c, z)
        return out

    def _through(
        self, blocks: Iterable[nn.Module], x: Tensor, c: Tensor, text: TextCondition
    ) -> Tensor:
        for block in blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, c, text, use_reentrant=False)
            else:
                x = block(x, c, text)
        return x

    def backbone_state(self) -> dict[str, Tensor]:
        """All weights but the connector's, which fit any encoder."""
        state = self.state_dict()
        return {name: state[name] for name in state if not name.startswith("connector.")}

    def with_head(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state of a network without a velocity head or guidance, made one of this network: the
        head gives what the output does, guidance changes nothing."""
        made = {n: w for n, w in self.state_dict().items() if n.startswith("guidance.")}
        parts = {"velocity.": "output."}
        parts |= {f"head.{k}.": f"blocks.{self.shared + k}." for k in range(len(self.head))}
        for mine, theirs in parts.items() if self.velocity is not None else ():
            made |= {
                mine + name.removeprefix(theirs): w
                for name, w in state.items()
                if name.startswith(theirs)
            }
        return made | dict(state)

    def load_backbone(self, state: Mapping[str, Tensor]) -> None:
        """Take over :meth:`backbone_state` of a network of the same sizes; the connector stays.

        Raises:
            ModelError: naming the first weight that is missing, unknown or of another shape.
        """
        if self.velocity is not None and "velocity.linear.weight" not in state:
            raise ModelError(
                "the backbone has no velocity head: train one with --velocity-head, or begin "
                "without it"
            )
        check_weights(self.backbone_state(), state, "the backbone")
        self.load_state_dict(dict(state), strict=False)


def position_grid(cells: int, width: int) -> Float[Tensor, "N W"]:
    """Fixed 2-D sine-cosine positions: a quarter of the width each for sin and cos of row and
    column."""
    rates = 10000.0 ** -(torch.arange(width // 4) / max(width // 4, 1))
    angle = torch.arange(cells)[:, None] * rates
    line = torch.cat([angle.sin(), angle.cos()], 1)
    rows = line[:, None].expand(cells, cells, -1)
    columns = line[None].expand(cells, cells, -1)
    return torch.cat([rows, columns], -1).flatten(0, 1)
