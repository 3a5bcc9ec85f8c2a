"""Sampling a checkpoint: an image depends on its prompt and seed alone."""

import json

import pytest
import torch
from PIL import Image

from encbench import cli
from encbench.errors import DataError, EncbenchError, UsageError
from encbench.flow.config import training_config
from encbench.flow.features import PromptFeatures
from encbench.flow.sample import (
    Instantaneous,
    Sampler,
    encoder_for,
    load_checkpoint,
    parse_steps,
    sample_images,
    text_prompts,
)
from encbench.flow.train import train

CPU = torch.device("cpu")
PROMPTS = (
    "a red circle",
    "a photo of a blue square and a green triangle on a black background with two red stars",
    "two stars",
    "a yellow star is left of a red circle",
)
SEEDS = (5, 7, 5, 2**62)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A few steps of large size, so that the condition and the steps matter."""
    out = tmp_path_factory.mktemp("sample") / "run"
    values = {
        "out": out, "world": "scenes-grid", "images": 64, "side": 16, "patch": 4, "steps": 20,
        "network": "dit-32x2x2", "batch": 16, "warmup": 1, "lr": 1e-2, "ema": 0.5,
        "encoder": "control:word-position?dim=16", "log_every": 0, "checkpoint_every": 0,
        "sample_every": 20, "sample_prompts": 2, "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    return train(training_config(values))


@pytest.fixture(scope="module")
def sampler(trained):
    model = load_checkpoint(trained.path, CPU)
    return Sampler(model, CPU, encode=encoder_for(model, CPU).alone)


def pixels(images):
    return [image.tobytes() for image in images]


def test_not_on_batch_order_or_neighbors(sampler):
    whole = pixels(sampler(PROMPTS, SEEDS))
    assert len(set(whole)) == 4
    assert pixels(sampler(PROMPTS[::-1], SEEDS[::-1])) == whole[::-1]
    assert [pixels(sampler([p], [s]))[0] for p, s in zip(PROMPTS, SEEDS, strict=True)] == whole
    many = [PROMPTS[i % 4] for i in range(37)]
    seeds = [SEEDS[i % 4] if i < 4 else i for i in range(37)]
    assert pixels(sampler(many, seeds))[:4] == whole


def test_on_prompt_seed_steps_and_guidance(sampler, trained):
    def once(prompt=PROMPTS[0], seed=5, **options):
        model = sampler.model
        texts = sampler.encode([prompt])
        made = sample_images(model.net, model.space, texts, [seed], device=CPU, **options)
        return made.float()

    base = once()
    for other in (once(prompt=PROMPTS[1]), once(seed=6), once(steps=1), once(guidance=3.0)):
        assert float((other - base).abs().mean()) > 0.5
    assert torch.equal(once(steps=(1.0, 0.75, 0.5, 0.25, 0.0)), base)
    assert float((once(batch=3) - base).abs().max()) <= 1  # another batch size: rounding only
    ema, raw = (load_checkpoint(trained.path, CPU, w).fingerprint for w in ("ema", "model"))
    assert ema != raw


def test_a_parent_is_asked_for_its_velocity(trained):
    parent, final = load_checkpoint(trained.parent, CPU), load_checkpoint(trained.path, CPU)
    assert isinstance(parent.net, Instantaneous)
    assert not isinstance(final.net, Instantaneous)
    z, cond = torch.randn(2, 3, 16, 16), [PromptFeatures(torch.randn(4, 16), None)] * 2
    from encbench.flow.features import Bank

    condition = Bank.of(cond).conditions(torch.arange(2).numpy(), CPU)
    t = torch.tensor([0.9, 0.5])
    one = parent.net(z, torch.zeros(2), t, condition)
    assert torch.equal(one, parent.net.net(z, t, t, condition))
    assert not torch.equal(one, parent.net.net(z, torch.zeros(2), t, condition))


def test_the_grid_of_a_training(trained):
    (grid,) = (trained.path.parent / "samples").glob("*.png")
    with Image.open(grid) as image:
        assert image.width > 4 * 96
        assert image.height > 2 * 96


def test_no_images_of_no_prompts(sampler):
    assert sampler([], []) == []


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["sample", *map(str, arguments)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, " ".join(shown.err.split())

    return call


def test_the_command_writes_genevals_layout(run, trained, tmp_path, monkeypatch):
    prompts = tmp_path / "p.jsonl"
    rows = [
        {"tag": "colors", "include": [{"class": "circle", "count": 1, "color": "red"}],
         "prompt": "a photo of a red circle"},
        {"tag": "single_object", "include": [{"class": "star", "count": 1}],
         "prompt": "a photo of a star"},
    ]  # fmt: skip
    prompts.write_text("\n".join(map(json.dumps, rows)))
    common = (
        trained.path.parent,
        "--prompts",
        prompts,
        "--images-per-prompt",
        3,
        "--device",
        "cpu",
    )
    code, out, err = run(*common, "--out", tmp_path / "one", "--steps", "2")
    assert code == 0, err
    assert "6 new images" in out
    files = {p.relative_to(tmp_path / "one"): p for p in (tmp_path / "one").rglob("*.png")}
    assert len(files) == 6
    assert json.loads((tmp_path / "one" / "00001" / "metadata.jsonl").read_text()) == rows[1]
    assert run(*common, "--out", tmp_path / "one", "--steps", "2")[1].startswith("0 new images")
    code, _, err = run(*common, "--out", tmp_path / "one", "--steps", "4")
    assert (code, "images of another model" in err) == (1, True), err
    monkeypatch.setenv("WORLD_SIZE", "2")
    made = []
    for rank in ("1", "0"):  # two processes, one after the other
        monkeypatch.setenv("RANK", rank)
        made.append(run(*common, "--out", tmp_path / "two", "--steps", "2")[1][0])
    assert made == ["3", "3"]
    for name, path in files.items():
        assert (tmp_path / "two" / name).read_bytes() == path.read_bytes()


def test_bad_input_is_one_line(run, trained, tmp_path):
    folder, out = trained.path.parent, ["--out", tmp_path / "o", "--device", "cpu"]
    (tmp_path / "model.pt").write_bytes(b"x")
    for arguments, status, said in (
        ([tmp_path / "none", "--prompts", "a"], 1, "holds no checkpoint"),
        ([tmp_path / "model.pt", "--prompts", "a"], 1, "pickled file"),
        ([folder, "--prompts", "a", "--steps", "x"], 2, "--steps must be a number of steps"),
        ([folder, "--prompts", "a", "--steps", "0"], 2, "at least 1 step"),
        ([folder, "--prompts", tmp_path / "no.txt"], 1, "cannot read"),
        ([folder, "--prompts", "a", "--weights", "best"], 2, "known: ema, model"),
        (
            [folder, "--prompts", "a", "--encoder", "control:word-position?dim=24"], 1,
            "does not fit this checkpoint: it gives features of width 24, and the model takes "
            "width 16",
        ),
        (
            [folder, "--prompts", "a", "--encoder", "control:word-position?dim=16&seed=1"], 1,
            "has other weights",
        ),
    ):  # fmt: skip
        code, _, err = run(*arguments, *out)
        assert (code, said in err, err.count("encbench: ")) == (status, True, 1), err


def test_small_pieces(tmp_path, sampler):
    assert parse_steps("4") == 4
    assert parse_steps("1,.8,.4,0") == (1.0, 0.8, 0.4, 0.0)
    with pytest.raises(UsageError):
        parse_steps("four")
    (tmp_path / "p.txt").write_text("a red circle\n\n two stars \n")
    assert [p.text for p in text_prompts(str(tmp_path / "p.txt"))] == ["a red circle", "two stars"]
    with pytest.raises(DataError, match="holds no prompt"):
        text_prompts(" ")
    with pytest.raises(EncbenchError, match="does not fit"):
        encoder_for(sampler.model, CPU, "control:random?dim=8")
