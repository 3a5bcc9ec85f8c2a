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
        "write family:source[@revision][?option=value&...], for example clip:ViT-L-14/openai "
        "(see: encbench list encoders)"
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

    def __str__(self) -> str:
        if self.shuffled:  # the inner spec is in canonical form already
            return f"{self.family}:{self.source}"
        return super().__str__()
