"""Lengths are the least of asked, positions and the cap; ids are inside the embedding; one BOS."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import checkpoints
import decoder_checkpoints
import pytest
import torch

from encbench.encoders import EncoderSpec, load_encoder
from encbench.encoders.batching import BatchedEncoder
from encbench.encoders.lengths import DEFAULT_LENGTH, LONGEST, choose_length
from encbench.errors import ModelError, UsageError

LONG = "a photo of a dog " * 400


@pytest.mark.parametrize(
    ("asked", "default", "positions", "expected"),
    [
        (None, 512, None, 512),
        (None, 512, 128, 128),
        (None, 66, 64, 64),
        (None, 0, None, DEFAULT_LENGTH),
        (None, None, 1024, DEFAULT_LENGTH),
        (None, int(1e30), None, DEFAULT_LENGTH),
        (None, int(1e30), 128, 128),
        (None, 32_768, 32_768, LONGEST),
        (100, 512, 128, 100),
        (1000, 512, None, 1000),
        (LONGEST, 512, 10**9, LONGEST),
        (129, 512, 128, None),
        (LONGEST + 1, 512, None, None),
        (10**30, 512, None, None),
    ],
)
def test_the_least_of_asked_positions_and_cap(
    asked: int | None, default: int | None, positions: int | None, expected: int | None
) -> None:
    spec = EncoderSpec.parse("t5:x" if asked is None else f"t5:x?max_length={asked}")
    if expected is None:
        with pytest.raises(UsageError, match="this model reads at most"):
            choose_length(spec, default, positions)
    else:
        assert choose_length(spec, default, positions) == expected


def decoder(kind: str, folder: Path, positions: int) -> Path:
    """A tiny model of a kind with few positions."""
    import transformers

    tokenizer = decoder_checkpoints.qwen_tokenizer(folder)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": positions}
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **size}
    config: Any = {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=len(tokenizer), n_positions=positions, n_embd=32, n_layer=2, n_head=4
        ),
        "llama": lambda: transformers.LlamaConfig(**small, intermediate_size=48),
        "opt": lambda: transformers.OPTConfig(**small, ffn_dim=48, word_embed_proj_dim=32),
    }[kind]()
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt"])
def test_a_default_beyond_the_positions_is_cut_to_them(kind: str, tmp_path: Path) -> None:
    folder = decoder(kind, tmp_path / kind, 16)
    encoder = load_encoder(f"causal:{folder}", "cpu")
    features = encoder.encode([LONG, "a dog"])
    assert encoder.card.max_tokens == 16
    assert features.mask.sum(1).max() == 16
    assert features.truncated.tolist() == [True, False]
    with pytest.raises(UsageError, match="at most 16 tokens"):
        load_encoder(f"causal:{folder}?max_length=17", "cpu")


def test_positions_that_count_from_the_padding(tmp_path: Path) -> None:
    """RoBERTa's kind: 66 rows, of which padding takes two."""
    from transformers import RobertaConfig, RobertaModel

    folder = checkpoints.sentence_bert(tmp_path / "st")
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = RobertaConfig(
        vocab_size=size, intermediate_size=48, max_position_embeddings=66, pad_token_id=1, **small
    )
    RobertaModel(config).save_pretrained(folder)
    settings = folder / "sentence_bert_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_seq_length": 66}))
    encoder = load_encoder(f"st:{folder}", "cpu")
    assert encoder.card.max_tokens == 64
    assert encoder.encode([LONG]).mask.sum() == 64


@pytest.mark.parametrize("family", ["st", "t5"])
def test_a_tokenizer_without_a_length(family: str, tmp_path: Path) -> None:
    folder = checkpoints.t5(tmp_path / "mt5", kind="mt5")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = load_encoder(f"{family}:{folder}", "cpu")
    features = encoder.encode([LONG, "a"])
    assert encoder.card.max_tokens == DEFAULT_LENGTH == int(features.mask[0].sum())


def test_a_prefix_and_written_tokens_count_among_the_positions(tmp_path: Path) -> None:
    def limited(folder: Path, positions: int) -> Path:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | {"max_position_embeddings": positions}
        path.write_text(json.dumps(config))
        return folder

    blip3o = limited(decoder_checkpoints.blip3o(tmp_path / "blip3o"), 200)
    encoder: Any = load_encoder(f"blip3o:{blip3o}?mode=image&image_tokens=20&decode=greedy", "cpu")
    assert len(encoder.tokenize([LONG]).ids[0]) == 200
    gemma = decoder_checkpoints.gemma(tmp_path / "gemma")
    whole: Any = load_encoder(f"gemma:{gemma}?recipe=sana", "cpu")
    room = whole.tokenizer.head_tokens + 10
    cut: Any = load_encoder(f"gemma:{limited(gemma, room)}?recipe=sana", "cpu")
    assert len(cut.tokenize([LONG]).ids[0]) == room
    assert cut.card.max_tokens == 12


# ------------------------------------------------------------------------------ token ids


def with_token(folder: Path, token: str, **special: str) -> None:
    """Add a token to a folder's tokenizer, without a row for it in the embedding."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens(special) if special else tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("family", ["causal", "t5", "clip", "st"])
def test_ids_beyond_the_embedding_are_named(family: str, tmp_path: Path) -> None:
    build: Any = {
        "causal": decoder_checkpoints.qwen3,
        "t5": checkpoints.t5,
        "clip": checkpoints.clip,
        "st": checkpoints.sentence_bert,
    }[family]
    folder = build(tmp_path / family)
    many = [f"<new{i}>" for i in range(8)]
    padded = Path(shutil.copytree(folder, tmp_path / "padded"))
    for token in many:
        with_token(folder, token)
        with_token(padded, token)
    encoder = load_encoder(f"{family}:{folder}", "cpu")
    encoder.encode(["a dog"])
    with pytest.raises(ModelError, match=r"token .<new7>. has the id .* embedding has"):
        encoder.encode(["a dog", "one <new7>"])
    with_token(padded, "", pad_token="<padding>")
    with pytest.raises(ModelError, match="token '<padding>' has the id") as caught:
        load_encoder(f"{family}:{padded}", "cpu")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------- special tokens, once

BOS = "<|begin_of_text|>"
TURN = "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + m.content + '<|im_end|>' }}"
TEMPLATES = {
    "by name": "{{ bos_token }}" + TURN + "{% endfor %}",
    "written out": BOS + TURN + "{% endfor %}{% if add_generation_prompt %}answer:{% endif %}",
    "without": TURN + "{% endfor %}",
}


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
@pytest.mark.parametrize("family", ["causal", "st"])
def test_a_chat_template_is_tokenized_as_transformers_does(
    kind: str, family: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = decoder_checkpoints.llama(tmp_path / "llama")
    (folder / "chat_template.jinja").write_text(TEMPLATES[kind])
    text = f"{family}:{folder}" + ("?recipe=blip3o" if family == "causal" else "?pool=own")
    encoder = load_encoder(text, "cpu")
    assert isinstance(encoder, BatchedEncoder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = "Please generate image based on the following caption: a dog"
    chat = [{"role": "user", "content": said if family == "causal" else "a dog"}]
    if family == "causal":
        chat.insert(0, {"role": "system", "content": "You are a helpful assistant."})
    expected = tokenizer.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=family == "causal", return_dict=True
    )["input_ids"]
    (row,) = encoder.tokenize(["a dog"]).ids
    assert list(row) == expected
    if family == "st":
        from sentence_transformers import SentenceTransformer

        own = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        own[0].tokenizer.pad_token = "<|endoftext|>"  # the library needs one for a batch
        prompts = ["a dog", "", "a photo of a brown dog and a red bicycle"]
        torch.testing.assert_close(
            encoder.encode(prompts).pooled,
            own.encode(prompts, convert_to_tensor=True),
            atol=1e-5,
            rtol=1e-5,
        )


def test_a_prompt_that_carries_special_tokens_gets_no_second_one(tmp_path: Path) -> None:
    llama = decoder_checkpoints.llama(tmp_path / "llama")
    bert = checkpoints.sentence_bert(tmp_path / "bert")
    for text, plain, carrying in (
        (f"causal:{llama}", "a dog", [f"{BOS}a dog"]),
        (f"st:{bert}", "a dog", ["[CLS] a dog [SEP]", "a dog [SEP]", "[CLS] a dog"]),
    ):
        encoder: Any = load_encoder(text, "cpu")
        (expected,) = encoder.tokenize([plain]).ids
        for prompt in carrying:
            assert encoder.tokenize([prompt]).ids[0] == expected, prompt
