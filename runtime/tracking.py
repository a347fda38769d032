"""One source through one session into its sinks, with an account of every frame and of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from time import perf_counter
from typing import Protocol

from visrt.runtime.errors import VisrtError
from visrt.runtime.outcome import RunAccount, SourceOutcome, outcome_of
from visrt.runtime.output import Sink
from visrt.runtime.results import FrameResult
from visrt.runtime.source import Image, Source, VideoFrame
from visrt.runtime.stream import SessionEvents
from visrt.runtime.threads import FrameReader, ResultWriter
from visrt.runtime.times import StageTimes

__all__ = ["SourceOutcome", "Tracker", "kept", "track_source"]


class Tracker(Protocol):
    """What is needed of a session."""

    @property
    def times(self) -> StageTimes: ...

    @property
    def events(self) -> SessionEvents: ...

    def reset(self) -> None: ...

    def step(self, frame: Image, time_s: float | None = None) -> list[FrameResult]: ...

    def flush(self) -> list[FrameResult]: ...


def track_source(
    source: Source,
    session: Tracker,
    sinks: Sequence[Sink],
    stopped: Callable[[], bool],
    limit: int | None = None,
    progress: Callable[[FrameResult], None] = lambda result: None,
) -> SourceOutcome:
    """Reads `source` to its end, to `limit` frames or until `stopped()`; what was processed is written in any case."""
    session.reset()
    started = perf_counter()
    reader, writer = FrameReader(source, stopped), ResultWriter(sinks)
    run = _Run(session, writer, limit, progress)
    errors: list[VisrtError] = []
    with kept(errors), closing(writer), kept(errors), closing(reader):
        run.take_all(reader)
        run.finish()
    account = _account(reader, writer, run, perf_counter() - started)
    return outcome_of(source, account, errors, stopped())


@contextmanager
def kept(errors: list[VisrtError]) -> Iterator[None]:
    """What visrt refuses ends this source only and is told in its outcome; a bug goes through."""
    try:
        yield
    except VisrtError as error:
        errors.append(error)


class _Run:
    """The frames between the reader and the writer; a family may give a frame's result some frames later."""

    def __init__(
        self, session: Tracker, writer: ResultWriter, limit: int | None, progress: Callable[[FrameResult], None]
    ) -> None:
        self.processed = 0
        self.session = session
        self._writer, self._limit, self._progress = writer, limit, progress
        self._waiting: dict[int, Image] = {}

    @property
    def full(self) -> bool:
        return self._limit is not None and self.processed >= self._limit

    def take_all(self, frames: Iterable[VideoFrame]) -> None:
        for frame in frames:
            self._waiting[self.processed] = frame.image
            self.processed += 1
            self._give(self.session.step(frame.image, frame.time_s))
            if self.full:
                return

    def finish(self) -> None:
        self._give(self.session.flush())

    def _give(self, results: Sequence[FrameResult]) -> None:
        for result in results:
            self._writer.write(result, self._waiting.pop(result.index))
            self._progress(result)


def _account(reader: FrameReader, writer: ResultWriter, run: _Run, wall_s: float) -> RunAccount:
    session = run.session
    seconds = {"decode": reader.decode_s, **session.times.told(), "write": writer.write_s}
    return RunAccount(run.processed, reader.dropped, run.full, session.events, seconds, wall_s)
