"""One call from a source to results: `track`, and `track_async` for programs that wait for other things meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.errors import UsageError, VisrtError
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.sinks.files_of_frames import Crops, MaskPictures, MotRows
from visrt.runtime.sinks.journal import Journal
from visrt.runtime.sinks.line_count import Line, LineCount, line
from visrt.runtime.sinks.output import CROPS, JOURNAL, MASKS, MOT, OVERLAY, Sink, prepare_folder
from visrt.runtime.sinks.overlay import STYLE, OverlayStyle
from visrt.runtime.sinks.overlay_video import OverlayVideo, VideoCoding
from visrt.runtime.sources.given import Frames, GivenFrames
from visrt.runtime.sources.source import (
    Moment,
    Source,
    SourceInfo,
    SourceReport,
    VideoFrame,
    VideoSettings,
    moment,
)
from visrt.runtime.sources.video import open_source
from visrt.runtime.threads import POLL_S, FrameReader

__all__ = ["Tracking", "files_of_a_run", "track", "track_async"]

DEFAULTS = VideoSettings()

OVERLAY_FPS = 25.0
"""Rate the overlay's encoder plans with where the source does not know its own; times stay the source's."""


def track(
    source: str | Path | int | Source | Frames,
    bundle: str | Path | Bundle = "default",
    *,
    engine: str = "cpu",
    threads: int | None = None,
    in_flight: int = 1,
    device: int = 0,
    preset: str | None = None,
    association: Mapping[str, Any] | None = None,
    classes: str | Sequence[str] | None = None,
    score: float = 0.0,
    start: Moment | float | str | None = None,
    end: Moment | float | str | None = None,
    every: int = 1,
    limit: int | None = None,
    cuts: bool = False,
    count_line: str | Line | Sequence[str | Line] = (),
    out: str | Path | None = None,
    overlay: bool = False,
    masks: Literal["png"] | None = None,
    crops: bool = False,
    mot: bool = False,
    style: OverlayStyle = STYLE,
    overwrite: bool = False,
    image_fps: float | None = None,
    value_range: tuple[float, float] | None = None,
    video: VideoSettings = DEFAULTS,
    sinks: Sequence[Sink] = (),
    session: Session | None = None,
) -> Tracking:
    """The results of `source`, one a frame, as they come, each with its `image`.

        for result in visrt.track("street.mp4", classes="person"):
            print(result.index, result.ids, result.boxes)

    source: a file, folder, glob, pattern, the number of a camera, "-", an opened source, or frames: arrays [H, W, 3],
    uint8 RGB, with their times in seconds if they are pairs. Options are those of `visrt track`, by the same names;
    `video` has the rest of reading. out: a folder for results.jsonl and what else is chosen: overlay (drawn in
    `style`), masks, crops, mot. sinks: others, which are written to and closed. session: one that is open, in place of
    the options of opening one; it begins a new stream, and stays open. `result.index` is the number of the frame in the
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
        "image_fps": image_fps,
        "value_range": value_range,
    }
    settings = replace(video, **{name: value for name, value in chosen.items() if value is not None})
    given = (count_line,) if isinstance(count_line, str | Line) else count_line
    lines = [LineCount(line(one) if isinstance(one, str) else one) for one in given]
    wished = {"overlay": overlay, "masks": masks, "crops": crops, "mot": mot, "overwrite": overwrite}
    if out is None and any(wished.values()):
        named = ", ".join(name for name, value in wished.items() if value)
        raise UsageError(f"{named}: no folder to write to; give out=")
    own = session is None
    if session is not None and (preset is not None or association is not None):
        raise UsageError("preset and association are those of the session that is given; open it with them")
    found = session or Session.open(
        bundle,
        engine,
        threads=threads,
        device=device,
        settings=SessionSettings(in_flight=in_flight),
        association=association,
        preset=preset,
    )
    try:
        found.reset()
        if own or classes is not None or score:
            found.show(classes=classes, score=score)
        if masks and not found.networks.main.has_masks:
            raise UsageError(
                f"masks: {found.manifest.name} gives boxes alone; leave it out, or crops=True writes boxes"
            )
        opened = _opened(source, settings)
        try:
            written: list[Sink] = []
            if out is not None:
                prepare_folder(Path(out), (), "replace" if overwrite else "refuse")
                written = files_of_a_run(
                    Path(out),
                    opened,
                    every=settings.every,
                    overlay=VideoCoding() if overlay else None,
                    style=style,
                    masks=bool(masks),
                    crops=crops,
                    mot=mot,
                )
        except BaseException:
            opened.close()
            raise
    except BaseException:
        if own:
            found.close()
        raise
    return Tracking(found, opened, [*written, *lines, *sinks], limit, closes_session=own)


def files_of_a_run(
    folder: Path,
    source: Source,
    *,
    every: int = 1,
    overlay: VideoCoding | None = None,
    style: OverlayStyle = STYLE,
    masks: bool = False,
    crops: bool = False,
    mot: bool = False,
) -> list[Sink]:
    """The sinks for the files of a run in `folder`, which is ready for them. The journal comes first: it is what the
    other results can be made from. overlay: how it is encoded, None for none."""
    sinks: list[Sink] = []
    try:
        sinks.append(Journal(folder / JOURNAL))
        if overlay is not None:
            fps = (source.info.fps or OVERLAY_FPS) / every
            sinks.append(OverlayVideo(folder / OVERLAY, fps=fps, coding=overlay, style=style))
        sinks += [MaskPictures(folder / MASKS)] if masks else []
        sinks += [Crops(folder / CROPS)] if crops else []
        sinks += [MotRows(folder / MOT)] if mot else []
    except VisrtError:
        for sink in sinks:
            with suppress(VisrtError):
                sink.close()
        raise
    return sinks


async def track_async(
    source: str | Path | int | Source | Frames, *args: Any, **options: Any
) -> AsyncGenerator[FrameResult, None]:
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
    def line_counts(self) -> list[dict[str, Any]]:
        """What crossed each line so far, by class and direction, as in summary.json."""
        return [sink.summary() for sink in self._sinks if isinstance(sink, LineCount)]

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


def _opened(source: str | Path | int | Source | Frames, settings: VideoSettings) -> Source:
    if isinstance(source, int):
        return open_source(str(source), settings)
    if isinstance(source, str | Path):
        return open_source(source, settings)
    if hasattr(source, "info") and hasattr(source, "report"):
        return cast(Source, source)
    if isinstance(source, Iterable):
        return GivenFrames(source, settings)
    raise UsageError(f"source is a {type(source).__name__}; expected a path, a camera's number, a source or frames")
