"""One source on its way through a pipeline: its reader, its stream, its writer, and the account of all that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter

from visrt.runtime.errors import VisrtError
from visrt.runtime.network import FrameInputs, Network
from visrt.runtime.outcome import RunAccount, SourceOutcome, outcome_of
from visrt.runtime.output import Sink
from visrt.runtime.results import FrameResult
from visrt.runtime.rounds import Answered
from visrt.runtime.source import Image, Source, SourceInfo, SourceReport, VideoFrame
from visrt.runtime.stream import Clips, Stream, check_frames
from visrt.runtime.threads import FrameReader, ResultWriter
from visrt.runtime.times import StageTimes
from visrt.runtime.tracking import kept

__all__ = ["Job", "Lane", "PreparedSource"]


def unwatched(result: FrameResult) -> None:
    """Progress that nobody looks at."""


@dataclass(frozen=True)
class Job:
    """A source and where its results go. limit: frames to stop after. progress: called with each result."""

    source: Source
    sinks: Sequence[Sink] = ()
    limit: int | None = None
    progress: Callable[[FrameResult], None] = unwatched


@dataclass(frozen=True)
class PreparedFrame(VideoFrame):
    """A frame with the input of the network that was made of it."""

    inputs: FrameInputs | None = None


class PreparedSource:
    """Frames of a source, resized for the network in the thread that reads them. prepare_s: what that took."""

    def __init__(self, source: Source, network: Network) -> None:
        self.prepare_s = 0.0
        self._source, self._network = source, network

    @property
    def info(self) -> SourceInfo:
        return self._source.info

    @property
    def report(self) -> SourceReport:
        return self._source.report

    def __iter__(self) -> Iterator[VideoFrame]:
        for frame in self._source:
            started = perf_counter()
            check_frames([frame.image])
            inputs = self._network.inputs([frame.image])
            self.prepare_s += perf_counter() - started
            yield PreparedFrame(frame.index, frame.time_s, frame.image, frame.corrupt, inputs)

    def close(self) -> None:
        self._source.close()


class Lane:
    """One source at work. An error of its source, its sinks or its stream ends it and no other.

    over: nothing will be taken from it any more. calls: of the frame engine, with frames of this lane, in flight.
    """

    def __init__(self, job: Job, stream: Stream, network: Network, news: Callable[[], None]) -> None:
        self.job, self.stream = job, stream
        self.over, self.calls, self.processed = False, 0, 0
        self.times = StageTimes()
        self._errors: list[VisrtError] = []
        self._broken = self._stopped = False
        self._started_s = perf_counter()
        self._images: dict[int, Image] = {}
        self._source = PreparedSource(job.source, network)
        self._reader = FrameReader(self._source, lambda: False, news)
        self._writer = ResultWriter(job.sinks, news, room=2 * stream.clip_frames)

    @property
    def full(self) -> bool:
        return self.job.limit is not None and self.processed >= self.job.limit

    def take(self) -> Clips | None:
        """What is ready for the network with the next frame, or at the end; None if nothing can be taken now.

        A lane whose sinks are behind gives nothing: its file waits, its camera drops frames, the others go on.
        """
        if self.over or self._writer.behind:
            return None
        frame = None
        if not self.full and not self._stopped:
            with kept(self._errors):
                frame = self._reader.take()
                if frame is None and not self._reader.ended:
                    return None
        return self._last() if frame is None else self._next(frame)

    def give(self, answered: Answered) -> None:
        """Hands on the results of clips of this lane; once it is broken they are dropped."""
        self.calls -= 1
        if self._broken:
            return
        try:
            for result in answered.results():
                self._writer.write(result, self._images.pop(result.index))
                self.job.progress(result)
        except VisrtError as error:
            self.fail(error)

    def stop(self) -> None:
        """Takes no more frames; what was taken is finished."""
        self._stopped = True

    def fail(self, error: VisrtError) -> None:
        """Takes no more frames and gives no more results; what was written stays."""
        self._errors.append(error)
        self.over = self._broken = True

    def close(self) -> SourceOutcome:
        """Writes what was handed over, lets go of the source, and tells how it went."""
        with kept(self._errors), closing(self._writer), kept(self._errors), closing(self._reader):
            pass
        wall_s = perf_counter() - self._started_s
        seconds = {
            "decode": self._reader.decode_s - self._source.prepare_s,
            **self.times.told(),
            "preprocess": self._source.prepare_s,
            "write": self._writer.write_s,
        }
        account = RunAccount(self.processed, self._reader.dropped, self.full, self.stream.events, seconds, wall_s)
        return outcome_of(self.job.source, account, self._errors, self._stopped)

    def _next(self, frame: VideoFrame) -> Clips:
        assert isinstance(frame, PreparedFrame)
        assert frame.inputs is not None
        self._images[self.processed] = frame.image
        self.processed += 1
        return self.stream.clips_with(frame.inputs, [frame.time_s])

    def _last(self) -> Clips:
        self.over = True
        return self.stream.last_clips()
