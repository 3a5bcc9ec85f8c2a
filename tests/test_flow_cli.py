"""``encbench train``: help, plan, presets with files and flags over them, bad input in one line."""

import json

import pytest

from encbench import cli
from encbench.flow import checkpoint as files

TINY = (
    "--world", "scenes-grid", "--images", 40, "--side", 8, "--patch", 4, "--network", "dit-16x1x1",
    "--steps", 4, "--batch", 8, "--warmup", 1, "--encoder", "control:word-position?dim=16",
    "--sample-prompts", 1, "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *map(str, arguments)])
        shown = capsys.readouterr()
        return ended.value.code, shown.out, " ".join(shown.err.split())

    return call


def test_help_teaches(run):
    code, out, _ = run("--help")
    assert code == 0
    for word in ("--preset", "scenes-cpu", "--encoder", "--flow-matching", "--dry-run", "parent"):
        assert word in out


def test_the_plan_costs_nothing_and_says_what_it_costs(run, tmp_path):
    code, out, err = run("--preset", "scenes-cpu", "--out", tmp_path / "run", "--dry-run")
    assert code == 0, err
    for word in ("20,000 scenes", "M parameters", "TFLOP a step", "GB", "time", "then emf"):
        assert word in out
    assert not (tmp_path / "run").exists()
    code, out, err = run("--preset", "latent-256", "--encoder", "t5:google/t5-v1_1-xxl",
                         "--autoencoder", tmp_path, "--dry-run")  # fmt: skip
    assert (code, "holds none of vae/config.json" in err) == (1, True), err


def test_flags_over_toml_over_preset(run, tmp_path):
    (tmp_path / "c.toml").write_text('preset = "scenes-cpu"\nsteps = 3\nbatch = 4\nlr = 0.01\n')
    out = tmp_path / "run"
    code, said, err = run("--config", tmp_path / "c.toml", *TINY, "--out", out)
    assert code == 0, err
    assert "trained 4 steps" in said
    held = json.loads((out / "config.json").read_text())
    assert (held["steps"], held["batch"], held["lr"]) == (4, 8, 0.01)
    assert held["checkpoint_every"] == 200  # of the preset
    assert files.read_state(out / "final").step == 4
    code, _, err = run("--config", tmp_path / "c.toml", *TINY, "--lr", 0.02, "--out", out)
    assert (code, "--lr was 0.01, is 0.02" in err) == (2, True), err


def test_bad_input_is_one_line(run, tmp_path):
    (tmp_path / "bad.toml").write_text("stepps = 3\n")
    for arguments, status, said in (
        (["--preset", "scenes"], 2, "unknown preset 'scenes'"),
        (["--config", tmp_path / "bad.toml"], 2, "unknown key 'stepps'"),
        ([*TINY, "--objective", "emff"], 2, "unknown --objective 'emff'; did you mean emf"),
        ([*TINY, "--encoder", "nothing:x"], 2, "unknown encoder 'nothing'"),
        ([*TINY, "--world", "scenery"], 2, "unknown world 'scenery'"),
        ([*TINY, "--network", "dit-2m"], 2, "unknown network 'dit-2m'; known: dit-1m"),
        ([*TINY, "--patch", 3], 2, "not a multiple of patch 3"),
        ([*TINY, "--objective", "pmf", "--prediction", "u"], 2, "pmf needs a network"),
        ([*TINY, "--folder", tmp_path / "none"], 1, "there is no folder"),
    ):
        code, _, err = run(*arguments, "--out", tmp_path / "run")
        assert (code, said in err, err.count("encbench: ")) == (status, True, 1), err
