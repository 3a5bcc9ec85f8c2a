"""Prompts of embedding models: chosen as SentenceTransformer chooses them, held by card and key."""

import json
from pathlib import Path

import checkpoints
import pytest
import torch

from encbench.encode import StoredEncoder
from encbench.encoders import EncoderSpec, load_encoder
from encbench.errors import ModelError, UsageError
from encbench.store import Store

TEXTS = ["a brown dog", "two small cats sleep on the blue sofa near the window", ""]
PROMPTS = {"query": "find the photo: ", "document": "a red bicycle; ", "empty": ""}


def write_prompts(folder: Path, default: str | None, include: bool = True) -> None:
    path = folder / "config_sentence_transformers.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps(found | {"prompts": PROMPTS, "default_prompt_name": default}))
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file():
        pooling.write_text(
            json.dumps(json.loads(pooling.read_text()) | {"include_prompt": include})
        )


@pytest.fixture(params=["bert", "bert without prompt in pooling", "static"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made = checkpoints.static_words if request.param == "static" else checkpoints.sentence_bert
    folder = made(tmp_path / "model")
    write_prompts(folder, "query", include="without" not in request.param)
    return folder


@pytest.mark.parametrize(
    ("option", "asked"),
    [
        ("", {}),
        ("?prompt=document", {"prompt_name": "document"}),
        ("?prompt=empty", {"prompt_name": "empty"}),
        ("?prompt_text=query:%20", {"prompt": "query: "}),
        ("?prompt_text=one\\ntwo%20", {"prompt": "one\ntwo "}),
        ("?prompt=none", {"prompt": ""}),
    ],
)
def test_vectors_are_the_library_s(model: Path, option: str, asked: dict[str, str]) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(model), device="cpu")
    encoder = load_encoder(f"st:{model}{option}", "cpu")
    expected = library.encode(TEXTS, convert_to_tensor=True, **asked)
    torch.testing.assert_close(encoder.encode(TEXTS).pooled, expected, atol=1e-5, rtol=1e-5)
    plain = load_encoder(f"st:{model}?prompt=none", "cpu").encode(TEXTS).pooled
    changes = option not in ("?prompt=none", "?prompt=empty")
    assert ((plain - expected).abs().max() > 1e-3) == changes
    said = encoder.card.recipe
    assert said.startswith("prompt ") == changes, said


def test_card_and_key_hold_the_prompt(tmp_path: Path) -> None:
    folder = checkpoints.sentence_bert(tmp_path / "model")

    def identity(options: str = "") -> dict:
        spec = EncoderSpec.parse(f"st:{folder}{options}")
        return StoredEncoder(spec, Store(tmp_path / "store"), torch.device("cpu")).identity

    without = identity()
    assert "prompt" not in without, "vectors of earlier versions must be found again"
    write_prompts(folder, "query")
    with_default = identity()
    assert with_default["prompt"] == PROMPTS["query"]
    options = ("", "?prompt=document", "?prompt=none", "?prompt_text=query:%20")
    assert len({json.dumps(identity(each), sort_keys=True) for each in options}) == 4
    card = load_encoder(f"st:{folder}", "cpu").card
    assert card.recipe == "prompt query: 'find the photo: '"
    assert str(EncoderSpec.parse("st:a/b?prompt_text=query:%20")) == "st:a/b?prompt_text=query:%20"


def test_what_the_model_lacks_is_one_line(tmp_path: Path) -> None:
    folder = checkpoints.sentence_bert(tmp_path / "model")
    write_prompts(folder, None)
    for options, said in (
        ("prompt=passage", r"no prompt named 'passage' \(known: query, document, empty\)"),
        ("prompt=query&prompt_text=a", "both prompt and prompt_text"),
    ):
        with pytest.raises(UsageError, match=said):
            load_encoder(f"st:{folder}?{options}", "cpu")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"prompts": ["query: "]}))
    with pytest.raises(ModelError, match="prompts must be texts by name"):
        load_encoder(f"st:{folder}", "cpu")
