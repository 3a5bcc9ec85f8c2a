"""Learned queries: OpenUni's published layout, equal to its forward pass written out here."""

from pathlib import Path

import decoder_checkpoints
import pytest
import torch
from torch.nn import functional

from encbench.encoders import load_encoder
from encbench.encoders.checks import assert_conforms
from encbench.errors import ModelError, UsageError

TEXTS = ["a photo of a brown dog and a red bicycle", " two cats ", ""]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openuni")
    decoder_checkpoints.internvl(folder / "base")
    for order in ("enc_proj", "proj_enc", "proj_enc_proj"):
        decoder_checkpoints.openuni(folder / f"{order}.pth", order=order)
    return folder


def spec(home: Path, order: str = "enc_proj", more: str = "") -> str:
    return f"queries:{home}/{order}.pth?base={home}/base&pickle=true{more}"


@torch.no_grad()
def published(home: Path, order: str, text: str, connector: bool) -> torch.Tensor:
    """What the published code computes for one prompt."""
    import json

    import transformers
    from safetensors.torch import load_file

    config = json.loads((home / "base" / "config.json").read_text())["llm_config"]
    config = {k: v for k, v in config.items() if k != "architectures"}
    model = transformers.Qwen2Model(transformers.Qwen2Config(**config)).eval()
    start = "language_model.model."
    weights = load_file(home / "base" / "model.safetensors")
    model.load_state_dict({n.removeprefix(start): v for n, v in weights.items() if start in n})
    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "base")
    prompt = f"Generate an image: {text.strip()}"
    dressed = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n<img>"
    ids = tokenizer.encode(dressed, return_tensors="pt")
    state = torch.load(home / f"{order}.pth", weights_only=True)
    queries = state["meta_queries"][None]
    given = torch.cat([model.get_input_embeddings()(ids), queries], 1)
    x = model(inputs_embeds=given).last_hidden_state[:, -queries.shape[1] :]
    if not connector:
        return x[0]

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def normed(name: str, x: torch.Tensor) -> torch.Tensor:
        shape = x.shape[-1:]
        return functional.layer_norm(x, shape, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    if order != "enc_proj":
        x = linear("projector" if order == "proj_enc" else "projector.0", x)
    for layer in range(2):
        start = f"connector.layers.{layer}"
        y = normed(f"{start}.layer_norm1", x)
        q, k, v = (linear(f"{start}.self_attn.{n}_proj", y) for n in "qkv")
        scores = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # one head at this width
        x = x + linear(f"{start}.self_attn.out_proj", scores @ v)
        y = linear(f"{start}.mlp.fc1", normed(f"{start}.layer_norm2", x))
        x = x + linear(f"{start}.mlp.fc2", functional.gelu(y, approximate="tanh"))
    if order != "proj_enc":
        x = linear("projector" if order == "enc_proj" else "projector.1", x)
    return x[0]


@pytest.mark.parametrize("connector", [False, True])
@pytest.mark.parametrize("order", ["enc_proj", "proj_enc", "proj_enc_proj"])
def test_states_are_the_published_ones(home, order, connector):
    more = "&connector=true" if connector else ""
    encoder = load_encoder(spec(home, order, more), "cpu")
    found = encoder.encode(TEXTS)
    assert found.mask.all()
    assert found.tokens.shape[1] == 6
    for row, text in enumerate(TEXTS):
        expected = published(home, order, text, connector)
        torch.testing.assert_close(found.tokens[row], expected, atol=1e-5, rtol=1e-4)
    assert encoder.card.dim == expected.shape[1]
    assert encoder.card.recipe == "openuni"


def test_conformance(home):
    assert_conforms(load_encoder(spec(home), "cpu"))
    assert_conforms(load_encoder(spec(home, "proj_enc_proj", "&connector=true"), "cpu"))


def test_the_base_alone_is_read_without_its_code(home):
    encoder = load_encoder(f"causal:{home}/base", "cpu")
    assert encoder.card.dim == 32


def test_pins_follow_both_files(home, tmp_path):
    import shutil

    other = shutil.copytree(home, tmp_path / "other")
    decoder_checkpoints.openuni(other / "enc_proj.pth", queries=5)
    one, two = (load_encoder(spec(place), "cpu").card.revision for place in (home, other))
    assert one != two
    load_encoder(f"queries:{home}/enc_proj.pth@{one[:12]}?base={home}/base&pickle=true", "cpu")
    with pytest.raises(ModelError, match="has content hash"):
        load_encoder(f"queries:{home}/enc_proj.pth@{two[:12]}?base={home}/base&pickle=true", "cpu")


def test_what_cannot_be_read_is_one_line(home, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save({"meta_queries": torch.zeros(2, 16)}, tmp_path / "narrow.pth")
    torch.save(
        {"meta_queries": torch.zeros(2, 32), "lmm.x": torch.zeros(1)}, tmp_path / "tuned.pth"
    )
    for text, kind, said in (
        (f"queries:{home}/enc_proj.pth?base={home}/base", ModelError, "add .pickle=true"),
        (f"queries:{home}/enc_proj.pth?pickle=true", UsageError, "does not say which language"),
        (f"queries:{tmp_path}/none.pth?base={home}/base&pickle=true", ModelError, "is no file"),
        (f"queries:{tmp_path}/other.pth?base={home}/base&pickle=true", ModelError, "no learned"),
        (f"queries:{tmp_path}/narrow.pth?base={home}/base&pickle=true", ModelError, "16 wide"),
        (f"queries:{tmp_path}/tuned.pth?base={home}/base&pickle=true", ModelError, "of its own"),
        (spec(home, more="&connector=true&layer=1"), UsageError, "last layer only"),
        (spec(home, more="&pool=mean-padded"), UsageError, "no padding"),
    ):
        with pytest.raises(kind, match=said):
            load_encoder(text, "cpu")
    torch.save({"meta_queries": torch.zeros(2, 32)}, tmp_path / "bare.pth")
    text = f"queries:{tmp_path}/bare.pth?base={home}/base&pickle=true&connector=true"
    with pytest.raises(ModelError, match="holds no connector"):
        load_encoder(text, "cpu")
