"""Reading and writing in threads of their own: bounded queues, order kept, errors carried over to the caller."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Generic, TypeVar

from visrt.runtime.results import FrameResult, MakeResult
from visrt.runtime.sinks.output import Sink
from visrt.runtime.sources.source import Image, Source, VideoFrame

__all__ = ["FrameReader", "ResultWriter", "ignore"]

T = TypeVar("T")

POLL_S = 0.1
HANG_S = 2.0
LIVE_POLL_S = 0.001
AHEAD_FRAMES = 3
"""Frames a queue holds: enough to smooth a slow frame, few enough to keep memory flat."""

LIVE_AHEAD_FRAMES = 1
"""Of a live source only the newest frame waits: a longer queue would show the past."""


def ignore(*_: object) -> None:
    """A callback that does nothing."""


class FrameReader(Generic[T]):
    """Reads a source in a thread of its own. A file waits for its reader; of a live source the newest frame is kept.

    dropped: frames of a live source that came faster than they were taken. decode_s, prepare_s: seconds spent inside
    the source, and in `prepare`. ended: the source has no more frames, and all were taken.
    """

    def __init__(
        self, source: Source, prepare: Callable[[VideoFrame], T], on_ready: Callable[[], None] = ignore
    ) -> None:
        """`prepare` makes what the network needs of a frame. `on_ready` is called when there is something to take."""
        self.dropped = 0
        self.decode_s = self.prepare_s = 0.0
        self.ended = False
        self._source, self._prepare, self._on_ready = source, prepare, on_ready
        ahead = LIVE_AHEAD_FRAMES if source.info.live else AHEAD_FRAMES
        self._frames: queue.Queue[tuple[VideoFrame, T] | BaseException | None] = queue.Queue(ahead)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="visrt-reader", daemon=True)
        self._thread.start()

    def take(self) -> tuple[VideoFrame, T] | None:
        """The next frame and what was prepared of it; None if there is none now, or no more. Raises what ended the
        source."""
        try:
            item = self._frames.get_nowait()
        except queue.Empty:
            return None
        if isinstance(item, BaseException):
            self.ended = True
            raise item
        self.ended = item is None
        return item

    def close(self) -> None:
        """Lets go of the source; of one that hangs in a read (a camera that was unplugged) without waiting for it."""
        self._closing.set()
        while not self._frames.empty():
            self.take()  # makes room for a reader that waits for it
        self._thread.join(timeout=HANG_S)
        if not self._thread.is_alive():
            self._source.close()

    def _run(self) -> None:
        try:
            frames = iter(self._source)
            while not self._closing.is_set():
                started = perf_counter()
                frame = next(frames, None)
                decoded = perf_counter()
                self.decode_s += decoded - started
                if frame is None:
                    return self._put(None)
                prepared = self._prepare(frame)
                self.prepare_s += perf_counter() - decoded
                self._put((frame, prepared))
        except BaseException as error:
            self._put(error)

    def _put(self, item: tuple[VideoFrame, T] | BaseException | None) -> None:
        """Waits for room; a frame of a live source makes its own, but the end of a source never does."""
        makes_room = self._source.info.live and isinstance(item, tuple)
        while not self._closing.is_set():
            try:
                self._frames.put(item, timeout=LIVE_POLL_S if makes_room else POLL_S)
                return self._on_ready()
            except queue.Full:
                if makes_room:
                    self._drop_oldest()

    def _drop_oldest(self) -> None:
        try:
            self._frames.get_nowait()
            self.dropped += 1
        except queue.Empty:
            pass


class ResultWriter:
    """Makes results and feeds sinks with them, one after the other, in a thread of its own. Its first error stops it
    and meets the next `write`.

    masks_s, write_s: seconds spent making results, and inside the sinks.
    """

    def __init__(
        self,
        sinks: Sequence[Sink],
        on_written: Callable[[], None] = ignore,
        extra_capacity: int = 0,
        progress: Callable[[FrameResult], None] = ignore,
    ) -> None:
        """`on_written` is called after each result is written, `progress` with each before. extra_capacity: queue
        places beyond AHEAD_FRAMES."""
        self.masks_s = self.write_s = 0.0
        self._sinks, self._on_written, self._progress = sinks, on_written, progress
        self._error: BaseException | None = None
        self._results: queue.Queue[tuple[MakeResult, Image] | None] = queue.Queue(AHEAD_FRAMES + extra_capacity)
        self._thread = threading.Thread(target=self._run, name="visrt-writer", daemon=True)
        self._thread.start()

    @property
    def behind(self) -> bool:
        """Whether so many results wait for the sinks that it is better to make no more of them."""
        return self._results.qsize() >= AHEAD_FRAMES

    def write(self, make: MakeResult, image: Image) -> None:
        """Hands over what makes the result of `image`, waiting while the sinks are behind."""
        self._raise_error()
        self._results.put((make, image))

    def close(self) -> None:
        """Writes what was handed over, closes every sink, and raises the first error there was."""
        self._results.put(None)
        self._thread.join()
        for sink in self._sinks:
            self._guard(sink.close)
        self._raise_error()

    def _run(self) -> None:
        while (item := self._results.get()) is not None:
            if self._error is None:
                self._guard(lambda item=item: self._make_and_write(*item))  # type: ignore[misc]
            self._on_written()

    def _make_and_write(self, make: MakeResult, image: Image) -> None:
        started = perf_counter()
        result = make()
        made = perf_counter()
        self.masks_s += made - started
        self._progress(result)
        try:
            for sink in self._sinks:
                sink.write(result, image)
        finally:
            self.write_s += perf_counter() - made

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            self._error = self._error or error

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
