"""The progress of `visrt eval`: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from visrt.console import say
from visrt.training.progress import LINE_EVERY_S, duration

if TYPE_CHECKING:
    from visrt.benchmarks.accuracy.bundle_run import OnProgress
    from visrt.benchmarks.accuracy.bundle_run import Progress as Done

__all__ = ["Pace", "ProgressLines", "progress"]


@contextmanager
def progress() -> Iterator[OnProgress]:
    """To be called after every video; a video that failed is named at once."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(say)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(*columns, console=console, transient=True) as bars:
        pace, tasks = Pace(), dict[str, TaskID]()

        def on_progress(now: Done) -> None:
            if now.rule not in tasks:
                tasks[now.rule] = bars.add_task(now.rule, total=now.of, shown="")
            bars.update(tasks[now.rule], completed=now.done, shown=pace.words(now))
            if now.fault:
                bars.console.print(f"visrt: {now.fault}", markup=False, highlight=False)

        yield on_progress


class Pace:
    """How fast the frames of a rule go."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.began = clock, clock()

    def words(self, now: Done) -> str:
        """Videos done, frames a second, time left."""
        videos = f"{now.done} of {now.of} videos"
        if not now.frames_done:
            self.began = self.clock()
            return videos
        rate = now.frames_done / max(self.clock() - self.began, 1e-3)
        left = f", {duration((now.frames - now.frames_done) / rate)} left" if now.done < now.of else ""
        return f"{videos}, {rate:.1f} frames a second{left}"


class ProgressLines:
    """Calls `on_line` where an earlier run is gone on with, for each video that failed, and about every 30 s."""

    def __init__(self, on_line: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.on_line, self.clock = on_line, clock
        self.pace, self.last = Pace(clock), clock()

    def __call__(self, now: Done) -> None:
        words = self.pace.words(now)
        if now.fault:
            self.on_line(now.fault)
        if now.done and not now.frames_done:
            self.on_line(f"{now.rule}: {words} are done")
        elif self.clock() - self.last >= LINE_EVERY_S:
            self.on_line(f"{now.rule}: {words}")
            self.last = self.clock()
