"""Many streams through one set of engines: decoding, network and output overlap, streams share calls of the network.

Each source is read and resized in a thread of its own and its results are written in another; the caller's thread
follows the objects, and while the frame engine computes it works on the answers of the calls before. A call holds the
next frames of the streams that have waited longest, so that no stream gets two before another gets one: on a GPU one
wide call of all that are ready, on a CPU one frame for each core, as wide calls overflow its caches. Files wait when
they are too fast, of a live source the newest frame is taken. A stream's ids and labels are those it has alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from threadpoolctl import ThreadpoolController

from visrt.runtime.backends import backend_named, open_engines, threads_of_each
from visrt.runtime.bundle import Bundle, initial_states, open_bundle
from visrt.runtime.clip_family import Tensors, clip_frames_of
from visrt.runtime.engine import Engine
from visrt.runtime.engine_options import EngineOptions
from visrt.runtime.errors import UsageError, VisrtError
from visrt.runtime.families import family_of
from visrt.runtime.lane import Job, Lane
from visrt.runtime.manifest import Manifest
from visrt.runtime.network import Network
from visrt.runtime.outcome import SourceOutcome
from visrt.runtime.rounds import Rounds
from visrt.runtime.stream import Clips, SessionSettings, Stream
from visrt.runtime.threads import POLL_S, usable_cores
from visrt.runtime.times import Stopwatch

__all__ = ["Job", "Pipeline", "PipelineSettings"]

Done = Callable[[Job, SourceOutcome], None]


@dataclass(frozen=True)
class PipelineSettings:
    """streams: sources at work at a time; more wait until one ends. batch: the most streams that share a call of the
    frame engine. calls: so many of them at a time. None: as the engine likes it, see `on`."""

    streams: int = 4
    batch: int | None = None
    calls: int | None = None
    session: SessionSettings = field(default_factory=lambda: SessionSettings(in_flight=2))

    def __post_init__(self) -> None:
        if min(count for count in (self.streams, self.batch, self.calls) if count is not None) < 1:
            raise UsageError(f"{self}: expected 1 or more streams, and a batch and calls of 1 or more or None")

    def on(self, engine: str, cores: int) -> tuple[int, int]:
        """Batch and calls. On the CPU calls of one frame, one for each of `cores` or streams; else one wide call."""
        batch, calls = (WIDE, 1) if backend_named(engine).on_gpu else (1, min(self.streams, cores))
        return self.batch or batch, self.calls or calls


DEFAULTS = PipelineSettings()
WIDE = 8
"""Streams that share a call where it does not matter how many."""


class Pipeline:
    """Follows the objects of many sources at a time.

    with Pipeline.open("bundle") as pipeline:
        pipeline.track([Job(open_source(path), sinks) for path in paths], done=print)
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Mapping[str, Engine],
        settings: PipelineSettings = DEFAULTS,
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
        states: Tensors | None = None,
    ) -> None:
        """As of a Session. `engines` are owned from now on and take `batch` (None: 8) clips in one call."""
        self.manifest = manifest
        self.batch, self.calls, self.settings = settings.batch or WIDE, settings.calls or 1, settings
        self.family = family_of(manifest, association, preset)
        self.watch = Stopwatch()
        session = settings.session
        beside = self.calls if session.in_flight > 1 else 0
        self.network = Network(engines, manifest.input, self.watch, session.resize, states, beside)
        self._blas = ThreadpoolController()

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        engine: str = "cpu",
        *,
        threads: int | None = None,
        settings: PipelineSettings = DEFAULTS,
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
    ) -> Pipeline:
        """A pipeline on the bundle (or its folder); see `Session.open`. `threads` are of all calls together."""
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        states = initial_states(opened)
        clip_frames = clip_frames_of(family_of(opened.manifest, association, preset))
        batch, calls = settings.on(engine, threads or usable_cores())
        together = min(batch, settings.streams) * clip_frames
        engines = open_engines(opened, engine, EngineOptions(threads_of_each(threads, calls), batch=together))
        return cls(opened.manifest, engines, replace(settings, batch=batch, calls=calls), association, preset, states)

    def track(
        self,
        jobs: Iterable[Job],
        done: Done = lambda job, outcome: None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs every job to its end or until `stopped()`; `done` is called as each ends, also of those that fail.

        A job is asked for only when there is a place for it, so that `jobs` may open its sources one by one.
        """
        with self._blas.limit(limits=1, user_api="blas"):
            _Run(self, iter(jobs), done, stopped).to_the_end()

    def close(self) -> None:
        """Frees the engines."""
        self.network.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def lane(self, job: Job, news: Callable[[], None]) -> Lane:
        """A stream of its own for a job; `news` is called when there may be something to do for it."""
        stream = Stream(self.family, self.network, self.settings.session, self.watch)
        return Lane(job, stream, self.network, news)


class _Run:
    """The sources at work, in the order of their turns, and those whose files are just being closed."""

    def __init__(self, pipeline: Pipeline, jobs: Iterator[Job], done: Done, stopped: Callable[[], bool]) -> None:
        self._pipeline, self._jobs, self._done, self._stopped = pipeline, jobs, done, stopped
        self._rounds = Rounds(pipeline.network)
        self._leave = pipeline.calls * (pipeline.settings.session.in_flight - 1)
        self._lanes: deque[Lane] = deque()
        self._closers = ThreadPoolExecutor(pipeline.settings.streams, "visrt-closer")
        self._closing: dict[Future[SourceOutcome], Job] = {}
        self._news = threading.Event()

    def to_the_end(self) -> None:
        try:
            while self._lanes or self._closing or not self._stopped():
                self._news.clear()
                self._open()
                if not self._lanes and not self._closing:
                    return
                self._turn()
        finally:
            self._abandon()

    def _turn(self) -> None:
        """Starts a call, works on the answers of an earlier one, lets go of what has ended; waits if it was idle."""
        if self._stopped():
            for lane in self._lanes:
                lane.stop()
        moved = self._start()
        self._finish(self._leave if moved else max(0, self._rounds.in_flight - 1))
        self._close_ended()
        told = self._tell()
        if not moved and not told and not self._rounds.in_flight:
            self._news.wait(POLL_S)

    def _open(self) -> None:
        """Begins jobs while there is a place."""
        while len(self._lanes) + len(self._closing) < self._pipeline.settings.streams and not self._stopped():
            job = next(self._jobs, None)
            if job is None:
                return
            self._lanes.append(self._pipeline.lane(job, self._news.set))

    def _start(self) -> bool:
        """Starts a call for the lanes whose turn it is; False if none had anything to take."""
        taken = self._taken()
        for lane, clips in taken:
            lane.calls += bool(clips)
        with self._engine_errors():
            self._rounds.start([(lane.stream, clips) for lane, clips in taken])
        return bool(taken)

    def _taken(self) -> list[tuple[Lane, Clips]]:
        """What the lanes have ready, of each one frame at the most; those that gave go to the end of the line."""
        taken: list[tuple[Lane, Clips]] = []
        for lane in list(self._lanes):
            if len(taken) == self._pipeline.batch:
                break
            clips = lane.take()
            if clips is not None:
                taken.append((lane, clips))
                self._lanes.remove(lane)
                self._lanes.append(lane)
        return taken

    def _finish(self, leave: int) -> None:
        """Gives the answers of all calls but the last `leave` to their lanes."""
        lanes = {id(lane.stream): lane for lane in self._lanes}
        watch = self._pipeline.watch
        with self._engine_errors():
            for call in self._rounds.finish(leave):
                engine = watch.take(sum(len(answered.clips) for answered in call))
                for answered in call:
                    lane = lanes[id(answered.stream)]
                    lane.give(answered)
                    lane.times = lane.times.plus(engine.part(len(answered.clips))).plus(watch.take(0))

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """An engine that fails ends all that are at work: which of them it was cannot be known."""
        try:
            yield
        except VisrtError as error:
            self._rounds.forget()
            for lane in self._lanes:
                lane.calls = 0
                lane.fail(error)

    def _close_ended(self) -> None:
        """Closes the files of lanes that are over, in threads: the last packets of a video take their time."""
        for lane in [lane for lane in self._lanes if lane.over and not lane.calls]:
            self._lanes.remove(lane)
            closing = self._closers.submit(lane.close)
            self._closing[closing] = lane.job
            closing.add_done_callback(lambda _: self._news.set())

    def _tell(self) -> bool:
        """Tells of the sources whose files are closed; False if there are none."""
        ended = [closing for closing in self._closing if closing.done()]
        for closing in ended:
            self._done(self._closing.pop(closing), closing.result())
        return bool(ended)

    def _abandon(self) -> None:
        """After a bug: no thread and no file stays open."""
        for lane in self._lanes:
            self._closers.submit(lane.close)
        self._closers.shutdown()
