"""Spec strings: ``family:source[@revision][?option=value&...]``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ..errors import UsageError
from ..specs import Spec

POOLINGS = ("mean", "mean-padded", "last", "eos", "max", "own")
DTYPES = ("auto", "float32", "bfloat16", "float16")
COMMON_OPTIONS = {
    "layer": "which hidden state: last, penultimate, normavg, or an index (0 = embeddings)",
    "pool": "how tokens become one vector: " + ", ".join(POOLINGS),
    "max_length": "longest prompt in tokens, special ones included",
    "dtype": "of weights and computation: " + ", ".join(DTYPES),
    "remote_code": "true: run Python code that comes with the model (off by default)",
    "pickle": "true: load pickled weights where there are no safetensors (off by default)",
}


@dataclass(frozen=True)
class EncoderSpec(Spec):
    """A parsed encoder spec, ``family:source[@revision][?option=value&...]``."""

    HINT = (
        "write family:source[@revision][?option=value&...], for example clip:ViT-L-14/openai, or a "
        "hub id or folder (see: encbench list encoders)"
    )

    @classmethod
    def parse(cls, text: str) -> EncoderSpec:
        """Read a spec string.

        Raises:
            UsageError: if it is not of the form, or a common option has an impossible value.
        """
        family, colon, rest = text.strip().partition(":")
        if not colon or not family or not rest:
            raise UsageError(f"{text!a} is not an encoder; {cls.HINT}")
        if family == "control" and rest.startswith("shuffle("):
            if not rest.endswith(")"):
                raise UsageError(f"'{text}' lacks its closing bracket: control:shuffle(<spec>)")
            inner = cls.parse(rest[len("shuffle(") : -1])
            return cls(family, f"shuffle({inner})")
        if family == "pair":
            first, second, tail = _split_pair(rest)
            whole = super().parse(f"pair:both{tail}")
            whole._check(text)
            source = f"({cls.parse(first)})+({cls.parse(second)})"
            return dataclasses.replace(whole, source=source)
        spec: EncoderSpec = super().parse(text)
        named = spec.get("revision")  # the same thing, said as an option
        if named is not None:
            if spec.revision:
                raise UsageError(f"'{text}' gives the revision twice")
            spec = dataclasses.replace(spec.with_options(revision=None), revision=named)
        if not spec.source:
            raise UsageError(f"'{text}' names no source after '{family}:'")
        spec._check(text)
        return spec

    def _check(self, text: str) -> None:
        for option, value, known in (("pool", self.pool, POOLINGS), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                listed = ", ".join(known)
                raise UsageError(f"unknown {option} '{value}' in '{text}'; known: {listed}")
        if self.layer not in ("last", "penultimate", "normavg"):
            try:
                int(self.layer)
            except ValueError:
                raise UsageError(
                    f"unknown layer '{self.layer}' in '{text}'; write last, penultimate, normavg "
                    "or an index"
                ) from None
        if self.get("max_length") is not None:
            try:
                fits = int(self.get("max_length") or "") >= 1
            except ValueError:
                fits = False
            if not fits:
                raise UsageError(f"max_length in '{text}' must be a whole number of at least 1")

    @property
    def layer(self) -> str:
        """'last' (the model's output, final norm applied), an index, or a named choice."""
        layer = self.get("layer") or "last"
        return "last" if layer == "-1" else layer

    @property
    def pool(self) -> str:
        return self.get("pool") or "mean"

    @property
    def dtype(self) -> str:
        return self.get("dtype") or "auto"

    @property
    def max_length(self) -> int | None:
        value = self.get("max_length")
        return None if value is None else int(value)

    @property
    def shuffled(self) -> EncoderSpec | None:
        """The spec inside ``control:shuffle(<spec>)``, else None."""
        if self.family == "control" and self.source.startswith("shuffle("):
            return EncoderSpec.parse(self.source[len("shuffle(") : -1])
        return None

    @property
    def pair(self) -> tuple[EncoderSpec, EncoderSpec] | None:
        """The specs inside ``pair:(<spec>)+(<spec>)``, else None."""
        if self.family != "pair":
            return None
        first, second, _ = _split_pair(self.source)
        return EncoderSpec.parse(first), EncoderSpec.parse(second)

    def __str__(self) -> str:
        if self.shuffled:  # the inner spec is in canonical form already
            return f"{self.family}:{self.source}"
        if self.family == "pair":
            return _pair_text(self)
        return super().__str__()


def _pair_text(spec: EncoderSpec) -> str:
    """The canonical form: what is inside the brackets is in it already."""
    outer = str(Spec(spec.family, "both", spec.revision, spec.options))
    return outer.replace("both", spec.source, 1)


def _split_pair(text: str) -> tuple[str, str, str]:
    """Two specs, each in brackets or not, and what follows the second one's bracket.

    Raises:
        UsageError: if there are not two.
    """
    depth, plus = 0, -1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "+" and depth == 0 and ":" in text[:place] and ":" in text[place:]:
            plus = place
            break
    first, second, tail = text[:plus], text[plus + 1 :], ""
    if second.startswith("("):
        end = _closing(second) + 1
        second, tail = second[:end], second[end:]
    bare = [part[1:-1] if part[:1] + part[-1:] == "()" else part for part in (first, second)]
    if plus < 0 or not all(bare) or (tail and tail[0] not in "?@"):
        raise UsageError(
            f"'pair:{text}' does not hold two encoders; write pair:(SPEC)+(SPEC), such as "
            "'pair:(clip:ViT-L-14/openai)+(t5:google/flan-t5-xl)'"
        )
    return bare[0], bare[1], tail


def _closing(text: str) -> int:
    """Where the bracket that a text begins with is closed; -1 if it isn't."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return place
    return -1
