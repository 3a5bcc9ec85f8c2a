"""Each check of the conformance suite must fail on an encoder that breaks just that rule."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from encbench.encoders import checks, load_encoder
from encbench.encoders.checks import (
    CHECKS,
    assert_conforms,
    check_encoder,
    validate_features,
)
from encbench.errors import EncoderOutputError
from encbench.types import EncoderCard, TextEncoder, TextFeatures

CARD = EncoderCard("python:test:Good", "python", "test:Good", "0" * 40, dim=8, max_tokens=20)


class Good:
    """One token for each letter, at most 20; a sound encoder."""

    def __init__(self) -> None:
        self.card = CARD
        self.calls = 0

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        self.calls += 1
        ids = [[1 + ord(c) % 50 for c in prompt[:20]] or [0] for prompt in prompts]
        width = max(map(len, ids))
        table = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = torch.tensor([[i < len(row) for i in range(width)] for row in ids])
        cut = torch.tensor([len(prompt) > 20 for prompt in prompts])
        tokens = table[padded]
        return TextFeatures(tokens, mask, cut, tokens[:, 0])


def changed(features: TextFeatures, **values: Any) -> TextFeatures:
    """A copy with other values, past every check that its construction makes."""
    copy = dataclasses.replace(features)
    for name, value in values.items():
        object.__setattr__(copy, name, value)
    return copy


def broken(
    change: Callable[[TextFeatures, Sequence[str], Good], Any] | None = None, **card: Any
) -> TextEncoder:
    class Broken(Good):
        def __init__(self) -> None:
            super().__init__()
            self.card = dataclasses.replace(CARD, **card)

        def encode(self, prompts: Sequence[str]) -> TextFeatures:
            features = super().encode(prompts)
            return features if change is None else change(features, prompts, self)

    return Broken()


def nan(features: TextFeatures, prompts: Sequence[str], _: Good) -> TextFeatures:
    tokens = features.tokens.clone()
    tokens[0, 0, 0] = torch.nan
    return changed(features, tokens=tokens)


def nan_in_padding(features: TextFeatures, prompts: Sequence[str], _: Good) -> TextFeatures:
    return changed(
        features, tokens=features.tokens.masked_fill(~features.mask[..., None], torch.nan)
    )


def scaled(factor: Callable[[TextFeatures, Sequence[str], Good], Any]) -> Callable[..., Any]:
    return lambda features, prompts, encoder: changed(
        features, tokens=features.tokens * factor(features, prompts, encoder)
    )


def empty_fails(features: TextFeatures, prompts: Sequence[str], _: Good) -> TextFeatures:
    mask = features.mask.clone()
    for row, prompt in enumerate(prompts):
        mask[row] &= bool(prompt)
    return changed(features, mask=mask)


def surrogates_fail(features: TextFeatures, prompts: Sequence[str], _: Good) -> TextFeatures:
    for prompt in prompts:
        prompt.encode()
    return features


BROKEN: dict[str, list[tuple[str, TextEncoder]]] = {
    "shapes": [
        ("width", broken(dim=9)),
        ("a tensor only", broken(lambda f, p, e: f.tokens)),
        ("a row too few", broken(lambda f, p, e: changed(f, tokens=f.tokens[1:]))),
        ("mask of another length", broken(lambda f, p, e: changed(f, mask=f.mask[:, 1:]))),
        ("mask of numbers", broken(lambda f, p, e: changed(f, mask=f.mask.long()))),
        ("whole tokens", broken(lambda f, p, e: changed(f, tokens=f.tokens.long()))),
        ("flags of another length", broken(lambda f, p, e: changed(f, truncated=f.truncated[:0]))),
        ("pooled tokens", broken(lambda f, p, e: changed(f, pooled=f.tokens))),
        ("a list", broken(lambda f, p, e: changed(f, truncated=f.truncated.tolist()))),
    ],
    "finite": [
        ("NaN", broken(nan)),
        ("NaN in padding", broken(nan_in_padding)),
        ("infinity", broken(lambda f, p, e: changed(f, pooled=f.pooled / 0))),
    ],
    "deterministic": [("dropout", broken(scaled(lambda f, p, e: 1 + 1e-6 * e.calls)))],
    "batch of one equals many": [
        ("batch norm", broken(scaled(lambda f, p, e: 1 + 0.01 * len(p)))),
        (
            "place",
            broken(scaled(lambda f, p, e: 1 + 0.01 * torch.arange(len(p))[:, None, None])),
        ),
    ],
    "order does not matter": [
        ("first", broken(scaled(lambda f, p, e: 1 + 0.01 * len(p[0])))),
        ("flags", broken(lambda f, p, e: changed(f, truncated=torch.arange(len(p)) == 0))),
    ],
    "padding does not leak": [
        ("width", broken(scaled(lambda f, p, e: 1 + 0.01 * f.mask.shape[1])))
    ],
    "empty prompt": [
        ("no token", broken(empty_fails)),
        ("cut", broken(lambda f, p, e: changed(f, truncated=torch.tensor([not x for x in p])))),
    ],
    "truncation is reported": [
        ("never", broken(lambda f, p, e: changed(f, truncated=torch.zeros(len(p)).bool()))),
        ("always", broken(lambda f, p, e: changed(f, truncated=torch.ones(len(p)).bool()))),
        ("without a limit", broken(max_tokens=None)),
        ("another limit", broken(max_tokens=19)),
    ],
    "odd text": [("surrogates", broken(surrogates_fail))],
    "card complete": [
        ("no license", broken(license="")),
        ("no revision", broken(revision=" ")),
        ("no width", broken(dim=0)),
        ("no such dtype", broken(dtype="float13")),
        ("no length", broken(max_tokens=0)),
    ],
}


def outcome(encoder: TextEncoder) -> dict[str, bool]:
    return {result.name: result.passed for result in check_encoder(encoder)}


def test_a_sound_encoder_passes_everything() -> None:
    assert outcome(Good()) == dict.fromkeys(CHECKS, True)
    assert_conforms(Good())


def test_every_check_has_a_broken_encoder() -> None:
    assert set(BROKEN) == set(CHECKS)


@pytest.mark.parametrize(
    ("check", "encoder"),
    [
        pytest.param(check, encoder, id=f"{check}: {name}")
        for check, cases in BROKEN.items()
        for name, encoder in cases
    ],
)
def test_check_fails_on_a_broken_encoder(check: str, encoder: TextEncoder) -> None:
    results = {result.name: result for result in check_encoder(encoder)}
    assert not results[check].passed
    assert results[check].message
    assert "\n" not in results[check].message
    with pytest.raises(EncoderOutputError, match=r"python:test:Good fails \d+ of 10 checks: .*"):
        assert_conforms(encoder)


@pytest.mark.parametrize(
    ("check", "encoder"),
    [(check, BROKEN[check][0][1]) for check in ("deterministic", "card complete", "odd text")],
)
def test_other_checks_still_pass(check: str, encoder: TextEncoder) -> None:
    failed = {name for name, passed in outcome(encoder).items() if not passed}
    assert failed == {check}


def test_an_exception_inside_is_a_failure_with_its_place() -> None:
    encoder = broken(lambda f, p, e: [][0])
    message = check_encoder(encoder)[0].message
    assert "IndexError" in message
    assert "test_checks.py:" in message


# ---------------------------------------------------------------------- on every encode


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (nan, r"python:test:Good: NaN or infinite tokens for 1 of 2 prompts, e\.g\. 'one'"),
        (lambda f, p, e: None, "python:test:Good: encode.. returned a NoneType; it must"),
        (
            lambda f, p, e: changed(f, tokens=f.tokens[0]),
            r"tokens has shape \(3, 8\) for 2 prompts",
        ),
        (lambda f, p, e: changed(f, tokens=f.tokens[..., 1:]), "tokens are 7 wide, .* dim=8"),
        (empty_fails, "no real token for ''"),
    ],
)
def test_unsound_features_are_named_in_one_line(change: Any, says: str) -> None:
    prompts = ["one", ""]
    with pytest.raises(EncoderOutputError, match=says) as caught:
        validate_features(broken(change).encode(prompts), prompts, CARD)
    assert "\n" not in str(caught.value)


def test_sound_features_pass_and_large_values_are_no_infinity() -> None:
    features = Good().encode(["a", "b"])
    validate_features(features, ["a", "b"], CARD)
    large = changed(features, tokens=torch.full_like(features.tokens, 3e38))
    validate_features(large, ["a", "b"], CARD)


# ------------------------------------------------------------------- on the command line


def test_command_prints_a_line_for_each_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert checks.main(["control:bag-of-words"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in lines] == [["ok", name] for name in CHECKS]


def test_command_fails_with_the_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\n"
        "from encbench.types import EncoderCard, TextFeatures\n"
        "class Mine:\n"
        "    card = EncoderCard('x', 'x', 'x', 'x', dim=2, max_tokens=None)\n"
        "    def encode(self, prompts):\n"
        "        n = len(prompts)\n"
        "        return TextFeatures(torch.rand(n, 1, 2), torch.ones(n, 1).bool(),\n"
        "                            torch.zeros(n).bool())\n"
    )
    assert checks.main([f"python:{file}:Mine"]) == 1
    out = capsys.readouterr().out
    assert "FAIL deterministic: the same prompts gave other features" in out
    assert "ok   shapes" in out
    assert checks.main([f"python:{file}:Yours"]) == 1
    assert "has no attribute 'Yours'" in capsys.readouterr().err
    assert checks.main(["nonsense"]) == 2


def test_command_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "encbench.encoders.checks", "control:constant"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "ok   card complete" in done.stdout


def test_controls_are_checked_like_any_encoder() -> None:
    assert_conforms(load_encoder("control:word-position", "cpu"))
