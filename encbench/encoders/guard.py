"""Turns any exception of a library, a checkpoint or user code into one line about an encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..device import is_out_of_memory
from ..errors import EncbenchError, ModelError, describe_error


@contextmanager
def one_line_errors(
    doing: str, kind: Callable[[str], EncbenchError] = ModelError, hint: str = ""
) -> Iterator[None]:
    """Turn every exception into one line. ``sys.exit()`` in user code is a failure, too: it must
    not end encbench with status 0. Ctrl-C passes.

    Args:
        doing: what is being done, e.g. 'loading st:/some/folder'.
        kind: makes the error.
        hint: what to do, after the error's own text.

    Raises:
        EncbenchError: in place of any other exception.
    """
    try:
        yield
    except (EncbenchError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit, and what test libraries derive from it
        if is_out_of_memory(error):
            hint = "; use ?dtype=bfloat16, ?max_length=..., or a smaller model"
        raise kind(f"{doing} failed: {describe_error(error)}{hint}") from error
