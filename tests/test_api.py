"""The Python interface: objects and specs in, a ranking out; the list of public names."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import encbench
from encbench.encoders import load_encoder
from encbench.encoders.python import add_object
from encbench.errors import (
    DataError,
    EncoderOutputError,
    ModelError,
    UnknownNameError,
    UsageError,
)
from encbench.types import EncoderCard, TextFeatures
from encbench.validate import OutcomesError

PUBLIC = {
    "Ranking", "__version__", "confirm_ranking", "run", "sample", "score_images", "train",
    "validate_scores",
}  # fmt: skip


class CountLetters:
    """How often each of 26 letters is in a prompt; a token for each word."""

    card = EncoderCard("", "", "", revision="1", dim=26, max_tokens=99)

    def encode(self, prompts):
        words = [prompt.lower().split() or [""] for prompt in prompts]
        tokens = torch.zeros(len(prompts), max(map(len, words)), 26)
        mask = torch.zeros(tokens.shape[:2], dtype=torch.bool)
        for i, row in enumerate(words):
            mask[i, : len(row)] = True
            for j, word in enumerate(row):
                for letter in word:
                    if "a" <= letter <= "z":
                        tokens[i, j, ord(letter) - ord("a")] += 1
        return TextFeatures(tokens, mask, torch.zeros(len(prompts), dtype=torch.bool))


SMALL = {"probes": ("retrieval",), "limit": 12, "re_encoder": "labels", "ks": (1, 2)}


def test_the_public_names():
    assert set(encbench.__all__) == PUBLIC
    page = (Path(__file__).parents[1] / "docs" / "api.md").read_text()
    for name in PUBLIC - {"__version__"}:
        assert getattr(encbench, name).__doc__, name
        assert f"encbench.{name}" in page, name
        signature = inspect.signature(getattr(encbench, name))
        assert signature.return_annotation is not inspect.Parameter.empty
        for parameter in signature.parameters.values():
            assert parameter.annotation is not inspect.Parameter.empty, (name, parameter)
    assert set(dir(encbench)) >= PUBLIC
    with pytest.raises(AttributeError, match="no attribute 'rank_all'"):
        _ = encbench.rank_all


def test_importing_loads_no_model_library():
    code = "import sys, encbench; print(sorted({'torch', 'pandas', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_objects_and_specs_are_ranked_together(tmp_path):
    ranking = encbench.run(
        [CountLetters(), "control:bag-of-words"], out=tmp_path / "run", data="scenes", **SMALL
    )
    frame = ranking.to_frame()
    assert {"spec", "value", "low", "high", "rank", "control"} <= set(frame.columns)
    mine = frame[frame.spec == "python:object:CountLetters"].iloc[0]
    assert (mine["rank"], mine["control"]) == (1, False)
    assert len(frame) == 7  # it, its shuffle and the five controls
    assert (tmp_path / "run" / "prediction.json").exists()
    assert (tmp_path / "run" / "store").is_dir()  # not in the store that other runs share
    labels = [label.get_text() for label in ranking.plot().axes[0].get_yticklabels()]
    assert labels[-1] == frame.iloc[0]["name"]
    page = ranking.report(tmp_path / "page")
    assert "CountLetters" in page.read_text()


def test_without_out_nothing_stays():
    """In a process without the tests' type checks, whose frames hold what a function returns."""
    code = f"""import encbench
ranking = encbench.run(["zoo:mini-clip"], data="scenes", **{SMALL!r})
folder = ranking.folder
assert (folder / "prediction.json").exists()
del ranking
print("left" if folder.exists() else "gone")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "gone"


def test_captions_and_prompts_from_lists():
    captions = [["a cat", "one cat"], ["a red boat", "a boat, red"], ["trees", "some trees"]]
    ranking = encbench.run(
        [CountLetters()], captions=captions, prompts=["a cat beside a boat", "two dogs"], ks=(1,),
        probes=("retrieval", "ablation"), pools=(), draws=1, shares=(0.5,), units=("words",),
        places=("anywhere",), device="cpu",
    )  # fmt: skip
    assert ranking.prediction.data["retrieval"].startswith("captions@")
    (row,) = ranking.to_frame().query("not control").itertuples()
    assert row.n == 3  # one query of each group
    with pytest.raises(DataError, match="no two captions"):
        encbench.run([CountLetters()], captions=[["a cat"], ["a dog"]])


def test_images_are_scored(tmp_path, outside):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "1.png")
    (tmp_path / "captions.jsonl").write_text('{"file_name": "1.png", "text": "snow"}\n')
    record = encbench.score_images(tmp_path, ["brightness"], device="cpu")
    assert record.metrics[0].scores["overall"].value == 1
    assert not (tmp_path / "scores.json").exists()


def test_scores_are_validated(tmp_path):
    found = encbench.validate_scores("emf")
    assert found.rows[0].encoders >= 4
    with pytest.raises(OutcomesError, match="no records"):
        encbench.validate_scores("emf", runs=[tmp_path])
    with pytest.raises(UsageError, match="is not like"):
        encbench.validate_scores("emf", cell="steps=4")


def test_an_object_has_one_name_here_and_none_elsewhere():
    one, other = CountLetters(), CountLetters()
    spec = add_object(one)
    assert add_object(one) == spec != add_object(other)
    loaded = load_encoder(str(spec), torch.device("cpu"))
    np.testing.assert_array_equal(loaded.encode(["ab"]).tokens[0, 0, :3], [1, 1, 0])
    with pytest.raises(ModelError, match="existed in another process"):
        load_encoder("python:object:Gone", torch.device("cpu"))
    for wrong in (CountLetters,):
        with pytest.raises(EncoderOutputError, match="not an encoder"):
            add_object(wrong)


def test_a_wrong_option_is_one_line(tmp_path):
    with pytest.raises(UnknownNameError, match="'limits'; did you mean limit"):
        encbench.run(["zoo:mini-clip"], out=tmp_path, limits=3)


def test_train_and_sample(tmp_path):
    result = encbench.train(
        "control:word-position?dim=16", tmp_path / "t", preset="scenes-cpu", network="dit-32x2x2",
        side=16, steps=2, batch=4, sample_every=0, checkpoint_every=0, images=64, captions=1,
        store=tmp_path / "store", device="cpu",
    )  # fmt: skip
    assert result.steps == 2
    images = encbench.sample(tmp_path / "t", ["a red circle", "a star"], steps=1, device="cpu")
    assert [(type(image), image.size) for image in images] == [(Image.Image, (16, 16))] * 2
    again = encbench.sample(tmp_path / "t", ["a red circle"], steps=1, device="cpu")
    assert again[0].tobytes() == images[0].tobytes()
