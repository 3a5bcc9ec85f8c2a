"""Reads and writes spec strings: ``family[:source][@revision][?option=value&...]``."""

from __future__ import annotations

import dataclasses
import unicodedata
from dataclasses import dataclass
from typing import ClassVar, TypeVar, overload
from urllib.parse import quote, unquote

from .errors import UsageError
from .files import expand_home

T = TypeVar("T", bound="Spec")


@dataclass(frozen=True)
class Spec:
    """A parsed spec string; ``str(spec)`` is its canonical form (options sorted).

    A ``%`` escape in an option's value (``%26`` for ``&``) is read and written as in URLs. A
    source that exists on disk may hold ``?`` and ``@``; they are written as ``%3F`` and ``%40``.
    """

    family: str
    source: str = ""
    revision: str | None = None
    options: tuple[tuple[str, str], ...] = ()

    HINT: ClassVar[str] = "write family[:source][@revision][?option=value&...]"

    @classmethod
    def parse(cls: type[T], text: str) -> T:
        """Read a spec string.

        Raises:
            UsageError: if it is not of the form.
        """
        text = text.strip()
        _check_characters(text, text)
        family, colon, rest = text.partition(":")
        alone = not colon or "?" in family  # no source; a colon may still be in an option
        source, revision, query = _split(text if alone else rest)
        if alone:
            family, source = source, ""
        if not family:
            raise UsageError(f"'{text}' names no family; {cls.HINT}")
        options: dict[str, str] = {}
        for part in filter(None, query.split("&")):
            name, equals, value = part.partition("=")
            if not equals or not name or not value:
                raise UsageError(f"'{part}' in '{text}' is not an option; write name=value")
            if name in options:
                raise UsageError(f"'{text}' gives the option '{name}' twice")
            options[name] = unquote(value)
            _check_characters(options[name], text)
        return cls(family, source, revision or None, tuple(sorted(options.items())))

    @overload
    def get(self, name: str) -> str | None: ...

    @overload
    def get(self, name: str, default: str) -> str: ...

    def get(self, name: str, default: str | None = None) -> str | None:
        """An option's value as written, or ``default``."""
        return dict(self.options).get(name, default)

    def flag(self, name: str) -> bool:
        """Whether an option is true (or yes, on, 1).

        Raises:
            UsageError: if it is neither true nor false.
        """
        value = self.get(name, "false").lower()
        if value in ("true", "yes", "on", "1"):
            return True
        if value in ("false", "no", "off", "0"):
            return False
        raise UsageError(f"option {name}={value} of '{self}' must be true or false")

    def with_options(self: T, **options: str | None) -> T:
        """The same spec with options set, or removed where the value is None."""
        merged = {**dict(self.options), **options}
        kept = tuple(sorted((k, v) for k, v in merged.items() if v is not None))
        return dataclasses.replace(self, options=kept)

    def __str__(self) -> str:
        folder, slash, name = self.source.replace("?", "%3F").rpartition("/")
        source = folder + slash + name.replace("@", "%40")
        text = f"{self.family}:{source}" if source else self.family
        text += f"@{self.revision}" if self.revision else ""
        options = "&".join(f"{k}={quote(v, safe='/:,.-')}" for k, v in self.options)
        return f"{text}?{options}" if options else text


def _check_characters(text: str, spec: str) -> None:
    """Control characters and halves of surrogate pairs (names that are not UTF-8) are refused:
    nothing that names the encoder could be printed or stored.

    Raises:
        UsageError: showing them escaped.
    """
    odd = next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)
    if odd is not None:
        raise UsageError(
            f"{spec!a} holds the character {odd!a}, which no spec can hold; rename the "
            "file or folder"
        )


def _split(text: str) -> tuple[str, str, str]:
    """Source, revision and query; the longest part that is on disk is the source."""
    ends = [len(text), *(i for i in range(len(text) - 1, -1, -1) if text[i] == "?")]
    for end in ends:
        for source in (text[:end], text[:end].rpartition("@")[0]):
            revision = text[len(source) + 1 : end]
            odd = "?" in source or "@" in source
            if odd and "?" not in revision and is_on_disk(source):
                return source, revision, text[end + 1 :]
    source, _, query = text.partition("?")
    name, at, revision = source.rpartition("@")
    if at and "/" not in revision:  # an @ inside a path names no revision
        source = name
    else:
        revision = ""
    if not is_on_disk(source):
        source = source.replace("%3F", "?").replace("%40", "@")
    return source, revision, query


def is_on_disk(source: str) -> bool:
    """Whether it is a path on this machine; for ``file.py:name`` the file."""
    file, _, name = source.rpartition(":")
    try:
        if expand_home(source).exists():
            return True
        return name.replace(".", "_").isidentifier() and expand_home(file).is_file()
    except (OSError, ValueError):  # too long a name
        return False


UNINFORMED = ("control:constant", "control:random")
"""Controls whose vectors say nothing about a prompt; every encoder's own shuffle is one, too."""


def is_uninformed(spec: str, candidate: str | None = None) -> bool:
    """Whether a spec is of a control without information.

    Args:
        candidate: whose shuffle counts; None = any.
    """
    if candidate is not None:
        shuffled = spec == f"control:shuffle({candidate})"
    else:
        shuffled = spec.startswith("control:shuffle(")
    return shuffled or spec.partition("?")[0] in UNINFORMED
