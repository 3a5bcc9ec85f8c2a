"""The notebooks run from start to end as they are committed, offline, and show what they say."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image
from traitlets import default

from encbench.records import read_prediction, read_verdict

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def load(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=nbformat.NO_CONVERT)


class ThisPython(KernelSpecManager):
    """The kernel is this Python's, whichever others are installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


class Kernel(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_python(self) -> KernelSpecManager:
        return ThisPython()


@pytest.fixture(autouse=True)
def _own_jupyter(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the user's folders."""
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp("jupyter")))


class Executed:
    """A notebook after its run: its outputs, and names of its namespace, as JSON."""

    def __init__(self, name: str, folder: Path, looks: dict[str, str]) -> None:
        book = load(name)
        self.cells = list(book.cells)
        listed = ", ".join(f"{key!r}: {code}" for key, code in looks.items())
        book.cells.append(
            nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{listed}}}))")
        )
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, without ipywidgets
        }  # fmt: skip
        client = NotebookClient(
            book,
            kernel_manager_class=Kernel,
            timeout=1800,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute(env=environment)
        self.outputs = {cell.id: cell.outputs for cell in self.cells if cell.cell_type == "code"}
        self.values: dict[str, Any] = json.loads(book.cells[-1].outputs[0].text)

    def printed(self, cell: str) -> str:
        found = [output for output in self.outputs[cell] if output.output_type == "stream"]
        return "".join(output.text for output in found if output.name == "stdout")

    def table(self, cell: str) -> str:
        """The HTML of the table that a cell ends with."""
        return "".join(self.outputs[cell][-1].data["text/html"])

    @property
    def complaints(self) -> str:
        """What was written to standard error."""
        every = (output for outputs in self.outputs.values() for output in outputs)
        return "".join(output.text for output in every if output.get("name") == "stderr")

    def images(self, cell: str) -> list[Image.Image]:
        found = [o.data for o in self.outputs[cell] if "image/png" in o.get("data", {})]
        return [Image.open(io.BytesIO(base64.b64decode(data["image/png"]))) for data in found]

    def assert_drawn(self, *cells: str) -> None:
        """Each cell shows one picture that is not of one color."""
        for cell in cells:
            (image,) = self.images(cell)
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10, cell
            assert min(image.size) > 100, cell


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_results(path: Path) -> None:
    book = load(path.stem)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    ids = [cell.id for cell in book.cells]
    assert len(set(ids)) == len(ids)
    assert all(name.isascii() and not name[-1].isdigit() for name in ids)  # words, not random
    assert book.cells[0].cell_type == "markdown"
    for cell in book.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def test_every_notebook_is_executed_here() -> None:
    assert {path.stem for path in NOTEBOOKS} == {
        "rank_encoders", "add_an_encoder", "read_a_confirmation", "meanflow_2d",
    }  # fmt: skip


@pytest.mark.slow
def test_rank_encoders(tmp_path: Path) -> None:
    looks = {"encoders": "ENCODERS", "out": "str(OUT)", "names": "list(table.name)"}
    done = Executed("rank_encoders", tmp_path, looks)
    assert done.complaints == ""
    prediction = read_prediction(tmp_path / done.values["out"] / "prediction.json")
    ranked = {row.spec: row.name for row in prediction.order}
    assert set(done.values["encoders"]) <= set(ranked)
    assert list(ranked.values()) == done.values["names"]
    for name in (*ranked.values(), "constant", "bag-of-words"):
        assert name in done.table("table")
    candidates = sum(not row.control for row in prediction.order)
    rows = done.table("pairs").count("<tr>") - 1
    assert rows == candidates * (candidates - 1) // 2
    assert done.table("rivals").count("<tr>") - 1 == len(prediction.rivals)
    assert prediction.advice.text in done.printed("advice")
    assert list(tmp_path.rglob("*.html")) != []
    done.assert_drawn("plot")


@pytest.mark.slow
def test_add_an_encoder(tmp_path: Path) -> None:
    looks = {
        "out": "OUT", "passed": "bool(checks.passed.all())",
        "checks": "len(checks)", "broken": "list(broken.name[~broken.passed])",
    }  # fmt: skip
    done = Executed("add_an_encoder", tmp_path, looks)
    assert done.complaints == ""
    assert done.values["passed"]
    assert done.values["checks"] >= 8
    assert "padding does not leak" in done.values["broken"]
    assert "padding does not leak: " in done.printed("broken")
    prediction = read_prediction(tmp_path / done.values["out"] / "prediction.json")
    own = next(row for row in prediction.order if "Trigrams" in row.spec)
    assert not own.control
    assert own.rank is not None
    for row in prediction.order:
        assert row.name in done.table("rank")
    done.assert_drawn("plot")


@pytest.mark.slow
def test_read_a_confirmation(tmp_path: Path) -> None:
    looks = {"encoders": "ENCODERS", "out": "str(OUT)"}
    done = Executed("read_a_confirmation", tmp_path, looks)
    assert done.complaints == ""
    verdict = read_verdict(tmp_path / done.values["out"] / "verdict.json")
    asked = {*done.values["encoders"], "control:constant"}
    assert {row.spec for row in verdict.encoders} == asked
    assert verdict.failed == []
    choice, rule = verdict.choice.verdict, verdict.rule.verdict
    (lead,) = verdict.choice.leads  # the verdict is what its own numbers say
    score = {row.spec: row.scores[verdict.primary].value for row in verdict.encoders}
    ahead = score[verdict.choice.winner] - score[lead.rival]
    assert lead.lead.value == pytest.approx(ahead)
    expected = "confirmed" if lead.lead.low > 0 else "can't tell"
    assert choice == (f"overturned by {lead.rival}" if lead.high_corrected < 0 else expected)
    assert "2 trained encoders share a stage of training with another; 4 needed" in verdict.rule.why
    assert f"the choice: {choice}" in done.printed("read")
    assert f"the rule: {rule}" in done.printed("read")
    for row in verdict.encoders:
        assert row.name in done.table("table")
        found = row.scores[verdict.primary]
        assert 0 <= found.value <= 1
        assert found.low <= found.high
    assert "regret:" in done.printed("regret")
    done.assert_drawn("steps", "grid")


@pytest.mark.slow
def test_meanflow_2d(tmp_path: Path) -> None:
    done = Executed("meanflow_2d", tmp_path, {"rows": "table.to_dict('index')"})
    assert done.complaints == ""
    rows = done.values["rows"]
    assert set(rows) == {"rings", "moons", "spiral", "board", "mean"}
    for label, row in rows.items():
        assert row["data"] < row["1 step"] < row["untrained"], label
        assert row["64 steps"] < row["untrained"], label
    assert rows["mean"]["1 step"] < 0.5 * rows["mean"]["untrained"]
    assert rows["mean"]["1 step"] < 2 * rows["mean"]["64 steps"]
    for label in rows:
        assert label in done.table("distances")
    done.assert_drawn("data", "samples", "paths", "bars")
