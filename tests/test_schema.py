"""Values from JSON against declared types."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from encbench.errors import DataError, RecordError
from encbench.schema import check_text, get_field, load_dataclass, read_dataclass


@dataclass(frozen=True)
class Inner:
    value: float
    box: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Outer:
    name: str
    count: int
    inner: Inner
    direction: Literal["higher", "lower"] = "higher"
    rows: list[Inner] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    maybe: int | None = None
    either: str | int = ""
    tail: tuple[str, ...] = ()
    path: Path = Path()
    free: Any = None
    on: bool = False


GOOD: dict[str, Any] = {"name": "a", "count": 1, "inner": {"value": 2}}


def test_nested_dataclasses_are_built_and_unknown_keys_ignored():
    value = GOOD | {
        "rows": [{"value": 1.5, "box": [1, 2]}], "scores": {"x": 1}, "maybe": 3, "either": 4,
        "tail": ["p", "q"], "path": "/x", "free": [{"a": None}], "on": True, "later": 1,
    }  # fmt: skip
    assert load_dataclass(Outer, value, "f") == Outer(
        "a", 1, Inner(2.0), "higher", [Inner(1.5, (1, 2))], {"x": 1.0}, 3, 4, ("p", "q"),
        Path("/x"), [{"a": None}], True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"name": 1}, "f: name must be a text, not 1"),
        ({"name": None}, "f: name must be a text, not null"),
        ({"count": "1"}, "f: count must be a whole number.*, not the text '1'"),
        ({"count": True}, "f: count must be a whole number.*, not True"),
        ({"count": 1.0}, "f: count must be a whole number"),
        ({"count": 2**63}, "f: count must be a whole number of at most 64 bits"),
        ({"count": 10**4000}, "f: count must be a whole number of at most 64 bits"),
        ({"inner": []}, "f: inner must be an object, not a list of 0"),
        ({"inner": {}}, "f: inner has no 'value'"),
        ({"inner": {"value": float("inf")}}, "f: inner: value must be a finite number"),
        ({"inner": {"value": 10**400}}, "f: inner: value must be a finite number"),
        ({"inner": {"value": 1, "box": [1]}}, "f: inner: box must hold 2 values, not 1"),
        ({"direction": "up"}, "f: direction must be 'higher' or 'lower', not the text 'up'"),
        ({"rows": {"value": 1}}, "f: rows must be a list, not an object of 1"),
        ({"rows": [{"value": 1}, {"value": "x"}]}, r"f: rows\[1\]: value must be a finite number"),
        ({"scores": {"x": []}}, r"f: scores\.x must be a finite number, not a list of 0"),
        ({"maybe": "1"}, "f: maybe must be a whole number"),
        ({"either": []}, "f: either must be a text or a whole number.*, not a list of 0"),
        ({"free": {"x": [2**64]}}, r"f: free\.x\[0\] must fit into 64 bits"),
        ({"free": float("nan")}, "f: free must be a finite number"),
        ({"on": 1}, "f: on must be true or false"),
        ({"path": 1}, "f: path must be a path"),
        ({"path": "a\0b"}, r"f: path must be a path, not the text .a.x00b"),
        ({"path": "a\ud83d"}, "f: path must be a path"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_and_key(change, where):
    with pytest.raises(DataError, match=where) as caught:
        load_dataclass(Outer, GOOD | change, "f", DataError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("key", ["name", "count", "inner"])
def test_a_missing_key_is_named(key, tmp_path):
    value = {k: v for k, v in GOOD.items() if k != key}
    with pytest.raises(RecordError, match=f"f has no '{key}'"):
        load_dataclass(Outer, value, "f")
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(RecordError, match=r"x\.json must be an object"):
        read_dataclass(Outer, tmp_path / "x.json")


def test_single_fields():
    assert get_field({"a": 1}, "a", float, "f") == 1.0
    assert get_field({}, "a", int, "f", default=None) is None
    with pytest.raises(DataError, match=r"f has no 'a' \(it has 'b'\)"):
        get_field({"b": 1}, "a", int, "f", DataError)
    with pytest.raises(RecordError, match="f must be an object, not the text 'x'"):
        get_field("x", "a", int, "f")


def test_half_of_a_surrogate_pair_is_no_text():
    assert check_text("ä\u2028", "f", DataError) == "ä\u2028"
    with pytest.raises(DataError, match=r"f holds half of a surrogate pair \('\\udce9'\)"):
        check_text("caf\udce9", "f", DataError)
