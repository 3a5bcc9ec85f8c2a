"""Progress bars with rate and time left, and the log that shares the terminal with them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
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
from rich.text import Text

console = Console(stderr=True)
log = logging.getLogger("encbench")
WIDTH = 48  # of a bar's description, in characters
EVERY = 30.0  # seconds between two lines where there is no terminal


def show_log() -> None:
    """Send encbench's log to the terminal, beside the progress bars. For the command line."""
    if not log.handlers:
        handler = RichHandler(console=console, show_time=False, show_path=False, markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` items; call what it gives with the number of items just done.

    Where standard error is no terminal, a line is logged every half minute instead. Of a long
    description the end is kept, where paths differ.
    """
    if len(description) > WIDTH:
        description = "…" + description[1 - WIDTH :]
    if not console.is_terminal:
        yield ProgressLines(description, total).advance
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(description, total=total)
        yield lambda done: progress.advance(task, done)


class ProgressLines:
    """Progress as lines in a log file: share, rate and time left, every half minute.

    The rate is that since the line before, so it follows a machine whose load changes; what was
    done already when the work began counts in the share only.
    """

    def __init__(
        self, description: str, total: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.description, self.total, self.clock = description, total, clock
        self.done = self.done_before = 0
        self.begun = self.line_before = clock()

    def advance(self, count: int) -> None:
        """Take note of items just done; log a line if the last one is half a minute old."""
        now = self.clock()
        self.done += count
        if now - self.begun < 1:  # read from disk, or done by an earlier command
            self.done_before, self.line_before = self.done, now
        if now - self.line_before < EVERY or not self.total:
            return
        rate = (self.done - self.done_before) / (now - self.line_before)
        self.done_before, self.line_before = self.done, now
        left = format_duration((self.total - self.done) / rate) if rate else "unknown time"
        speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        log.info(
            "%s: %.0f %% (%s of %s), %s, %s left",
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
