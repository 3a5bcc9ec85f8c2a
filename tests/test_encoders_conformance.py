"""Every registered family keeps the contract, on tiny checkpoints in the published format."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import checkpoints
import decoder_checkpoints
import pytest
import torch
from PIL import Image

from encbench import registry
from encbench.encoders import EncoderSpec, family_of, load_encoder
from encbench.encoders.checks import assert_conforms
from encbench.encoders.control import CONTROLS
from encbench.encoders.pooling import pool
from encbench.encoders.spec import COMMON_OPTIONS
from encbench.types import JointEncoder, TextEncoder
from encbench.zoo.catalog import FAMILIES as MINIS

OWN = """
import torch
from encbench.types import EncoderCard, TextFeatures

class Letters:
    card = EncoderCard("own", "own", "own", "own", dim=4, max_tokens=30)

    def encode(self, prompts):
        ids = [[1 + ord(c) % 60 for c in p[:30]] or [0] for p in prompts]
        width = max(map(len, ids))
        table = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        mask = torch.tensor([[i < len(row) for i in range(width)] for row in ids])
        return TextFeatures(table[padded], mask, torch.tensor([len(p) > 30 for p in prompts]))
"""


def own(folder: Path) -> str:
    folder.mkdir(parents=True)
    (folder / "own.py").write_text(OWN)
    return f"{folder / 'own.py'}:Letters"


def pair(folder: Path) -> str:
    bert = checkpoints.sentence_bert(folder / "bert")
    return f"(st:{bert})+(t5:{checkpoints.t5(folder / 't5')})"


def queries(folder: Path, order: str = "enc_proj") -> str:
    base = decoder_checkpoints.internvl(folder / "base")
    file = decoder_checkpoints.openuni(folder / "openuni.pth", order=order)
    return f"{file}?base={base}&pickle=true"


def gguf_gemma(folder: Path) -> Path:
    pytest.importorskip("gguf", reason="pip install 'encbench[gguf]'")
    folder.mkdir(parents=True)
    return decoder_checkpoints.gguf_gemma(folder / "tiny.gguf")


Build = Callable[[Path], Path | str]
# A family that is registered needs a case here: what to build, and options to add.
CASES: dict[str, dict[str, tuple[Build, str]]] = {
    "control": {spec: (lambda folder, spec=spec: spec.partition(":")[2], "") for spec in CONTROLS},
    "st": {
        "bert": (checkpoints.sentence_bert, ""),
        "bert, dense, normavg": (
            lambda f: checkpoints.sentence_bert(f, dense=True),
            "layer=normavg",
        ),
        "static": (checkpoints.static_words, ""),
        "static, short": (checkpoints.static_words, "max_length=20"),
    },
    "clip": {
        "open_clip": (checkpoints.open_clip, ""),
        "open_clip, penultimate": (checkpoints.open_clip, "layer=penultimate"),
        "siglip": (lambda f: checkpoints.open_clip(f, kind="siglip"), ""),
        "coca": (lambda f: checkpoints.open_clip(f, kind="coca"), ""),
        "open_clip with bert": (lambda f: checkpoints.open_clip(f, kind="bert"), ""),
        "transformers": (checkpoints.clip, ""),
        "text model": (lambda f: checkpoints.clip(f, kind="CLIPTextModel"), "layer=penultimate"),
    },
    "t5": {
        "v1.1": (checkpoints.t5, ""),
        "full 1.0": (lambda f: checkpoints.t5(f, kind="1.0", decoder=True), "max_length=40"),
        "mt5": (lambda f: checkpoints.t5(f, kind="mt5"), "max_length=9"),
        "umt5": (lambda f: checkpoints.t5(f, kind="umt5"), "layer=normavg&max_length=64"),
        "diffusers": (
            lambda f: checkpoints.t5(f, diffusers=True),
            "max_length=64&subfolder=text_encoder_2",
        ),
        "as pixart": (checkpoints.t5, "recipe=pixart"),
    },
    "causal": {
        "qwen3": (decoder_checkpoints.qwen3, ""),
        "qwen3, sharded": (lambda f: decoder_checkpoints.qwen3(f, sharded=True), "layer=normavg"),
        "qwen3, as blip3o": (decoder_checkpoints.qwen3, "recipe=blip3o&max_length=90"),
        "qwen2.5-vl": (decoder_checkpoints.qwen_vl, "layer=penultimate"),
        "qwen3-vl": (lambda f: decoder_checkpoints.qwen_vl(f, kind="qwen3_vl"), "max_length=20"),
        "llama": (decoder_checkpoints.llama, "layer=1"),
    },
    "gemma": {
        "1": (lambda f: decoder_checkpoints.gemma(f, kind="gemma"), "max_length=40"),
        "2": (decoder_checkpoints.gemma, ""),
        "2, as sana": (decoder_checkpoints.gemma, "recipe=sana"),
        "3, text": (lambda f: decoder_checkpoints.gemma(f, kind="gemma3_text"), "layer=normavg"),
        "3": (lambda f: decoder_checkpoints.gemma(f, kind="gemma3"), "recipe=sana&max_length=30"),
        "3, GGUF": (gguf_gemma, ""),
    },
    "blip3o": {
        "text": (decoder_checkpoints.blip3o, ""),
        "text, plain": (decoder_checkpoints.blip3o, "mode=text&recipe=plain&max_length=30"),
        "text, sharded": (
            lambda f: decoder_checkpoints.blip3o(f, kind="blip3o_qwen", sharded=True, tied=False),
            "connector=true",
        ),
        "image": (decoder_checkpoints.blip3o, "mode=image&image_tokens=9"),
        "image, greedy": (
            lambda f: decoder_checkpoints.blip3o(f, sharded=True, tied=False),
            "mode=image&image_tokens=5&decode=greedy&connector=true",
        ),
    },
    "pipeline": {
        "sd3": (decoder_checkpoints.pipeline, ""),
        "flux": (
            lambda f: decoder_checkpoints.pipeline(f, kind="flux"),
            "recipe=flux&max_length=40",
        ),
    },
    "pair": {"bert and t5": (pair, "")},
    "python": {"class": (own, "")},
    "queries": {
        "states": (queries, ""),
        "connector": (lambda f: f"{queries(f, 'proj_enc_proj')}&connector=true", ""),
    },
    "zoo": {name: (lambda folder, name=name: name, "") for name in MINIS}
    | {"mini-clip, early": (lambda folder: "mini-clip", "step=20pct")},
}
DEFAULT_RECIPES = {"blip3o": "blip3o", "pipeline": "sd3", "queries": "openuni"}
NO_PADDING = ("pair", "python", "queries")
ALL = [
    pytest.param(family, case, id=f"{family}: {case}")
    for family, cases in CASES.items()
    for case in cases
]


@pytest.fixture(scope="module")
def spec_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], str]:
    """Builds a case's checkpoint once; gives its spec."""
    root, built = tmp_path_factory.mktemp("checkpoints"), dict[Build, Path | str]()

    def make(family: str, case: str) -> str:
        build, options = CASES[family][case]
        if build not in built:
            built[build] = build(root / f"{family}-{len(built)}" / "model")
        spec = f"{family}:{built[build]}"
        return f"{spec}?{options}" if options else spec

    return make


@pytest.fixture(scope="module")
def encoder_of(spec_of: Callable[[str, str], str]) -> Callable[[str, str], TextEncoder]:
    """Loads a case's encoder once."""
    return cache(lambda family, case: load_encoder(spec_of(family, case), "cpu"))


def test_every_registered_family_has_a_case() -> None:
    missing = set(registry.names("encoder")) - set(CASES)
    assert not missing, f"add a case for {sorted(missing)} to CASES in {__file__}"


@pytest.mark.parametrize(("family", "case"), ALL)
def test_conforms(family: str, case: str, encoder_of: Callable[[str, str], TextEncoder]) -> None:
    assert_conforms(encoder_of(family, case))


@pytest.mark.parametrize(("family", "case"), ALL)
def test_card_is_what_was_asked_for(
    family: str,
    case: str,
    spec_of: Callable[[str, str], str],
    encoder_of: Callable[[str, str], TextEncoder],
) -> None:
    spec = EncoderSpec.parse(spec_of(family, case))
    card = encoder_of(family, case).card
    assert (card.spec, card.family, card.source) == (str(spec), family, spec.source)
    assert (card.layer, card.pooling) == (spec.layer, "mean")
    adapter = MINIS[spec.source] if family == "zoo" else family
    assert card.recipe == (spec.get("recipe") or DEFAULT_RECIPES.get(adapter, "plain"))
    assert card.max_tokens == (spec.max_length or card.max_tokens)
    assert len(card.revision) == 64
    assert card.control == (family == "control")
    trained = family not in ("control", "python")
    ours = family in ("control", "zoo")
    assert card.license == ("Apache-2.0" if ours else "mit" if trained else "unknown")
    assert (card.parameters > 0) == (trained or case == "control:random-transformer")


@pytest.mark.parametrize(("family", "case"), ALL)
def test_hundred_thousand_characters_are_no_burden(
    family: str, case: str, encoder_of: Callable[[str, str], TextEncoder]
) -> None:
    encoder = encoder_of(family, case)
    encoder.encode(["warm up"])
    started = time.perf_counter()
    for prompt in ("a" * 100_000, "ab1 " * 25_000, "\U0001f600" * 100_000, " " * 100_000):
        pool(encoder.encode([prompt]), "mean")
    # quadratic work would take minutes
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(("family", "case"), ALL)
def test_no_prompts_at_all(
    family: str, case: str, encoder_of: Callable[[str, str], TextEncoder]
) -> None:
    if family == "python":
        pytest.skip("a custom encoder may refuse an empty list")
    encoder = encoder_of(family, case)
    features = encoder.encode([])
    assert features.tokens.shape == (0, 0, encoder.card.dim)
    assert features.mask.shape == (0, 0)
    assert features.truncated.shape == (0,)


@pytest.mark.parametrize(
    ("family", "case"),
    [
        p
        for p in ALL
        if p.values[0] not in NO_PADDING
        and p.values[1] not in CONTROLS[:2]
        and not str(p.values[1]).startswith("image")  # those have no padding, and say so
    ],
)
def test_mean_padded_is_over_the_maximum_length(
    family: str, case: str, spec_of: Callable[[str, str], str]
) -> None:
    spec = spec_of(family, case)
    if case == "static":
        spec += "?max_length=20"
    join = "&" if "?" in spec else "?"
    encoder = load_encoder(f"{spec}{join}pool=mean-padded", "cpu")
    short, longer = "a cat", "a photo of a brown dog"
    together = encoder.encode([short, longer])
    assert together.tokens.shape[1] == encoder.card.max_tokens
    alone = encoder.encode([short])
    assert alone.tokens.shape[1] == encoder.card.max_tokens
    for how in ("mean-padded", "mean"):  # both can be taken from one pass
        torch.testing.assert_close(pool(together, how)[:1], pool(alone, how), atol=1e-5, rtol=1e-5)
    plain = load_encoder(spec, "cpu").encode([short])
    torch.testing.assert_close(pool(alone, "mean"), pool(plain, "mean"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("family", "case", "dtype"),
    [
        (*p.values, "bfloat16")
        for p in ALL
        # of tokens that are drawn, others are drawn where the probabilities are rounded
        if p.values[0] != "python" and p.values != ("blip3o", "image")
    ]
    + [("st", "bert", "float16")],
)
def test_low_precision_stays_near(
    family: str,
    case: str,
    dtype: str,
    spec_of: Callable[[str, str], str],
    encoder_of: Callable[[str, str], TextEncoder],
) -> None:
    spec = spec_of(family, case)
    low = load_encoder(f"{spec}{'&' if '?' in spec else '?'}dtype={dtype}", "cpu")
    assert low.card.dtype == dtype
    prompts = ["a photo of a brown dog", "", "two small cats sleep"]
    a, b = encoder_of(family, case).encode(prompts), low.encode(prompts)
    assert b.tokens.dtype == getattr(torch, dtype)
    for how in ("mean", "own") if a.pooled is not None else ("mean",):
        exact, near = pool(a, how), pool(b, how)
        assert ((exact - near).norm(dim=1) <= 0.05 * exact.norm(dim=1)).all(), how


def test_only_models_with_images_have_a_joint_space(
    encoder_of: Callable[[str, str], TextEncoder],
) -> None:
    joint = {
        f"{p.values[0]}: {p.values[1]}"
        for p in ALL
        if isinstance(encoder_of(*p.values), JointEncoder)
    }
    expected = {f"clip: {case}" for case in CASES["clip"] if case != "text model"}
    assert joint == expected | {f"zoo: {case}" for case in CASES["zoo"] if "clip" in case}


@pytest.mark.parametrize("case", [case for case in CASES["clip"] if case != "text model"])
def test_joint_space_has_one_width(
    case: str, encoder_of: Callable[[str, str], TextEncoder]
) -> None:
    encoder = encoder_of("clip", case)
    assert isinstance(encoder, JointEncoder)
    images = [Image.new(mode, (50, 40)) for mode in ("RGB", "L", "RGBA")] * 12
    vectors = encoder.encode_images(images)
    texts = encoder.encode(["a", "b"]).pooled
    assert texts is not None
    assert vectors.shape == (36, texts.shape[1])
    assert vectors.dtype == torch.float32


@pytest.mark.parametrize("family", registry.names("encoder"))
def test_family_describes_itself(family: str) -> None:
    found = registry.get("encoder", family)
    assert found.name == family
    assert found.summary
    for example in found.examples:
        spec = EncoderSpec.parse(example)
        assert spec.family == family
        assert family_of(spec) is found
    assert not set(found.options) & set(COMMON_OPTIONS)
    assert found.control == (family == "control")
