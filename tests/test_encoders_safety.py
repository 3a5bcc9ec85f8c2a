"""What an adapter refuses, and that it says so in one line naming the thing and the way out."""

from __future__ import annotations

import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
import torch
from safetensors.torch import load_file, save_file

from encbench.encoders import load_encoder
from encbench.encoders.batching import Hidden
from encbench.encoders.hf import dtype_of
from encbench.encoders.spec import EncoderSpec
from encbench.errors import EncbenchError, ModelError, UnknownNameError, UsageError

BUILDERS: dict[str, Callable[[Path], Path]] = {
    "st": checkpoints.sentence_bert,
    "t5": checkpoints.t5,
    "clip": checkpoints.clip,
    "open_clip": checkpoints.open_clip,
}
NAMES = sorted(BUILDERS)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pristine")
    return {name: build(root / name) for name, build in BUILDERS.items()}


@pytest.fixture
def copy(pristine: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        return Path(shutil.copytree(pristine[name], tmp_path / name))

    return make


def spec(name: str, folder: Path, options: str = "") -> str:
    return f"{name.replace('open_', '')}:{folder}{options}"


def refused(text: str, says: str, kind: type[EncbenchError] = ModelError) -> str:
    with pytest.raises(kind, match=says) as caught:
        load_encoder(text, "cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def weights(folder: Path) -> Path:
    return next(folder.glob("*model.safetensors"))


def pickled(folder: Path) -> Path:
    """Turn a checkpoint's weights into the pickled file of the same meaning."""
    path = weights(folder)
    stem = {"model": "pytorch_model", "open_clip_model": "open_clip_pytorch_model"}[path.stem]
    torch.save(load_file(path), folder / f"{stem}.bin")
    path.unlink()
    return folder / f"{stem}.bin"


# ------------------------------------------------------------------------------ pickles


@pytest.mark.parametrize("name", NAMES)
def test_pickled_weights_only_when_allowed(
    name: str, copy: Callable[[str], Path], pristine: dict[str, Path]
) -> None:
    folder = copy(name)
    file = pickled(folder)
    message = refused(spec(name, folder), r"pickle=true")
    assert file.name in message
    allowed = load_encoder(spec(name, folder, "?pickle=true"), "cpu")
    plain = load_encoder(spec(name, pristine[name]), "cpu")
    prompts = ["a photo of a dog", "a cat"]
    torch.testing.assert_close(allowed.encode(prompts).tokens, plain.encode(prompts).tokens)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", NAMES)
def test_code_in_a_pickle_never_runs(
    name: str, copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, trap = copy(name), tmp_path / "sprung"
    pickled(folder).write_bytes(pickle.dumps(Bomb(trap)))
    refused(spec(name, folder), r"pickle=true")
    refused(spec(name, folder, "?pickle=true"), "cannot load|damaged")
    assert not trap.exists()


def test_safetensors_win_over_a_pickle_beside_them(copy: Callable[[str], Path]) -> None:
    for name in NAMES:
        folder = copy(name)
        (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
        (folder / "open_clip_pytorch_model.bin").write_bytes(b"not even a pickle")
        for options in ("", "?pickle=true"):
            load_encoder(spec(name, folder, options), "cpu")


def test_pickled_dense_layer_of_a_sentence_model(tmp_path: Path) -> None:
    folder = checkpoints.sentence_bert(tmp_path / "dense", dense=True)
    pickled(folder / "2_Dense")
    refused(f"st:{folder}", r"2_Dense .*pytorch_model\.bin.*pickle=true")
    assert load_encoder(f"st:{folder}?pickle=true", "cpu").encode(["a"]).pooled is not None


def test_a_pickled_module_is_part_of_the_pin(tmp_path: Path) -> None:
    """Others have safetensors, this one a pickle: other weights, another content hash."""
    import decoder_checkpoints

    st = checkpoints.sentence_bert(tmp_path / "st", dense=True)
    t5 = checkpoints.t5(tmp_path / "t5", diffusers=True)
    sd3 = decoder_checkpoints.pipeline(tmp_path / "sd3")
    for text, part in (
        (f"st:{st}?pickle=true", st / "2_Dense"),
        (f"t5:{t5}?subfolder=text_encoder_2&pickle=true", t5 / "text_encoder_2"),
        (f"pipeline:{sd3}?pickle=true", sd3 / "text_encoder_2"),
    ):
        file = pickled(part)
        refused(text.replace("&pickle=true", "").replace("?pickle=true", ""), r"pickle=true")
        before = load_encoder(text, "cpu")
        one = before.encode(["a dog"])  # now: its weights may be mapped from the file
        state = torch.load(file, weights_only=True)
        torch.save({n: value + torch.randn(value.shape) for n, value in state.items()}, file)
        after = load_encoder(text, "cpu")
        assert before.card.revision != after.card.revision
        other = after.encode(["a dog"])
        same = torch.equal(one.tokens, other.tokens)
        assert not (same and (one.pooled is None or torch.equal(one.pooled, other.pooled)))


def test_an_adapter_beside_whole_weights_is_refused(copy: Callable[[str], Path]) -> None:
    """With peft installed its base model would be loaded, which no content hash knows."""
    for name in ("st", "t5", "clip"):
        folder = copy(name)
        (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
        refused(spec(name, folder), "is a LoRA adapter of some/base, .* merge it into")


# ------------------------------------------------------------------------- remote code


REMOTE = """
from pathlib import Path
Path({trap!r}).touch()
from sentence_transformers.sentence_transformer.modules import Normalize
class Extra(Normalize):
    pass
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    return tmp_path / "sprung"


@pytest.mark.parametrize("name", ["st", "t5", "clip"])
def test_model_that_brings_code_is_refused(
    name: str, copy: Callable[[str], Path], trap: Path
) -> None:
    folder = copy(name)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "extra.Extra", "AutoModel": "extra.Extra"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "extra.py").write_text(REMOTE.format(trap=str(trap)))
    refused(spec(name, folder), r"remote_code=true to run it, with all that your user account")
    assert not trap.exists()


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_tokenizer_that_brings_code_is_refused(
    name: str, copy: Callable[[str], Path], trap: Path
) -> None:
    folder = copy(name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["extra.Extra", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "extra.py").write_text(REMOTE.format(trap=str(trap)))
    refused(spec(name, folder), r"its tokenizer\); add \?remote_code=true")
    assert not trap.exists()


def test_sentence_module_of_its_own(copy: Callable[[str], Path], trap: Path) -> None:
    folder = copy("st")
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "", "type": "extra.Extra"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "extra.py").write_text(REMOTE.format(trap=str(trap)))
    refused(f"st:{folder}", r"extra\.Extra in modules\.json\); add \?remote_code=true")
    assert not trap.exists()
    load_encoder(f"st:{folder}?remote_code=true", "cpu").encode(["a"])
    assert trap.exists()


def test_modules_outside_the_folder_are_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("st")
    text = (folder / "modules.json").read_text().replace("1_Pooling", "../../etc")
    (folder / "modules.json").write_text(text)
    refused(f"st:{folder}", "points outside its folder")
    refused(f"t5:{folder}?subfolder=../elsewhere", "must lie inside", UsageError)


# ------------------------------------------------------------------------ broken files


@pytest.mark.parametrize("name", NAMES)
def test_truncated_weights_are_named(name: str, copy: Callable[[str], Path]) -> None:
    path = weights(copy(name))
    path.write_bytes(path.read_bytes()[:-1000])
    refused(spec(name, path.parent), rf"{re.escape(str(path))} is damaged; .* download it again")


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights(name: str, copy: Callable[[str], Path]) -> None:
    folder = copy(name)
    weights(folder).unlink()
    assert str(folder) in refused(spec(name, folder), "holds no weights")


@pytest.mark.parametrize("name", NAMES)
def test_incomplete_weights_are_not_filled_in_at_random(
    name: str, copy: Callable[[str], Path]
) -> None:
    path = weights(copy(name))
    state = load_file(path)
    lost = next(k for k in sorted(state) if "attn" in k.lower() or "attention" in k.lower())
    if name == "clip":
        lost = next(k for k in sorted(state) if k.startswith("text_model") and "attn" in k)
    del state[lost]
    save_file(state, path, {"format": "pt"})
    message = refused(spec(name, path.parent), "lack|Missing")
    assert lost in message or name == "open_clip"


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_missing_and_broken_config(name: str, copy: Callable[[str], Path]) -> None:
    folder = copy(name)
    config = folder / "config.json"
    text = config.read_text()
    config.unlink()
    assert str(folder) in refused(spec(name, folder), r"lacks config\.json")
    config.write_text(text[:50])
    refused(spec(name, folder), r"config\.json is not valid JSON")
    config.write_text("[]")
    refused(spec(name, folder), r"config\.json is not a JSON object")
    config.write_text(json.dumps(json.loads(text) | {"model_type": "gpt9"}))
    refused(spec(name, folder), "model_type 'gpt9' is no")


def test_missing_and_broken_files_of_other_layouts(copy: Callable[[str], Path]) -> None:
    folder = copy("open_clip")
    (folder / "open_clip_config.json").write_text("{}")
    refused(f"clip:{folder}", "lacks model_cfg")
    folder = copy("st")
    (folder / "modules.json").write_text("{")
    refused(f"st:{folder}", r"modules\.json is not valid JSON")
    (folder / "modules.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt9"}))
    refused(f"st:{folder}", "model_type 'gpt9' is unknown to the installed transformers")


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_missing_and_broken_tokenizer(name: str, copy: Callable[[str], Path]) -> None:
    folder = copy(name)
    (folder / "tokenizer.json").write_text("{")
    refused(spec(name, folder), "cannot load the tokenizer")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(spec(name, folder), "holds no tokenizer")


def test_kinds_of_model_that_belong_elsewhere(
    copy: Callable[[str], Path], pristine: dict[str, Path]
) -> None:
    refused(f"t5:{pristine['clip']}", "model_type 'clip' is none of t5, mt5, umt5")
    refused(f"clip:{pristine['t5']}", "model_type 't5' is not a CLIP")
    folder = copy("st")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[1:]))
    refused(f"st:{folder}", "begins with a Pooling; only Transformer and StaticEmbedding")


def test_unknown_tag_lists_near_ones() -> None:
    message = refused("clip:ViT-B-32/opnai", "did you mean", UnknownNameError)
    assert "openai" in message


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    for family in ("st", "clip", "t5"):
        assert str(tmp_path / "no") in refused(f"{family}:{tmp_path / 'no'}", "there is no folder")


# ---------------------------------------------------------------------------- options


@pytest.mark.parametrize("name", NAMES)
def test_layer_out_of_range(name: str, pristine: dict[str, Path]) -> None:
    encoder = load_encoder(spec(name, pristine[name], "?layer=4"), "cpu")
    with pytest.raises(UsageError, match=r"layer=4: .* 4 hidden states, 0 \(embeddings\) to 3"):
        encoder.encode(["a"])


@pytest.mark.parametrize(
    ("name", "limit", "least"), [("st", 64, 3), ("clip", 77, 3), ("open_clip", 77, 3), ("t5", 0, 2)]
)
def test_impossible_lengths(name: str, limit: int, least: int, pristine: dict[str, Path]) -> None:
    folder = pristine[name]
    if limit:
        text = spec(name, folder, f"?max_length={limit + 1}")
        refused(text, f"this model reads at most {limit} tokens", UsageError)
        load_encoder(spec(name, folder, f"?max_length={limit}"), "cpu").encode(["a " * 200])
    text = spec(name, folder, f"?max_length={least - 1}")
    refused(text, f"max_length={least - 1} leaves no room beside", UsageError)
    encoder = load_encoder(spec(name, folder, f"?max_length={least}"), "cpu")
    assert encoder.encode(["a photo of a dog"]).mask.sum() == least


def test_t5_refuses_float16(pristine: dict[str, Path]) -> None:
    text = f"t5:{pristine['t5']}?dtype=float16"
    refused(text, "T5 overflows in float16; use dtype=bfloat16 or float32", UsageError)


def test_dtype_depends_on_the_device() -> None:
    auto, low = EncoderSpec.parse("t5:x"), EncoderSpec.parse("t5:x?dtype=float16")
    assert dtype_of(auto, torch.device("cpu")) == torch.float32
    assert dtype_of(auto, torch.device("cuda")) == torch.bfloat16
    assert dtype_of(low, torch.device("cuda")) == torch.float16


# ------------------------------------------------------------------------------ memory


def test_out_of_memory_halves_the_batch_and_goes_on(
    pristine: dict[str, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder: Any = load_encoder(spec("t5", pristine["t5"]), "cpu")
    prompts = [text[:n] for text in checkpoints.CORPUS for n in (5, 20, 60)]
    expected = encoder.encode(prompts)
    real = encoder.forward

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> Hidden:
        if ids.numel() > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found: Hidden = real(ids, mask)
        return found

    monkeypatch.setattr(encoder, "forward", forward)
    monkeypatch.setattr(logging.getLogger("encbench"), "propagate", True)
    before = encoder.batch_tokens
    found = encoder.encode(prompts)
    torch.testing.assert_close(found.tokens[found.mask], expected.tokens[expected.mask])
    assert 16 < encoder.batch_tokens <= 200 < before
    assert f"out of memory on cpu; continuing with {before // 2} tokens per batch" in caplog.text

    monkeypatch.setattr(
        encoder, "forward", lambda ids, mask: (_ for _ in ()).throw(torch.OutOfMemoryError("no"))
    )
    with pytest.raises(ModelError, match="one prompt does not fit into the memory of cpu"):
        encoder.encode(["a"])


def test_features_can_be_trained_on(pristine: dict[str, Path]) -> None:
    """Tensors made in inference mode could not be saved for a backward pass."""
    features = load_encoder(spec("st", pristine["st"]), "cpu").encode(["a", "b"])
    layer = torch.nn.Linear(32, 2)
    layer(features.tokens).sum().backward()
    assert layer.weight.grad is not None
    assert not features.tokens.requires_grad
