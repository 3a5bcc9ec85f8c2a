"""Changes of a prompt: pure functions, str -> str. Randomness is an argument."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

Unit = Literal["words", "sentences"]
Place = Literal["anywhere", "start", "end"]


def rng_for(*parts: object) -> np.random.Generator:
    """A generator that depends on ``parts`` alone, not on the order in which items come."""
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogatepass")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16]))


def split(text: str, unit: Unit) -> list[str]:
    """A prompt's words (at white space) or sentences (after . ! ? and white space)."""
    if unit == "words":
        return text.split()
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def choose_kept(
    count: int, share: float, place: Place, rng: np.random.Generator
) -> list[int] | None:
    """Which of ``count`` units stay when a share of them is removed.

    At least one is removed and at least one stays; None for a single unit.

    Args:
        share: of the units that are removed, above 0 and below 1.
        place: 'start' and 'end' remove one run there, 'anywhere' units drawn at random.
    """
    if not 0 < share < 1:
        raise ValueError(f"the share removed must be above 0 and below 1, not {share}")
    if count < 2:
        return None
    removed = min(count - 1, max(1, round(share * count)))
    if place == "start":
        return list(range(removed, count))
    if place == "end":
        return list(range(count - removed))
    gone = set(rng.choice(count, removed, replace=False).tolist())
    return [i for i in range(count) if i not in gone]


def remove(
    text: str, share: float, unit: Unit, place: Place, rng: np.random.Generator
) -> str | None:
    """The prompt with a share of its words or sentences removed, or None if it has only one.

    Source: 'randomly removed portions of the text', EMF (arXiv 2604.18168) section 3.3, which
    leaves open how much, where and in which units.
    """
    parts = split(text, unit)
    stay = choose_kept(len(parts), share, place, rng)
    return None if stay is None else " ".join(parts[i] for i in stay)


def bare(word: str) -> str:
    """A word without the punctuation around it, lower-cased."""
    return re.sub(r"^\W+|\W+$", "", word).lower()


def is_content(word: str) -> bool:
    """Whether a word carries content: four or more letters, and no function word."""
    word = bare(word)
    return len(word) >= 4 and word.isalpha() and word not in ENGLISH_STOP_WORDS


def swap_word(
    text: str, among: Collection[int], vocabulary: Sequence[str], rng: np.random.Generator
) -> str | None:
    """The prompt with one content word, at one of the positions ``among``, replaced by another
    word of ``vocabulary``; None where there is no such word.

    Capital first letter and punctuation around the word stay.
    """
    words = text.split()
    spots = [i for i in sorted(among) if is_content(words[i])]
    if not spots:
        return None
    spot = spots[int(rng.integers(len(spots)))]
    old = bare(words[spot])
    others = [word for word in vocabulary if word != old]
    if not others:
        return None
    new = others[int(rng.integers(len(others)))]
    if bare(words[spot]) != re.sub(r"^\W+|\W+$", "", words[spot]):
        new = new.capitalize()
    words[spot] = re.sub(r"(^\W*).*?(\W*$)", lambda m: m[1] + new + m[2], words[spot], count=1)
    return " ".join(words)
