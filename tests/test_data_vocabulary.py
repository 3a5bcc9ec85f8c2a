"""Words of a user's own: the file, what is written with them, and what a run makes of them."""

import dataclasses
import json
from pathlib import Path

import pytest

from encbench.cli import main
from encbench.data.vocabulary import read_vocabulary
from encbench.errors import DataError
from encbench.probes.reader import Layout
from encbench.probes.statements import HELD_OUT, OTHER_WORDS, SEEN, language_for

SHOES = """
classes = ["sneaker", "sandal", "boot", "clog", "hiking  pole"]
attributes = ["red", "leather", "worn", "wooden"]

[synonyms]
sneaker = "trainer"
leather = "cowhide"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shoes.toml"
    path.write_text(SHOES)
    return path


def test_prompts_are_written_with_them(file):
    found = read_vocabulary(file)
    assert found.classes[-1] == "hiking pole"
    language = language_for(None, dataclasses.asdict(found))(0, 300)
    assert (language.labels, language.colors) == (found.classes, found.attributes)
    Layout(language.labels, language.colors).targets(language.captions)  # knows every word
    assert "a photo of a sandal" in {prompt.text for prompt in language.prompts[SEEN]}
    other = " ".join(prompt.text for prompt in language.prompts[OTHER_WORDS])
    assert "trainer" in other
    assert "crimson" in other, "colors that GenEval knows have other words of their own"
    assert "sneaker" not in other
    assert "leather" not in other
    assert "wooden" in other

    def pairs(prompts):
        return {(c.color, c.label) for p in prompts for c in p.include if c.color}

    held_out = pairs(p for p in language.prompts[HELD_OUT] if p.task == "colors")
    assert held_out
    assert not held_out & pairs([*language.captions, *language.prompts[SEEN]])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("classes = [", "is not valid TOML"),
        ("colors = ['red']", "has the key 'colors'; a vocabulary has classes, attributes, syn"),
        ("attributes = ['red', 'blue']", "has no classes; write"),
        ("classes = 3", "classes must be a list"),
        ("classes = ['a', 'b', 'c']", "classes has 3 words; give 4 or more"),
        ("classes = ['a', 'b', 'c', 'a']", "names one word twice"),
        ("classes = ['a', 'b', 'c', ' ']", "has an empty text"),
        ("classes = ['a', 'b', 'c', 'd']\n[synonyms]\ne = 'f'", "'e', which is no class or attr"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, body, said):
    path = tmp_path / "own.toml"
    path.write_text(body)
    with pytest.raises(DataError, match=said):
        read_vocabulary(path)
    with pytest.raises(DataError, match="cannot read"):
        read_vocabulary(tmp_path / "none.toml")


def test_a_run_reads_them(file, tmp_path, capsys):
    command = ["probe", "--encoders", "zoo:mini-t5", "--probes", "reader", "--limit", "4"]
    command += ["--vocabulary", str(file), "--device", "cpu", "--store", str(tmp_path / "store")]
    with pytest.raises(SystemExit) as done:
        main([*command, "--out", str(tmp_path / "run")])
    assert not done.value.code, capsys.readouterr().err
    (path,) = (tmp_path / "run" / "records").glob("zoo*/reader.main.json")
    record = json.loads(path.read_text())
    pin = read_vocabulary(file).pin
    assert record["probe"]["dataset"].endswith(f" + words of shoes@{pin}")
    assert any("about the words of shoes" in note for note in record["notes"])
    file.write_text("classes = ['a']")
    with pytest.raises(SystemExit) as done:
        main([*command, "--out", str(tmp_path / "run")])
    assert done.value.code == 1
    assert "give 4 or more" in capsys.readouterr().err
