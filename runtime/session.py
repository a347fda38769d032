"""One video stream: frames in, in order; objects with steady ids out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from threadpoolctl import ThreadpoolController

from visrt.runtime.backends import open_engines, threads_of_each
from visrt.runtime.bundle import Bundle, initial_states, open_bundle
from visrt.runtime.clip_family import Tensors, clip_frames_of
from visrt.runtime.engine import Engine
from visrt.runtime.engine_options import EngineOptions
from visrt.runtime.errors import UsageError
from visrt.runtime.families import family_of
from visrt.runtime.image import Frame
from visrt.runtime.manifest import Manifest
from visrt.runtime.network import Network
from visrt.runtime.results import FrameResult
from visrt.runtime.rounds import Rounds
from visrt.runtime.stream import Clips, SessionEvents, SessionSettings, Stream, check_frames, check_times
from visrt.runtime.times import StageTimes, Stopwatch

__all__ = ["Session", "SessionEvents", "SessionSettings"]

DEFAULTS = SessionSettings()


class Session:
    """Follows the objects of one stream.

        with Session.open("bundle") as session:
            for frame in frames:  # [H, W, 3] uint8 RGB
                for result in session.step(frame):
                    ...

    What it holds does not grow with the number of frames. An id is never given twice within a stream.
    """

    def __init__(
        self,
        manifest: Manifest,
        engines: Mapping[str, Engine],
        settings: SessionSettings = DEFAULTS,
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
        states: Tensors | None = None,
    ) -> None:
        """`engines` by graph name, owned from now on.

        `preset`, a name in `visrt.runtime.presets`, takes the place of the manifest's family and all its settings;
        `association` then replaces single ones. `states`: the initial state tensors of the bundle, where it has any.
        """
        self.manifest = manifest
        self.settings = settings
        self.watch = Stopwatch()
        self.family = family_of(manifest, association, preset)
        self.network = Network(engines, manifest.input, self.watch, settings.resize, states, settings.in_flight - 1)
        self._stream = Stream(self.family, self.network, settings, self.watch)
        self._rounds = Rounds(self.network)
        # The matrices here are small: BLAS threads gain nothing and fight the engine's for the cores.
        self._blas = ThreadpoolController()
        self._closed = False
        self.reset()

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        engine: str = "cpu",
        *,
        threads: int | None = None,
        batch: int = 1,
        settings: SessionSettings = DEFAULTS,
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
    ) -> Session:
        """A session on the bundle (or its folder), its graphs run by `engine`, a name of backends.BACKENDS.

        `threads` of the network on the CPU; None takes all cores. `batch`: the most frames one call of `step_batch`
        will bring; TensorRT engines are built for it. Raises BundleError, EngineError, UsageError or SettingsError.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        states = initial_states(opened)
        frames_a_call = batch + clip_frames_of(family_of(opened.manifest, association, preset)) - 1
        each = threads_of_each(threads, calls=settings.in_flight - 1)
        engines = open_engines(opened, engine, EngineOptions(each, batch=frames_a_call))
        return cls(opened.manifest, engines, settings, association, preset, states)

    def step(self, frame: Frame, time_s: float | None = None) -> list[FrameResult]:
        """Results that are ready after `frame` [H, W, 3], uint8 RGB, shown at `time_s` seconds of the stream."""
        return self.step_batch([frame], [time_s])

    def step_batch(self, frames: Sequence[Frame], times_s: Sequence[float | None] | None = None) -> list[FrameResult]:
        """Results that are ready after the next `frames` of the stream, which share one call of the frame engine.

        Ids and labels are those of one frame at a time. A family that looks at clips keeps frames until a clip is full.
        """
        times: list[float | None] = [None] * len(frames) if times_s is None else list(times_s)
        self._check(frames, times)
        if not frames:
            return []
        with self._blas.limit(limits=1, user_api="blas"):
            self._start(self._stream.clips_with(self.network.prepare(frames), times))
            return self._finish(leave=self.settings.in_flight - 1)

    def flush(self) -> list[FrameResult]:
        """Results that waited for the next frame, at the end of the stream; its last clip may be a short one."""
        with self._blas.limit(limits=1, user_api="blas"):
            self._start(self._stream.last_clips())
            return self._finish(leave=0)

    def reset(self) -> None:
        """Starts a new stream: frames, ids, events and times begin again."""
        self._rounds.forget()
        self._stream.reset()
        self.watch.take(0)
        self.times = StageTimes()
        self.last_times = StageTimes()

    def close(self) -> None:
        """Frees the engines; the session cannot be used any more."""
        if not self._closed:
            self._closed = True
            self.network.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def events(self) -> SessionEvents:
        """What happened to the stream so far."""
        return self._stream.events

    @property
    def _state(self) -> Any:
        return self._stream.state

    def _start(self, clips: Clips) -> None:
        self._rounds.start([(self._stream, clips)])

    def _finish(self, leave: int) -> list[FrameResult]:
        """Results of the frames that were started, in order, until `leave` calls of the engine are in flight."""
        results: list[FrameResult] = []
        for [answered] in self._rounds.finish(leave):
            results += answered.results()
            self.last_times = self.watch.take(len(answered.clips))
            self.times = self.times.plus(self.last_times)
        return results

    def _check(self, frames: Sequence[Frame], times: Sequence[float | None]) -> None:
        """Refuses what is no frame or no time before anything is done with any of them."""
        if self._closed:
            raise UsageError("the session is closed; open a new one")
        if len(times) != len(frames):
            raise UsageError(f"{len(times)} times were given for {len(frames)} frames; give one a frame, or none")
        check_times(times)
        check_frames(frames)
