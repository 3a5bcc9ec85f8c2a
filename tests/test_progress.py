"""Progress without a terminal: a line every half minute."""

import logging

from encbench.progress import ProgressLines, bar, console


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
        "training: 33 % (1 of 3), 0.01/s, 3 min left",
        "training: 67 % (2 of 3), 0.01/s, 2 min left",
    ]


def test_without_a_terminal_nothing_is_drawn_and_short_work_says_nothing(capsys, caplog):
    assert not console.is_terminal
    with caplog.at_level(logging.INFO, "encbench"), bar("work", 3) as advance:
        for _ in range(3):
            advance(1)
    assert not caplog.records
    assert capsys.readouterr().err == ""
