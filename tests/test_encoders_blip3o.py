"""BLIP3o-NEXT: the published recipe, step by step with transformers, gives the same to 1e-5."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import decoder_checkpoints
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_encoders_equality import PROMPTS, same

from encbench.encoders import load_encoder
from encbench.encoders.batching import BatchedEncoder
from encbench.encoders.blip3o import Blip3oImageEncoder, sample_token
from encbench.encoders.decoder_weights import StoredTensor
from encbench.errors import EncbenchError, ModelError, UsageError

FEW = 7  # image tokens
DOG = "a photo of a brown dog"


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blip3o")


@pytest.fixture(scope="module")
def folder(root: Path) -> Path:
    return decoder_checkpoints.blip3o(root / "single")


def published(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The tokenizer, the language model as a Qwen3 of transformers, and the config as written."""
    import transformers

    raw = json.loads((folder / "config.json").read_text())
    config = transformers.Qwen3Config.from_dict({**raw, "model_type": "qwen3"})
    model = transformers.Qwen3ForCausalLM(config).eval()
    state = load_file(folder / "model.safetensors")
    found = model.load_state_dict(state, strict=False)
    assert not [n for n in found.missing_keys if n != "lm_head.weight"]
    model.tie_weights()
    return transformers.AutoTokenizer.from_pretrained(folder), model, raw


def dressed(tokenizer: Any, prompt: str) -> str:
    said = [
        {"role": "system", "content": "You are a helpful assistant."},
        {
            "role": "user",
            "content": f"Please generate image based on the following caption: {prompt}",
        },
    ]
    text: str = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    return text + "<im_start><S0>"


def written(folder: Path, prompts: list[str]) -> tuple[Any, Any, torch.Tensor]:
    """Prompts as the published code pads them, and the sequences after greedy generation."""
    tokenizer, model, raw = published(folder)
    tokenizer.padding_side = "left"
    texts = [dressed(tokenizer, prompt) for prompt in prompts]
    given = tokenizer(texts, padding=True, return_tensors="pt")
    images = range(raw["image_start_token_id"], raw["image_end_token_id"] + 1)
    out = model.generate(
        **given,
        do_sample=False,
        max_new_tokens=FEW,
        min_new_tokens=FEW,
        suppress_tokens=[i for i in range(raw["vocab_size"]) if i not in images],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model, given, out


def test_states_of_the_prompt(folder: Path) -> None:
    tokenizer, model, raw = published(folder)
    encoder = load_encoder(f"blip3o:{folder}", "cpu")
    features = encoder.encode(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        ids = tokenizer(dressed(tokenizer, prompt), return_tensors="pt")["input_ids"]
        assert ids[0, -2] == raw["image_start_tag_id"]
        if ids.shape[1] <= 1024:
            assert int(features.mask[row].sum()) == ids.shape[1]
            same(features.tokens[row][features.mask[row]], model.model(ids).last_hidden_state[0])
    assert encoder.card.recipe == "blip3o"
    assert not features.truncated.any()


def test_a_long_prompt_is_cut_and_the_template_is_not(folder: Path) -> None:
    tokenizer, _, _ = published(folder)
    encoder = load_encoder(f"blip3o:{folder}?max_length=100", "cpu")
    assert isinstance(encoder, BatchedEncoder)
    long, short = encoder.tokenize(["dog " * 300, "dog"])[0]
    whole = tokenizer(dressed(tokenizer, "dog " * 300))["input_ids"]
    tail = whole[-12:]
    assert len(long) == 100
    assert list(long[-12:]) == list(short[-12:]) == tail
    shared = len([0 for a, b in zip(long, whole, strict=False) if a == b])
    assert shared > 60
    assert list(encoder.encode(["dog " * 300, "dog"]).truncated) == [True, False]
    with pytest.raises(UsageError, match="leaves no room beside 85 tokens"):
        load_encoder(f"blip3o:{folder}?max_length=30", "cpu")


@pytest.mark.parametrize("connector", [False, True])
def test_image_states_equal_generate_and_a_second_forward(folder: Path, connector: bool) -> None:
    prompts = [DOG, "", "two small cats sleep on the blue sofa near the window"]
    model, given, out = written(folder, prompts)
    whole = torch.cat([given["attention_mask"], torch.ones(3, FEW, dtype=torch.long)], 1)
    positions = (whole.cumsum(1) - 1).clamp(min=0)
    states = model.model(out, attention_mask=whole, position_ids=positions).last_hidden_state
    expected = states[:, -(FEW + 1) :]
    if connector:
        w = load_file(folder / "model.safetensors")
        w = {n.removeprefix("model.diffusion_connector."): v for n, v in w.items()}
        inner = torch.nn.functional.gelu(
            expected @ w["0.weight"].T + w["0.bias"], approximate="tanh"
        )
        inner = inner @ w["2.weight"].T + w["2.bias"]
        expected = inner * (inner.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * w["3.weight"]
    spec = f"blip3o:{folder}?mode=image&decode=greedy&image_tokens={FEW}"
    encoder = load_encoder(f"{spec}&connector={str(connector).lower()}", "cpu")
    features = encoder.encode(prompts)
    assert features.mask.all()
    assert features.mask.shape == (3, FEW + 1)
    same(features.tokens, expected)
    assert encoder.card.dim == (24 if connector else 32)


def test_what_is_drawn_depends_on_prompt_and_seed_alone(folder: Path) -> None:
    others = ["", "two small cats sleep on the blue sofa near the window", "dog"]
    spec = f"blip3o:{folder}?mode=image&image_tokens=30"
    encoder = load_encoder(spec, "cpu")
    assert isinstance(encoder, Blip3oImageEncoder)

    def tokens(encoder: Blip3oImageEncoder, prompts: list[str]) -> list[list[int]]:
        rows = [list(row[:-30]) for row in encoder.tokenize(prompts).ids]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        found: list[list[int]] = encoder.write(ids, torch.tensor([len(r) for r in rows])).tolist()
        return found

    alone = tokens(encoder, [DOG])[0]
    assert tokens(encoder, [*others, DOG])[-1] == alone
    assert tokens(encoder, [DOG, *others])[0] == alone
    again = load_encoder(spec, "cpu")
    assert isinstance(again, Blip3oImageEncoder)
    assert tokens(again, [DOG])[0] == alone
    seeded = load_encoder(f"{spec}&seed=1", "cpu")
    assert isinstance(seeded, Blip3oImageEncoder)
    assert tokens(seeded, [DOG])[0] != alone
    assert tokens(encoder, ["a photo of a brown cat"])[0] != alone
    raw = json.loads((folder / "config.json").read_text())
    assert all(raw["image_start_token_id"] <= t <= raw["image_end_token_id"] for t in alone)
    assert len(set(alone)) > 3
    one = load_encoder(f"{spec}&top_k=1", "cpu")
    greedy = load_encoder(f"{spec}&decode=greedy", "cpu")
    assert isinstance(one, Blip3oImageEncoder)
    assert isinstance(greedy, Blip3oImageEncoder)
    assert tokens(one, [DOG]) == tokens(greedy, [DOG])


def test_draws_follow_the_probabilities_that_are_left() -> None:
    scores = torch.tensor([[1.0, 3.0, -2.0, 2.5, 0.0, -0.5]])
    draws = torch.linspace(0, 1, 4001, dtype=torch.float64)[:-1]
    found = Counter(sample_token(scores.expand(4000, -1), draws, top_k=4, top_p=0.95).tolist())
    kept = scores[0, [1, 3, 0, 4]].softmax(0)  # the best four; of these 95 % are the first three
    assert kept[:2].sum() < 0.95 <= kept[:3].sum()
    expected = kept[:3] / kept[:3].sum()
    assert set(found) == {0, 1, 3}
    for token, share in zip((1, 3, 0), expected.tolist(), strict=True):
        assert abs(found[token] / 4000 - share) < 1e-3
    last = torch.tensor([1 - 2**-53], dtype=torch.float64)
    assert sample_token(scores, last, top_k=4, top_p=0.95).tolist() == [3]
    assert set(sample_token(scores.expand(4000, -1), draws, 100, 1.0).tolist()) == set(range(6))


def test_only_the_language_model_is_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = decoder_checkpoints.blip3o(root / "parts", sharded=True, tied=False)
    read: list[str] = []
    real = StoredTensor.__getitem__

    def get(self: StoredTensor, index: Any) -> Any:
        read.append(self.name)
        return real(self, index)

    monkeypatch.setattr(StoredTensor, "__getitem__", get)
    language = ("model.embed_tokens.", "model.layers.", "model.norm.")
    load_encoder(f"blip3o:{folder}", "cpu")
    assert len(read) == len(set(read)) == 35
    assert all(name.startswith(language) for name in read)
    read.clear()
    load_encoder(f"blip3o:{folder}?mode=image&connector=true", "cpu")
    assert {n for n in read if not n.startswith(language)} == {
        "lm_head.weight",
        *(f"model.diffusion_connector.{n}" for n in ("0.weight", "0.bias", "2.weight", "2.bias")),
        "model.diffusion_connector.3.weight",
    }


def test_layouts_are_equal(root: Path, folder: Path) -> None:
    other = decoder_checkpoints.blip3o(root / "other", kind="blip3o_qwen", sharded=True)
    for options in ("", "?mode=image&image_tokens=5"):
        one = load_encoder(f"blip3o:{folder}{options}", "cpu").encode([DOG])
        two = load_encoder(f"blip3o:{other}{options}", "cpu").encode([DOG])
        assert torch.equal(one.tokens, two.tokens)


def test_plain_recipe_needs_no_chat_template(root: Path, folder: Path) -> None:
    import transformers

    plain = Path(shutil.copytree(folder, root / "no-template"))
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template"):
        load_encoder(f"blip3o:{plain}", "cpu")
    encoder = load_encoder(f"blip3o:{plain}?recipe=plain&mode=image&image_tokens=3", "cpu")
    assert isinstance(encoder, BatchedEncoder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(plain)
    expected = tokenizer("a dog<im_start><S0>")["input_ids"]
    assert list(encoder.tokenize(["a dog"]).ids[0][:-3]) == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("mode=both", "mode=both of .* must be text or image"),
        ("seed=3", "seed= of .* is for mode=image"),
        ("mode=image&image_tokens=0", "image_tokens=0 of .* at least 1"),
        ("mode=image&top_p=2", r"top_p=2 of .* a number in \(0, 1\]"),
        ("mode=image&top_p=nan", r"top_p=nan of .* a number in \(0, 1\]"),
        ("mode=image&decode=greedy&top_k=3", "top_k= of .* has no effect with decode=greedy"),
        ("mode=image&pool=mean-padded", "image tokens have no padding"),
        ("connector=true&layer=1", "the connector reads the last layer only"),
        ("recipe=sana", "recipe=sana does not fit 'blip3o:' encoders; known there: plain, blip3o"),
        ("recipe=cloud", "recipe=cloud is unknown to 'blip3o:' encoders"),
    ],
)
def test_options_that_make_no_sense(folder: Path, options: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        load_encoder(f"blip3o:{folder}?{options}", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "qwen3"}, "model_type 'qwen3' is none of blip3o_qwen"),
        ({"image_start_tag_id": None}, "image_start_tag_id is None, no id in its vocabulary"),
        ({"image_start_token_id": 10**6}, "image_start_token_id is 1000000, no id"),
        ({"image_end_token_id": 5}, "image_end_token_id is before image_start_token_id"),
    ],
)
def test_configs_that_do_not_fit(
    folder: Path, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(EncbenchError, match=says) as caught:
        load_encoder(f"blip3o:{copy}?mode=image", "cpu")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_connector(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    state = load_file(copy / "model.safetensors")
    state = {n: v for n, v in state.items() if "diffusion_connector" not in n}
    save_file(state, copy / "model.safetensors", {"format": "pt"})
    load_encoder(f"blip3o:{copy}", "cpu")
    with pytest.raises(ModelError, match="hold no connector of Linear, GELU, Linear, RMSNorm"):
        load_encoder(f"blip3o:{copy}?connector=true", "cpu")
