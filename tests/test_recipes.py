"""Recipes give what the generators' own prompt encoding gives, to 1e-5."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import decoder_checkpoints
import pytest
import torch
from test_encoders_equality import PROMPTS, same, same_tokens

from encbench import registry
from encbench.encoders import EncoderSpec, load_encoder
from encbench.encoders.batching import BatchedEncoder
from encbench.encoders.recipes import (
    CLEANED,
    RECIPES,
    SANA_INSTRUCTION,
    added_tokens,
    option_of,
)
from encbench.errors import ModelError, UsageError

diffusers = pytest.importorskip("diffusers")
NO_PARTS = {"transformer": None, "vae": None, "scheduler": None}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_checkpoints.gemma(tmp_path_factory.mktemp("gemma") / "model")


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.t5(tmp_path_factory.mktemp("t5") / "model")


# ------------------------------------------------------------------------------------ SANA


def sana(folder: Path, prompts: list[str], **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """diffusers' own: tokens and mask, with the instruction of its pipeline's call."""
    import transformers

    pipe = diffusers.SanaPipeline(
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        text_encoder=transformers.AutoModel.from_pretrained(folder).eval(),
        **NO_PARTS,
    )
    own = inspect.signature(diffusers.SanaPipeline.__call__).parameters
    tokens, mask, _, _ = pipe.encode_prompt(
        prompts,
        do_classifier_free_guidance=False,
        device=torch.device("cpu"),
        complex_human_instruction=own["complex_human_instruction"].default,
        **more,
    )
    return tokens, mask


@pytest.mark.parametrize("length", [None, 12])
def test_sana_equals_its_pipeline(gemma: Path, length: int | None) -> None:
    more = {} if length is None else {"max_sequence_length": length}
    tokens, mask = sana(gemma, PROMPTS, **more)
    options = "" if length is None else f"&max_length={length}"
    encoder = load_encoder(f"gemma:{gemma}?recipe=sana{options}", "cpu")
    features = encoder.encode(PROMPTS)
    same_tokens(features, tokens, mask)
    assert mask.shape[1] == encoder.card.max_tokens == (length or 300)
    assert encoder.card.recipe == "sana"
    padded = load_encoder(f"gemma:{gemma}?recipe=sana&pool=mean-padded{options}", "cpu")
    same(padded.encode(PROMPTS).tokens, tokens)  # the states of padding, too


def test_sana_keeps_the_first_position_and_the_prompts(gemma: Path) -> None:
    encoder = load_encoder(f"gemma:{gemma}?recipe=sana", "cpu")
    assert isinstance(encoder, BatchedEncoder)
    start = encoder.tokenize([""]).ids[0]
    whole = encoder.tokenize(["A  Dog"]).ids[0]
    features = encoder.encode(["A  Dog"])
    # BOS, the last token of the instruction, and what the prompt adds
    assert int(features.mask.sum()) == 2 + len(whole) - len(start)
    same(encoder.encode(["  a  dog "]).tokens, features.tokens)  # lower case, ends stripped
    assert encoder.encode(["dog " * 400, "dog"]).truncated.tolist() == [True, False]


def test_the_instruction_is_the_published_one() -> None:
    own = inspect.signature(diffusers.SanaPipeline.__call__).parameters
    assert "\n".join(own["complex_human_instruction"].default) == SANA_INSTRUCTION


# ---------------------------------------------------------------------------------- PixArt

WEB = [
    *PROMPTS,
    "A <b>bold</b> claim at https://example.com/page, see @somebody #12345678",
    "this-is_my-cute_cat-photo.jpg  **SALE** 1234567 \u201cquoted\u201d \u2014 &amp; so..",
    "IMG_20200101.png",
]


def test_pixart_equals_its_pipeline(t5: Path) -> None:
    import transformers

    pipe = diffusers.PixArtSigmaPipeline(
        tokenizer=transformers.AutoTokenizer.from_pretrained(t5),
        text_encoder=transformers.T5EncoderModel.from_pretrained(t5).eval(),
        **NO_PARTS,
    )
    tokens, mask, _, _ = pipe.encode_prompt(
        WEB, do_classifier_free_guidance=False, device=torch.device("cpu"), clean_caption=True
    )
    encoder = load_encoder(f"t5:{t5}?recipe=pixart", "cpu")
    features = encoder.encode(WEB)
    same_tokens(features, tokens, mask)
    assert mask.shape[1] == encoder.card.max_tokens == 300
    assert encoder.card.recipe == "pixart"
    plain = load_encoder(f"t5:{t5}?max_length=300", "cpu").encode(WEB)
    assert plain.mask.sum(1).tolist() != features.mask.sum(1).tolist()


def test_pixart_reads_a_bounded_part_of_endless_prompts(t5: Path) -> None:
    encoder = load_encoder(f"t5:{t5}?recipe=pixart", "cpu")
    assert isinstance(encoder, BatchedEncoder)
    word = "dog, "
    one, two = encoder.tokenize([word * CLEANED, word * (CLEANED // len(word))])[0]
    assert one == two


def test_pixart_without_its_packages(t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from encbench.encoders import recipes

    recipes._cleaned.cache_clear()
    monkeypatch.setitem(sys.modules, "bs4", None)
    with pytest.raises(ModelError, match=r"needs bs4: pip install 'encbench\[diffusers\]'"):
        load_encoder(f"t5:{t5}?recipe=pixart", "cpu")


# ---------------------------------------------------------------------------------- all


def test_what_a_recipe_adds_to_the_work_is_told_beforehand(gemma: Path) -> None:
    def added(text: str) -> int:
        return added_tokens(EncoderSpec.parse(text))

    encoder = load_encoder(f"gemma:{gemma}?recipe=sana", "cpu")
    assert isinstance(encoder, BatchedEncoder)
    real = len(encoder.tokenize([""]).ids[0])
    assert 0.5 * real < added("gemma:a/b?recipe=sana") < 2 * real
    assert added("gemma:a/b") == added("clip:a/b") == added("t5:a/b?recipe=pixart") == 0
    text = added("blip3o:a/b")
    assert 20 < text < 80
    assert added("blip3o:a/b?mode=image") == text + 2 * 729
    assert added("blip3o:a/b?mode=image&image_tokens=10") == text + 20
    assert added("pipeline:a/b?recipe=flux") == 512


def test_every_recipe_says_whose_it_is_and_fits_somewhere() -> None:
    families = set(registry.names("encoder"))
    for name, recipe in RECIPES.items():
        assert recipe.name == name
        assert set(recipe.families) <= families
        assert recipe.source or name == "plain"
        for family in recipe.families:
            assert name in option_of(family)
            assert "recipe" in registry.get("encoder", family).options


@pytest.mark.parametrize(
    ("family", "recipe", "says"),
    [
        ("t5", "sana", "recipe=sana does not fit 't5:' encoders; known there: plain, pixart"),
        ("gemma", "pixart", "recipe=pixart does not fit 'gemma:' .* known there: plain, sana"),
        ("gemma", "cloud", "recipe=cloud is unknown to 'gemma:' encoders"),
    ],
)
def test_recipes_that_do_not_fit(
    gemma: Path, t5: Path, family: str, recipe: str, says: str
) -> None:
    folder = {"t5": t5, "gemma": gemma}[family]
    with pytest.raises(UsageError, match=says) as caught:
        load_encoder(f"{family}:{folder}?recipe={recipe}", "cpu")
    assert "\n" not in str(caught.value)
