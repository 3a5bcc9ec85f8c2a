"""Trackers show what the log holds, and none of them can end a training."""

import pytest

from encbench.errors import EncbenchError, MissingLibraryError, UsageError
from encbench.flow import trackers
from encbench.flow.config import training_config
from encbench.flow.meters import read_log
from encbench.flow.train import train

TINY = {
    "world": "scenes-grid", "images": 16, "side": 8, "patch": 4, "network": "dit-16x1x1",
    "steps": 4, "batch": 4, "warmup": 0, "log_every": 1, "checkpoint_every": 0,
    "sample_prompts": 1, "device": "cpu", "encoder": "control:word-position?dim=16",
    "captions": 1, "long_share": 0.0,
}  # fmt: skip


class Notebook:
    """A tracker as accelerate wants them; ``fails_at`` is a step, or 'start'."""

    name, requires_logging_directory, main_process_only = "wandb", False, True
    fails_at: int | str = 0

    def __init__(self, run_name, **settings):
        self.settings, self.rows, self.images, self.config = settings, {}, {}, {}
        type(self).last = self

    def start(self):
        if self.fails_at == "start":
            raise RuntimeError("no API key\nsee the manual")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step):
        if step == self.fails_at:
            raise ConnectionError("the network is gone")
        self.rows[step] = values

    def log_images(self, images, step):
        self.images |= images

    def finish(self):
        self.finished = True


@pytest.fixture
def notebook(monkeypatch):
    from accelerate import tracking

    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Notebook)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(Notebook, "fails_at", 0)
    return Notebook


def test_trackers_show_the_rows_of_the_log(notebook, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    train(training_config({**TINY, "out": out, "report_to": ["tensorboard", "wandb"]}))
    rows = read_log(out)
    assert len(rows) == 4
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    seen = {event.step: event.value for event in board.Scalars("loss")}
    assert seen == pytest.approx({row["step"]: row["loss"] for row in rows}, rel=1e-6)
    assert board.Tags()["images"] == ["samples"]
    made = notebook.last
    assert made.settings["name"] == "run"
    assert made.config["network"] == "dit-16x1x1"
    assert {step: row["loss"] for step, row in made.rows.items()} == {
        row["step"]: row["loss"] for row in rows
    }
    assert any(name.startswith("error_by_t/0.") for name in made.rows[4])
    assert made.images["samples"].shape[-1] == 3
    assert made.finished


def test_a_tracker_that_fails_is_left_out_and_the_training_ends_well(notebook, tmp_path, caplog):
    notebook.fails_at = 2
    done = train(training_config({**TINY, "out": tmp_path, "report_to": ["wandb"]}))
    assert done.path.is_dir()
    assert list(notebook.last.rows) == [1]
    assert notebook.last.finished
    assert caplog.text.count("the network is gone") == 1
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3, 4]
    assert not (tmp_path / "tensorboard").exists()


def test_what_cannot_be_started_is_one_line(notebook, tmp_path, monkeypatch):
    def message(kind, *names):
        with pytest.raises(kind) as caught:
            train(training_config({**TINY, "out": tmp_path / "run", "report_to": names}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    notebook.fails_at = "start"
    assert "--report-to wandb cannot be started (no API key)" in message(EncbenchError, "wandb")
    assert "--report-to none excludes" in message(UsageError, "none", "wandb")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert 'pip install "mlflow"' in message(MissingLibraryError, "mlflow")
    assert "did you mean wandb" in message(UsageError, "wandbb")
