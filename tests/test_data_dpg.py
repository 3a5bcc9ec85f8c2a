"""Prompt files in both forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from encbench.data.dpg import PUBLISHED, load_prompts
from encbench.errors import DataError

TEXTS = {"p10": "Ten.", "p9": "Nïne – ✨.", "0": "Zero.", "a": "Letters.", "p9b": "More."}


def folder(path: Path, texts: dict[str, str], end: str = "\n") -> Path:
    path.mkdir()
    for key, text in texts.items():
        (path / f"{key}.txt").write_bytes((text + end).encode())
    return path


def lines(path: Path, *entries: object) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_both_forms_give_the_same_set(tmp_path: Path) -> None:
    one = load_prompts(folder(tmp_path / "x", TEXTS))
    other = load_prompts(
        lines(tmp_path / "x.jsonl", *({"item_id": k, "text": t} for k, t in TEXTS.items()))
    )
    assert one == other
    assert [prompt.prompt_id for prompt in one.prompts] == ["0", "a", "p9", "p9b", "p10"]
    assert {prompt.prompt_id: prompt.text for prompt in one.prompts} == TEXTS
    assert one.notes == ()


def test_pin_depends_on_ids_and_texts_alone(tmp_path: Path) -> None:
    pins = [
        load_prompts(folder(tmp_path / "a", TEXTS)).pin,
        load_prompts(folder(tmp_path / "b", TEXTS, end="\r\n")).pin,
        load_prompts(folder(tmp_path / "c", TEXTS | {"a": "Letter."})).pin,
        load_prompts(folder(tmp_path / "d", {f"{k}x": t for k, t in TEXTS.items()})).pin,
    ]
    assert pins[0] == pins[1]
    assert len(set(pins)) == 3


def test_other_names_of_the_fields(tmp_path: Path) -> None:
    found = load_prompts(
        lines(tmp_path / "x.jsonl", {"prompt_id": "b", "prompt": "Two."}, {"id": 1, "text": "One."})
    )
    assert [(p.prompt_id, p.text) for p in found.prompts] == [("1", "One."), ("b", "Two.")]


def test_empty_prompts_stay_and_are_told(tmp_path: Path) -> None:
    found = load_prompts(folder(tmp_path / "x", {"a": "One.", "b": "  "}))
    assert [prompt.text for prompt in found.prompts] == ["One.", ""]
    assert "1 prompts are empty (first: 'b')" in found.notes[0]


def test_strange_texts_are_kept(tmp_path: Path) -> None:
    text = "tab\there \x07 bell\u200b 👩‍👩‍👧 " + "long " * 20_000 + "end"
    found = load_prompts(lines(tmp_path / "x.jsonl", {"item_id": "a", "text": text}))
    assert found.prompts[0].text == text


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b'{"item_id": "a", "text": "One."}\r\n\r\n')
    assert load_prompts(file).prompts[0].text == "One."


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"item_id": "a", "text": "x"}\n{"item_id": \n', "line 2 of .* is not valid JSON"),
        (b'\n\n["a", "x"]\n', "line 3 of .* must be an object"),
        (b'{"item_id": "a"}\n', "line 1 of .* lacks item_id or text"),
        (b'{"text": "x"}\n', "line 1 of .* lacks item_id or text"),
        (b'{"item_id": "a", "text": null}\n', "text must be a text, not null"),
        (b'{"item_id": "a", "text": "\\ud83d"}\n', "surrogate"),
        (b'{"item_id": "a", "text": "x"}\n{"item_id": "a", "text": "y"}', "id 'a' twice"),
        (b"\xff\xfe{", "not UTF-8 text"),
        (b"\n", "holds no prompts"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "broken.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load_prompts(file)
    assert "broken.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prompts at .*data fetch dpg"):
        load_prompts(tmp_path / "none")
    with pytest.raises(DataError, match=r"no \.txt files"):
        load_prompts(tmp_path)
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        load_prompts(tmp_path)


def test_real_prompts(shared: Path) -> None:
    found = load_prompts(shared / "dpg" / "prompts.jsonl")
    assert (found.name, found.pin, len(found.prompts)) == ("dpg-bench", PUBLISHED, 1065)
    assert found.notes == ()
    ids = [prompt.prompt_id for prompt in found.prompts]
    assert ids[:3] == ["0", "1", "2"]
    assert ids.index("whoops9") + 1 == ids.index("whoops10")


def test_line_ends_and_hidden_files_do_not_matter(tmp_path: Path) -> None:
    unix = load_prompts(folder(tmp_path / "a", {"0": "One.\nTwo.", "1": "x"}))
    other = folder(tmp_path / "b", {"1": "x"})
    (other / "0.txt").write_bytes(b"One.\r\nTwo.\r\n")
    (other / "._0.txt").write_bytes(b"\0\5\x16\7\xb0")
    windows = load_prompts(other)
    assert (windows.prompts, windows.pin) == (unix.prompts, unix.pin)
    assert windows.notes == ("1 hidden files were left out (first: ._0.txt)",)


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_tables(tmp_path: Path, ending: str) -> None:
    mark = {"csv": ",", "tsv": "\t"}[ending]
    rows = [["item_id", "text", "keywords"], ["p10", '"A dog, on\r\na mat."', "1"]]
    rows += [["p10", '"A dog, on\r\na mat."', "2"], ["p9", "\u2028A cat.", ""]]
    file = tmp_path / f"x.{ending}"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(mark.join, rows)).encode())
    found = load_prompts(file)
    assert [(p.prompt_id, p.text) for p in found.prompts] == [
        ("p9", "A cat."), ("p10", "A dog, on\na mat."),
    ]  # fmt: skip
    file.write_text(f"Prompt{mark}Category\nA dog.{mark}x\nA cat.{mark}y\n")
    assert [p.prompt_id for p in load_prompts(file).prompts] == ["1", "2"]
    file.write_text(f"id{mark}text\n1{mark}A dog.\n1{mark}A cat.\n")
    with pytest.raises(DataError, match=r"row 2 of .*'1' already belongs to another text"):
        load_prompts(file)
    file.write_text("a\nb\n")
    with pytest.raises(DataError, match="no column 'text'"):
        load_prompts(file)


def test_a_list_of_prompts_is_several(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red dog\u2028on a mat\n\ntwo cats\n")
    one, other = load_prompts(tmp_path), load_prompts(tmp_path / "prompts.txt")
    assert one.prompts == other.prompts
    assert [p.text for p in one.prompts] == ["a red dog\u2028on a mat", "two cats"]
    assert "read as a list of 2 prompts" in one.notes[0]
