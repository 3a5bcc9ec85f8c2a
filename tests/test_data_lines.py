"""Captions and prompts of your own: files, columns, groups, and what a run makes of them."""

import json
from pathlib import Path

import pytest

from encbench.cli import main
from encbench.config import RunConfig
from encbench.data.datasets import load_dataset, load_prompt_set
from encbench.data.lines import load_captions
from encbench.errors import DataError, UsageError

ROWS = [("a", "a red cat"), ("a", "a cat, red"), ("b", "two dogs"), ("b", "a pair of dogs")]
OWNERS = [1, 1, 2, 2]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"own.{kind}"
    if kind == "csv":
        body = "Caption,Group\n" + "".join(f'"{text}",{group}\n' for group, text in ROWS)
    elif kind == "tsv":
        body = "image_id\ttext\n" + "".join(f"{group}\t{text}\n" for group, text in ROWS)
    elif kind == "jsonl":
        rows = [{"group": group, "caption": text} for group, text in ROWS]
        body = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        body = "a red cat\na cat, red\n\ntwo dogs\na pair of dogs\n"
    path.write_text(body)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "txt"])
def test_every_form_says_the_same(tmp_path, kind):
    found = load_dataset(f"captions:{write(tmp_path, kind)}")
    assert [caption.text for caption in found.captions] == [text for _, text in ROWS]
    assert [caption.image_id for caption in found.captions] == OWNERS
    assert found.name == "own"
    assert not found.notes


def test_what_is_missing_is_one_line(tmp_path):
    path = tmp_path / "own.csv"
    for body, said in (
        ("words,group\na,1\n", r"no column 'caption' or 'text' or 'prompt' \(it has 'words', 'gr"),
        ("caption\na\nb\n", "no two captions of .* share a group.*column 'group'"),
        ("caption,group\n\n", "no two captions"),
    ):
        path.write_text(body)
        with pytest.raises(DataError, match=said):
            load_captions(path)
    with pytest.raises(DataError, match="there are no captions"):
        load_captions(tmp_path / "none.csv")
    path.write_text("words\na\n")
    with pytest.raises(DataError, match="no column 'text' or 'prompt'"):
        load_prompt_set(f"dpg:{path}")
    with pytest.raises(UsageError, match="--data and --captions are both given"):
        RunConfig(data="scenes", captions=path)


def test_other_languages_say_what_is_meaningful(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("\u7ea2\u8272\u7684\u732b\n\u4e00\u53ea\u7ea2\u732b\n", "utf-8")
    (note,) = load_captions(path).notes
    assert "many letters are not English" in note
    assert any("not English" in note for note in load_prompt_set(f"dpg:{path}").notes)


def test_a_run_over_files_of_your_own(tmp_path, capsys):
    words = ["cat", "dog", "house", "boat", "tree", "bird", "lamp", "road"]
    rows = [(word, f"{start} {word}") for word in words for start in ("a photo of a", "one red")]
    captions = tmp_path / "mine.csv"
    captions.write_text("caption,group\n" + "".join(f"{text},{word}\n" for word, text in rows))
    prompts = tmp_path / "long.txt"
    prompts.write_text("".join(f"a {a} stands beside a {b} at night\n" for a, b in rows))
    out = tmp_path / "run"
    command = ["run", "--encoders", "zoo:mini-t5", "zoo:mini-clip", "--captions", str(captions)]
    command += ["--prompts", str(prompts), "--probes", "retrieval", "ablation", "--draws", "1"]
    command += ["--ks", "1", "2", "--shares", "0.5", "--pools", "max", "--out", str(out)]
    with pytest.raises(SystemExit) as done:
        main([*command, "--device", "cpu", "--store", str(tmp_path / "store")])
    assert not done.value.code, capsys.readouterr().err
    prediction = json.loads((out / "prediction.json").read_text())
    assert "recall@2" in json.dumps(prediction)
    assert "mine" in (out / "report" / "report.md").read_text()
