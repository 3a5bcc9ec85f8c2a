"""The weights that come with encbench: whole, small, and read as the libraries read them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from encbench.cli import main
from encbench.encoders import EncoderSpec, family_of, load_encoder
from encbench.encoders import zoo as adapter
from encbench.encoders.checks import assert_conforms
from encbench.errors import ModelError, UnknownNameError, UsageError
from encbench.shipped import read_manifest, shipped
from encbench.types import ImageRecord, JointEncoder
from encbench.vision import load_reencoder, mini
from encbench.zoo.catalog import (
    ENCODERS,
    FAMILIES,
    NAMES,
    STAGES,
    WEIGHTS,
    stages_of,
    zoo_folder,
)
from encbench.zoo.table import zoo_rows
from encbench.zoo.vq import load_vq

PROMPTS = [
    "a photo of a red circle left of a blue star",
    "",
    "Against a midnight backdrop, a trio of figures can be seen. In the upper area sits a moon.",
    "a brown dog sleeps on the sofa",
]
ALL = [(name, stage) for name in NAMES for stage in stages_of(name)]
LIMIT = 40e6  # bytes


@pytest.mark.parametrize(("name", "stage"), ALL)
def test_shipped_files_are_whole(name, stage):
    folder = shipped(zoo_folder(name, stage), zoo_folder(name))
    about = read_manifest(folder)["about"]
    assert (about["name"], about["stage"], about["seed"]) == (name, stage, 0)
    curve = [loss for _, loss in about["curve"]]
    if stage == "final":
        assert curve[-1] < curve[0]
        share = {stage: zoo_folder(name, stage) for stage in stages_of(name)}
        steps = {s: read_manifest(f)["about"]["steps"] for s, f in share.items()}
        total = about["schedule"]["steps"]
        for s, taken in steps.items():
            assert abs(taken / total - STAGES[s]) < 0.02
    assert 0.5e6 < about["parameters"] < 1.5e6 or name not in FAMILIES


def test_shipped_files_are_small_and_nothing_else_lies_there():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LIMIT
    assert {path.parent for path in files} == {zoo_folder(*each) for each in ALL}


def test_each_tokenizer_is_shipped_once():
    found = [path.read_bytes() for path in WEIGHTS.rglob("tokenizer.json")]
    assert len(found) == len(set(found)) == len(FAMILIES)


REVISIONS = """
zoo:mini-clip a26104666ffaaaa5f937baca5915a2b366d7dc09f83299d1b65346055de51e92
zoo:mini-t5 0dd01b06dac2ec5fb0d8f404fb9cfacfb65b1a6aba7b8a2e424bc62f659712f9
zoo:mini-gemma 6417ae3bec4b8e9968e0a66559e0dd45876da5bfe01f09cd603e52ad15840bbf
zoo:mini-blip3o 78339f42f171516f4e9de17ffdac005b6ba3cdc52ac8898ff1e6e0ba88007989
zoo:mini-clip?step=20pct d2e43291b7756261adcfda9ae5d270e3a7fc0b3354b80d1d605a3e4208fc908e
zoo:mini-t5?step=20pct e1b5e9fb31291dbd968c2fd351d16fc002f4a39fc1d04032e6e5ac9fd71b02d8
zoo:mini-gemma?step=20pct 6030eccefc7501cdf5f090dd189407703657fb038750f3c730c9c58c33febb82
zoo:mini-blip3o?step=20pct d8337b77ad9a68a0b9edff1fc7786edd5c874fe268be627c5a05e7e6a09bac92
zoo:mini-clip?step=3pct e56a800e80ffb056698b87137337982aaad1a8e770b52d7dd8241e4368b9b74a
zoo:mini-t5?step=3pct a4189f89bce8e67415e3006bc29a5e65c27c82321736ee59a11d2131a57fa839
zoo:mini-gemma?step=3pct 1b6e3eceeeb283bdeee30181c1e7c6a72e39c57cc6faa4000316c3600b634b66
zoo:mini-blip3o?step=3pct f4172c1306685d07394d14d2ebd9c53ce05381301cc3ba72f5a36b827de9e4c9
zoo:mini-blip3o?mode=image 78339f42f171516f4e9de17ffdac005b6ba3cdc52ac8898ff1e6e0ba88007989
"""


@pytest.mark.parametrize(
    ("spec", "revision"), [line.split() for line in REVISIONS.split("\n")[1:-1]]
)
def test_pins_of_earlier_versions_still_hold(spec, revision):
    """Committed predictions and cached features name the shipped encoders by these hashes."""
    parsed = EncoderSpec.parse(spec)
    assert family_of(parsed).resolve(parsed).revision == revision


@pytest.mark.parametrize("spec", ENCODERS)
def test_every_stage_loads_with_its_card(spec):
    encoder = load_encoder(spec, "cpu")
    card = encoder.card
    assert card.spec == spec
    assert (card.family, card.license, card.dtype) == ("zoo", "Apache-2.0", "float32")
    assert card.stage == (spec.partition("step=")[2] or "final")
    assert len(card.revision) == 64
    assert encoder.encode(PROMPTS).tokens.shape[2] == card.dim == 128


def test_revisions_differ_and_so_do_features():
    found = [load_encoder(spec, "cpu") for spec in ENCODERS]
    assert len({encoder.card.revision for encoder in found}) == len(ENCODERS)
    for name in FAMILIES:
        stages = [e.encode(PROMPTS[:1]).tokens for e in found if e.card.source == name]
        assert len(stages) == 3
        for i, one in enumerate(stages):
            for other in stages[:i]:
                assert (one - other).abs().max() > 0.01


@pytest.mark.parametrize(
    "spec",
    ["zoo:mini-clip?step=3pct", "zoo:mini-blip3o?mode=image", "zoo:mini-gemma?layer=normavg"],
)
def test_variants_conform(spec):
    assert_conforms(load_encoder(spec, "cpu"))


# ---------------------------------------------------------------- as the libraries read them


def _features(name: str) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Of each prompt its real tokens and pooled vector, from the adapter."""
    found = load_encoder(f"zoo:{name}", "cpu").encode(PROMPTS)
    return [
        (found.tokens[i][found.mask[i]], None if found.pooled is None else found.pooled[i])
        for i in range(len(PROMPTS))
    ]


def _ids(name: str, text: str) -> torch.Tensor:
    from transformers import AutoTokenizer

    row = AutoTokenizer.from_pretrained(zoo_folder(name))(text)["input_ids"]
    return torch.tensor([row or [0]])


def _near(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_clip_equals_transformers():
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(zoo_folder("mini-clip"), dtype=torch.float32).eval()
    for text, (tokens, pooled) in zip(PROMPTS, _features("mini-clip"), strict=True):
        out = model.text_model(input_ids=_ids("mini-clip", text))
        _near(tokens, out.last_hidden_state[0])
        _near(pooled, model.text_projection(out.pooler_output)[0])


@torch.no_grad()
def test_t5_equals_transformers():
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(zoo_folder("mini-t5"), dtype=torch.float32).eval()
    for text, (tokens, _) in zip(PROMPTS, _features("mini-t5"), strict=True):
        _near(tokens, model(input_ids=_ids("mini-t5", text)).last_hidden_state[0])


@torch.no_grad()
def test_gemma_equals_transformers():
    from transformers import Gemma2Model

    model = Gemma2Model.from_pretrained(
        zoo_folder("mini-gemma"), dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for text, (tokens, _) in zip(PROMPTS, _features("mini-gemma"), strict=True):
        _near(tokens, model(input_ids=_ids("mini-gemma", text)).last_hidden_state[0])


@torch.no_grad()
def test_blip3o_equals_transformers():
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    folder = zoo_folder("mini-blip3o")
    raw = json.loads((folder / "config.json").read_text())
    model = Qwen3ForCausalLM(Qwen3Config.from_dict(raw | {"model_type": "qwen3"})).float().eval()
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    model.load_state_dict(state)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for text, (tokens, _) in zip(PROMPTS, _features("mini-blip3o"), strict=True):
        said = f"Please generate image based on the following caption: {text}"
        chat = [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": said},
        ]
        dressed = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(dressed + "<im_start><S0>")["input_ids"]
        assert ids[-2:] == [raw["image_start_tag_id"], raw["scale_start_token_id"]]
        out = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        _near(tokens, out)


def test_blip3o_writes_image_tokens_that_its_grid_can_draw():
    encoder = load_encoder("zoo:mini-blip3o?mode=image&decode=greedy", "cpu")
    raw = json.loads((zoo_folder("mini-blip3o") / "config.json").read_text())
    found = encoder.encode(PROMPTS)
    count = raw["image_tokens"]
    assert found.tokens.shape == (len(PROMPTS), count + 1, 128)
    rows = encoder.tokenize(PROMPTS[:1]).ids
    written = encoder.write(torch.tensor(rows), torch.tensor([len(rows[0]) - count]))
    first = raw["image_start_token_id"]
    assert bool((written >= first).all())
    assert bool((written <= raw["image_end_token_id"]).all())
    images = load_vq(zoo_folder("scene-vq")).decode(written - first)
    assert images.shape == (1, 3, 32, 32)


def test_mini_clip_sees_images():
    encoder = load_encoder("zoo:mini-clip", "cpu")
    assert isinstance(encoder, JointEncoder)
    vectors = encoder.encode_images([Image.new("RGB", (40, 30), c) for c in ("red", "navy")])
    texts = encoder.encode(["a", "b"]).pooled
    assert vectors.shape == texts.shape


# ------------------------------------------------------------------------- what is refused


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """A copy of a folder that the adapters read in place of the shipped ones."""
    for name in ("mini-t5", "mini-t5-3pct", "mini-dinov3-3pct"):
        shutil.copytree(WEIGHTS / name, tmp_path / name)

    def found(name: str, stage: str = "final") -> Path:
        return zoo_folder(name, stage, tmp_path)

    monkeypatch.setattr(adapter, "zoo_folder", found)
    monkeypatch.setattr(mini, "zoo_folder", found)
    return tmp_path


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _change(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("harm", [Path.unlink, _cut, _change])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "manifest.json"])
def test_a_file_that_is_not_as_shipped_is_named_and_refused(copied, harm, file):
    if file == "manifest.json" and harm is _change:
        pytest.skip("a manifest vouches for the others, not for itself")
    for folder, load in (
        ("mini-t5-3pct", lambda: load_encoder("zoo:mini-t5?step=3pct", "cpu")),
        ("mini-dinov3-3pct", lambda: load_reencoder("mini-dinov3?step=3pct", "cpu")),
    ):
        harm(copied / folder / file)
        with pytest.raises(ModelError, match=f"{folder}/{file}.*install encbench again"):
            load()


def test_a_shared_tokenizer_that_is_not_as_shipped_is_named_and_refused(copied):
    _change(copied / "mini-t5" / "tokenizer.json")
    with pytest.raises(ModelError, match=r"mini-t5/tokenizer\.json is not the file"):
        load_encoder("zoo:mini-t5?step=3pct", "cpu")


def test_unknown_names_and_options_are_told():
    for spec, said in (
        ("zoo:mini-clap", "did you mean mini-clip"),
        ("zoo:mini-clip?step=5pct", "unknown step of mini-clip '5pct'"),
        ("zoo:mini-t5?mode=image", "unknown option of 'zoo:mini-t5' 'mode'"),
    ):
        with pytest.raises(UnknownNameError, match=said):
            load_encoder(spec, "cpu")
    with pytest.raises(UsageError, match="no revision"):
        load_encoder("zoo:mini-clip@main", "cpu")
    with pytest.raises(UsageError, match="comes with encbench"):
        load_reencoder("mini-dinov3:elsewhere", "cpu")


# ----------------------------------------------------------------------- the command line


def _run(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    return caught.value.code or 0


def test_list_shows_all_that_is_shipped(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert _run("zoo", "list") == 0
    text = capsys.readouterr().out
    assert text.count("as shipped") == len(ALL)
    for name in NAMES:
        assert name in text


def test_list_names_what_is_damaged(tmp_path, capsys):
    shutil.copytree(WEIGHTS / "mini-t5", tmp_path / "mini-t5")
    assert [row.problem for row in zoo_rows(tmp_path)] == [""]
    _change(tmp_path / "mini-t5" / "model.safetensors")
    assert _run("zoo", "list", "--in", str(tmp_path)) == 1
    said = capsys.readouterr()
    assert "damaged" in said.out
    assert "model.safetensors is not the file that was shipped" in said.err


def test_train_writes_what_an_encoder_spec_can_name(tmp_path, capsys):
    out = tmp_path / "made"
    assert _run("zoo", "train", "scene-vq", "--out", str(out), "--steps", "2") == 0
    assert "scene-vq: loss" in capsys.readouterr().out
    assert _run("zoo", "train", "mini-clap", "--out", str(out)) == 2
    assert "did you mean mini-clip" in capsys.readouterr().err


# ------------------------------------------------------------------------- the re-encoder


def test_mini_dinov3_is_dinov3(tmp_path):
    from transformers import AutoImageProcessor, DINOv3ViTModel

    path = tmp_path / "red.png"
    Image.new("RGB", (128, 128), "red").save(path)
    image = ImageRecord(1, "red.png", path, 128, 128)
    reencoder = load_reencoder("mini-dinov3", "cpu")
    assert (reencoder.card.spec, reencoder.card.license) == ("mini-dinov3", "Apache-2.0")
    folder = zoo_folder("mini-dinov3")
    model = DINOv3ViTModel.from_pretrained(folder, dtype=torch.float32).eval()
    prepare = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        pixels = prepare(images=Image.open(path), return_tensors="pt")["pixel_values"]
        direct = model(pixel_values=pixels).last_hidden_state[:, 0]
    _near(reencoder.encode([image]), direct)
    assert EncoderSpec.parse(ENCODERS[0]).family == "zoo"
