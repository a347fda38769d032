"""One source through one session into its sinks, with an account of every frame and of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, Protocol

from visrt.runtime.errors import INTERRUPTED, PARTIAL, VisrtError
from visrt.runtime.output import Sink
from visrt.runtime.results import FrameResult
from visrt.runtime.session import SessionEvents
from visrt.runtime.source import Image, Source, SourceReport, VideoFrame
from visrt.runtime.threads import FrameReader, ResultWriter
from visrt.runtime.times import StageTimes

__all__ = ["SourceOutcome", "Tracker", "track_source"]

End = Literal["complete", "partial", "failed", "interrupted"]


class Tracker(Protocol):
    """What is needed of a session."""

    @property
    def times(self) -> StageTimes: ...

    @property
    def events(self) -> SessionEvents: ...

    def reset(self) -> None: ...

    def step(self, frame: Image, time_s: float | None = None) -> list[FrameResult]: ...

    def flush(self) -> list[FrameResult]: ...


@dataclass(frozen=True)
class SourceOutcome:
    """How one source went. captured = processed + dropped + corrupt + skipped; ms are means a processed frame.

    Decoding and writing run beside the network, so the stages may add up to more than 1000 / fps.
    """

    source: str
    end: End
    reason: str
    exit_code: int
    processed: int = 0
    dropped: int = 0
    corrupt: int = 0
    skipped: int = 0
    damaged: int = 0
    wall_s: float = 0.0
    events: SessionEvents = field(default_factory=SessionEvents)
    ms: Mapping[str, float] = field(default_factory=dict)

    @property
    def captured(self) -> int:
        return self.processed + self.dropped + self.corrupt + self.skipped

    @property
    def fps(self) -> float:
        """Frames a second with everything included, from the first frame asked for to the last result on disk."""
        return self.processed / self.wall_s if self.wall_s else 0.0


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
    with _kept(errors), closing(writer), _kept(errors), closing(reader):
        run.take_all(reader)
        run.finish()
    return _outcome(source, reader, writer, run, errors, stopped(), perf_counter() - started)


@contextmanager
def _kept(errors: list[VisrtError]) -> Iterator[None]:
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


def _outcome(
    source: Source,
    reader: FrameReader,
    writer: ResultWriter,
    run: _Run,
    errors: Sequence[VisrtError],
    interrupted: bool,
    wall_s: float,
) -> SourceOutcome:
    report, frames = source.report, max(run.processed, 1)
    end, reason, code = _end(source, report, run, errors, interrupted)
    stages = run.session.times.ms_a_frame()
    return SourceOutcome(
        source=source.info.name,
        end=end,
        reason=reason,
        exit_code=code,
        processed=run.processed,
        dropped=reader.dropped,
        corrupt=report.corrupt,
        skipped=report.skipped,
        damaged=report.damaged,
        wall_s=wall_s,
        events=run.session.events,
        ms={"decode": 1e3 * reader.decode_s / frames, **stages, "write": 1e3 * writer.write_s / frames},
    )


def _end(
    source: Source, report: SourceReport, run: _Run, errors: Sequence[VisrtError], interrupted: bool
) -> tuple[End, str, int]:
    if errors:
        return "failed", str(errors[0]), errors[0].exit_code
    if interrupted:
        return "interrupted", f"interrupted after {run.processed} frames", INTERRUPTED
    if run.full:
        return "complete", f"stopped at the limit of {run.processed} frames", 0
    bad = run.session.events.bad_frames
    reasons = [report.reason, f"the network gave NaN or infinity in {bad} frames" if bad else ""]
    if report.end == "complete" and not bad:
        return "complete", "", 0
    return "partial", "; ".join(reason for reason in reasons if reason), PARTIAL
