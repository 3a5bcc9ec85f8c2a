"""GGUF files: read as transformers reads them, equal to the dequantized folder."""

import os
from pathlib import Path
from typing import Any

import checkpoints
import decoder_checkpoints
import pytest
import torch

from encbench.encoders import load_encoder
from encbench.encoders.checks import assert_conforms
from encbench.encoders.detect import complete_spec
from encbench.errors import MissingLibraryError, ModelError

pytest.importorskip("gguf", reason="pip install 'encbench[gguf]'")
TEXTS = ["a photo of a brown dog and a red bicycle", "two cats", ""]
GEMMA = Path(os.environ.get("ENCBENCH_GEMMA", "no such folder"))
"""Gemma 3 270M: a folder with its GGUF file and, in ``gemma-3-270m``, its weights in bfloat16."""
REAL, FOLDER = next(GEMMA.rglob("*.gguf"), GEMMA / "none.gguf"), GEMMA / "gemma-3-270m"


def dequantized(path: Path, folder: Path) -> Path:
    """The file's weights as a folder of safetensors with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    plain = type(model)(type(model.config)(**settings))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return decoder_checkpoints.gguf_gemma(tmp_path_factory.mktemp("gguf") / "tiny-Q8_0.gguf")


def encoded(spec: str) -> Any:
    return load_encoder(spec, "cpu").encode(TEXTS)


@pytest.mark.parametrize("family", ["gemma", "causal"])
@pytest.mark.parametrize("options", ["", "?layer=normavg"])
def test_equal_to_the_dequantized_folder(file, tmp_path, family, options):
    folder = dequantized(file, tmp_path / "folder")
    one, other = (encoded(f"{family}:{place}{options}") for place in (file, folder))
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.tokens[one.mask], other.tokens[other.mask])
    assert one.tokens.abs().max() > 0.1


@pytest.mark.parametrize("kind", ["v1_1", "1.0"])
def test_t5_is_the_model_that_the_file_was_written_from(tmp_path, kind):
    """Transformers alone computes ReLU where the published T5 v1.1 has GELU."""
    folder = checkpoints.t5(tmp_path / "folder", kind=kind)
    file = decoder_checkpoints.gguf_t5(tmp_path / "tiny-F32.gguf", folder)
    one, other = (encoded(f"t5:{place}") for place in (file, folder))
    assert torch.equal(one.mask, other.mask)
    torch.testing.assert_close(one.tokens[one.mask], other.tokens[other.mask])
    assert complete_spec(str(file)) == f"t5:{file}"
    assert_conforms(load_encoder(f"t5:{file}", "cpu"))


def test_card_and_conformance(file):
    encoder = load_encoder(f"gemma:{file}", "cpu")
    card = encoder.card
    assert (card.quantization, card.license, card.dtype) == ("Q8_0", "mit", "float32")
    assert len(card.revision) == 64
    assert_conforms(encoder)
    assert complete_spec(str(file)) == f"gemma:{file}"
    load_encoder(f"gemma:{file}@{card.revision[:12]}", "cpu")
    with pytest.raises(ModelError, match="has content hash"):
        load_encoder(f"gemma:{file}@0123456789ab", "cpu")


def rewritten(file: Path, to: Path, *changes: tuple[bytes, bytes]) -> Path:
    data = file.read_bytes()
    for old, new in changes:
        assert old in data
        assert len(old) == len(new)
        data = data.replace(old, new)
    to.write_bytes(data)
    return to


def test_what_cannot_be_read_is_one_line(file, tmp_path, monkeypatch):
    import struct

    other = rewritten(file, tmp_path / "other.gguf", (b"gemma3", b"gronk3"))
    with pytest.raises(ModelError, match=r"gronk3.*not supported yet.*use the model's safetensors"):
        load_encoder(f"causal:{other}", "cpu")
    with pytest.raises(ModelError, match="model_type 'gronk3' is none of"):
        load_encoder(f"gemma:{other}", "cpu")
    # the type of one matrix: its name, two dimensions, then the number
    name = b"blk.0.ffn_up.weight"
    data = file.read_bytes()
    at = data.index(name) + len(name) + 4 + 16
    assert data[at : at + 4] == struct.pack("<I", 8)  # Q8_0
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(data[:at] + struct.pack("<I", 36) + data[at + 4 :])
    with pytest.raises(ModelError, match=r"cannot read the .* of gemma:.*safetensors"):
        load_encoder(f"gemma:{odd}", "cpu")
    short = tmp_path / "short.gguf"
    short.write_bytes(data[:200])
    for broken in (short, rewritten(file, tmp_path / "none.gguf", (b"GGUF", b"GGML"))):
        with pytest.raises(ModelError, match="is not a GGUF file, or damaged"):
            load_encoder(f"gemma:{broken}", "cpu")
    with pytest.raises(ModelError, match="there is no file"):
        load_encoder(f"gemma:{tmp_path}/absent.gguf", "cpu")
    monkeypatch.setattr("encbench.encoders.gguf.find_spec", lambda name: None)
    with pytest.raises(MissingLibraryError, match=r"encbench\[gguf\]"):
        load_encoder(f"gemma:{file}", "cpu")


# ------------------------------------------------------------------------------ real weights


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_file(), reason="ENCBENCH_GEMMA names no GGUF file")
def test_real_gemma_equals_its_dequantized_folder():
    """The folder holds bfloat16, so both compute in it."""
    one, other = (encoded(f"gemma:{place}?dtype=bfloat16") for place in (REAL, FOLDER))
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.tokens[one.mask], other.tokens[other.mask])


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER.is_dir(), reason="ENCBENCH_GEMMA names no folder")
@torch.no_grad()
def test_real_gemma_is_transformers_own():
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    found = encoded(f"gemma:{FOLDER}?dtype=float32")
    for i, text in enumerate(TEXTS):
        expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        tokens = found.tokens[i][found.mask[i]]
        assert tokens.shape == expected.shape
        assert torch.cosine_similarity(tokens, expected, dim=-1).min() > 0.99999
