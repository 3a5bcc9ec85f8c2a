"""Models that are spread over devices and disk, and what happens when memory runs out."""

import json
import logging

import checkpoints
import decoder_checkpoints
import pytest
import torch

from encbench.device import is_out_of_memory
from encbench.encoders import load_encoder
from encbench.errors import ModelError, UsageError

PROMPTS = ["a photo of a dog", "two small cats sleep on the blue sofa near the window", ""]
DECODER = {"embed_tokens": "cpu", "layers": "disk", "norm": "cpu", "rotary_emb": "cpu"}
T5 = {"shared": "cpu", "encoder.embed_tokens": "cpu", "encoder.block": "disk"}
T5 |= {"encoder.final_layer_norm": "cpu", "encoder.dropout": "cpu"}
CASES = {
    "t5": (checkpoints.t5, T5),
    "causal": (lambda folder: decoder_checkpoints.qwen3(folder, sharded=True), DECODER),
    "blip3o": (lambda folder: decoder_checkpoints.blip3o(folder, sharded=True), DECODER),
}


def spread(folder, devices) -> str:
    path = folder / "devices.json"
    path.write_text(json.dumps(devices))
    return f"device_map={path}"


@pytest.mark.parametrize("family", CASES)
def test_a_model_spread_over_devices_gives_the_same_features(family, tmp_path):
    build, devices = CASES[family]
    spec = f"{family}:{build(tmp_path / 'model')}"
    whole = load_encoder(spec, "cpu").encode(PROMPTS)
    for option in (spread(tmp_path, devices), "device_map=auto"):
        encoder = load_encoder(f"{spec}?{option}", "cpu")
        assert torch.equal(encoder.encode(PROMPTS).tokens, whole.tokens)
        on_disk = [p for p in encoder.model.parameters() if p.device.type == "meta"]
        assert bool(on_disk) == (option != "device_map=auto")
        assert encoder.card.parameters == load_encoder(spec, "cpu").card.parameters


def test_a_device_map_that_is_none_is_refused(tmp_path):
    folder = checkpoints.t5(tmp_path / "model")
    for wrong in ("device_map=everywhere", spread(tmp_path, ["cpu"])):
        with pytest.raises(UsageError, match=r"device_map|JSON object"):
            load_encoder(f"t5:{folder}?{wrong}", "cpu")


CPU_SAYS = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"  # noqa: E501


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError(CPU_SAYS), torch.OutOfMemoryError("CUDA out of memory.")],
    ids=["python", "cpu", "cuda"],
)
def test_the_token_budget_is_halved_and_finished_work_kept(error, tmp_path, caplog, monkeypatch):
    encoder = load_encoder(f"causal:{decoder_checkpoints.qwen3(tmp_path / 'model')}", "cpu")
    prompts = [text[:n] for text in checkpoints.CORPUS for n in (5, 20, 60)]
    whole, real, ran = encoder.encode(prompts), encoder.states, []

    def states(ids, mask):
        if len(ran) == 1 and ids.numel() > 40:  # memory becomes scarce after the first batch
            raise error
        ran.append(len(ids))
        return real(ids, mask)

    encoder.states = states
    encoder.batch_tokens = 100
    monkeypatch.setattr(logging.getLogger("encbench"), "propagate", True)
    found = encoder.encode(prompts)
    torch.testing.assert_close(found.tokens[found.mask], whole.tokens[whole.mask])
    assert sum(ran) == len(prompts)  # nothing ran twice
    assert "out of memory on cpu; continuing with 50 tokens per batch" in caplog.text


def test_another_error_is_not_taken_for_one_of_memory(tmp_path):
    encoder = load_encoder(f"causal:{decoder_checkpoints.qwen3(tmp_path / 'model')}", "cpu")

    def states(ids, mask):
        raise RuntimeError("shapes do not fit")

    encoder.states = states
    with pytest.raises(ModelError, match="RuntimeError: shapes do not fit"):
        encoder.encode(PROMPTS)
    assert not is_out_of_memory(ValueError("out of memory"))


def test_a_single_prompt_that_does_not_fit_is_one_line(tmp_path):
    encoder = load_encoder(f"causal:{decoder_checkpoints.qwen3(tmp_path / 'model')}", "cpu")

    def states(ids, mask):
        raise RuntimeError(CPU_SAYS)

    encoder.states = states
    with pytest.raises(ModelError, match="one prompt does not fit into the memory of cpu"):
        encoder.encode(PROMPTS)
