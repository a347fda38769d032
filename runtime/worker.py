"""One source at work: read and resized in one thread, tracked in the caller's, its masks resized and its results
written in another."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from time import perf_counter

from visrt.runtime.errors import VisrtError
from visrt.runtime.image import check_frames
from visrt.runtime.network import Batch, Networks
from visrt.runtime.results import FrameResult, MakeResult
from visrt.runtime.sinks.outcome import RunAccount, SourceOutcome, outcome_of
from visrt.runtime.sinks.output import Sink
from visrt.runtime.sources.source import Image, Source, VideoFrame
from visrt.runtime.threads import FrameReader, ResultWriter, ignore
from visrt.runtime.times import StageTimes
from visrt.runtime.tracker import StreamTracker

__all__ = ["Job", "SourceWorker"]


@dataclass(frozen=True)
class Job:
    """A source and where its results go. limit: frames to stop after. progress: called with each result, in the thread
    that writes them."""

    source: Source
    sinks: Sequence[Sink] = ()
    limit: int | None = None
    progress: Callable[[FrameResult], None] = ignore


class SourceWorker:
    """Reads one source, tracks its objects and writes the results, as part of a pipeline.

    An error of its source, its sinks or its stream ends it and no other. over: nothing more will be taken from it.
    calls: of the frame engine in flight, with frames of this source.
    """

    def __init__(self, job: Job, tracker: StreamTracker, networks: Networks, on_ready: Callable[[], None]) -> None:
        """`on_ready` is called, from other threads, when there may be something to do for this source."""
        self.job, self.tracker = job, tracker
        self.over, self.calls, self.processed = False, 0, 0
        self._times = StageTimes()
        self._errors: list[VisrtError] = []
        self.failed = self._stopped = False
        self._started_s = perf_counter()
        self._images: deque[Image] = deque()
        self._held: tuple[VideoFrame, Batch] | None = None

        def prepare(frame: VideoFrame) -> Batch:
            check_frames([frame.image])
            [batch] = networks.prepare([frame.image], [frame.time_s])
            return batch

        self._reader = FrameReader(job.source, prepare, on_ready)
        self._writer = ResultWriter(job.sinks, on_ready, 2 * tracker.clip_frames, job.progress)

    @property
    def full(self) -> bool:
        """Whether as many frames were taken as the job allows."""
        return self.job.limit is not None and self.processed >= self.job.limit

    def next_clips(self) -> tuple[bool, list[Batch]]:
        """Whether a frame or the end of the source was taken, and the clip that is now ready for the network, if any.

        Nothing is taken while the sinks are behind: a file waits, a camera drops frames, other sources go on.
        """
        if self.over or self._writer.behind:
            return False, []
        if self._held is not None:
            return self._after_cut(self._held)
        taken = None
        if not self.full and not self._stopped:
            with self._own_errors():
                taken = self._take()
                if taken is None and not self._reader.ended:
                    return False, []
        if taken is None:
            self.over = True
            return True, self.tracker.last_clip()
        if taken[0].cut and self.processed:
            self._held = taken
            return True, self.tracker.last_clip()
        return self._see(taken)

    def _after_cut(self, held: tuple[VideoFrame, Batch]) -> tuple[bool, list[Batch]]:
        """The first frame of another scene waits until what came before is done: the cut is then between the two."""
        if self.calls:
            return False, []
        self._held = None
        self.tracker.cut()
        return self._see(held)

    def _see(self, taken: tuple[VideoFrame, Batch]) -> tuple[bool, list[Batch]]:
        frame, batch = taken
        self._images.append(frame.image)
        self.processed += 1
        return True, self.tracker.next_clips(batch)

    def _take(self) -> tuple[VideoFrame, Batch] | None:
        """The next frame, if there is one; the engines for it are opened here, so that it is this source that ends
        where they cannot be."""
        taken = self._reader.take()
        if taken is not None:
            taken[1].network.open()
        return taken

    def deliver(self, results: Sequence[MakeResult] | VisrtError) -> None:
        """Hands what makes the results of a call to the thread that writes them, or ends with its error; drops them
        after an error."""
        self.calls -= 1
        if isinstance(results, VisrtError):
            return self.fail(results)
        if self.failed:
            return None
        try:
            for make in results:
                self._writer.write(make, self._images.popleft())
        except VisrtError as error:
            self.fail(error)

    def add_times(self, times: StageTimes) -> None:
        self._times = self._times.plus(times)

    def stop(self) -> None:
        """Takes no more frames; what was taken is finished."""
        self._stopped = True

    def fail(self, error: VisrtError) -> None:
        """Takes no more frames and gives no more results; what was written stays."""
        self._errors.append(error)
        self.over = self.failed = True

    def abandon_calls(self, error: VisrtError) -> None:
        """The engine failed: the calls in flight give nothing."""
        self.calls = 0
        self.fail(error)

    def close(self) -> SourceOutcome:
        """Writes what was handed over, closes source and sinks, and gives the account of it all."""
        with self._own_errors(), closing(self._writer), self._own_errors(), closing(self._reader):
            pass
        wall_s = perf_counter() - self._started_s
        seconds = {
            "decode": self._reader.decode_s,
            **self._times.by_stage(),
            "preprocess": self._reader.prepare_s,
            "masks": self._writer.masks_s,
            "write": self._writer.write_s,
        }
        dropped, events, inputs = self._reader.dropped, self.tracker.events, self.tracker.inputs
        account = RunAccount(self.processed, dropped, self.full, events, seconds, wall_s, inputs)
        return outcome_of(self.job.source, account, self._errors, self._stopped)

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """A VisrtError ends this source only and is reported in its outcome; a bug goes through."""
        try:
            yield
        except VisrtError as error:
            self._errors.append(error)
