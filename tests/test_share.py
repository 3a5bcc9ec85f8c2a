"""Records and models go to the hub and come back, and only when that is asked for."""

import json
import shutil

import pytest
from fake_hub import REPO
from fake_run import FOUR, build
from test_hub import server  # noqa: F401  a fixture

from encbench.board import merge_runs
from encbench.cli import main
from encbench.errors import DataError, DownloadError, RecordError, UsageError
from encbench.files import digest_files
from encbench.records import find_records
from encbench.share import plan_upload, pull, push


@pytest.fixture
def hub(server):  # noqa: F811
    """The stand-in, without any repository."""
    server.files.clear()
    server.refs.clear()
    return server


@pytest.fixture
def cli(capsys):
    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([*map(str, words)])
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return call


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    made = [build(home / "alice", FOUR[:2]), build(home / "bob", FOUR[2:])]
    (made[0] / "report").mkdir(exist_ok=True)
    (made[0] / "report" / "index.html").write_text("a page")
    return made


def test_nothing_is_sent_unless_it_is_asked_for(hub, cli, runs):
    code, out, err = cli("push", runs[0], "--to", REPO)
    assert code == 2
    assert "nothing was uploaded: add --upload" in err
    code, out, _ = cli("push", runs[0], "--to", REPO, "--dry-run", "--upload")
    assert code == 0
    assert "alice/prediction.json" in out
    assert f"would go to the dataset {REPO}" in out
    assert hub.requests == []


def test_runs_of_two_people_make_the_board_of_their_own_folders(hub, cli, runs, tmp_path):
    for run in runs:
        code, out, err = cli("push", run, "--to", REPO, "--upload")
        assert code == 0, err
        assert "/commit/" in out
    assert hub.created["type"] == "dataset"
    assert hub.created["visibility"] == "private"
    held = hub.files[hub.refs["main"]]
    assert not any("report" in name for name in held)
    code, out, err = cli("pull", REPO, "--to", tmp_path / "in")
    assert code == 0, err
    assert out.split() == [str(tmp_path / "in" / name) for name in ("alice", "bob")]
    pulled = merge_runs([tmp_path / "in" / name for name in ("alice", "bob")])
    assert [row.ranked for row in pulled.rows] == [row.ranked for row in merge_runs(runs).rows]

    assert len(pull(REPO, tmp_path / "in")) == 2  # what is there already stays
    next(iter(find_records(tmp_path / "in" / "bob"))).unlink()
    with pytest.raises(DataError, match="bob is there and holds something else"):
        pull(REPO, tmp_path / "in")


def test_a_run_is_overwritten_only_when_that_is_asked_for(hub, runs, tmp_path):
    run = tmp_path / "alice"
    shutil.copytree(runs[0], run)
    push(plan_upload(run, REPO))
    gone = find_records(run)[0]
    gone.unlink()
    with pytest.raises(DownloadError, match=r"already holds alice/.*--replace"):
        push(plan_upload(run, REPO))
    push(plan_upload(run, REPO, "another"))
    push(plan_upload(run, REPO), replace=True)
    held = hub.files[hub.refs["main"]]
    assert f"alice/{gone.relative_to(run).as_posix()}" not in held
    assert "another/prediction.json" in held


def test_an_exported_model_comes_back_byte_for_byte(hub, cli, tmp_path):
    folder = tmp_path / "mine"
    (folder / "transformer").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"format": "encbench-export"}))
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0\1weights")
    (folder / "README.md").write_text("---\ntags: []\n---\n")
    (folder / ".secret.json").write_text("{}")
    code, _, err = cli("push", folder, "--to", REPO, "--upload", "--public")
    assert code == 0, err
    assert hub.created["visibility"] == "public"
    assert not any("secret" in name for name in hub.files[hub.refs["main"]])
    with pytest.raises(DataError, match=r"no records \(for a model: --model\)"):
        pull(REPO, tmp_path / "in")
    (made,) = pull(REPO, tmp_path / "in", model=True)
    (folder / ".secret.json").unlink()
    files = [[p for p in home.rglob("*") if p.is_file()] for home in (folder, made)]
    assert digest_files(files[0], folder) == digest_files(files[1], made)


def test_bad_input_is_one_line(hub, runs, tmp_path):
    (tmp_path / "training" / "final").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"neither a run's records.*export it first"):
        plan_upload(tmp_path / "training", REPO)
    shutil.copytree(runs[0], tmp_path / "run")
    find_records(tmp_path / "run")[0].write_text("{")
    with pytest.raises(RecordError, match="not valid JSON"):
        plan_upload(tmp_path / "run", REPO)
    for status, says in ((403, "set HF_TOKEN to a token with write access"), (500, "500")):
        hub.error = (status, "")
        with pytest.raises(DownloadError, match=says) as caught:
            push(plan_upload(runs[1], REPO))
        assert "\n" not in str(caught.value)
