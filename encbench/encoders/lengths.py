"""How many tokens of a prompt a model reads, and which token ids it knows.

A length is the least of what the spec asks for, what the model has positions for, and
:data:`LONGEST`; an id is a row of the model's embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from ..errors import ModelError, UsageError
from .spec import EncoderSpec

LONGEST = 16_384  # tokens: far beyond any prompt, and what a batch of one still fits into
DEFAULT_LENGTH = 512  # where neither the spec nor the model's files say one


def choose_length(spec: EncoderSpec, default: int | None, positions: int | None = None) -> int:
    """The maximum length in tokens, special ones included.

    Args:
        default: where the spec names none; None, 0 and lengths beyond :data:`LONGEST` (tokenizers
            write 1e30 for 'unknown') stand for :data:`DEFAULT_LENGTH`.
        positions: how many the model has; None = any number.

    Raises:
        UsageError: if the spec asks for more than can be read.
    """
    most = min(positions or LONGEST, LONGEST)
    if spec.max_length is not None:
        if spec.max_length > most:
            raise UsageError(
                f"max_length={spec.max_length} of '{spec}': this model reads at most {most} tokens"
            )
        return spec.max_length
    if not default or (default > LONGEST and positions is None):
        default = DEFAULT_LENGTH
    return min(default, most)


def positions_of(model: Any) -> int | None:
    """How many tokens a transformer has positions for; None = any number.

    RoBERTa-like models reserve the rows up to that of padding, OPT the first two.
    """
    counts = [getattr(model.config, "max_position_embeddings", None)]
    for name, table in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(table, nn.Embedding) and ("posi" in last or last == "wpe"):
            kept = -1 if table.padding_idx is None else table.padding_idx
            counts.append(table.num_embeddings - max(kept + 1, getattr(table, "offset", 0)))
    known = [n for n in counts if isinstance(n, int) and n > 0]
    return min(known) if known else None


def embedding_rows(model: Any) -> int | None:
    """Rows of a transformer's token embedding, where it has a plain one."""
    table = model.get_input_embeddings()
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def require_rows(ids: Iterable[int], rows: int | None, name: Callable[[int], Any]) -> None:
    """Every id must be a row of the embedding.

    Args:
        rows: of the embedding; None = unknown, then nothing is checked.
        name: the token of an id.

    Raises:
        ModelError: naming the token.
    """
    if rows is None:
        return
    for number in (max(ids, default=0), min(ids, default=0)):
        if not 0 <= number < rows:
            raise ModelError(
                f"its tokenizer's token {name(number)!r} has the id {number}, but the model's "
                f"embedding has {rows} rows; use the tokenizer that belongs to the weights, or "
                "resize the embedding"
            )
