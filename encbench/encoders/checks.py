"""The contract of an encoder, as checks that you can run on your own adapter.

In a test: ``assert_conforms(MyEncoder())``. On the command line, one line for each check:
``python -m encbench.encoders.checks SPEC``.
"""

from __future__ import annotations

import argparse
import math
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import EncbenchError, EncoderOutputError, describe_error
from ..types import EncoderCard, TextEncoder, TextFeatures
from .guard import one_line_errors

SHORT = ("a photo of a dog", "two cats", "")
PROMPTS = (
    "a brown dog",
    "",
    "a red bicycle in front of a white house, with a small cat on the roof",
    "dog",
    "the same dog, seen from far away on a foggy morning by the sea",
)
ODD = (
    "\x00\x01\x07 tab\tnew\nline\r\x1b[31m",
    "caf\u00e9 \u732b \u043a\u043e\u0442 \U0001f600\U0001f469\u200d\U0001f680",
    "lone \ud83d surrogate",
    "\u202eright to left\u202c",
    " ",
)
LONG = "word " * 20_000  # 100,000 characters
TOLERANCES = {"float64": 1e-5, "float32": 1e-5, "float16": 1e-2, "bfloat16": 5e-2}


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check. ``message`` says what is wrong; it is empty if nothing is."""

    name: str
    passed: bool
    message: str = ""


def encode_checked(encoder: TextEncoder, prompts: Sequence[str]) -> TextFeatures:
    """What an encoder gives for prompts, checked.

    Raises:
        EncbenchError: in one line, whatever it raises or wherever its features are unsound.
    """
    prompts = list(prompts)
    with one_line_errors(f"encode() of {encoder.card.spec}", EncoderOutputError):
        features = encoder.encode(prompts)
    validate_features(features, prompts, encoder.card)
    return features


def compare_answers(
    card: EncoderCard, batch: TextFeatures, alone: Sequence[TextFeatures]
) -> list[str]:
    """Whether an encoder gives the same features for a prompt each time, alone and in a batch.

    Args:
        batch: features of several prompts; the first is the one that is compared.
        alone: of that prompt, several times.

    Returns:
        warnings in words.

    Raises:
        EncoderOutputError: if the answers to one and the same call differ.
    """
    first = alone[0]
    for other in alone[1:]:
        if _gap(card, first, other) > 1:
            raise EncoderOutputError(
                f"{card.spec}: the same prompt gave other features the second time; use eval mode, "
                "no dropout and no random numbers"
            )
    if _gap(card, first, batch) > 1:
        return [
            "features of a prompt depend on the prompts beside it; check it with: "
            f"python -m encbench.encoders.checks '{card.spec}'"
        ]
    return []


def _gap(card: EncoderCard, one: TextFeatures, other: TextFeatures) -> float:
    """Largest difference of the first prompt's features, in units of what its dtype allows."""
    pairs = [(one.tokens[0][one.mask[0]], other.tokens[0][other.mask[0]])]
    if one.pooled is not None and other.pooled is not None:
        pairs.append((one.pooled[0], other.pooled[0]))
    worst = 0.0
    for a, b in pairs:
        if a.shape != b.shape:
            return math.inf
        size = a.double().abs().max().item()
        gap = (a.double() - b.double()).abs().max().item()
        if gap:
            worst = max(worst, gap / size if size else math.inf)
    return worst / max(1e-4, 2 * TOLERANCES.get(card.dtype, 1e-5))


def validate_features(features: Any, prompts: Sequence[str], card: EncoderCard) -> None:
    """Type, shapes and finiteness of what an encoder returned; cheap enough for every call.

    Raises:
        EncoderOutputError: naming the encoder, what is wrong and what to do.
    """
    _validate_shapes(features, prompts, card)
    _validate_finite(features, prompts, card)


def _validate_shapes(features: Any, prompts: Sequence[str], card: EncoderCard) -> None:
    who = card.spec
    if not isinstance(features, TextFeatures):
        raise EncoderOutputError(
            f"{who}: encode() returned a {type(features).__name__}; it must return TextFeatures"
        )
    count = len(prompts)
    tensors: list[tuple[str, Any, int]] = [
        ("tokens", features.tokens, 3),
        ("mask", features.mask, 2),
        ("truncated", features.truncated, 1),
    ]
    if features.pooled is not None:
        tensors.append(("pooled", features.pooled, 2))
    for name, value, ndim in tensors:
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise EncoderOutputError(f"{who}: {name} is a {kind}; it must be a torch tensor")
        if value.ndim != ndim or len(value) != count:
            raise EncoderOutputError(
                f"{who}: {name} has shape {tuple(value.shape)} for {count} prompts; it must have "
                f"{ndim} dimensions, the first one the prompts"
            )
        if (name in ("tokens", "pooled")) != value.is_floating_point():
            raise EncoderOutputError(f"{who}: {name} has dtype {value.dtype}; see TextFeatures")
    tokens, mask = features.tokens, features.mask
    if mask.shape != tokens.shape[:2]:
        raise EncoderOutputError(
            f"{who}: mask has shape {tuple(mask.shape)}, tokens {tuple(tokens.shape)}; the first "
            "two dimensions must be the same"
        )
    for name, value in (("mask", mask), ("truncated", features.truncated)):
        if value.dtype != torch.bool:
            raise EncoderOutputError(f"{who}: {name} has dtype {value.dtype}; it must be bool")
    if tokens.shape[2] != card.dim:
        raise EncoderOutputError(
            f"{who}: tokens are {tokens.shape[2]} wide, but its card says dim={card.dim}"
        )
    if not mask.any(1).all():
        row = int(mask.any(1).int().argmin())
        raise EncoderOutputError(
            f"{who}: no real token for {_shown(prompts[row])}; give at least one for any prompt"
        )


def _validate_finite(features: TextFeatures, prompts: Sequence[str], card: EncoderCard) -> None:
    for name, value in (("tokens", features.tokens), ("pooled", features.pooled)):
        # one pass without a temporary; only where the sum is not finite is there more to do
        if value is None or torch.isfinite(value.sum(dtype=torch.float32)):
            continue
        bad = ~value.isfinite().flatten(1).all(1)
        if bad.any():
            row = int(bad.int().argmax())
            share = f"{int(bad.sum())} of {len(prompts)}"
            raise EncoderOutputError(
                f"{card.spec}: NaN or infinite {name} for {share} prompts, "
                f"e.g. {_shown(prompts[row])}; try another dtype or look at its code"
            )


def _shown(prompt: str) -> str:
    return (
        repr(prompt if len(prompt) <= 40 else f"{prompt[:40]}...")
        .encode("ascii", "backslashreplace")
        .decode()
    )


# ---------------------------------------------------------------------------- the checks


class _Failure(AssertionError):
    """A check that did not hold; the message is for the author of the encoder."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise _Failure(message)


def _encode(encoder: TextEncoder, prompts: Sequence[str]) -> TextFeatures:
    features = encoder.encode(list(prompts))
    _validate_shapes(features, prompts, encoder.card)
    return features


def _tolerance(encoder: TextEncoder) -> float:
    return TOLERANCES.get(encoder.card.dtype, 1e-5)


def _require_same(encoder: TextEncoder, one: TextFeatures, other: TextFeatures, why: str) -> None:
    """Row by row the same real tokens, pooled vector and truncation flag."""
    for row in range(len(one.mask)):
        pairs = [(one.tokens[row][one.mask[row]], other.tokens[row][other.mask[row]], "tokens")]
        if one.pooled is not None and other.pooled is not None:
            pairs.append((one.pooled[row], other.pooled[row], "pooled vector"))
        for a, b, name in pairs:
            _require(a.shape == b.shape, f"the number of real tokens of prompt {row} {why}")
            gap = (a.float() - b.float()).abs().max().item()
            limit = _tolerance(encoder) * max(1.0, a.abs().max().item())
            _require(gap <= limit, f"the {name} of prompt {row} {why} (by {gap:.1e})")
        flags = bool(one.truncated[row]) == bool(other.truncated[row])
        _require(flags, f"the truncation flag of prompt {row} {why}")


def _rows(features: TextFeatures, rows: Sequence[int]) -> TextFeatures:
    index = list(rows)
    pooled = None if features.pooled is None else features.pooled[index]
    return TextFeatures(
        features.tokens[index], features.mask[index], features.truncated[index], pooled
    )


def check_shapes(encoder: TextEncoder) -> None:
    """TextFeatures of the right type, with shapes that fit each other, the prompts and the card."""
    for prompts in (PROMPTS, PROMPTS[:1]):
        _encode(encoder, prompts)


def check_finite(encoder: TextEncoder) -> None:
    """No NaN and no infinity, in padding neither."""
    _validate_finite(_encode(encoder, PROMPTS), PROMPTS, encoder.card)


def check_deterministic(encoder: TextEncoder) -> None:
    """The same prompts twice, the same features exactly."""
    one, two = _encode(encoder, PROMPTS), _encode(encoder, PROMPTS)
    same = torch.equal(one.mask, two.mask) and torch.equal(
        one.tokens[one.mask], two.tokens[two.mask]
    )
    if one.pooled is not None and two.pooled is not None:
        same = same and torch.equal(one.pooled, two.pooled)
    _require(
        same, "the same prompts gave other features the second time; use eval mode, no dropout"
    )


def check_batch_of_one(encoder: TextEncoder) -> None:
    """A prompt alone gives the same features as in a batch of prompts of its length."""
    prompts = PROMPTS[:1] * 3
    many = _encode(encoder, prompts)
    _require_same(
        encoder,
        _rows(many, [0]),
        _encode(encoder, prompts[:1]),
        "depends on the size of the batch",
    )
    _require_same(encoder, _rows(many, [0]), _rows(many, [2]), "depends on its place in the batch")


def check_order(encoder: TextEncoder) -> None:
    """Prompts in another order give the same features in that order."""
    order = [3, 0, 4, 2, 1]
    mixed = _encode(encoder, [PROMPTS[i] for i in order])
    _require_same(
        encoder, _rows(_encode(encoder, PROMPTS), order), mixed, "depends on the order of prompts"
    )


def check_padding(encoder: TextEncoder) -> None:
    """A short prompt gives the same features beside a long one as alone."""
    among = _encode(encoder, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        alone = _encode(encoder, [prompt])
        _require_same(
            encoder,
            _rows(among, [row]),
            alone,
            "depends on its neighbors, on their length or on what they say",
        )


def check_empty_prompt(encoder: TextEncoder) -> None:
    """The empty prompt gives a real token, alone and among others; it is not truncated."""
    for prompts in ([""], list(SHORT)):
        features = _encode(encoder, prompts)
        _require(not bool(features.truncated[-1]), "the empty prompt is reported as truncated")


def check_truncation(encoder: TextEncoder) -> None:
    """A prompt of 100,000 characters is cut to max_tokens and reported as truncated; a short one
    is not. Without max_tokens nothing is ever truncated."""
    limit = encoder.card.max_tokens
    features = _encode(encoder, [LONG, "a"])
    long, short = features.truncated.tolist()
    if limit is None:
        _require(not long, "a prompt is reported as truncated, but the card has no max_tokens")
    else:
        _require(long, f"a prompt of {len(LONG):,} characters is not reported as truncated")
        length = int(features.mask[0].sum())
        _require(length <= limit, f"{length} real tokens, but the card says max_tokens={limit}")
    _require(not short, "the prompt 'a' is reported as truncated")


def check_odd_text(encoder: TextEncoder) -> None:
    """Control characters, emoji, other scripts and lone surrogates are encoded like any prompt."""
    together = _encode(encoder, ODD)
    for row, prompt in enumerate(ODD):
        alone = _encode(encoder, [prompt])
        _require_same(encoder, _rows(together, [row]), alone, f"({_shown(prompt)}) varies")


def check_card(encoder: TextEncoder) -> None:
    """The card is complete: spec, family, source, revision, and sensible numbers."""
    card = encoder.card
    _require(isinstance(card, EncoderCard), f"card is a {type(card).__name__}, no EncoderCard")
    for name in ("spec", "family", "source", "revision", "license", "layer", "pooling", "dtype"):
        value = getattr(card, name)
        _require(isinstance(value, str) and bool(value.strip()), f"the card's {name} is empty")
    _require(card.dim >= 1, f"the card's dim is {card.dim}")
    _require(card.max_tokens is None or card.max_tokens >= 1, "the card's max_tokens is below 1")
    _require(card.parameters >= 0, f"the card's parameters are {card.parameters}")
    _require(hasattr(torch, card.dtype), f"the card's dtype '{card.dtype}' is none of torch's")


CHECKS: dict[str, Callable[[TextEncoder], None]] = {
    "shapes": check_shapes,
    "finite": check_finite,
    "deterministic": check_deterministic,
    "batch of one equals many": check_batch_of_one,
    "order does not matter": check_order,
    "padding does not leak": check_padding,
    "empty prompt": check_empty_prompt,
    "truncation is reported": check_truncation,
    "odd text": check_odd_text,
    "card complete": check_card,
}
"""The suite: every check by its name. Each raises if it fails."""


def check_encoder(encoder: TextEncoder) -> list[CheckResult]:
    """Run every check on an encoder; one that fails doesn't keep others from running."""
    results = []
    for name, check in CHECKS.items():
        try:
            check(encoder)
        except (_Failure, EncbenchError) as error:
            results.append(CheckResult(name, False, str(error)))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # user code, which may also call sys.exit()
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = f"{describe_error(error)} ({where.filename}:{where.lineno})"
            results.append(CheckResult(name, False, message))
        else:
            results.append(CheckResult(name, True))
    return results


def assert_conforms(encoder: TextEncoder) -> None:
    """Every check must pass. For a third party's own tests.

    Raises:
        EncoderOutputError: in one line, with each check that failed and why.
    """
    failed = [result for result in check_encoder(encoder) if not result.passed]
    if failed:
        card = getattr(encoder, "card", None)
        who = card.spec if isinstance(card, EncoderCard) else type(encoder).__name__
        raise EncoderOutputError(
            f"{who} fails {len(failed)} of {len(CHECKS)} checks: "
            + "; ".join(f"{result.name}: {result.message}" for result in failed)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m encbench.encoders.checks SPEC``: 0 if every check passes, 2 for a bad spec."""
    parser = argparse.ArgumentParser(prog="python -m encbench.encoders.checks", description=__doc__)
    parser.add_argument("spec", help="e.g. python:my_package.my_module:MyEncoder")
    parser.add_argument("--device", default="cpu", help="auto, cpu or cuda (default: cpu)")
    parser.add_argument("--traceback", action="store_true", help="show where the encoder failed")
    given = parser.parse_args(arguments)
    from . import load_encoder

    try:
        encoder = load_encoder(given.spec, given.device)
        if given.traceback:
            encode_checked(encoder, PROMPTS)
    except EncbenchError as error:
        if given.traceback:
            traceback.print_exc()
        print(error, file=sys.stderr)
        return error.exit_code
    results = check_encoder(encoder)
    for result in results:
        print(
            f"{'ok  ' if result.passed else 'FAIL'} {result.name}"
            + (f": {result.message}" if result.message else "")
        )
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
