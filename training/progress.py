"""The progress of a run: a bar on a terminal, else a line now and then, so that a log is never empty for long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressLines", "StepReport", "progress"]

LINE_EVERY_S = 30.0


class StepReport(Protocol):
    def __call__(self, step: int, loss: float) -> None:
        """`step` steps are done, the last of which had `loss`."""


@contextmanager
def progress(steps: int, done: int, on_line: Callable[[str], None]) -> Iterator[StepReport]:
    """Reports of a run of `steps` steps of which `done` are done."""
    if not sys.stderr.isatty():
        yield ProgressLines(steps, done, on_line)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(TextColumn("train"), *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("train", total=steps, completed=done, loss="")
        yield lambda step, loss: bar.update(task, completed=step, loss=f"loss {loss:.2f}")


class ProgressLines:
    """Calls `on_line` after the first step, the last, and about every 30 s."""

    def __init__(
        self, steps: int, done: int, on_line: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps, self.on_line, self.clock = steps, on_line, clock
        self.first = done + 1
        self.last_step, self.last_time = done, clock()

    def __call__(self, step: int, loss: float) -> None:
        seconds = self.clock() - self.last_time
        if step not in (self.first, self.steps) and seconds < LINE_EVERY_S:
            return
        rate = seconds / max(step - self.last_step, 1)
        left = f", {duration(rate * (self.steps - step))} left" if step < self.steps else ""
        self.on_line(f"step {step} of {self.steps}: loss {loss:.2f}, {rate:.2f} s a step{left}")
        self.last_step, self.last_time = step, self.clock()


def duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
