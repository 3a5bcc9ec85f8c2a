"""Tokenizers of transformers: loading, the text around a prompt, and truncation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ModelError, UsageError, first_line
from ..schema import read_model_config
from .batching import Tokenized
from .gguf import is_gguf, pretrained_place
from .hf import readable_errors, refuse_remote_code
from .lengths import require_rows
from .spec import EncoderSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "\ue000prompt\ue000"  # stands for the prompt while a chat template is written out


class HubTokenizer:
    """Token ids of ``head + prompt``, cut to a length, and the ids ``tail`` after them; also which
    prompts were cut. The cut takes from the prompt, so that what comes after it is always there.

    A prompt that carries the special token with which the tokenizer begins or ends a text gets no
    second one.

    Args:
        tokenizer: as loaded.
        max_length: in tokens, all included.
        rows: of the model's embedding, in which all ids must be.
        head: text before the prompt.
        tail: token ids after it.
        clean: applied to the prompt first, if any.
        special: whether the tokenizer adds its special tokens; not to a text that has its own.

    Attributes:
        head_tokens: tokens of the head alone, special ones included.
        ends: whether every prompt ends with an end-of-text token.

    Raises:
        UsageError: if max_length leaves no room for the prompt.
        ModelError: if the tokenizer numbers segments, which no adapter passes on, or has ids
            beyond the embedding.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        rows: int | None = None,
        *,
        head: str = "",
        tail: Sequence[int] = (),
        clean: Callable[[str], str] | None = None,
        special: bool = True,
    ) -> None:
        self.tokenizer, self.max_length, self.rows = tokenizer, max_length, rows
        self.head, self.tail, self.clean, self.special = head, list(tail), clean, special
        added = tokenizer.num_special_tokens_to_add(pair=False) if special else 0
        self.head_tokens = len(self._tokenize([head])[0]) if head else 0
        fixed = max(added, self.head_tokens) + len(self.tail)
        if max_length <= fixed:
            what = "tokens that the recipe puts around a prompt" if head else "special tokens"
            raise UsageError(
                f"max_length={max_length} leaves no room beside {fixed} {what}; "
                f"use at least {fixed + 1}"
            )
        sample = tokenizer("a", add_special_tokens=special)
        if any(sample.get("token_type_ids") or ()):
            raise ModelError(
                "its tokenizer numbers segments (token_type_ids), which is not supported"
            )
        ids: list[int] = sample["input_ids"]
        begins = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
        self._first = ids[0] if added and ids and ids[0] in begins else None
        self._last = ids[-1] if added and ids and ids[-1] in ends else None
        self.ends = bool(ids) and ids[-1] in ends and not self.tail
        self.pad_id = tokenizer.pad_token_id or 0
        candidates = (tokenizer.bos_token_id, tokenizer.eos_token_id, self.pad_id)
        self._fill = next(i for i in candidates if i is not None)
        self._require_rows([*ids, *self.tail, self.pad_id, self._fill])
        self._room = max_length - len(self.tail)
        if tokenizer.is_fast:
            backend = tokenizer.backend_tokenizer
            backend.no_padding()
            backend.enable_truncation(self._room, direction=tokenizer.truncation_side)

    def __call__(self, prompts: list[str]) -> Tokenized:
        if self.clean is not None:
            prompts = [self.clean(prompt) for prompt in prompts]
        if self.head:
            prompts = [self.head + prompt for prompt in prompts]
        if self.tokenizer.is_fast:
            encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(
                prompts, add_special_tokens=self.special
            )
            ids = [encoding.ids for encoding in encodings]
            # only a prompt that fills all positions can have been cut; asking each one is slow
            truncated = [
                len(row) >= self._room and bool(encoding.overflowing)
                for row, encoding in zip(ids, encodings, strict=True)
            ]
        else:
            whole = self._tokenize(prompts)
            ids = self._tokenize(prompts, truncation=True, max_length=self._room)
            truncated = [len(w) > len(row) for w, row in zip(whole, ids, strict=True)]
        self._require_rows(list(chain.from_iterable(ids)))
        # a tokenizer without special tokens turns "" into nothing; an encoder must return something
        return Tokenized(
            [[*(self._once(row) or [self._fill]), *self.tail] for row in ids], truncated
        )

    def _tokenize(self, texts: list[str], **options: Any) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(texts, add_special_tokens=self.special, **options)[
            "input_ids"
        ]
        return found

    def _once(self, row: list[int]) -> list[int]:
        """Without the special token that the tokenizer added beside the prompt's own."""
        if self._first is not None and row[:2] == [self._first] * 2:
            row = row[1:]
        if self._last is not None and row[-2:] == [self._last] * 2:
            row = row[:-1]
        return row

    def _require_rows(self, ids: list[int]) -> None:
        require_rows(ids, self.rows, self.tokenizer.convert_ids_to_tokens)


def load_tokenizer(spec: EncoderSpec, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, from tokenizer.json or a sentencepiece model; or of a GGUF file.

    Raises:
        ModelError: if it is missing, broken, or brings its own code.
    """
    from transformers import AutoTokenizer

    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "auto_map" in read_model_config(folder, settings.name):
        refuse_remote_code(spec, "its tokenizer")
    known = ("tokenizer.json", "*.model", "vocab.*", "tokenizer_config.json")
    if not is_gguf(folder) and not any(any(folder.glob(pattern)) for pattern in known):
        raise ModelError(f"{folder} holds no tokenizer (looked for {', '.join(known)})")
    with readable_errors(spec, folder, "tokenizer"):
        place, given = pretrained_place(folder)
        return AutoTokenizer.from_pretrained(
            place, local_files_only=True, trust_remote_code=spec.flag("remote_code"), **given
        )


def text_around(
    tokenizer: Any, system: str | None, user: str, *, answer: bool = True
) -> tuple[str, str]:
    """The text that a chat template puts before and after a prompt.

    Args:
        system: the system message; None = none.
        user: the user's message, with ``{prompt}`` in it.
        answer: whether to open the model's answer after it.

    Raises:
        ModelError: if the tokenizer has no chat template, or that drops the prompt.
    """
    if not tokenizer.chat_template:
        raise ModelError(
            "its tokenizer has no chat template, which this recipe needs; use recipe=plain"
        )
    messages = [{"role": "user", "content": user.format(prompt=MARK)}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # a template is foreign code
        raise ModelError(
            f"its chat template refuses this recipe's messages ({first_line(error)})"
        ) from error
    if text.count(MARK) != 1:
        raise ModelError("its chat template does not hold the prompt once; use recipe=plain")
    head, _, tail = text.partition(MARK)
    return head, tail
