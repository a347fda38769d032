"""One call from a source to results: `track`, and `track_async` for programs that wait for other things meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.errors import UsageError
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.sinks.output import Sink
from visrt.runtime.sources.cuts import CutDetector
from visrt.runtime.sources.source import (
    Image,
    Moment,
    ReportedSource,
    Selector,
    Source,
    SourceInfo,
    SourceReport,
    VideoFrame,
    VideoSettings,
    moment,
)
from visrt.runtime.sources.video import open_source
from visrt.runtime.threads import POLL_S, FrameReader

__all__ = ["Tracking", "track", "track_async"]

Frames = Iterable[Image | VideoFrame | tuple[Image, float]]
DEFAULTS = VideoSettings()


def track(
    source: str | Path | int | Source | Frames,
    bundle: str | Path | Bundle = "default",
    *,
    engine: str = "cpu",
    threads: int | None = None,
    in_flight: int = 1,
    preset: str | None = None,
    association: Mapping[str, Any] | None = None,
    classes: str | Sequence[str] | None = None,
    score: float = 0.0,
    start: Moment | float | str | None = None,
    end: Moment | float | str | None = None,
    every: int = 1,
    limit: int | None = None,
    cuts: bool = False,
    video: VideoSettings = DEFAULTS,
    sinks: Sequence[Sink] = (),
    session: Session | None = None,
) -> Tracking:
    """The results of `source`, one a frame, as they come, each with its `image`.

        for result in visrt.track("street.mp4", classes="person"):
            print(result.index, result.ids, result.boxes)

    source: a file, folder, glob, pattern, the number of a camera, "-", an opened source, or frames: arrays [H, W, 3],
    uint8 RGB, with their times in seconds if they are pairs. Options are those of `visrt track`, by the same names;
    `video` has the rest of reading. sinks: are written to and closed. session: one that is open, in place of the
    options of opening one; it begins a new stream, and stays open. `result.index` is the number of the frame in the
    source. Of a live source the newest frame is taken.

    Raises at once what can be known: UsageError, SettingsError, BundleError, EngineError and SourceError.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; expected 1 or more frames, or None")
    chosen: dict[str, Any] = {
        "start": None if start is None else moment(start),
        "end": None if end is None else moment(end),
        "every": None if every == 1 else every,
        "cuts": "find" if cuts else None,
    }
    settings = replace(video, **{name: value for name, value in chosen.items() if value is not None})
    own = session is None
    if session is not None and (preset is not None or association is not None):
        raise UsageError("preset and association are those of the session that is given; open it with them")
    found = session or Session.open(
        bundle,
        engine,
        threads=threads,
        settings=SessionSettings(in_flight=in_flight),
        association=association,
        preset=preset,
    )
    try:
        found.reset()
        if own or classes is not None or score:
            found.show(classes=classes, score=score)
        opened = _opened(source, settings)
    except BaseException:
        if own:
            found.close()
        raise
    return Tracking(found, opened, sinks, limit, closes_session=own)


async def track_async(
    source: str | Path | int | Source | Frames, *args: Any, **options: Any
) -> AsyncIterator[FrameResult]:
    """As `track`, without holding up the event loop: the work is done in a thread.

    async for result in visrt.track_async(0):
        await tell(result)
    """
    tracking = await asyncio.to_thread(track, source, *args, **options)
    try:
        while (result := await asyncio.to_thread(next, tracking, None)) is not None:
            yield result
    finally:
        await asyncio.to_thread(tracking.close)


class Tracking(Iterator[FrameResult]):
    """The results of a source, as they come. `session` can be told to show other classes or scores meanwhile.

    `with` closes the source, and the session if it is its own; so does the end of the source.
    """

    def __init__(
        self, session: Session, source: Source, sinks: Sequence[Sink], limit: int | None, closes_session: bool
    ) -> None:
        self.session = session
        self._source, self._sinks, self._limit = source, sinks, limit
        self._closing = threading.Event()
        self._busy = threading.Lock()
        self._ends = ExitStack()
        if closes_session:
            self._ends.callback(session.close)
        for sink in reversed(sinks):
            self._ends.callback(sink.close)
        self._frames = self._read()
        self._waiting: deque[VideoFrame] = deque()
        self._ready: deque[FrameResult] = deque()
        self._taken, self._over = 0, False

    @property
    def info(self) -> SourceInfo:
        """What the source says of itself."""
        return self._source.info

    @property
    def report(self) -> SourceReport:
        """The account of the source's frames so far, with remarks."""
        return self._source.report

    def __next__(self) -> FrameResult:
        with self._busy:
            try:
                while not self._ready:
                    if self._over or self._closing.is_set():
                        raise StopIteration
                    self._step()
                return self._ready.popleft()
            except BaseException:
                self._close()
                raise

    def close(self) -> None:
        """Lets go of source, sinks and, if it is its own, session; nothing more comes."""
        self._closing.set()
        with self._busy:
            self._close()

    def __enter__(self) -> Tracking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _close(self) -> None:
        self._closing.set()
        self._over = True
        self._frames.close()
        self._ends.close()

    def _step(self) -> None:
        """Gives the next frame to the session, or what waits at the end of the source."""
        frame = None if self._taken == self._limit else next(self._frames, None)
        if frame is None:
            self._over = True
            self._give(self.session.flush())
            return
        if frame.cut and self._taken:
            self._give(self.session.flush())
            self.session.cut()
        self._taken += 1
        self._waiting.append(frame)
        self._give(self.session.step(frame.image, frame.time_s))

    def _give(self, results: Sequence[FrameResult]) -> None:
        for result in results:
            frame = self._waiting.popleft()
            shown = replace(result, index=frame.index, image=frame.image)
            for sink in self._sinks:
                sink.write(shown, frame.image)
            self._ready.append(shown)

    def _read(self) -> Any:
        """The frames of the source; of a live one those that are the newest when they are asked for."""
        if not self._source.info.live:
            with closing(self._source):
                yield from self._source
            return
        ready = threading.Event()
        with closing(FrameReader(self._source, lambda _: None, ready.set)) as reader:
            while not self._closing.is_set():
                ready.clear()
                taken = reader.take()
                if taken is not None:
                    yield taken[0]
                elif reader.ended:
                    return
                else:
                    ready.wait(POLL_S)


class _GivenFrames(ReportedSource):
    """Frames that a program gives, as a source."""

    def __init__(self, frames: Frames, settings: VideoSettings) -> None:
        self._frames, self._settings = frames, settings
        self._info, self._report = SourceInfo("frames", "stream", fps=settings.image_fps), SourceReport()

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[VideoFrame]:
        selector, cuts = Selector(self._settings), CutDetector()
        for index, given in enumerate(self._frames):
            frame = _video_frame(given, index, self._settings.image_fps)
            if selector.takes(index, frame.time_s):
                self._report = replace(self._report, decoded=self._report.decoded + 1)
                found = self._settings.cuts == "find" and cuts.cuts(frame.image)
                yield replace(frame, index=index, cut=frame.cut or found)
            elif selector.over:
                break
        self._report = replace(self._report, end="complete")


def _video_frame(given: Image | VideoFrame | tuple[Image, float], index: int, fps: float) -> VideoFrame:
    if isinstance(given, VideoFrame):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return VideoFrame(index, float(given[1]), given[0])
    if isinstance(given, np.ndarray):
        return VideoFrame(index, index / fps, given)
    raise UsageError(
        f"frame {index} is a {type(given).__name__}; expected a uint8 array [height, width, 3], RGB, or a pair of it "
        "and its time in seconds"
    )


def _opened(source: str | Path | int | Source | Frames, settings: VideoSettings) -> Source:
    if isinstance(source, int):
        return open_source(str(source), settings)
    if isinstance(source, str | Path):
        return open_source(source, settings)
    if hasattr(source, "info") and hasattr(source, "report"):
        return cast(Source, source)
    if isinstance(source, Iterable):
        return _GivenFrames(source, settings)
    raise UsageError(f"source is a {type(source).__name__}; expected a path, a camera's number, a source or frames")
