"""Many streams through one set of engines: decoding, network and output overlap, streams share calls of the network.

Each source is read and resized in a thread of its own, and another resizes its masks to the source's size and writes
its results; the caller's thread updates the tracks, and while the frame engine computes it works on the outputs of the
calls before. A call holds the next frames of the streams that have waited longest, so that no stream gets two before
another gets one: on a GPU one wide call of all that are ready, on a CPU one frame for each core, as wide calls overflow
its caches. Files wait when they are too fast; of a live source the newest frame is taken. A stream's ids and labels are
those it has alone.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from threadpoolctl import ThreadpoolController

from visrt.runtime.arrays import Tensors
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.backends import (
    OpenEngines,
    SizedEngines,
    backend_named,
    engines_by_size,
    threads_of_each,
)
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions, usable_cores
from visrt.runtime.errors import UsageError, VisrtError
from visrt.runtime.methods.registry import method_of
from visrt.runtime.network import Networks
from visrt.runtime.sinks.outcome import SourceOutcome
from visrt.runtime.threads import POLL_S, ignore
from visrt.runtime.times import Stopwatch
from visrt.runtime.tracker import Part, PendingCalls, SessionSettings, StreamTracker, update_together
from visrt.runtime.worker import Job, SourceWorker

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

SWITCH_S = 2e-4
"""Seconds after which a thread gives way to another while a GPU is at work. Every call of CUDA gives way and then waits
for its turn: by Python's own 5 ms longer than a network takes for a frame."""


class Pipeline:
    """Follows the objects of many sources at a time.

    with Pipeline.open("bundle") as pipeline:
        pipeline.track([Job(open_source(path), sinks) for path in paths], done=print)
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Mapping[str, Engine] | OpenEngines,
        settings: PipelineSettings = DEFAULTS,
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
        states: Tensors | None = None,
        other_sizes: Sequence[SizedEngines] = (),
        switch_s: float | None = None,
    ) -> None:
        """As of a Session. `engines` are owned from now on and take `batch` (None: 8) clips in one call. switch_s:
        seconds after which Python's threads give way to each other meanwhile, in the whole process."""
        self.manifest, self._switch_s = manifest, switch_s
        self.batch, self.calls, self.settings = settings.batch or WIDE, settings.calls or 1, settings
        self.method = method_of(manifest, association, preset)
        self.watch = Stopwatch()
        session = settings.session
        worker_threads = self.calls if session.in_flight > 1 else 0
        sizes = [SizedEngines(manifest, engines, states), *other_sizes]
        self.networks = Networks(sizes, self.watch, session.resize, worker_threads)
        self._blas = ThreadpoolController()

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        engine: str = "cpu",
        *,
        threads: int | None = None,
        device: int = 0,
        settings: PipelineSettings = DEFAULTS,
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
    ) -> Pipeline:
        """A pipeline on the bundle (or its folder); see `Session.open`. `threads` are of all calls together."""
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        method = method_of(opened.manifest, association, preset)
        batch, calls = settings.on(engine, threads or usable_cores())
        together = min(batch, settings.streams) * method.clip_frames
        settings = replace(settings, batch=batch, calls=calls)
        options = EngineOptions(threads_of_each(threads, calls), device, batch=together, clip_frames=method.clip_frames)
        main, *others = engines_by_size(opened.with_room_for(method.settings), engine, options)
        switch_s = SWITCH_S if backend_named(engine).on_gpu else None
        return cls(opened.manifest, main.engines, settings, association, preset, main.states, others, switch_s)

    def track(
        self,
        jobs: Iterable[Job],
        done: Done = ignore,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Runs every job to its end or until `stopped()`; `done` is called as each ends, also of those that fail.

        A job is taken only when there is a place for it, so that `jobs` may open its sources one by one.
        """
        with self._blas.limit(limits=1, user_api="blas"), _switching(self._switch_s):
            _Run(self, iter(jobs), done, stopped).to_the_end()

    def close(self) -> None:
        """Frees the engines."""
        self.networks.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def worker(self, job: Job, on_ready: Callable[[], None]) -> SourceWorker:
        """The worker for the source of `job`; `on_ready` is called when there may be something to do for it."""
        tracker = StreamTracker(self.method, self.networks, self.settings.session)
        return SourceWorker(job, tracker, self.networks, on_ready)


@contextmanager
def _switching(seconds: float | None) -> Iterator[None]:
    """Threads give way after so many `seconds`; None leaves it as it is."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before if seconds is None else seconds)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class _Run:
    """The sources at work, in the order of their turns, and those whose files are just being closed."""

    def __init__(self, pipeline: Pipeline, jobs: Iterator[Job], done: Done, stopped: Callable[[], bool]) -> None:
        self._pipeline, self._jobs, self._done, self._stopped = pipeline, jobs, done, stopped
        self._calls = PendingCalls()
        self._keep_in_flight = pipeline.calls * (pipeline.settings.session.in_flight - 1)
        self._workers: deque[SourceWorker] = deque()
        self._closers = ThreadPoolExecutor(pipeline.settings.streams, "visrt-closer")
        self._closing: dict[Future[SourceOutcome], Job] = {}
        self._ready = threading.Event()

    def to_the_end(self) -> None:
        try:
            while self._workers or self._closing or not self._stopped():
                self._ready.clear()
                self._open()
                if not self._workers and not self._closing:
                    return
                self._turn()
        finally:
            self._abandon()

    def _turn(self) -> None:
        """One call of a frame engine: submitted, waited for, the tracks of its streams updated; waits if idle.

        Streams whose frames go to networks of two sizes take two.
        """
        if self._stopped():
            for worker in self._workers:
                worker.stop()
        moved = True
        with self._engine_errors():
            moved = self._submit()
            self._deliver(self._keep_in_flight if moved else max(0, len(self._calls) - 1))
        self._close_ended()
        reported = self._report()
        if not moved and not reported and not self._calls:
            self._ready.wait(POLL_S)

    def _open(self) -> None:
        """Begins jobs while there is a place."""
        while len(self._workers) + len(self._closing) < self._pipeline.settings.streams and not self._stopped():
            job = next(self._jobs, None)
            if job is None:
                return
            self._workers.append(self._pipeline.worker(job, self._ready.set))

    def _submit(self) -> bool:
        """Submits a frame each of the sources whose turn it is; False if none had anything to take.

        Those that gave a frame go to the end of the line.
        """
        moved = 0
        parts: list[Part] = []
        for worker in list(self._workers):
            if moved == self._pipeline.batch:
                break
            taken, clips = worker.next_clips()
            if taken:
                moved += 1
                self._workers.remove(worker)
                self._workers.append(worker)
            worker.calls += len(clips)
            parts += [(worker.tracker, clip) for clip in clips]
        if parts:
            self._calls.submit(parts)
        return moved > 0

    def _deliver(self, keep_in_flight: int) -> None:
        """Gives the outputs of all calls but the last `keep_in_flight` to their sources."""
        workers = {id(worker.tracker): worker for worker in self._workers}
        watch = self._pipeline.watch
        for call in self._calls.finish(keep_in_flight):
            going_on = [(tracker, outputs) for tracker, outputs in call if not workers[id(tracker)].failed]
            found = iter(update_together(going_on, watch))
            times = watch.take(sum(len(outputs) for _, outputs in call))
            for tracker, outputs in call:
                worker = workers[id(tracker)]
                worker.deliver([] if worker.failed else next(found))
                worker.add_times(times.part(len(outputs)))

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        """An engine that fails ends all sources at work: which of them it was cannot be known."""
        try:
            yield
        except VisrtError as error:
            self._calls.clear()
            for worker in self._workers:
                worker.abandon_calls(error)

    def _close_ended(self) -> None:
        """Closes the files of sources that are over, in threads: the last packets of a video take their time."""
        for worker in [worker for worker in self._workers if worker.over and not worker.calls]:
            self._workers.remove(worker)
            worker.tracker.close()
            closing = self._closers.submit(worker.close)
            self._closing[closing] = worker.job
            closing.add_done_callback(lambda _: self._ready.set())

    def _report(self) -> bool:
        """Reports the sources whose files are closed; False if there are none."""
        ended = [closing for closing in self._closing if closing.done()]
        for closing in ended:
            self._done(self._closing.pop(closing), closing.result())
        return bool(ended)

    def _abandon(self) -> None:
        """After a bug: no thread and no file stays open."""
        for worker in self._workers:
            worker.tracker.close()
            self._closers.submit(worker.close)
        self._closers.shutdown()
