"""What `visrt track` does: plans the sources, tracks one after the other or several at a time, writes what each
gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from visrt.commands.track_output import Opened, finished, opened
from visrt.commands.track_plan import Plan, TrackOptions, out_of_all, plan, worst
from visrt.commands.tracking.many import Total
from visrt.commands.tracking.options import shown_by
from visrt.console import say
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.errors import VisrtError
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.runtime.results import FrameResult, Shown
from visrt.runtime.session import SessionSettings
from visrt.runtime.sinks.outcome import SourceOutcome
from visrt.runtime.sources.source import SourceInfo
from visrt.runtime.threads import ignore
from visrt.signals import StopRequest

__all__ = ["Advance", "BarFor", "TrackOptions", "bars", "track_all", "worst"]


def track_all(sources: Sequence[str], options: TrackOptions) -> int:
    """Tracks every source that can be; returns the exit code. One bad source does not stop the others."""
    started_s = perf_counter()
    bundle = open_bundle(options.bundle)
    shown = shown_by(options.wishes, bundle.manifest)
    planned = plan(sources, options)
    total = Total(out_of_all(options), planned.finished, planned.refused)
    if not planned.jobs:
        total.tell(perf_counter() - started_s)
        return planned.code
    with StopRequest() as stop, _pipeline(bundle, options, len(planned.jobs)) as pipeline, bars() as bar_for:
        run = _Run(pipeline, options, shown, total)
        pipeline.track(run.jobs(planned.jobs, bar_for), run.done, stop)
        code = worst(planned.code, run.exit_code())
        total.tell(perf_counter() - started_s)
        return stop.exit_code if stop() else code


def _pipeline(bundle: Bundle, options: TrackOptions, sources: int) -> Pipeline:
    """With one stream, `--in-flight` 1 computes in the caller's thread; with several, the engine chooses by default."""
    streams = min(options.streams, sources)
    in_flight = 1 if streams == options.in_flight == 1 else 2
    settings = PipelineSettings(
        streams, calls=options.in_flight - 1 or None, session=SessionSettings(in_flight=in_flight)
    )
    return Pipeline.open(
        bundle,
        options.engine,
        threads=options.threads,
        device=options.device,
        settings=settings,
        association=options.association.changes,
        preset=options.association.preset,
    )


class _Run:
    """The jobs of a pipeline and their ends. Files that need a whole video are written while others are tracked."""

    def __init__(self, pipeline: Pipeline, options: TrackOptions, shown: Shown, total: Total) -> None:
        self._pipeline, self._options, self._shown, self._total = pipeline, options, shown, total
        self._started: dict[int, tuple[Plan, Opened, Callable[[], None]]] = {}
        self._refused = 0
        self._finisher = ThreadPoolExecutor(1, "visrt-finisher")
        self._codes: list[Future[int]] = []

    def jobs(self, plans: Sequence[Plan], bar_for: BarFor) -> Iterator[Job]:
        """The sources that can be opened, each when there is a place for it."""
        for one in plans:
            try:
                found = opened(one, self._shown, self._options)
            except VisrtError as error:
                say(str(error))
                self._total.refuse(one.path, str(error))
                self._refused = worst(self._refused, error.exit_code)
                continue
            advance, remove_bar = bar_for(self._expected(found.source.info), self._options.limit)
            job = Job(found.source, found.sinks, self._options.limit, advance)
            self._started[id(job)] = one, found, remove_bar
            yield job

    def _expected(self, info: SourceInfo) -> SourceInfo:
        """`info` with the number of frames that are to come, where a part of the source is read."""
        video = self._options.video
        if video.start is not None or video.end is not None:
            return replace(info, frames=None, duration_s=video.end.seconds if video.end else info.duration_s)
        return replace(info, frames=info.frames and -(-info.frames // video.every))

    def done(self, job: Job, outcome: SourceOutcome) -> None:
        """Has the last files of a source written."""
        (one, found, remove_bar), pipeline = self._started.pop(id(job)), self._pipeline
        remove_bar()
        last = (pipeline.manifest, pipeline.method, self._options, found.lines, self._total)
        self._codes.append(self._finisher.submit(finished, one, outcome, *last))

    def exit_code(self) -> int:
        """The gravest of all, once everything is written."""
        self._finisher.shutdown()
        code = self._refused
        for ended in self._codes:
            code = worst(code, ended.result())
        return code


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
    if not console.is_terminal:
        yield lambda info, limit: (ignore, ignore)
        return
    with Progress(*columns, console=console, transient=True) as progress:

        def bar_for(info: SourceInfo, limit: int | None) -> tuple[Advance, Remove]:
            frames = min(info.frames, limit) if info.frames and limit else info.frames or limit
            task = progress.add_task(info.name, total=frames or info.duration_s, shown="")

            def advance(result: FrameResult) -> None:
                done = result.index + 1
                shown = f"frame {done}, {len(result.objects)} objects"
                progress.update(task, completed=done if frames else result.time_s, shown=shown)

            return advance, lambda: progress.remove_task(task)

        yield bar_for
