"""Spec strings: ``family:source[@revision][?option=value&...]``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from urllib.parse import quote, unquote

from ..errors import UsageError

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
class EncoderSpec:
    """A parsed spec string; ``str(spec)`` is its canonical form (options sorted).

    A ``%`` escape in an option's value (``%26`` for ``&``) is read and written as in URLs.
    """

    family: str
    source: str
    revision: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def parse(cls, text: str) -> EncoderSpec:
        """Read a spec string.

        Raises:
            UsageError: if it is not of the form, or a common option has an impossible value.
        """
        family, colon, rest = text.strip().partition(":")
        if not colon or not family or not rest:
            raise UsageError(
                f"'{text}' is not an encoder; write family:source[@revision][?option=value&...], "
                "for example clip:ViT-L-14/openai (see: encbench list encoders)"
            )
        if family == "control" and rest.startswith("shuffle("):
            if not rest.endswith(")"):
                raise UsageError(f"'{text}' lacks its closing bracket: control:shuffle(<spec>)")
            inner = cls.parse(rest[len("shuffle(") : -1])
            return cls(family, f"shuffle({inner})")
        source, _, query = rest.partition("?")
        source, at, revision = source.rpartition("@")
        if not at or "/" in revision:  # an @ inside a path names no revision
            source, revision = source + at + revision, ""
        options: dict[str, str] = {}
        for part in filter(None, query.split("&")):
            name, equals, value = part.partition("=")
            if not equals or not name or not value:
                raise UsageError(f"'{part}' in '{text}' is not an option; write name=value")
            if name in options:
                raise UsageError(f"'{text}' gives the option '{name}' twice")
            options[name] = unquote(value)
        if "revision" in options:  # the same thing, said as an option
            if revision:
                raise UsageError(f"'{text}' gives the revision twice")
            revision = options.pop("revision")
        if not source:
            raise UsageError(f"'{text}' names no source after '{family}:'")
        spec = cls(family, source, revision or None, tuple(sorted(options.items())))
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

    def get(self, name: str, default: str | None = None) -> str | None:
        """An option's value as written, or ``default``."""
        return dict(self.options).get(name, default)

    def flag(self, name: str) -> bool:
        """Whether an option says true (or yes, on, 1).

        Raises:
            UsageError: if it says anything but true or false.
        """
        value = (self.get(name) or "false").lower()
        if value in ("true", "yes", "on", "1"):
            return True
        if value in ("false", "no", "off", "0"):
            return False
        raise UsageError(f"option {name}={value} of '{self}' must be true or false")

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

    def with_options(self, **options: str | None) -> EncoderSpec:
        """The same spec with options set, or removed where the value is None."""
        merged = {**dict(self.options), **options}
        kept = tuple(sorted((k, v) for k, v in merged.items() if v is not None))
        return dataclasses.replace(self, options=kept)

    def __str__(self) -> str:
        text = f"{self.family}:{self.source}"
        if self.revision:
            text += f"@{self.revision}"
        if self.options:
            text += "?" + "&".join(f"{k}={quote(v, safe='/:,.-')}" for k, v in self.options)
        return text
