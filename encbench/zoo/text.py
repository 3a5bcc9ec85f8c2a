"""Training text of the zoo: all encoders read the same captions in the same order with one
tokenizer. Captions describe scenes of the split 'encoder-train' in the tiers A and B. Caption
number i is the
same whatever is asked for beside it: five of six are short, the sixth is long, and tiers
alternate within both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.scenes.captions import Style, caption
from ..data.scenes.sampler import sample_scenes
from ..data.scenes.splits import Tier
from ..data.scenes.world import SceneBatch
from ..vision.labels import COCO

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLIT = "encoder-train"
TIERS: tuple[Tier, Tier] = ("A", "B")
LONG_EVERY = 6
CONTEXT = 77  # tokens, as CLIP reads
PAD, END, UNKNOWN, START = "<pad>", "</s>", "<unk>", "<s>"
CORPUS = 6_000  # captions that the tokenizer is fitted on
MERGES_AFTER = 3  # a pair that is rarer gets no token
SYSTEM = "You are a helpful assistant."
REQUEST = "Please generate image based on the following caption: {}"


def training_captions(batch: SceneBatch, start: int) -> list[str]:
    """The captions of scenes ``start``, ``start + 1``, ... of the split."""
    found = []
    for i, scene in enumerate(batch, start):
        style: Style = "long" if i % LONG_EVERY == LONG_EVERY - 1 else "short"
        found.append(caption(scene, TIERS[(i + i // LONG_EVERY) % 2], style))
    return found


class CaptionedScenes(NamedTuple):
    """Scenes and a caption of each."""

    scenes: SceneBatch
    texts: list[str]


def caption_scenes(start: int, count: int, seed: int) -> CaptionedScenes:
    """Scenes ``start`` to ``start + count`` of the split, with their captions."""
    scenes = sample_scenes(SPLIT, count, seed=seed, start=start)
    return CaptionedScenes(scenes, training_captions(scenes, start))


# ------------------------------------------------------------------------------ tokenizer


@cache
def _fitted() -> str:
    """Byte-level BPE as tokenizer.json: the captions' words become one token each.

    Bytes are the fallback, so that no text is unknown; common English words and COCO's class
    names are put beside the captions, so that other captions are not told letter by letter.
    Nothing of tier C is read.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        min_frequency=MERGES_AFTER,
        special_tokens=[PAD, END, UNKNOWN, START],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    other = [*sorted(ENGLISH_STOP_WORDS), *COCO, "a photo of a", "system user assistant"]
    chat = [SYSTEM, REQUEST.format("")]
    corpus = caption_scenes(0, CORPUS, 0).texts + (other + chat) * MERGES_AFTER
    tokenizer.train_from_iterator(corpus, trainer)
    text: str = tokenizer.to_str()
    return text


def tokenizer_for(
    extra: Sequence[str] = (), *, start: bool = False, end: bool = False
) -> PreTrainedTokenizerFast:
    """The zoo's tokenizer with a family's own special tokens after the common ones.

    Args:
        extra: further special tokens, in the order of their ids.
        start, end: put START before, END after every text.
    """
    from tokenizers import AddedToken, Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(_fitted())
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in extra])
    if start or end:
        template = [START] * start + ["$A"] + [END] * end
        ids = [(t, tokenizer.token_to_id(t)) for t in (START, END)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=" ".join(template), special_tokens=ids
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        bos_token=START if start else None,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, cut to CONTEXT."""
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.enable_truncation(CONTEXT)
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts))]


class Padded(NamedTuple):
    """Some rows of a batch, right-padded with 0: which ones, their ids, and what is real."""

    rows: Int[Tensor, " B"]
    ids: Int[Tensor, "B L"]
    mask: Bool[Tensor, "B L"]


def by_length(ids: Sequence[Sequence[int]], size: int) -> Iterator[Padded]:
    """A batch in parts of ``size`` rows of about the same length, so that little is padding."""
    lengths = np.array([len(row) for row in ids])
    order = np.argsort(lengths, kind="stable")
    for first in range(0, len(order), size):
        rows = order[first : first + size]
        width = int(lengths[rows].max())
        padded = np.zeros((len(rows), width), np.int64)
        for at, row in enumerate(rows):
            padded[at, : lengths[row]] = ids[row]
        mask = np.arange(width) < lengths[rows, None]
        yield Padded(torch.from_numpy(rows), torch.from_numpy(padded), torch.from_numpy(mask))
