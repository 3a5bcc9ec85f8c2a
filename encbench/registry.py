"""One lazy registry, fed by entry points.

A package adds an encoder, a re-encoder, a probe or a report by an entry point in one of
:data:`GROUPS`; encbench registers its own in the same way. Listing names imports nothing; an object
is imported when it is first used.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from .errors import EncbenchError, UnknownNameError, UsageError, describe_error

GROUPS = {
    "encoder": "encbench.encoders",
    "re-encoder": "encbench.reencoders",
    "probe": "encbench.probes",
    "report": "encbench.reports",
    "objective": "encbench.objectives",
    "time-sampler": "encbench.times",
    "metric": "encbench.metrics",
    "detector": "encbench.detectors",
    "answerer": "encbench.answerers",
    "figure": "encbench.figures",
    "dataset": "encbench.datasets",
    "prompt-set": "encbench.prompts",
    "rule": "encbench.rules",
}


@cache
def _entries(kind: str) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUPS[kind]):
        other = found.get(entry.name)
        if other is not None and other.value != entry.value:
            raise EncbenchError(
                f"two packages register the {kind} '{entry.name}': {other.value} and "
                f"{entry.value}; uninstall one of them"
            )
        found[entry.name] = entry
    return found


def names(kind: str) -> list[str]:
    """Registered names of a kind ('encoder', 're-encoder', 'probe', 'report', 'figure'), sorted.

    Raises:
        EncbenchError: if two packages register the same name.
    """
    return sorted(_entries(kind))


def get_family(kind: str, name: str, options: Iterable[str]) -> Any:
    """The family registered under a name, which must have these options.

    Raises:
        UnknownNameError, UsageError: if there is no such family or option.
        EncbenchError: if what the entry point names cannot be imported.
    """
    family = get(kind, name)
    for option in options:
        if not family.options:
            raise UsageError(f"the {kind} '{name}' has no options, so no '{option}'")
        if option not in family.options:
            raise UnknownNameError(f"option of the {kind} '{name}'", option, family.options)
    return family


def get(kind: str, name: str) -> Any:
    """The object registered under a name, imported now.

    Raises:
        UnknownNameError: with the nearest known names.
        EncbenchError: if what the entry point names cannot be imported.
    """
    entries = _entries(kind)
    if name not in entries:
        raise UnknownNameError(kind, name, entries)
    try:
        return entries[name].load()
    except (Exception, SystemExit) as error:  # another package's code raises anything
        raise EncbenchError(
            f"{kind} '{name}' ({entries[name].value}) cannot be imported: {describe_error(error)}"
        ) from error
