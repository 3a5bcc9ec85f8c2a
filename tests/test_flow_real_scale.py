"""The real-scale path with tiny random checkpoints in published form: an image folder, a T5 or
CLIP encoder, a SANA backbone or a DiT in the latents of its autoencoder, a few steps, samples in
GenEval's layout."""

import json

import pytest
import torch
from checkpoints import clip, t5
from flow_checkpoints import sana
from PIL import Image
from safetensors.torch import load_file

from encbench import cli
from encbench.flow import checkpoint as files
from encbench.flow.meters import read_log

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return sana(tmp_path_factory.mktemp("sana") / "sana", side=8)


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([*map(str, arguments)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, " ".join(shown.err.split())

    return call


@pytest.fixture
def folder(tmp_path, shared):
    """Real photographs with captions in a list, one of them broken."""
    data = json.loads(next((shared / "coco" / "annotations").glob("captions_*.json")).read_text())
    home = tmp_path / "images"
    home.mkdir()
    told = {row["image_id"]: row["caption"] for row in data["annotations"]}
    paths = sorted((shared / "coco").rglob("*.jpg"))[:6]
    rows = [{"file_name": p.name, "text": told[int(p.stem)]} for p in paths]
    for path in paths:
        (home / path.name).write_bytes(path.read_bytes())
    (home / rows[0]["file_name"]).write_bytes(b"broken")
    (home / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return home


TINY = (
    "--preset", "latent-256", "--side", 32, "--steps", 4, "--batch", 4, "--warmup", 1,
    "--log-every", 1, "--checkpoint-every", 2, "--sample-every", 4, "--sample-prompts", 2,
    "--no-compile", "--device", "cpu",
)  # fmt: skip


@pytest.mark.parametrize(
    ("encoder", "network"), [("t5", "sana"), ("clip", "dit")], ids=["t5-sana", "clip-dit"]
)
def test_from_an_image_folder_to_genevals_layout(run, tmp_path, backbone, folder, encoder, network):
    text = {"t5": t5, "clip": clip}[encoder](tmp_path / encoder)
    named = f"sana:{backbone}" if network == "sana" else "dit-16x1x1"
    common = (
        "train", *TINY, "--folder", folder, "--autoencoder", backbone, "--network", named,
        "--encoder", f"{encoder}:{text}", "--store", tmp_path / "store",
        *(("--trainable", "emf") if network == "sana" else ()),
    )  # fmt: skip
    code, out, err = run(*common, "--out", tmp_path / "plan", "--dry-run")
    assert code == 0, err
    assert "4 x 8 x 8" in out
    assert "TFLOP a step" in out
    assert not (tmp_path / "plan").exists()
    code, out, err = run(*common, "--out", tmp_path / "run")
    assert code == 0, err
    assert "trained 4 steps" in out
    assert "broken image 1" in err
    rows = read_log(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["stage"] for row in rows] == ["flow-matching"] * 2 + ["emf"] * 2
    parent, final = (load_file(tmp_path / "run" / p / "model.safetensors") for p in
                     ("parent", "final"))  # fmt: skip
    moved = {name for name in final if not torch.equal(final[name], parent[name])}
    assert any(name.startswith("connector.") for name in moved)
    if network == "sana":
        assert any("transformer_blocks" in name for name in moved)
        assert not any("patch_embed" in name or "proj_out" in name for name in moved)
    state = files.read_state(tmp_path / "run" / "final")
    assert state.encoder.pooled == (24 if encoder == "clip" else 0) or network == "sana"
    assert list((tmp_path / "store").rglob("*.latents.safetensors"))

    prompts = tmp_path / "p.jsonl"
    row = {"tag": "single_object", "include": [{"class": "dog", "count": 1}],
           "prompt": "a photo of a dog"}  # fmt: skip
    prompts.write_text(json.dumps(row))
    code, out, err = run("sample", tmp_path / "run", "--prompts", prompts, "--steps", 2, "--out",
                         tmp_path / "images2", "--images-per-prompt", 2, "--guidance", 2,
                         "--device", "cpu")  # fmt: skip
    assert code == 0, err
    made = sorted((tmp_path / "images2").rglob("*.png"))
    assert [p.name for p in made] == ["0000.png", "0001.png"]
    with Image.open(made[0]) as image:
        assert image.size == (32, 32)


def test_an_autoencoder_of_other_channels_is_told(run, tmp_path, backbone, folder):
    from flow_checkpoints import dc

    other = dc(tmp_path / "dc", channels=6)
    code, _, err = run(
        "train", *TINY, "--folder", folder, "--autoencoder", other, "--network",
        f"sana:{backbone}", "--encoder", "control:random?dim=8", "--out", tmp_path / "run",
        "--store", tmp_path / "store",
    )  # fmt: skip
    assert (code, "works on latents of 4 channels, and these have 6" in err) == (2, True), err
