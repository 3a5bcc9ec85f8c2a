"""Progress: a line every half minute without a terminal, one table on it."""

import io
import logging

import pytest
from rich.console import Console

from encbench import progress
from encbench.progress import RUNNING, ProgressLines, ProgressTable, bar, console, show_table


def test_a_line_every_half_minute_with_share_rate_and_time_left(caplog):
    now = [0.0]
    lines = ProgressLines("encoding minis", 10_000, lambda: now[0])
    with caplog.at_level(logging.INFO, "encbench"):
        lines.advance(4_000)  # there already
        for _ in range(60):
            now[0] += 1
            lines.advance(20)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "encoding minis: 46 % (4,600 of 10,000), 20/s, 4 min left",
        "encoding minis: 52 % (5,200 of 10,000), 20/s, 4 min left",
    ]


def test_slow_items_are_told_one_by_one(caplog):
    now = [0.0]
    lines = ProgressLines("training", 3, lambda: now[0])
    with caplog.at_level(logging.INFO, "encbench"):
        for _ in range(2):
            now[0] += 100
            lines.advance(1)
    assert [r.getMessage() for r in caplog.records] == [
        "training: 33 % (1 of 3), 2 min each, 3 min left",
        "training: 67 % (2 of 3), 2 min each, 2 min left",
    ]


def test_without_a_terminal_nothing_is_drawn_and_short_work_says_nothing(capsys, caplog):
    assert not console.is_terminal
    with caplog.at_level(logging.INFO, "encbench"), bar("work", 3) as advance:
        for _ in range(3):
            advance(1)
    assert not caplog.records
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------- the table

PROBES = ["retrieval", "reader-whitened"]
ROWS = {**{f"encoder {n}": PROBES for n in range(20)}, "constant": PROBES[:1]}


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    made = Console(file=io.StringIO(), force_terminal=True, width=100, height=16)
    monkeypatch.setattr(progress, "console", made)
    return made


def drawn(table: ProgressTable) -> list[str]:
    plain = Console(file=io.StringIO(), width=100)
    plain.print(table)
    return [line.rstrip() for line in plain.file.getvalue().splitlines()]


def test_a_terminal_shows_one_table_with_the_bars_below_it(terminal):
    with show_table(ROWS, PROBES) as table:
        table.set("encoder 0", "retrieval", RUNNING)
        with bar("encoding encoder 0", 10) as advance:
            advance(4)
            lines = drawn(table)
        assert lines[0] == "0 of 41 measurements"
        assert lines[2].split() == ["encoder", "0", "..."]
        assert "encoding encoder 0" in lines[-1]
        assert "4/10" in lines[-1]
        table.set("encoder 0", "retrieval", "0.512")
        table.others = lambda: [("encoder 1", "retrieval", "0.250"), ("constant", "retrieval", "0")]
        table.fail("encoder 2")
        lines = drawn(table)
        assert lines[0] == "5 of 41 measurements"
        assert [line.split()[2:] for line in lines[2:5]] == [
            ["0.512"], ["0.250"], ["failed", "failed"]
        ]  # fmt: skip
        assert len(lines) < 16
        assert not any("encoding" in line for line in lines)
        for number in range(12):
            table.fail(f"encoder {number}")
        lines = drawn(table)
        assert not any("encoder 3 " in line for line in lines), "rows that are done make room"
    assert progress._shown is None
    assert "reader-whitened" in terminal.file.getvalue()


def test_the_time_left_is_that_of_the_rate_so_far(terminal):
    now = [0.0]
    table = ProgressTable(ROWS, PROBES, lambda: now[0])
    table.set("constant", "retrieval", "0.000")  # on disk already
    now[0] = 100
    for probe in PROBES:
        table.set("encoder 0", probe, "0.5")
    assert drawn(table)[0] == "3 of 41 measurements"  # too few to tell
    for row in ("encoder 1", "encoder 2"):
        for probe in PROBES:
            table.set(row, probe, "0.5")
    assert drawn(table)[0] == "7 of 41 measurements, about 9 min left"
    assert [line for line in drawn(table) if line.startswith("constant")] == []


def test_without_a_terminal_the_whole_run_has_its_lines_too(caplog):
    now = [0.0]
    table = ProgressTable({"one": PROBES, "two": PROBES}, PROBES, lambda: now[0])
    with caplog.at_level(logging.INFO, "encbench"):
        for row, probe in (("one", "retrieval"), ("one", "reader-whitened"), ("two", "retrieval")):
            now[0] += 20
            table.set(row, probe, RUNNING)
            table.set(row, probe, "0.1")
    assert [record.getMessage() for record in caplog.records] == [
        "all encoders and probes: 50 % (2 of 4), 20 s each, 40 s left"
    ]


def test_a_note_is_shown_once():
    once = progress._Once()
    made = [logging.makeLogRecord({"msg": "%s is cut", "args": (name,)}) for name in "aba"]
    assert [once.filter(record) for record in made] == [True, True, False]
