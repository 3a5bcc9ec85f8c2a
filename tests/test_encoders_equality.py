"""Adapters give what the underlying library gives when it is called directly, to 1e-5."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from encbench.encoders import load_encoder, openclip
from encbench.encoders.pooling import pool
from encbench.types import JointEncoder, TextFeatures

PROMPTS = [
    "a photo of a brown dog",
    "",
    "two small cats sleep on the blue sofa near the window, and the man looks at them. " * 12,
    "The RED bicycle!  \U0001f600 caf\u00e9",
    "a",
]
LAYERS = ["last", "penultimate", "0", "1", "-3"]


def same(found: Tensor | None, expected: Any) -> None:
    assert found is not None
    torch.testing.assert_close(found.float(), torch.as_tensor(expected), atol=1e-5, rtol=1e-5)


def same_tokens(features: TextFeatures, expected: Tensor, mask: Tensor) -> None:
    assert features.mask.sum(1).tolist() == mask.sum(1).tolist()
    same(features.tokens[features.mask], expected[mask.bool()])


def pick(states: Any, last: Tensor, layer: str) -> Tensor:
    found: Tensor = (
        last if layer == "last" else states[-2 if layer == "penultimate" else int(layer)]
    )
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("equality")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


# ------------------------------------------------------------------ sentence-transformers


@pytest.fixture(scope="module")
def bert(root: Path) -> Path:
    return checkpoints.sentence_bert(root / "bert", dense=True)


def test_sentence_vectors_and_tokens(bert: Path) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(bert), device="cpu")
    features = load_encoder(f"st:{bert}", "cpu").encode(PROMPTS)
    same(features.pooled, library.encode(PROMPTS))
    direct = library.encode(PROMPTS, output_value="token_embeddings")
    for row, expected in enumerate(direct):
        same(features.tokens[row][features.mask[row]], expected)
    assert features.truncated.tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("layer", LAYERS)
def test_sentence_layers(bert: Path, layer: str) -> None:
    from transformers import AutoModel, AutoTokenizer

    given = AutoTokenizer.from_pretrained(bert)(
        PROMPTS, padding=True, truncation=True, max_length=48, return_tensors="pt"
    )
    out = AutoModel.from_pretrained(bert)(**given, output_hidden_states=True)
    encoder = load_encoder(f"st:{bert}?layer={layer}", "cpu")
    features = encoder.encode(PROMPTS)
    expected = pick(out.hidden_states, out.last_hidden_state, layer)
    same_tokens(features, expected, given["attention_mask"])
    # the model's own vector stays that of its last layer
    same(features.pooled, load_encoder(f"st:{bert}", "cpu").encode(PROMPTS).pooled)


@pytest.mark.parametrize("length", [3, 7, 64])
def test_sentence_truncation(bert: Path, length: int) -> None:
    from sentence_transformers import SentenceTransformer

    library = SentenceTransformer(str(bert), device="cpu")
    library.max_seq_length = length
    features = load_encoder(f"st:{bert}?max_length={length}", "cpu").encode(PROMPTS)
    same(features.pooled, library.encode(PROMPTS))
    counts = [len(ids) for ids in library.tokenizer(PROMPTS)["input_ids"]]
    assert features.truncated.tolist() == [count > length for count in counts]


def test_static_vectors(root: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = checkpoints.static_words(root / "static")
    library = SentenceTransformer(str(folder), device="cpu")
    features = load_encoder(f"st:{folder}", "cpu").encode(PROMPTS)
    same(features.pooled, library.encode(PROMPTS))
    same(pool(features, "mean"), library.encode(PROMPTS))


def test_minilm_real_weights(minilm: Path) -> None:
    from sentence_transformers import SentenceTransformer

    prompts = [*PROMPTS, *checkpoints.CORPUS]
    encoder = load_encoder(f"st:{minilm}", "cpu")
    expected = SentenceTransformer(str(minilm), device="cpu").encode(prompts)
    features = encoder.encode(prompts)
    same(features.pooled, expected)
    same(torch.nn.functional.normalize(pool(features, "mean")), expected)
    card = encoder.card
    assert (card.dim, card.max_tokens, card.license) == (384, 256, "apache-2.0")
    assert card.parameters == 22_713_216
    assert (features.truncated).tolist() == [False] * len(prompts)


# -------------------------------------------------------------------------------- T5


@pytest.mark.parametrize(
    ("kind", "decoder"),
    [("v1_1", False), ("v1_1", True), ("1.0", True), ("mt5", True), ("umt5", True)],
)
def test_t5_kinds(root: Path, kind: str, decoder: bool) -> None:
    import transformers

    folder = checkpoints.t5(root / f"{kind}-{decoder}", kind=kind, decoder=decoder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(PROMPTS, padding=True, truncation=True, max_length=512, return_tensors="pt")
    prefix = {"mt5": "MT5", "umt5": "UMT5"}.get(kind, "T5")
    whole = f"{prefix}ForConditionalGeneration" if decoder else f"{prefix}EncoderModel"
    model = getattr(transformers, whole).from_pretrained(folder).eval()
    out = model.get_encoder()(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
    encoder = load_encoder(f"t5:{folder}", "cpu")
    features = encoder.encode(PROMPTS)
    same_tokens(features, out.last_hidden_state, given["attention_mask"])
    assert features.pooled is None
    parameters = {id(p): p.numel() for p in model.get_encoder().parameters()}
    assert encoder.card.parameters == sum(parameters.values())


@pytest.fixture(scope="module")
def flan(root: Path) -> Path:
    return checkpoints.t5(root / "flan")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("length", [2, 11])
def test_t5_layers_and_truncation(flan: Path, layer: str, length: int) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(flan)
    given = tokenizer(
        PROMPTS, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    model = transformers.T5EncoderModel.from_pretrained(flan).eval()
    out = model(**given, output_hidden_states=True)
    encoder = load_encoder(f"t5:{flan}?layer={layer}&max_length={length}", "cpu")
    features = encoder.encode(PROMPTS)
    expected = pick(out.hidden_states, out.last_hidden_state, layer)
    same_tokens(features, expected, given["attention_mask"])
    counts = [len(ids) for ids in tokenizer(PROMPTS)["input_ids"]]
    assert features.truncated.tolist() == [count > length for count in counts]
    # the end-of-text token survives the cut
    ids = encoder.tokenize(PROMPTS).ids  # type: ignore[attr-defined]
    assert {row[-1] for row in ids} == {tokenizer.eos_token_id}


def test_t5_padding_as_the_library_pads(flan: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(flan)
    given = tokenizer(
        PROMPTS, padding="max_length", truncation=True, max_length=40, return_tensors="pt"
    )
    out = transformers.T5EncoderModel.from_pretrained(flan).eval()(**given)
    features = load_encoder(f"t5:{flan}?pool=mean-padded&max_length=40", "cpu").encode(PROMPTS)
    same(features.tokens, out.last_hidden_state)
    same(pool(features, "mean-padded"), out.last_hidden_state.mean(1))


def test_t5_in_the_folders_of_diffusers(root: Path) -> None:
    import transformers

    folder = checkpoints.t5(root / "pipeline", diffusers=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer_2")
    given = tokenizer(PROMPTS, padding=True, return_tensors="pt")
    out = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder_2").eval()(**given)
    features = load_encoder(f"t5:{folder}?subfolder=text_encoder_2", "cpu").encode(PROMPTS)
    same_tokens(features, out.last_hidden_state, given["attention_mask"])


def test_t5_from_a_sentencepiece_model(root: Path) -> None:
    import sentencepiece
    import transformers

    folder = checkpoints.t5(root / "spiece", spiece=True)
    assert not (folder / "tokenizer.json").exists()
    processor = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
    encoder = load_encoder(f"t5:{folder}", "cpu")
    prompts = ["a photo of a brown dog", "the kitchen has three green chairs"]
    for prompt in prompts:
        ids = [*processor.encode(prompt), processor.eos_id()]
        out = transformers.T5EncoderModel.from_pretrained(folder).eval()(torch.tensor([ids]))
        same(encoder.encode([prompt]).tokens, out.last_hidden_state)


# ----------------------------------------------------------------- CLIP by transformers


@pytest.fixture(scope="module")
def hub_clip(root: Path) -> Path:
    return checkpoints.clip(root / "hub-clip")


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    sizes = [(40, 60), (32, 32), (90, 33)]
    return [Image.fromarray(draw.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sizes]


@pytest.mark.parametrize("layer", LAYERS)
def test_hub_clip_text(hub_clip: Path, layer: str) -> None:
    import transformers

    library = transformers.CLIPModel.from_pretrained(hub_clip).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(hub_clip)
    given = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    out = library.text_model(**given, output_hidden_states=True)
    encoder = load_encoder(f"clip:{hub_clip}?layer={layer}", "cpu")
    features = encoder.encode(PROMPTS)
    expected = pick(out.hidden_states, out.last_hidden_state, layer)
    same_tokens(features, expected, given["attention_mask"])
    same(features.pooled, library.get_text_features(**given).pooler_output)
    counts = [len(ids) for ids in tokenizer(PROMPTS)["input_ids"]]
    assert features.truncated.tolist() == [count > 77 for count in counts]
    assert features.truncated.any()
    text = [*library.text_model.parameters(), *library.text_projection.parameters()]
    assert encoder.card.parameters == sum(p.numel() for p in text)


def test_hub_clip_images(hub_clip: Path) -> None:
    import transformers

    library = transformers.CLIPModel.from_pretrained(hub_clip).eval()
    prepare = transformers.AutoImageProcessor.from_pretrained(hub_clip)
    given = prepare(images=pictures(), return_tensors="pt")
    encoder = load_encoder(f"clip:{hub_clip}", "cpu")
    assert isinstance(encoder, JointEncoder)
    same(encoder.encode_images(pictures()), library.get_image_features(**given).pooler_output)


@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_hub_clip_text_only(root: Path, kind: str) -> None:
    import transformers

    folder = checkpoints.clip(root / kind, kind=kind)
    library = getattr(transformers, kind).from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = tokenizer(PROMPTS, padding=True, truncation=True, return_tensors="pt")
    out = library(**given)
    encoder = load_encoder(f"clip:{folder}", "cpu")
    features = encoder.encode(PROMPTS)
    same_tokens(features, out.last_hidden_state, given["attention_mask"])
    same(features.pooled, out.text_embeds if kind.endswith("Projection") else out.pooler_output)
    # without a projection, the model's own vector is the end-of-text token
    if kind == "CLIPTextModel":
        same(pool(features, "eos"), out.pooler_output)
    assert not isinstance(encoder, JointEncoder)


# ----------------------------------------------------------------------------- open_clip


@pytest.fixture(scope="module", params=["clip", "siglip", "coca", "bert"])
def native(request: pytest.FixtureRequest, root: Path) -> tuple[str, Path, Any, Any, Any]:
    import open_clip

    folder = checkpoints.open_clip(root / request.param, kind=request.param)
    # a model that wraps transformers is not written with its base; open_clip then loads it first
    model = open_clip.create_model(f"local-dir:{folder}", output_dict=False).eval()
    preprocess = open_clip.image_transform(
        32, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash"
    )
    if request.param == "bert":
        text = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
        tokenizer = open_clip.tokenizer.HFTokenizer(text["hf_tokenizer_name"], context_length=20)
    else:
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    return request.param, folder, model, tokenizer, preprocess


def test_open_clip_pooled(native: tuple[str, Path, Any, Any, Any]) -> None:
    _, folder, model, tokenizer, _ = native
    features = load_encoder(f"clip:{folder}?pool=own", "cpu").encode(PROMPTS)
    same(features.pooled, model.encode_text(tokenizer(PROMPTS), normalize=False))
    assert features.truncated.tolist() == [False, False, True, False, False]


def test_open_clip_images(native: tuple[str, Path, Any, Any, Any]) -> None:
    _, folder, model, _, preprocess = native
    encoder = load_encoder(f"clip:{folder}", "cpu")
    assert isinstance(encoder, JointEncoder)
    pixels = torch.stack([preprocess(image) for image in pictures()])
    same(encoder.encode_images(pictures()), model.encode_image(pixels, normalize=False))


@pytest.mark.parametrize("layer", ["last", "penultimate", "1", "2", "-1"])
def test_open_clip_layers(native: tuple[str, Path, Any, Any, Any], layer: str) -> None:
    kind, folder, model, tokenizer, _ = native
    features = load_encoder(f"clip:{folder}?layer={layer}", "cpu").encode(PROMPTS)
    ids = tokenizer(PROMPTS)
    if kind == "bert":
        mask = (ids != 0).long()
        out = model.text.transformer(ids, attention_mask=mask, output_hidden_states=True)
        states, last = out.hidden_states, out.last_hidden_state
    else:
        if kind == "clip":  # the same weights with the text tower as a module of its own
            import open_clip

            model = open_clip.create_model(f"local-dir:{folder}", force_custom_text=True).eval()
        model.text.output_tokens = True
        last = model.text(ids)[1]
        found = model.text.forward_intermediates(ids, output_fmt="NLC")["text_intermediates"]
        states = [torch.empty(0), *found]  # open_clip gives no embeddings here
    if layer == "-1":  # the same as 'last', so with the final norm
        layer = "last"
    expected = pick(states, last, layer)
    for row in range(len(PROMPTS)):
        length = int(features.mask[row].sum())
        same(features.tokens[row, :length], expected[row, :length])


def test_open_clip_masks_end_with_end_of_text(native: tuple[str, Path, Any, Any, Any]) -> None:
    kind, folder, _, tokenizer, _ = native
    features = load_encoder(f"clip:{folder}", "cpu").encode(PROMPTS)
    ids = tokenizer(PROMPTS)
    end = {"clip": 49407, "coca": 49407, "siglip": 1, "bert": 3}[kind]
    first = (ids == end).int().argmax(1)
    assert features.mask.sum(1).tolist() == (first + 1).tolist()


def test_open_clip_embeddings_are_layer_0(root: Path) -> None:
    import open_clip

    folder = checkpoints.open_clip(root / "embeddings")
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(["a brown dog"])
    features = load_encoder(f"clip:{folder}?layer=0", "cpu").encode(["a brown dog"])
    expected = (model.token_embedding(ids) + model.positional_embedding)[:, :5]
    same(features.tokens, expected)


def test_open_clip_tag_is_found_and_its_activation_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag names a hub repository; weights trained with QuickGELU run with it."""
    import open_clip

    folder = checkpoints.open_clip(tmp_path / "hub")
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "Tiny-CLIP.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", dict(open_clip.factory._MODEL_CONFIGS))
    open_clip.factory._MODEL_CONFIGS["Tiny-CLIP"] = config
    tag = {"hf_hub": "somebody/tiny/", "quick_gelu": True, "mean": (0.1,) * 3, "std": (0.3,) * 3}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-CLIP", {"web": tag})
    from encbench.encoders import clip

    asked = []
    real = clip.resolve_model

    def resolve(source: str, revision: str | None, **more: Any) -> Any:
        asked.append((source, revision))
        return real(str(folder), None, **more)

    monkeypatch.setattr(clip, "resolve_model", resolve)
    spec = "clip:Tiny-CLIP/web@abc"
    encoder = load_encoder(spec, "cpu")
    assert set(asked) == {("somebody/tiny", "abc")}
    assert encoder.card.spec == spec
    model = open_clip.create_model(f"local-dir:{folder}", force_quick_gelu=True).eval()
    ids = open_clip.tokenize(PROMPTS)
    same(encoder.encode(PROMPTS).pooled, model.encode_text(ids))
    prepare = open_clip.image_transform(32, is_train=False, mean=(0.1,) * 3, std=(0.3,) * 3)
    assert isinstance(encoder, JointEncoder)
    pixels = torch.stack([prepare(image) for image in pictures()])
    same(encoder.encode_images(pictures()), model.encode_image(pixels))


def test_fast_byte_pairs_equal_open_clips_own(shared: Path) -> None:
    from open_clip.tokenizer import SimpleTokenizer

    captions = json.loads((shared / "coco/annotations/captions_val2017.json").read_text())
    prompts = [a["caption"] for a in captions["annotations"][:3000]]
    prompts += [*PROMPTS, "it's we'll THEY'RE 3.14 x_1 <start_of_text> &amp;lt; \u732b\u732b"]
    prompts += ["\x00\x1b tab\t", "naïve façade ... !!! ``quote''", "a" * 300, "ab" * 200]
    simple = SimpleTokenizer()
    fast = openclip.OpenClipTokenizer(simple, 77, rows=None)(prompts)
    expected = simple(prompts)
    for prompt, ids, row in zip(prompts, fast.ids, expected, strict=True):
        assert list(ids) == row[: len(ids)].tolist(), prompt
        assert not row[len(ids) :].any(), prompt
    assert list(fast.truncated) == [len(simple.encode(prompt)) > 75 for prompt in prompts]
