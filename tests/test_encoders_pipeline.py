"""Several encoders together give what the diffusers pipelines' own prompt encoding gives."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import decoder_checkpoints
import pytest
import torch
from test_encoders_equality import PROMPTS, same

from encbench.encoders import EncoderSpec, family_of, load_encoder
from encbench.encoders.pooling import pool
from encbench.errors import EncbenchError

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=["sd3", "flux"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    kind = request.param
    folder = tmp_path_factory.mktemp(kind) / "pipeline"
    return kind, decoder_checkpoints.pipeline(folder, kind=kind)


load = functools.cache(lambda spec: load_encoder(spec, "cpu"))  # CLIP's vocabulary takes its time


@functools.cache
def parts_of(folder: Path) -> dict[str, Any]:
    """A pipeline's tokenizers and text encoders, loaded by transformers as its index would."""
    import transformers

    kinds = {
        "clip_text_model": transformers.CLIPTextModelWithProjection
        if (folder / "text_encoder_3").is_dir()
        else transformers.CLIPTextModel,
        "t5": transformers.T5EncoderModel,
    }
    found: dict[str, Any] = {}
    for part in sorted(folder.glob("text_encoder*")):
        kind = json.loads((part / "config.json").read_text())["model_type"]
        found[part.name] = kinds[kind].from_pretrained(part).eval()
        name = part.name.replace("text_encoder", "tokenizer")
        found[name] = transformers.AutoTokenizer.from_pretrained(folder / name)
    return found


def directly(kind: str, folder: Path, **more: Any) -> tuple[torch.Tensor, torch.Tensor]:
    rest = {"transformer": None, "vae": None, "scheduler": None}
    if kind == "sd3":
        pipe = diffusers.StableDiffusion3Pipeline(**parts_of(folder), **rest)
        tokens, _, pooled, _ = pipe.encode_prompt(
            PROMPTS, None, None, do_classifier_free_guidance=False, **more
        )
    else:
        pipe = diffusers.FluxPipeline(**parts_of(folder), **rest)
        tokens, pooled, _ = pipe.encode_prompt(PROMPTS, **more)
    return tokens, pooled


@pytest.mark.parametrize("length", [None, 20])
def test_equal_to_the_pipelines_own_encoding(built: Any, length: int | None) -> None:
    kind, folder = built
    more = {} if length is None else {"max_sequence_length": length}
    tokens, pooled = directly(kind, folder, device=torch.device("cpu"), **more)
    options = "" if length is None else f"&max_length={length}"
    encoder = load(f"pipeline:{folder}?recipe={kind}{options}")
    features = encoder.encode(PROMPTS)
    assert features.mask.all()  # neither pipeline masks anything
    same(features.tokens, tokens)
    same(features.pooled, pooled)
    expected = {"sd3": (77 + (length or 256), 24), "flux": (length or 512, 16)}[kind]
    assert (features.tokens.shape[1], pooled.shape[1]) == expected
    assert encoder.card.recipe == kind
    assert encoder.card.max_tokens == expected[0]


def test_own_vector_and_padding_count(built: Any) -> None:
    kind, folder = built
    tokens, pooled = directly(kind, folder, device=torch.device("cpu"), max_sequence_length=20)
    features = load(f"pipeline:{folder}?recipe={kind}&max_length=20").encode(PROMPTS)
    same(pool(features, "own"), pooled)
    same(pool(features, "mean"), tokens.mean(1))


def test_truncated_is_what_nothing_reads(built: Any) -> None:
    """CLIP reads 77 tokens; what it misses T5 may still read."""
    kind, folder = built
    prompts = ["dog", "dog " * 100, "dog " * 600]
    features = load(f"pipeline:{folder}?recipe={kind}").encode(prompts)
    assert features.truncated.tolist() == [False, False, True]
    short = load(f"pipeline:{folder}?recipe={kind}&max_length=20").encode(["dog " * 50])
    assert short.truncated.tolist() == [kind == "flux"]  # SD3's CLIPs read all of these


def test_recipe_is_that_of_the_pipelines_class(built: Any, tmp_path: Path) -> None:
    kind, folder = built
    assert load(f"pipeline:{folder}").card.recipe == kind
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    index = copy / "model_index.json"
    index.write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    refused(f"pipeline:{copy}", "PixArtSigmaPipeline of .* has no recipe here; add .recipe= with")
    index.unlink()
    refused(f"pipeline:{copy}", "names no class here; add .recipe= with one of sd3, flux")


def refused(spec: str, says: str) -> None:
    with pytest.raises(EncbenchError, match=says) as caught:
        load_encoder(spec, "cpu")
    assert "\n" not in str(caught.value)


def test_what_does_not_fit(built: Any, tmp_path: Path) -> None:
    kind, folder = built
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    refused(f"pipeline:{copy}?dtype=float16", "T5 overflows in float16")
    refused(f"pipeline:{copy}?layer=1", f"recipe={kind} says which layers")
    refused(f"pipeline:{copy}?recipe=sana", "recipe=sana does not fit 'pipeline:' encoders")
    refused(f"pipeline:{copy}?subfolder=text_encoder", "subfolder")
    if kind == "flux":
        refused(f"pipeline:{copy}?recipe=sd3", "needs a clip_text_model as text_encoder_2")
        (copy / "text_encoder_3").mkdir()
    else:
        refused(f"pipeline:{copy}?recipe=flux", "needs a t5 as text_encoder_2")
    shutil.rmtree(copy / "tokenizer_2")
    refused(f"pipeline:{copy}", f"recipe={kind} needs tokenizer_2, and .* has none")
    shutil.rmtree(copy / "text_encoder_2")
    refused(f"pipeline:{copy}", f"recipe={kind} needs text_encoder_2, and .* has none")


def test_clips_that_are_too_wide(built: Any, tmp_path: Path) -> None:
    kind, folder = built
    if kind != "sd3":
        pytest.skip("FLUX puts nothing side by side")
    import transformers

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    small = transformers.AutoConfig.from_pretrained(copy / "text_encoder_3")
    small.d_model = 32
    shutil.rmtree(copy / "text_encoder_3")
    transformers.T5EncoderModel(small).save_pretrained(copy / "text_encoder_3")
    refused(f"pipeline:{copy}", "are 40 wide together and do not fit into T5's 32")


def test_only_text_encoders_would_be_downloaded(built: Any) -> None:
    kind, folder = built
    spec = EncoderSpec.parse(f"pipeline:{folder}?recipe={kind}")
    family = family_of(spec)
    assert family.requires(spec) == [(str(folder), None)]
    before = family.resolve(spec)
    (folder / "transformer").mkdir(exist_ok=True)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"none of ours")
    assert family.resolve(spec) == before
