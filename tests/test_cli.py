"""The command line: help, several values, TOML, one line for each mistake."""

import errno
import os
import subprocess
import sys
import tempfile
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import typer

from encbench.cli import COMMANDS, main
from encbench.commands.options import options_page, spread
from encbench.config import RunConfig, run_config
from encbench.errors import UsageError


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys):
    """Run a command line in this process: exit status, standard output, standard error."""

    def call(*words: str) -> Done:
        with pytest.raises(SystemExit) as caught:
            main(list(words))
        out, err = capsys.readouterr()
        return Done(caught.value.code or 0, out, err)

    return call


@pytest.fixture
def fails(run):
    """The one line of an error; checks that it is one line."""

    def call(*words: str) -> str:
        done = run(*words)
        assert done.code != 0, done.out
        lines = [line for line in done.err.splitlines() if line.startswith("encbench: ")]
        assert len(lines) == 1, done.err
        return lines[0]

    return call


def test_several_values_after_one_flag():
    assert spread(["run", "--encoders", "a:b", "c:d", "--seed", "3"], {"--encoders"}) == [
        "run", "--encoders=a:b", "--encoders=c:d", "--seed", "3",
    ]  # fmt: skip
    assert spread(["--layers", "-1", "-2", "--ks", "1", "2"], {"--layers", "--ks"}) == [
        "--layers=-1", "--layers=-2", "--ks=1", "--ks=2",
    ]  # fmt: skip
    assert spread(["--encoders=x:y", "--", "--encoders", "z"], {"--encoders"}) == [
        "--encoders=x:y", "--", "--encoders", "z",
    ]  # fmt: skip


def commands() -> list[tuple[str, ...]]:
    """Every command and subcommand of the command line, as words."""
    found: list[tuple[str, ...]] = []
    for name in COMMANDS:
        command = typer.main.get_command(import_module(f"encbench.commands.{name}").app)
        below = getattr(command, "commands", {})
        found += [(name, each) for each in below] or [(name,)]
    return found


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help(words, run):
    """Each says what it does, and each of its options says what it is for."""
    command = typer.main.get_command(import_module(f"encbench.commands.{words[0]}").app)
    command = getattr(command, "commands", {"": command})[" ".join(words[1:])]
    done = run(*words, "--help")
    assert done.code == 0
    assert f"encbench {' '.join(words)}" in " ".join(done.out.split())
    assert summary_words(command.help) <= set(done.out.split())
    assert all(getattr(parameter, "help", "") for parameter in command.params)
    lines = [line.strip() for line in done.out.split("╭")[0].splitlines()]
    assert all(len(a) > 55 for a, b in pairwise(lines) if a and b), "paragraphs are filled"


def summary_words(text: str) -> set[str]:
    return set(text.split("\n")[0].split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [("encbench ra", "rank"), ("encbench rank --ru", "--rule"), ("encbench geneval ga", "gallery")],
)
def test_completion_in_bash_and_zsh(words, offered):
    for shell in ("bash", "zsh"):
        more = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        more |= {"_ENCBENCH_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
        done = subprocess.run(
            [sys.executable, "-m", "encbench"], env=os.environ | more, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert offered in done.stdout


def test_the_help_says_what_each_command_says(run):
    """The summaries are read from the sources, without importing the commands."""
    shown = " ".join(run("--help").out.replace("│", " ").split())
    for name in COMMANDS:
        command = typer.main.get_command(import_module(f"encbench.commands.{name}").app)
        assert " ".join(command.help.split("\n\n")[0].split()) in shown


def test_a_first_run_says_what_it_does_and_how_long_it_takes(monkeypatch, run, tmp_path):
    def stop(config: RunConfig) -> None:
        raise UsageError("enough")

    monkeypatch.setattr("encbench.pipeline.run", stop)
    done = run("run", "--out", str(tmp_path))
    assert done.code == 2
    assert "zoo:mini-clip" in done.out
    assert "computing: " in done.out


def test_the_page_of_options_is_that_of_the_code():
    page = Path(__file__).parents[1] / "docs" / "options.md"
    assert page.read_text() == options_page(), "the page says how it is made"


def test_mistakes_are_one_line(tmp_path, fails):
    assert "No such command 'rnu'" in fails("rnu")
    assert "--sed" in fails("run", "--sed", "3")
    assert "Missing argument 'out'" in fails("rank")
    assert "did you mean st" in fails("run", "--encoders", "sf:x", "--out", str(tmp_path))
    assert "is not an encoder; write family:source" in fails("run", "--encoders", "minilm")
    assert "unknown preset 'emff'; did you mean emf?" in fails("run", "--preset", "emff")
    assert "no records under" in fails("rank", str(tmp_path))
    assert "prediction.json" in fails("report", str(tmp_path))
    line = fails("run", "--encoders", "control:constant", "--probes", "retrievel", "--limit", "5")
    assert "unknown probe 'retrievel'; did you mean retrieval" in line
    assert "above 0 and below 1, not 0.0" in fails("run", "--shares", "0", "0.5")


def test_toml_has_the_keys_of_the_flags(tmp_path, run, fails):
    path = tmp_path / "run.toml"
    path.write_text('encoders = ["control:constant"]\nqueries = 7\nre-encoder = "none"\n')
    done = run("run", "--config", str(path), "--dry-run")
    assert done.code == 0, done.err
    assert "constant" in done.out
    path.write_text("querys = 7\n")
    assert "unknown key 'querys'; did you mean queries" in fails("run", "--config", str(path))
    path.write_text("queries = \n")
    assert "is not valid TOML" in fails("run", "--config", str(path))
    assert "cannot read" in fails("run", "--config", str(tmp_path / "none.toml"))


def test_values_become_a_configuration():
    made = run_config({"encoders": ["a:b"], "ks": [1, 3], "coco": "x", "seed": None})
    assert made.encoders == ("a:b",)
    assert made.ks == (1, 3)
    assert made.seed == RunConfig().seed
    with pytest.raises(UsageError, match="unknown configuration key 'foo'"):
        run_config({"foo": 1})
    with pytest.raises(UsageError, match=r"--ks.* must be a whole number"):
        run_config({"ks": ["many"]})


def test_list_and_doctor_say_what_is_there(run):
    for what, names in (
        ("encoders", ("clip", "control", "python", "st", "t5", "max_length")),
        ("re-encoders", ("dinov2", "dinov3", "labels", "pixels")),
        ("probes", ("ablation", "diagnostics", "retrieval")),
        ("presets", ("run --preset emf", "train --preset scenes-cpu", "confirm --preset full")),
        ("reports", ("default",)),
    ):
        done = run("list", what)
        assert done.code == 0
        assert all(name in done.out for name in names)
    done = run("doctor")
    assert "faiss wheel" in done.out
    assert done.code == 0, done.out


def test_a_reader_that_leaves_early_is_no_error():
    command = [sys.executable, "-m", "encbench", "list"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_a_dry_run_counts_what_its_probes_encode(run, tmp_path):
    """The reader has texts of its own; it reads neither captions nor long prompts."""
    words = tmp_path / "captions.txt"
    words.write_text("".join(f"a thing of kind {n}\n" for n in range(50)))
    common = ("--encoders", "zoo:mini-clip", "--captions", str(words), "--dry-run")
    alone = run("run", *common, "--probes", "reader")
    both = run("run", *common, "--probes", "reader", "retrieval")
    assert "  0 captions, 0 images, 0 long prompts; about 28,800 tokens" in alone.out
    assert "none: no images, or no probe that reads them" in alone.out
    assert "  50 captions" in both.out
    assert "0.00 TFLOP/s" not in both.out


def test_every_number_of_the_readme_s_first_command_is_known_offline(run, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    command = readme.split("encbench run --out runs/first ")[1].split("```")[0]
    said = run("run", *command.replace("\\\n", " ").split(), "--dry-run").out
    assert said.count("M parameters") >= 3
    assert "unknown" not in said
    assert "not known" not in said


def test_the_papers_preset_is_planned_offline(run):
    done = run("run", "--preset", "emf", "--dry-run")
    assert done.code == 0
    for said in ("clip:ViT-L-14/openai", "to download: 1.7 GB", "dinov3", "591,753 captions"):
        assert said in done.out
    assert "COCO train2017 is needed" in done.out
    assert "missing" not in done.out


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "finished work is kept, go on with: encbench doctor"),
        (SystemExit(0), 1, "called sys.exit(0)"),
        (SystemExit("bye"), 1, "called sys.exit('bye')"),
        (MemoryError(), 1, "out of memory"),
        (OSError(errno.ENOSPC, "full", "x"), 1, "the disk is full"),
    ],
)
def test_what_ends_a_command_is_one_line_and_never_a_success(
    monkeypatch, fails, run, raised, code, said
):
    """Ctrl-C in the middle of the work says how to go on; sys.exit(0) in foreign code fails."""
    from encbench import doctor

    def examine() -> None:
        raise raised

    monkeypatch.setattr(doctor, "examine", examine)
    assert run("doctor").code == code
    assert said in fails("doctor")


@pytest.mark.parametrize(
    "raised", [KeyError("x"), RuntimeError("two\nlines"), AssertionError(), RecursionError("deep")]
)
def test_a_bug_of_ours_is_one_line_and_its_traceback_is_kept(
    monkeypatch, tmp_path, run, fails, raised
):
    from encbench import doctor

    def examine() -> None:
        raise raised

    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("doctor").code == 1
    line = fails("doctor")
    assert line.startswith("encbench: internal error, please report it: ")
    assert type(raised).__name__ in line
    path = Path(line.partition("(traceback: ")[2].rstrip(")"))
    assert path.parent == tmp_path
    assert "in examine" in path.read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert "cannot be written" in fails("doctor")


@pytest.mark.parametrize("argument", ["st:/models/\udcff", "\udce9t\udce9", "a\ud800b"])
@pytest.mark.parametrize("flag", ["--encoders", "--out", "--coco", "--config"])
def test_names_that_are_not_utf8_are_refused_before_any_work(fails, flag, argument):
    assert f"{argument!a} is not UTF-8; rename" in fails("run", flag, argument)
