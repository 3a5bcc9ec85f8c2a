"""The total time derivative of an average velocity, exactly or by finite differences.

    du/dt = v . grad_z u + d_t u                    MeanFlow (arXiv 2505.13447), Eq. 8

the derivative of u(z, r, t) along (v, 0, 1). It is only ever a target, so no graph is kept, and
it is computed in float32 (or float64) whatever autocast says, and without TensorFloat-32: an
error of 2^-8 or 2^-11 in u would be divided by the step.

| mode | forwards | error | note |
|---|---|---|---|
| `jvp` | about 2.5 | rounding | plain math attention: fused kernels have no forward mode |
| `central` | 2 | O(h^2) | keeps fused attention |
| `forward` | 1 | O(h) | `u` of the training forward is the other point; keeps fused attention |

The networks are smooth functions of t; a x1000 time scale inside one multiplies du/dt by 1000,
and its finite differences then need a step 1000 times as small.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.autograd import forward_ad as ad
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..errors import UsageError

Mode = Literal["jvp", "central", "forward"]
STEPS: dict[str, float] = {"jvp": 0.0, "central": 2**-12, "forward": 2**-13}
"""Default step of each mode in units of t, for float32: about where truncation and rounding meet
in a trained network (`benchmarks/derivative.py`). Powers of two, so that t + h is exact."""
LEAST = 64
"""Smallest step of a difference, in units of the precision's eps."""

Field = Callable[[Tensor, Tensor, Tensor], Tensor]
"""u(z, r, t): average velocity over [r, t] for each row, of z's shape."""


def total_derivative(
    u: Field,
    z: Float[Tensor, "B ..."],
    r: Float[Tensor, " B"],
    t: Float[Tensor, " B"],
    v: Float[Tensor, "B ..."],
    *,
    mode: str = "jvp",
    step: float | None = None,
    base: Float[Tensor, "B ..."] | None = None,
    same_calls: bool = False,
) -> Float[Tensor, "B ..."]:
    """du/dt along (v, 0, 1), without a graph.

    Args:
        u: the field; called under no_grad and without autocast.
        v: dz/dt, the tangent.
        mode: see the module.
        step: h in units of t; None means :data:`STEPS`. Not used by 'jvp'.
        base: u(z, r, t) if it is known in full precision; saves the one-sided difference its
            second forward.
        same_calls: call u as often whatever the rows hold, as a sharded network needs it.

    Raises:
        UsageError: if there is no such mode, the step is below what the precision resolves, or
            TensorFloat-32 is forced.
    """
    if mode not in get_args(Mode):
        raise UsageError(f"no derivative '{mode}'; there are {', '.join(get_args(Mode))}")
    h = STEPS[mode] if step is None else step
    z, r, t, v = (_precise(part) for part in (z, r, t, v))
    if mode != "jvp":
        _check_difference(h, z.dtype, z.device)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False), _full_precision():
        if mode == "jvp":
            return _jvp(u, z, r, t, v)
        base = None if base is None else _precise(base)
        if mode == "forward":
            return _forward(u, z, r, t, v, h, base)
        return _central(u, z, r, t, v, h, base, same_calls)


def _check_difference(h: float, dtype: torch.dtype, device: torch.device) -> None:
    least = LEAST * torch.finfo(dtype).eps
    if not h >= least:
        raise UsageError(
            f"a difference with step {h:g} is lost in the rounding of {str(dtype)[6:]}: use a "
            f"--derivative-step of at least {least:.1e}, or --derivative jvp"
        )
    if device.type == "cuda" and os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":
        raise UsageError(
            "NVIDIA_TF32_OVERRIDE=1 forces TensorFloat-32, in which a difference is noise: unset "
            "it, or use --derivative jvp"
        )


COARSE = ("tf32", "bf16")  # what torch may compute products of float32 in


def lacks_precision(device: torch.device) -> bool:
    """Whether a forward on this device now is too coarse to be a point of a difference: under
    autocast, or where float32 is multiplied as TensorFloat-32 (as cuDNN's convolutions are by
    default) or bfloat16."""
    coarse = [switch.fp32_precision in COARSE for switch in _switches()[device.type]]
    return torch.is_autocast_enabled(device.type) or any(coarse)


def _switches() -> dict[str, list[Any]]:
    cuda, cudnn, cpu = (getattr(torch.backends, name) for name in ("cuda", "cudnn", "mkldnn"))
    switches = {"cuda": [cuda.matmul, cudnn.conv], "cpu": [cpu.matmul, cpu.conv]}
    return defaultdict(list, switches)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 in float32, whichever of torch's switches allows others.

    torch refuses to read an older switch that contradicts a newer one (``fp32_precision``), and
    its compiler reads the older ones: so both are set, and both put back.
    """
    newer = [(switch, switch.fp32_precision) for part in _switches().values() for switch in part]
    cudnn = torch.backends.cudnn
    try:
        products: str | None = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the newer switch was set
        products = None
    try:
        convolutions = cudnn.allow_tf32
    except RuntimeError:
        convolutions = False
    try:
        if products not in (None, "highest"):
            torch.set_float32_matmul_precision("highest")
        if convolutions:
            cudnn.allow_tf32 = False
        for switch, _ in newer:
            if switch.fp32_precision in COARSE:
                switch.fp32_precision = "ieee"
        yield
    finally:
        if products not in (None, "highest"):
            torch.set_float32_matmul_precision(products)
        if convolutions:
            cudnn.allow_tf32 = True
        for switch, precision in newer:
            for value in ("none", precision):  # none: what torch.backends.fp32_precision says
                if switch.fp32_precision != precision:
                    switch.fp32_precision = value


def _precise(part: Tensor) -> Tensor:
    return part.detach() if part.dtype == torch.float64 else part.detach().float()


def _jvp(u: Field, z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH), ad.dual_level(), _Tangents():
        moving = ad.make_dual(z, v), r, ad.make_dual(t, torch.ones_like(t))
        derivative = ad.unpack_dual(u(*moving)).tangent
    return torch.zeros_like(z) if derivative is None else derivative


class _Tangents(TorchFunctionMode):
    """Forward-mode rules for what a network spends its time on.

    torch's own rules also multiply by the tangents of weights, masks and text, which are all
    zero here, and take a normalization apart: without that a JVP costs about 2.5 forwards in
    place of 4 (a 3M-weight DiT, CPU).
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return RULES.get(func, func)(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, dx = ad.unpack_dual(input)
    out = F.linear(x, weight, bias)
    return out if dx is None else ad.make_dual(out, F.linear(dx, weight))


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    x, dx = ad.unpack_dual(input)
    out = torch.conv2d(x, weight, bias, *args, **kwargs)
    return out if dx is None else ad.make_dual(out, torch.conv2d(dx, weight, None, *args, **kwargs))


def _rms_norm(
    input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """y = x / s with s = sqrt(mean x^2 + eps), and its tangent (dx - y mean(y dx)) / s."""
    x, dx = ad.unpack_dual(input)
    if dx is None or len(normalized_shape) != 1:
        return torch.rms_norm(input, normalized_shape, weight, eps)
    n, eps = x.shape[-1], torch.finfo(x.dtype).eps if eps is None else eps
    inverse = (torch.linalg.vecdot(x, x)[..., None] / n + eps).rsqrt()
    y = x * inverse
    along_y = torch.linalg.vecdot(y, dx)[..., None] / n
    dy = torch.addcmul(dx, y, along_y, value=-1) * inverse
    if weight is not None:
        y, dy = y * weight, dy * weight
    dual: Tensor = ad.make_dual(y, dy)
    return dual


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """softmax(q k' / sqrt d) v, and with p the softmax, s = q k' / sqrt d, its tangent
    dp v + p dv, dp = p ds - p sum(p ds)."""
    if kwargs:  # dropout, a causal mask, a scale of its own: torch's rule
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **kwargs)
    (q, dq), (k, dk), (v, dv) = (ad.unpack_dual(part) for part in (query, key, value))
    scale = q.shape[-1] ** -0.5
    q = q * scale
    scores = q @ k.mT
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if hidden else scores + attn_mask
    share = scores.softmax(-1)
    turns = [(dq * scale) @ k.mT] if dq is not None else []
    turns += [q @ dk.mT] if dk is not None else []
    tangent = share @ dv if dv is not None else None
    if turns:
        # The Jacobian of a softmax is symmetric: its backward is its forward derivative, too.
        turn = turns[0] if len(turns) == 1 else turns[0] + turns[1]
        shift = torch.ops.aten._softmax_backward_data(turn, share, -1, share.dtype)
        tangent = shift @ v if tangent is None else tangent + shift @ v
    out: Tensor = share @ v
    return out if tangent is None else ad.make_dual(out, tangent)


RULES = {
    F.linear: _linear,
    torch.conv2d: _conv2d,
    F.rms_norm: _rms_norm,
    F.scaled_dot_product_attention: _attention,
}


def _forward(
    u: Field, z: Tensor, r: Tensor, t: Tensor, v: Tensor, h: float, base: Tensor | None
) -> Tensor:
    """(u(t + h) - u(t)) / h; backwards where t + h would lie beyond the noise at t = 1."""
    h_row = _inward(t, h)
    base = u(z, r, t) if base is None else base
    return (u(z + along(h_row, z) * v, r, t + h_row) - base) / along(h_row, z)


def _inward(t: Tensor, h: float) -> Tensor:
    """h for each row, and -h where t + h would lie beyond 1."""
    return h * (1 - 2 * (t + h > 1).to(t.dtype))


def _central(
    u: Field, z: Tensor, r: Tensor, t: Tensor, v: Tensor, h: float, base: Tensor | None,
    same_calls: bool,
) -> Tensor:  # fmt: skip
    """(u(t + h) - u(t - h)) / 2h. Where a point would lie outside [0, 1], the three-point
    one-sided difference of the same order: s (4 u(t + sh) - u(t + 2sh) - 3 u(t)) / 2h.

    A point t - h below r is taken as it is: the interval is then shorter than h, and so is the
    factor t - r by which every objective multiplies du/dt.
    """
    side = _inward(t, h)
    edge = (t + h > 1) | (t - h < 0)
    far = torch.where(edge, 2 * side, -side)
    first, second = (u(z + along(step, z) * v, r, t + step) for step in (side, far))
    derivative = (first - second) / (2 * h)
    if same_calls or edge.any():
        middle = u(z, r, t) if base is None else base
        one_sided = (4 * first - second - 3 * middle) / along(2 * side, z)
        derivative = torch.where(along(edge, z), one_sided, derivative)
    return derivative


def along(row: Shaped[Tensor, " B"], z: Float[Tensor, "B ..."]) -> Shaped[Tensor, "B ..."]:
    """One number a row, shaped to multiply z."""
    return row.reshape(-1, *[1] * (z.ndim - 1))
