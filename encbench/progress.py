"""Progress bars with rate and time left, and the log beside them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

console = Console(stderr=True)
log = logging.getLogger("encbench")
WIDTH = 48  # of a bar's description, in characters
EVERY = 30.0  # seconds between two lines where there is no terminal
RUNNING = "..."  # in a cell
UNEVEN = 0.1  # share of uneven work that must be done before the time left is shown
AROUND = 9  # lines of a terminal that are not for rows of a table


def show_log() -> None:
    """Send encbench's log to the terminal, beside the progress bars. For the command line."""
    if not log.handlers:
        handler: logging.Handler = _Lines()
        if console.is_terminal:
            handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.addFilter(_Once())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class _Lines(logging.Handler):
    """Writes each message as one line, however long, where there is no terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname:<8} {self.format(record)}", file=sys.stderr, flush=True)


class _Once(logging.Filter):
    """Shows each message once, for the first encoder that it is about."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in self.seen
        self.seen.add(text)
        return new


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over ``total`` items; call what it yields with the number of items just done.

    Without a terminal, a line is logged every half minute instead. A long description loses its
    middle: its first word and the end of a path are kept.
    """
    if not console.is_terminal:
        yield ProgressLines(description, total).advance
        return
    if len(description) > WIDTH:
        verb, _, rest = description.partition(" ")
        description = f"{verb} …{rest[len(verb) + 2 - WIDTH :]}"
    if _shown is not None:  # a terminal has one live display, and that is the table's
        progress = _shown.bars
        task = progress.add_task(description, total=total)
        try:
            yield lambda done: progress.advance(task, done)
        finally:
            progress.remove_task(task)
        return
    with _bars() as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


def _bars() -> Progress:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)


@runtime_checkable
class Cells(Protocol):
    """A table of progress by row and column. ``live``: whether it is drawn on a terminal."""

    @property
    def live(self) -> bool: ...

    def set(self, row: str, column: str, text: str) -> None: ...


class ProgressTable:
    """Progress of a run: one cell for each encoder and probe, with the score once it is known. On a
    terminal the table is redrawn, with progress bars below it; else a line is logged every half
    minute.

    Args:
        rows: encoders, and the probes that each goes through.
        columns: probes.
    """

    def __init__(
        self,
        rows: Mapping[str, Sequence[str]],
        columns: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rows, self.columns = rows, columns
        self.live = console.is_terminal
        self.clock, self.begun, self.found = clock, clock(), 0
        self.cells: dict[tuple[str, str], str] = {}
        self.total = sum(map(len, rows.values()))
        self.lines = ProgressLines("all encoders and probes", self.total, clock, even=False)
        self.bars = _bars()
        self.others: Callable[[], Iterable[tuple[str, str, str]]] | None = None
        """What other processes have set since the last call."""

    def set(self, row: str, column: str, text: str) -> None:
        self._set(row, column, text)
        if not self.live:  # else they are read whenever the table is drawn
            self._read_others()

    def _read_others(self) -> None:
        for each in self.others() if self.others else ():
            self._set(*each)

    def fail(self, row: str) -> None:
        """Mark the unfinished cells of a row as failed."""
        for column in self._left(row):
            self._set(row, column, "failed")

    def _left(self, row: str) -> list[str]:
        """Columns in which a row has no result yet."""
        return [c for c in self.rows[row] if self.cells.get((row, c), "") in ("", RUNNING)]

    def _set(self, row: str, column: str, text: str) -> None:
        new = text != RUNNING and column in self._left(row)
        self.cells[row, column] = text
        if new:
            self.lines.done += 1
            self.found += self.clock() - self.begun < 1  # it is on disk
            if not self.live:
                self.lines.advance(0)

    def __rich__(self) -> Group:
        self._read_others()
        done = self.lines.done
        head = Text(f"{done} of {self.total} measurements{self._time_left()}")
        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column("encoder", no_wrap=True, overflow="ellipsis", ratio=2)
        for column in self.columns:
            table.add_column(column, justify="right", ratio=1)
        for row in self._visible():
            cells = [self.cells.get((row, c), "") for c in self.columns]
            absent = [c not in self.rows[row] for c in self.columns]
            shown = ["-" if no else cell for no, cell in zip(absent, cells, strict=True)]
            table.add_row(Text(row), *map(Text, shown))
        return Group(head, table, self.bars)

    def _time_left(self) -> str:
        """By the rate so far, without the measurements that were on disk."""
        spent = self.clock() - self.begun
        made = self.lines.done - self.found
        if spent < 10 or made < UNEVEN * self.total or self.lines.done == self.total:
            return ""
        return f", about {format_duration((self.total - self.lines.done) / made * spent)} left"

    def _visible(self) -> list[str]:
        """The rows that fit, around the first one that is not finished."""
        names, room = list(self.rows), max(3, console.size.height - AROUND)
        if len(names) <= room or self.lines.done == self.total:
            return names
        first = next(n for n, name in enumerate(names) if self._left(name)) - room // 3
        first = min(max(0, first), len(names) - room)
        return names[first : first + room]


_shown: ProgressTable | None = None


@contextmanager
def show_table(
    rows: Mapping[str, Sequence[str]], columns: Sequence[str]
) -> Iterator[ProgressTable]:
    """Show a table while the block runs; see :class:`ProgressTable`."""
    global _shown
    table = ProgressTable(rows, columns)
    if not table.live:
        yield table
        return
    with Live(table, console=console, refresh_per_second=2):
        _shown = table
        try:
            yield table
        finally:
            _shown = None


class ProgressLines:
    """Progress as lines in a log file: share, rate and time left, every half minute.

    The rate is that since the line before, so it follows a machine whose load changes. Items that
    were done before the work began count in the share only.

    Args:
        even: items take about equally long. Otherwise no time left is shown before a tenth is done.
    """

    def __init__(
        self,
        description: str,
        total: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        even: bool = True,
    ) -> None:
        self.description, self.total, self.clock, self.even = description, total, clock, even
        self.done = self.done_before = 0
        self.begun = self.line_before = clock()

    def advance(self, count: int) -> None:
        """Count items just done; log a line if the last one is half a minute old."""
        now = self.clock()
        self.done += count
        if now - self.begun < 1:  # read from disk, or done by an earlier command
            self.done_before, self.line_before = self.done, now
        if now - self.line_before < EVERY or not self.total:
            return
        rate = (self.done - self.done_before) / (now - self.line_before)
        self.done_before, self.line_before = self.done, now
        speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        if 0 < rate < 0.1:
            speed = f"{format_duration(1 / rate)} each"
        left = f", {format_duration((self.total - self.done) / rate)} left" if rate else ""
        if not self.even and self.done < UNEVEN * self.total:
            left = ""
        log.info(
            "%s: %.0f %% (%s of %s), %s%s",
            self.description,
            100 * self.done / self.total,
            f"{self.done:,}",
            f"{self.total:,}",
            speed,
            left,
        )


def format_duration(seconds: float | int) -> str:
    """E.g. '1 h 05 min', '12 min', '40 s'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
