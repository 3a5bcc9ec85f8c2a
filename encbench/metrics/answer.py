"""Answerers of yes-or-no questions about images, behind one interface.

An answerer is registered under ``encbench.answerers`` by a file that ends with ``FAMILY =
AnswererFamily(...)``. A metric names one by its option ``answerer``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image

from ..data.hub import resolve_model
from ..encoders.guard import one_line_errors
from ..encoders.hf import (
    TOKENIZER_FILES,
    WEIGHT_FILES,
    dtype_of,
    load_transformers,
    readable_errors,
)
from ..encoders.spec import EncoderSpec
from ..errors import EncbenchError, ModelError, UsageError
from ..vision import ReEncoderSpec
from . import Family, load_extension
from .similarity import model_name

DEFAULT = "vlm:Qwen/Qwen2.5-VL-7B-Instruct"
QUESTION = "{question} Answer with yes or no."
FORMS = {
    True: ("yes", "Yes", "YES", " yes", " Yes", " YES"),
    False: ("no", "No", "NO", " no", " No", " NO"),
}
LEAST = 0.1  # of the probability, for yes and no together, below which it is no answer


@runtime_checkable
class Answerer(Protocol):
    """Answers questions about images.

    Attributes:
        name: identifies its results, e.g. a spec with its revision.
    """

    name: str

    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> Float[np.ndarray, " N"]:
        """For each question about the image beside it the probability of 'yes' among 'yes' and
        'no'; NaN where it says neither. An answer must not depend on the others."""
        ...


class AnswererFamily(Family[Answerer]):
    """How one kind of answerer is listed and loaded."""


class VlmAnswerer:
    """Any transformers image-text-to-text model with a chat template.

    The answer is the next token: the probabilities of the tokens for 'yes' in small and capital
    letters against those for 'no'.

    Args:
        batch: questions at a time.
        least: probability of yes and no together below which the answer is neither.
    """

    def __init__(
        self, name: str, model: Any, processor: Any, *, batch: int = 8, least: float = LEAST
    ) -> None:
        self.name, self.model, self.processor = name, model, processor
        self.batch, self.least = batch, least
        processor.tokenizer.padding_side = "left"  # so that the next token is the last place
        self.tokens = {says: self._tokens(says) for says in (True, False)}
        if set(self.tokens[True]) & set(self.tokens[False]) or not all(self.tokens.values()):
            raise ModelError(f"{name} cannot answer yes or no: its tokenizer has no token for them")

    def _tokens(self, says: bool) -> list[int]:
        """Ids of the words that are one token."""
        tokenizer = self.processor.tokenizer
        found = [tokenizer.encode(word, add_special_tokens=False) for word in FORMS[says]]
        ids = {row[0] for row in found if len(row) == 1} - {tokenizer.unk_token_id}
        return sorted(ids)

    @torch.inference_mode()
    def answer(self, images: Sequence[Image], questions: Sequence[str]) -> Float[np.ndarray, " N"]:
        """See :class:`Answerer`.

        Raises:
            ModelError: in one line, if the model fails.
        """
        found = []
        for start in range(0, len(images), self.batch):
            part = slice(start, start + self.batch)
            with one_line_errors(f"answering by {self.name}"):
                found.append(self._answer(images[part], questions[part]))
        return np.concatenate(found) if found else np.zeros(0)

    def _answer(self, images: Sequence[Image], questions: Sequence[str]) -> Float[np.ndarray, " N"]:
        chats = [
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": image.convert("RGB")},
                        {"type": "text", "text": QUESTION.format(question=question)},
                    ],
                }
            ]
            for image, question in zip(images, questions, strict=True)
        ]
        inputs = self.processor.apply_chat_template(
            chats,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
        )
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        logits = self.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        shares = logits.softmax(-1).cpu().double()
        yes, no = (shares[:, self.tokens[says]].sum(1) for says in (True, False))
        answers: Float[np.ndarray, " N"] = (yes / (yes + no)).numpy()
        return np.where((yes + no).numpy() < self.least, np.nan, answers)


def load_answerer(text: str, device: str | torch.device = "auto") -> Answerer:
    """Find, download if needed, and load an answerer by its spec.

    Raises:
        EncbenchError: in one line, if that does not work.
    """
    found = load_extension("answerer", text, device)
    if not isinstance(found, Answerer):
        raise ModelError(
            f"{text} is not an answerer: it needs a name and answer(images, questions)"
        )
    return found


def ask_all(
    answerer: Answerer, images: Sequence[Image], questions: Sequence[Sequence[str]]
) -> list[Float[np.ndarray, " Q"]]:
    """All answers about each image, asked together.

    Raises:
        EncbenchError: if the answerer does not return one for each question, or one that is no
            probability.
    """
    pairs = [(image, q) for image, row in zip(images, questions, strict=True) for q in row]
    if not pairs:
        return [np.zeros(0) for _ in images]
    answers = np.asarray(answerer.answer([i for i, _ in pairs], [q for _, q in pairs]), float)
    if answers.shape != (len(pairs),):
        raise EncbenchError(
            f"{answerer.name} returned {answers.shape} answers to {len(pairs)} questions"
        )
    if ((answers < 0) | (answers > 1)).any():
        raise EncbenchError(f"{answerer.name} returned an answer that is not a probability")
    return list(np.split(answers, np.cumsum([len(row) for row in questions])[:-1]))


def no_answer(answerer: Answerer, question: str) -> str:
    """Why an image is unscored."""
    return f"{answerer.name} answers neither yes nor no to '{question}'"


def _load_vlm(spec: ReEncoderSpec, device: torch.device) -> VlmAnswerer:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if not spec.source:
        raise UsageError(f"'{spec}' names no model; write vlm:FOLDER or a hub id, e.g. {DEFAULT}")
    full = EncoderSpec.parse(str(spec))
    try:
        batch, least = int(spec.get("batch", "8")), float(spec.get("least", str(LEAST)))
    except ValueError:
        batch = 0
    if batch < 1 or not 0 <= least <= 1:
        raise UsageError(f"'{spec}': batch must be 1 or more, and least from 0 to 1")
    small = ["*.json", "*.jinja", *TOKENIZER_FILES]
    resolved = resolve_model(full.source, full.revision, patterns=[*WEIGHT_FILES, *small])
    folder = resolved.folder
    dtype = dtype_of(full, device)
    model: Any = load_transformers(AutoModelForImageTextToText, full, folder, dtype)
    with readable_errors(full, folder, "processor"):
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    if getattr(processor, "chat_template", None) is None or not hasattr(processor, "tokenizer"):
        raise ModelError(f"{folder} has no chat template, so no question can be put to its model")
    named = {"dtype": str(dtype)[6:]} | ({"least": str(least)} if least != LEAST else {})
    name = model_name(spec, DEFAULT, resolved.revision, **named)
    moved = model.requires_grad_(False).to(device)
    return VlmAnswerer(name, moved, processor, batch=batch, least=least)


def _load_python(spec: ReEncoderSpec, device: torch.device) -> Any:
    module, _, attribute = spec.source.partition(":")
    if not attribute:
        raise UsageError(f"'{spec}' names no answerer; write python:MODULE:NAME")
    with one_line_errors(f"making the answerer {spec}"):
        return getattr(importlib.import_module(module), attribute)(device)


VLM = AnswererFamily(
    summary="any transformers image-text-to-text model with a chat template",
    load=_load_vlm,
    examples=(DEFAULT, "vlm:FOLDER?batch=16&dtype=bfloat16"),
    options={
        "batch": "questions at a time [8]",
        "dtype": "of weights and computation [bfloat16 on CUDA, else float32]",
        "least": "probability of yes and no together below which it is no answer [0.1]",
    },
)
PYTHON = AnswererFamily(
    summary="your own: a function or class that takes the device (runs your code)",
    load=_load_python,
    examples=("python:MODULE:NAME",),
)
