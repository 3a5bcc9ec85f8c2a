"""Files: whole or not there, and one line for whatever is wrong with them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from encbench.errors import DataError, RecordError, StoreError, UsageError
from encbench.files import (
    IDLE,
    TEMPORARY,
    read_bytes,
    read_csv,
    read_json,
    read_json_lines,
    read_lines,
    read_table,
    read_toml,
    replace_on_success,
    split_lines,
    sweep_temporary,
    to_csv,
    unescape_formula,
    write_atomic,
    write_json,
    write_text,
)

DAMAGED = {
    "cut": b'{"a": [1, 2',
    "empty": b"",
    "not utf-8": b'{"a": "\xff\xfe"}',
    "binary": bytes(range(256)),
    "nan": b'{"a": NaN}',
    "infinity": b"[-Infinity]",
    "huge integer": b'{"a": ' + b"9" * 5000 + b"}",
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "moderately deep": b"[" * 400 + b"]" * 400,
    "a key twice": b'{"a": 1, "b": {"c": 1, "c": 2}}',
    "two values": b"{} {}",
    "utf-16 cut in the middle": '{"a": 1}'.encode("utf-16")[:-1],
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("error", [RecordError, DataError])
def test_damaged_json_is_one_line_that_names_the_file(tmp_path, name, error):
    path = tmp_path / "x.json"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(error) as caught:
        read_json(path, error)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_json_of_any_utf_is_read(tmp_path, encoding):
    path = tmp_path / "x.json"
    path.write_bytes('{"ä": "\u2028"}'.encode(encoding))
    assert read_json(path) == {"ä": "\u2028"}


def test_halves_of_surrogate_pairs_are_written_escaped_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    write_json(tmp_path / "x.json", {name: [name]})
    assert b"\\udce9" in (tmp_path / "x.json").read_bytes()
    assert read_json(tmp_path / "x.json") == {name: [name]}
    write_text(tmp_path / "x.txt", name)
    assert (tmp_path / "x.txt").read_text("utf-8") == "caf\\udce9"


@pytest.mark.parametrize("character", "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e")
def test_lines_end_at_line_feeds_only(tmp_path, character):
    text = f"one{character}more\r\ntwo\n\nthree"
    assert split_lines(text) == [f"one{character}more", "two", "", "three"]
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_lines(path) == split_lines(text)
    path.write_text(json.dumps({"a": character}, ensure_ascii=False) + "\n\n[2]", "utf-8")
    assert [value for _, value in read_json_lines(path)] == [{"a": character}, [2]]
    assert [where for where, _ in read_json_lines(path)][1] == f"line 3 of {path}"


def test_no_lines_in_an_empty_text():
    assert split_lines("") == []
    assert split_lines("\n") == [""]


def test_toml_of_windows_is_read_and_damage_is_one_line(tmp_path):
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbflimit = 20\r\n")
    assert read_toml(path) == {"limit": 20}
    for damaged in (b"a = ", b"\xff", b"a = " + b"[" * 10_000, b"a = " + b"9" * 5000):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"x\.toml") as caught:
            read_toml(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["pipe", "folder", "nowhere", "zero\0byte", "long" * 2000])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot read"):
        read_bytes(tmp_path / path, DataError)


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    write_atomic(path, b"old")
    for problem, seen in ((KeyError(), KeyError), (OSError(28, "full"), StoreError)):
        with pytest.raises(seen):
            _write_half(path, problem)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert path.read_bytes() == b"old"


def _write_half(path, problem):
    with replace_on_success(path) as temporary:
        temporary.write_bytes(b"half")
        raise problem


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "folder"
    for content in ("one", "two"):
        with replace_on_success(path) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [p.name for p in path.iterdir()] == ["two"]


def test_leftovers_of_killed_processes_are_swept_and_those_of_living_ones_stay(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from encbench.files import replace_on_success\n"
        "out = Path(sys.argv[1])\n"
        "with replace_on_success(out / 'x') as t, replace_on_success(out / 'sub' / 'y') as u:\n"
        "    t.write_bytes(b'half'); u.mkdir(); (u / 'part').touch(); print('ready', flush=True)\n"
        "    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        left = sorted(tmp_path.rglob(f"{TEMPORARY}*"))
        assert len(left) == 2
        sweep_temporary(tmp_path)
        assert sorted(tmp_path.rglob(f"{TEMPORARY}*")) == left
        writer.kill()
    sweep_temporary(tmp_path)
    assert not list(tmp_path.rglob(f"{TEMPORARY}*"))


@pytest.mark.parametrize(("age", "stays"), [(0, True), (IDLE + 60, False)])
def test_leftovers_of_other_machines_are_swept_once_nobody_writes_them(tmp_path, age, stays):
    path = tmp_path / f"{TEMPORARY}00000000-1-abcd0123"
    path.touch()
    os.utime(path, (time.time() - age,) * 2)
    (tmp_path / f"{TEMPORARY}of-somebody").touch()
    (Path(tmp_path) / "data").touch()
    sweep_temporary(tmp_path)
    assert path.exists() == stays
    assert len(list(tmp_path.iterdir())) == 2 + stays


TEXTS = [
    "=1+1", "+1", "-1", "@sum(a)", "\ttab", "\rreturn", "'=1", "''-", "'plain", "a=b", "", " =",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_formulas_in_csv_stay_text_and_are_read_back(tmp_path, text):
    """A spreadsheet runs a cell that begins with one of =, +, -, @, tab and return."""
    path = tmp_path / "x.csv"
    write_text(path, to_csv([text, "number"], [[text, -1.5], [None, 2]]))
    head, rows = read_csv(path)
    assert not {cell[:1] for cell in (head[0], rows[0][head[0]])} & set("=+-@\t\r")
    assert [unescape_formula(rows[0][head[0]]), rows[0]["number"]] == [text, "-1.5"]
    assert list(rows[1].values()) == ["", "2"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "text", ["a,b", 'a"b', "a\nb", "a\r\nb", "a\rb", "a\u2028b", "a\x85b", "é"]
)
def test_csv_of_any_text_is_read_back(tmp_path, text, end):
    write_text(tmp_path / "x.csv", to_csv(["a"], [[text], ["next"]], end))
    assert read_csv(tmp_path / "x.csv") == (["a"], [{"a": text}, {"a": "next"}])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\nx, y, z\n", "line 3 of .*x.csv has more cells than its first line"),
        ("a,b\n1,2,3\n", "line 2 of .*x.csv has more cells"),
        ("a,a\n1,2\n", "two columns 'a'"),
        ("a, a\n1,2\n", "two columns 'a'"),
        ('a,b\n"1,2\n3,4\n', "line 2 of .*x.csv is broken .*; write a quote inside quotes twice"),
        ('a,b\n"1"x,2\n', "line 2 of .*x.csv is broken"),
        ("a\n" + "x" * 200_000, "line 2 of .*x.csv is broken"),
    ],
)
def test_tables_that_would_lose_text_are_refused(tmp_path, text, said):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        read_csv(tmp_path / "x.csv", DataError)


@pytest.mark.parametrize("text", ["a,b\n1,2,,\n", "a,b,\n1,2,\n", "a,b\r\n1,2\r\n\r\n"])
def test_empty_cells_at_the_end_do_not_matter(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    (row,) = read_csv(tmp_path / "x.csv")[1]
    assert (row["a"], row["b"]) == ("1", "2")


def _npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


TABLE = _npy(np.ones((2, 3), np.float32))
BROKEN_TABLES = {
    "empty": b"",
    "cut in its header": TABLE[:40],
    "cut in its values": TABLE[:-1],
    "text": b"not a table\n" * 20,
    "zip": b"PK\x03\x04" + bytes(40),
    "pickled objects": _npy(np.array([[{}]], object)),
    "one dimension": _npy(np.ones(3, np.float32)),
    "whole numbers": _npy(np.ones((2, 2), np.int64)),
    "a huge shape": TABLE.replace(b"(2, 3)", b"(9" + b"9" * 20 + b",3)"),
}


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_a_damaged_table_is_one_line(tmp_path, name):
    path = tmp_path / "x.npy"
    path.write_bytes(BROKEN_TABLES[name])
    with pytest.raises(RecordError, match=r"cannot read .*x\.npy") as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    path.write_bytes(TABLE)
    assert read_table(path).tolist() == [[1, 1, 1], [1, 1, 1]]
