"""How far each source is: a bar for each on a terminal, nothing elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from visrt.runtime.results import FrameResult
from visrt.runtime.sources.source import SourceInfo

__all__ = ["Advance", "BarFor", "bars"]

Advance = Callable[[FrameResult], None]
"""To be called with every result of a source."""

Remove = Callable[[], None]
"""To be called when the source has ended."""

BarFor = Callable[[SourceInfo, int | None], tuple[Advance, Remove]]
"""A bar for a source that is stopped after so many frames, where a number is given.

A source that does not know its frames is measured by its time, one that knows neither shows only that it moves.
"""


@contextmanager
def bars() -> Iterator[BarFor]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def bar_for(info: SourceInfo, limit: int | None) -> tuple[Advance, Remove]:
            frames = min(info.frames, limit) if info.frames and limit else info.frames or limit
            task = progress.add_task(info.name, total=frames or info.duration_s, shown="")

            def advance(result: FrameResult) -> None:
                done = result.index + 1
                shown = f"frame {done}, {len(result.objects)} objects"
                progress.update(task, completed=done if frames else result.time_s, shown=shown)

            return advance, lambda: progress.remove_task(task)

        yield bar_for
