"""Spec strings of data sets and prompt sets; light, since configurations hold them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

from ..errors import UsageError

_OPTIONS = re.compile(r"\w+=[^&?]+(&\w+=[^&?]+)*")


@dataclass(frozen=True)
class DatasetSpec:
    """A parsed ``family[:source][?option=value&...]``; ``str`` is its canonical form."""

    family: str
    source: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> DatasetSpec:
        """Read a spec; a ``?`` in the name of a file or folder that is there does no harm.

        Raises:
            UsageError: if it is not of the form.
        """
        head, mark, query = text.rpartition("?")
        folder = Path(text.partition(":")[2]).expanduser()
        if not mark or not _OPTIONS.fullmatch(query) or os.path.exists(folder):  # noqa: PTH110
            head, query = text, ""
        family, _, source = head.partition(":")
        if not family:
            raise UsageError(
                f"'{text}' is not a data set; write family:source?option=value&..., such as "
                "coco:FOLDER or folder:FOLDER"
            )
        pairs = [part.split("=", 1) for part in query.split("&") if part]
        if len({name for name, _ in pairs}) < len(pairs):
            raise UsageError(f"'{text}' gives an option twice")
        return cls(family, source, {name: unquote(value) for name, value in pairs})

    def get(self, name: str) -> str | None:
        """An option's value as written, or None."""
        return self.options.get(name)

    def __str__(self) -> str:
        query = "&".join(f"{k}={quote(v, safe='/:,.-')}" for k, v in sorted(self.options.items()))
        head = f"{self.family}:{self.source}" if self.source else self.family
        return f"{head}?{query}" if query else head
