"""Decoder-only encoders give what transformers gives when it is called directly, to 1e-5."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import checkpoints
import decoder_checkpoints
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_encoders_equality import LAYERS, PROMPTS, pick, same

from encbench.encoders import load_encoder
from encbench.encoders.batching import BatchedEncoder
from encbench.encoders.decoder_weights import StoredTensor
from encbench.errors import ModelError, UsageError

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "qwen3": decoder_checkpoints.qwen3,
    "llama": decoder_checkpoints.llama,
    "qwen2_5_vl": decoder_checkpoints.qwen_vl,
    "qwen3_vl": lambda f: decoder_checkpoints.qwen_vl(f, kind="qwen3_vl"),
    "gemma": lambda f: decoder_checkpoints.gemma(f, kind="gemma"),
    "gemma2": decoder_checkpoints.gemma,
    "gemma3_text": lambda f: decoder_checkpoints.gemma(f, kind="gemma3_text"),
    "gemma3": lambda f: decoder_checkpoints.gemma(f, kind="gemma3"),
}
PARENTS = {
    "gemma3": "Gemma3ForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
}
PARENTS["qwen2_5_vl"] = "Qwen2_5_VLForConditionalGeneration"


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, built = tmp_path_factory.mktemp("decoders"), dict[str, Path]()

    def make(name: str) -> Path:
        if name not in built:
            built[name] = BUILDERS[name](root / name)
        return built[name]

    return make


def spec_of(name: str, folder: Path, options: str = "") -> str:
    return f"{'gemma' if name.startswith('gemma') else 'causal'}:{folder}{options}"


def directly(name: str, folder: Path, side: str) -> tuple[Any, torch.Tensor]:
    """What the whole published model gives, with prompts padded on a side; the mask."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    texts = [prompt for prompt in PROMPTS if prompt]  # a tokenizer without BOS gives "" no token
    given = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    kind = getattr(transformers, PARENTS.get(name, "AutoModelForCausalLM"))
    model = kind.from_pretrained(folder).eval()
    more = {}
    if side == "left":  # what generate() passes
        more["position_ids"] = (given["attention_mask"].cumsum(1) - 1).clamp(min=0)
    out = model(
        input_ids=given["input_ids"],
        attention_mask=given["attention_mask"],
        output_hidden_states=True,
        **more,
    )
    return out, given["attention_mask"].bool()


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_states_are_those_of_the_whole_model_with_either_padding(
    name: str, side: str, folder_of: Callable[[str], Path]
) -> None:
    folder = folder_of(name)
    out, mask = directly(name, folder, side)
    texts = [prompt for prompt in PROMPTS if prompt]
    for layer in LAYERS if side == "right" else ["last"]:
        features = load_encoder(spec_of(name, folder, f"?layer={layer}"), "cpu").encode(texts)
        expected = pick(out.hidden_states, out.hidden_states[-1], layer)
        assert features.mask.sum(1).tolist() == mask.sum(1).tolist()
        same(features.tokens[features.mask], expected[mask])
        assert features.pooled is None


def test_normavg_is_over_all_layers(folder_of: Callable[[str], Path]) -> None:
    """arXiv 2506.08210: each layer's states normalized without parameters, then their mean."""
    out, mask = directly("qwen3", folder_of("qwen3"), "right")
    states = torch.stack(out.hidden_states[1:])
    centered = states - states.mean(-1, keepdim=True)
    expected = (centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()).mean(0)
    spec = spec_of("qwen3", folder_of("qwen3"), "?layer=normavg")
    features = load_encoder(spec, "cpu").encode([p for p in PROMPTS if p])
    same(features.tokens[features.mask], expected[mask])


@pytest.mark.parametrize(("name", "first"), [("llama", "<|begin_of_text|>"), ("gemma2", "<bos>")])
def test_bos_is_the_tokenizers_own_affair(
    name: str, first: str, folder_of: Callable[[str], Path]
) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder_of(name))
    encoder = load_encoder(spec_of(name, folder_of(name), "?max_length=4"), "cpu")
    assert isinstance(encoder, BatchedEncoder)
    found = encoder.tokenize(["a photo of a brown dog", ""])
    assert {row[0] for row in found.ids} == {tokenizer.convert_tokens_to_ids(first)}
    assert [len(row) for row in found.ids] == [4, 1]
    assert list(found.truncated) == [True, False]
    plain = load_encoder(spec_of("qwen3", folder_of("qwen3")), "cpu")
    assert isinstance(plain, BatchedEncoder)
    qwen = transformers.AutoTokenizer.from_pretrained(folder_of("qwen3"))
    assert list(plain.tokenize(["a dog"]).ids[0]) == qwen("a dog")["input_ids"]


def test_states_of_a_beginning_are_the_beginning_of_the_states(
    folder_of: Callable[[str], Path],
) -> None:
    encoder = load_encoder(spec_of("gemma3", folder_of("gemma3")), "cpu")
    assert isinstance(encoder, BatchedEncoder)
    assert encoder.causal  # type: ignore[attr-defined]
    short, long = encoder.tokenize(["a photo of a", "a photo of a brown dog"]).ids
    assert long[: len(short)] == short
    features = encoder.encode(["a photo of a", "a photo of a brown dog"])
    same(features.tokens[0, : len(short)], features.tokens[1, : len(short)])


def test_parameters_are_the_language_models_without_its_head(
    folder_of: Callable[[str], Path],
) -> None:
    for name in ("llama", "qwen3_vl", "gemma3"):
        encoder = load_encoder(spec_of(name, folder_of(name)), "cpu")
        with safe_open(folder_of(name) / "model.safetensors", "pt") as file:
            sizes = {n: file.get_tensor(n).numel() for n in file.keys()}  # noqa: SIM118
        other = ("lm_head", "model.visual", "vision_tower", "multi_modal_projector")
        assert encoder.card.parameters == sum(
            size for n, size in sizes.items() if not n.startswith(other)
        )


@pytest.mark.parametrize("name", ["gemma3", "qwen2_5_vl"])
def test_other_modules_are_not_read(
    name: str, folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    real = StoredTensor.__getitem__

    def get(self: StoredTensor, index: Any) -> Any:
        read.append(self.name)
        return real(self, index)

    monkeypatch.setattr(StoredTensor, "__getitem__", get)
    load_encoder(spec_of(name, folder_of(name)), "cpu")
    assert len(read) == len(set(read)) > 30
    assert not [n for n in read if "vis" in n or "projector" in n or "lm_head" in n]


def test_names_that_newer_versions_save(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """transformers 4.52 and later wrote ``model.language_model.``."""
    folder = Path(shutil.copytree(folder_of("gemma3"), tmp_path / "new"))
    state = load_file(folder / "model.safetensors")
    renamed = {
        n.replace("language_model.model.", "model.language_model."): v for n, v in state.items()
    }
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    one = load_encoder(spec_of("gemma3", folder), "cpu").encode(["a dog"])
    two = load_encoder(spec_of("gemma3", folder_of("gemma3")), "cpu").encode(["a dog"])
    assert torch.equal(one.tokens, two.tokens)


def test_a_pipelines_own_text_encoder(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    """The folders of diffusers, whose model is the base one: names without ``model.``."""
    import transformers

    source = folder_of("gemma2")
    transformers.AutoModel.from_pretrained(source).save_pretrained(tmp_path / "p" / "text_encoder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    tokenizer.save_pretrained(tmp_path / "p" / "tokenizer")
    found = load_encoder(f"gemma:{tmp_path / 'p'}?subfolder=text_encoder", "cpu").encode(["a dog"])
    same(found.tokens, load_encoder(spec_of("gemma2", source), "cpu").encode(["a dog"]).tokens)


# -------------------------------------------------------------------------- what is refused


def refused(spec: str, says: str, kind: type[Exception] = ModelError) -> None:
    with pytest.raises(kind, match=says) as caught:
        load_encoder(spec, "cpu")
    assert "\n" not in str(caught.value)


def test_other_kinds_of_models(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    refused(f"gemma:{folder_of('qwen3')}", "model_type 'qwen3' is none of gemma, gemma2")
    refused(f"causal:{checkpoints.t5(tmp_path / 't5')}", "'t5' is an encoder-decoder")
    tokenizer, size = checkpoints._wordpiece()
    checkpoints.plain_bert(tmp_path / "bert", size)
    tokenizer.save_pretrained(tmp_path / "bert")
    refused(f"causal:{tmp_path / 'bert'}", "model_type 'bert' looks at later tokens")


def test_half_precision_that_overflows(folder_of: Callable[[str], Path]) -> None:
    spec = f"gemma:{folder_of('gemma2')}?dtype=float16"
    refused(spec, "Gemma overflows in float16; use dtype=bfloat16", UsageError)


def test_incomplete_weights(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("gemma3"), tmp_path / "less"))
    state = load_file(folder / "model.safetensors")
    for name in [n for n in state if "layers.1.mlp" in n and n.startswith("language_model")]:
        del state[name]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    refused(spec_of("gemma3", folder), r"lack layers.1.mlp.down_proj.weight and 2 others")
    state = {n: v for n, v in state.items() if "embed_tokens" not in n}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    refused(spec_of("gemma3", folder), "no language model among its weights")


def test_missing_shard(tmp_path: Path) -> None:
    folder = decoder_checkpoints.blip3o(tmp_path / "m", sharded=True)
    (folder / "model-00002-of-00003.safetensors").unlink()
    refused(f"blip3o:{folder}", "lacks model-00002-of-00003.safetensors")


def test_code_that_comes_with_a_model(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folder_of("qwen3"), tmp_path / "code"))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    refused(spec_of("qwen3", folder), "remote_code=true")


def test_longer_than_the_model_can_read(folder_of: Callable[[str], Path]) -> None:
    spec = spec_of("qwen3", folder_of("qwen3"), "?max_length=9999")
    refused(spec, "this model reads at most 4096 tokens", UsageError)
