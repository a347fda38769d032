"""Several sources of `visrt track` at a time: they share one set of engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from visrt.commands.track_output import finished, opened
from visrt.commands.track_plan import Plan, TrackOptions, worst
from visrt.commands.track_progress import BarFor, bars
from visrt.console import say
from visrt.runtime.errors import VisrtError
from visrt.runtime.outcome import SourceOutcome
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.signals import StopRequest

__all__ = ["track_together"]


def track_together(plans: Sequence[Plan], options: TrackOptions, stop: StopRequest) -> int:
    """Tracks `options.streams` sources at a time; the exit code."""
    calls = options.in_flight - 1 or None
    settings = PipelineSettings(streams=min(options.streams, len(plans)), calls=calls)
    with (
        Pipeline.open(
            options.bundle,
            options.engine,
            threads=options.threads,
            settings=settings,
            association=options.association.changes,
            preset=options.association.preset,
        ) as pipeline,
        bars() as bar_for,
    ):
        run = _Together(pipeline, options)
        pipeline.track(run.jobs(plans, bar_for), run.done, stop)
        code = run.exit_code()
    return stop.exit_code if stop() else code


class _Together:
    """The jobs of a pipeline and their ends. The files that need a whole video are written beside the others' work."""

    def __init__(self, pipeline: Pipeline, options: TrackOptions) -> None:
        self._pipeline, self._options = pipeline, options
        self._plans: dict[int, Plan] = {}
        self._refused = 0
        self._finisher = ThreadPoolExecutor(1, "visrt-finisher")
        self._codes: list[Future[int]] = []

    def jobs(self, plans: Sequence[Plan], bar_for: BarFor) -> Iterator[Job]:
        """The sources that can be opened, each when there is a place for it."""
        for one in plans:
            try:
                source, sinks = opened(one, self._pipeline.manifest, self._options)
            except VisrtError as error:
                say(str(error))
                self._refused = worst(self._refused, error.exit_code)
                continue
            job = Job(source, sinks, self._options.limit, bar_for(source.info, self._options.limit))
            self._plans[id(job)] = one
            yield job

    def done(self, job: Job, outcome: SourceOutcome) -> None:
        """Has the last files of a source written."""
        folder, pipeline = self._plans[id(job)].folder, self._pipeline
        self._codes.append(
            self._finisher.submit(finished, folder, outcome, pipeline.manifest, pipeline.family, self._options)
        )

    def exit_code(self) -> int:
        """The gravest of all, once everything is written."""
        self._finisher.shutdown()
        code = self._refused
        for ended in self._codes:
            code = worst(code, ended.result())
        return code
