"""The pages about encoders say what the code does: the table and the ten lines."""

import re
import shlex
from pathlib import Path

import pytest

from encbench.cli import main
from encbench.data.hub_facts import HUB_FACTS
from encbench.encoders import checks, load_encoder, registry
from encbench.encoders.table import filled
from encbench.encoders.table import main as write_table
from encbench.records import read_prediction
from encbench.zoo.catalog import zoo_folder

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_the_table_is_what_the_registry_gives():
    page = (DOCS / "encoders.md").read_text("utf-8")
    assert filled(page) == page, "run: python -m encbench.encoders.table docs/encoders.md"
    for family in registry.names("encoder"):
        assert page.count(f"\n| {family} | ") >= 2


def test_nothing_is_said_about_models_that_are_no_example():
    pages = (DOCS / "encoders.md", DOCS.parent / "README.md")
    page = "".join(path.read_text("utf-8") for path in pages)
    for source in (name for name, known in HUB_FACTS.items() if known.width):
        repository = "/".join(source.split("/")[:2])
        assert repository in page


@pytest.mark.parametrize("name", [n for n in HUB_FACTS if "/" not in n])
def test_what_is_said_of_the_shipped_encoders_is_what_their_cards_say(name):
    if not (zoo_folder(name) / "manifest.json").exists():
        pytest.skip(f"the weights of {name} are not here")
    card = load_encoder(f"zoo:{name}", "cpu").card
    said = HUB_FACTS[name][:4]
    assert (str(card.dim), str(card.max_tokens), card.license, card.recipe) == said


def test_a_page_without_marks_is_refused(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing here")
    assert write_table([str(page)]) == 1
    assert "needs the lines" in capsys.readouterr().err
    assert page.read_text() == "nothing here"


def test_the_ten_lines_are_ranked(tmp_path, monkeypatch, capsys):
    page = (DOCS / "add-an-encoder.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (shell,) = re.findall(r"```bash\n(.*?)```", page, re.S)
    lines = [line for line in code.splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 10
    monkeypatch.chdir(tmp_path)
    Path("my_encoder.py").write_text(code)
    check, run = (shlex.split(line) for line in shell.strip().splitlines())
    assert check[:3] == ["python", "-m", "encbench.encoders.checks"]
    assert checks.main(check[3:]) == 0
    assert run[0] == "encbench"
    with pytest.raises(SystemExit) as caught:
        main(run[1:])
    assert not caught.value.code
    prediction = read_prediction(Path("runs/mine/prediction.json"))
    assert prediction.advice.use == "python:./my_encoder.py:Words"
