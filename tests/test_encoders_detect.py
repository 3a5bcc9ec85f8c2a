"""Bare hub ids and folders: which family is taken, what is said, and what is refused."""

import json
import logging
from pathlib import Path

import checkpoints
import decoder_checkpoints
import pytest

from encbench.cli import main
from encbench.config import RunConfig
from encbench.data.hub import ResolvedModel
from encbench.encoders import detect, load_encoder
from encbench.encoders.detect import complete_spec
from encbench.errors import ModelError, UsageError
from encbench.estimate import plan_run
from encbench.pipeline import specs_of

MADE = {
    "t5": lambda folder: checkpoints.t5(folder, kind="umt5"),
    "clip": checkpoints.clip,
    "st": checkpoints.sentence_bert,
    "gemma": lambda folder: decoder_checkpoints.gemma(folder, kind="gemma3_text"),
    "causal": decoder_checkpoints.qwen3,
    "blip3o": decoder_checkpoints.blip3o,
}


@pytest.fixture(autouse=True)
def _forget() -> None:
    complete_spec.cache_clear()


@pytest.mark.parametrize("family", MADE)
def test_a_folder_finds_its_family(tmp_path: Path, family: str) -> None:
    folder = MADE[family](tmp_path / "model")
    assert complete_spec(str(folder)) == f"{family}:{folder}"
    assert complete_spec(f"{folder}?layer=0") == f"{family}:{folder}?layer=0"
    assert load_encoder(str(folder), "cpu").card.family == family


def test_types_that_only_a_library_s_lists_know(tmp_path: Path) -> None:
    for kind, family in (
        ("bert", "st"),
        ("modernbert", "st"),
        ("llama", "causal"),
        ("qwen2_5_vl", "causal"),
        ("internvl_chat", "causal"),
        ("clip_text_model", "clip"),
        ("gemma2", "gemma"),
    ):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": kind}))
        assert complete_spec(f"{tmp_path}/{kind}") == f"{family}:{tmp_path}/{kind}"
    (tmp_path / "sd3").mkdir()
    (tmp_path / "sd3" / "model_index.json").write_text("{}")
    assert complete_spec(f"{tmp_path}/sd3") == f"pipeline:{tmp_path}/sd3"
    part = tmp_path / "sd3" / "text_encoder_3"
    part.mkdir()
    (part / "config.json").write_text(json.dumps({"model_type": "t5"}))
    text = f"{tmp_path}/sd3?subfolder=text_encoder_3"
    assert complete_spec(text) == f"t5:{text}"


def test_a_hub_id_says_what_it_is_read_as_and_how_to_pin_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = checkpoints.t5(tmp_path / "model")

    def resolve(source: str, revision: str | None, **more: object) -> ResolvedModel:
        assert source == "google/flan-t5-xl"
        return ResolvedModel(folder, "a" * 40)

    monkeypatch.setattr(detect, "resolve_model", resolve)
    with caplog.at_level(logging.INFO, "encbench"):
        config = RunConfig(encoders=("google/flan-t5-xl?layer=normavg",))
        assert str(specs_of(config)[0]) == "t5:google/flan-t5-xl?layer=normavg"
        specs_of(config)
    (record,) = caplog.records
    assert record.getMessage() == (
        "google/flan-t5-xl?layer=normavg is read as 't5:google/flan-t5-xl?layer=normavg'; to pin "
        f"it, write 't5:google/flan-t5-xl@{'a' * 40}?layer=normavg'"
    )


def test_what_names_a_family_or_nothing_is_left_as_it_is(tmp_path: Path) -> None:
    for text in ("zoo:mini-t5", "st:./model", "unknown:a/b", "control:shuffle(st:a/b)", "word"):
        assert complete_spec(text) == text
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match=r"cannot tell the family .*\(model_type 'vit'\); write"):
        complete_spec(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"lacks config\.json"):
        complete_spec(str(tmp_path))


# ----------------------------------------------------------------------------- dry runs


def test_a_dry_run_names_a_wrong_option_or_family() -> None:
    config = RunConfig(encoders=("zoo:mini-t5?poool=own", "zzz:a/b", "st:a/b?pooling=own"))
    problems = [row.problem for row in plan_run(config).encoders]
    assert "unknown option of 'zoo:' encoders 'poool'; did you mean pool" in problems[0]
    assert "unknown encoder 'zzz'" in problems[1]
    assert "unknown option of 'st:' encoders 'pooling'; did you mean pool" in problems[2]


def test_a_device_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.backends.mps.is_available():
        pytest.skip("this machine has MPS")
    with pytest.raises(SystemExit) as done:
        main(["run", "--encoders", "zoo:mini-t5", "--device", "mps", "--dry-run"])
    assert done.value.code == UsageError.exit_code
    said = capsys.readouterr().err
    assert "--device mps: this machine has no usable MPS device" in said
    assert "Traceback" not in said
