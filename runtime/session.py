"""One video stream: frames in, in order; objects with steady ids out.

The way of a frame is `Session.step_batch`: resized for the network of the size in which it is seen best, submitted to
the frame engine, waited for, matched with the tracks so far (`StreamTracker.update`), its masks resized to the frame.
`Pipeline` does the same for many streams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from threadpoolctl import ThreadpoolController

from visrt.runtime.arrays import Tensors
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.backends import OpenEngines, SizedEngines, engines_by_size, threads_of_each
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import UsageError, VisrtError
from visrt.runtime.image import Frame, check_frames
from visrt.runtime.methods.registry import method_of
from visrt.runtime.network import Batch, Network, Networks
from visrt.runtime.results import FrameResult, SessionEvents, Shown, labels_of
from visrt.runtime.times import StageTimes, Stopwatch
from visrt.runtime.tracker import (
    PendingCalls,
    SavedStream,
    SessionSettings,
    StreamTracker,
    check_times,
    update_together,
)

__all__ = ["SavedStream", "Session", "SessionEvents", "SessionSettings"]

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
        engines: Mapping[str, Engine] | OpenEngines,
        settings: SessionSettings = DEFAULTS,
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
        states: Tensors | None = None,
        other_sizes: Sequence[SizedEngines] = (),
    ) -> None:
        """`engines` by graph name, owned from now on, or what opens them on first use.

        `preset`, a name in `visrt.runtime.methods.presets`, takes the place of the manifest's family and all its
        settings; `association` then replaces single ones. `states`: the initial state tensors of the bundle, where it
        has any. `other_sizes`: the same network for frames of other aspects.
        """
        self.manifest = manifest
        self.settings = settings
        self.watch = Stopwatch()
        self.method = method_of(manifest, association, preset)
        self.shown = Shown(tuple(manifest.classes))
        self._association, self._preset = dict(association or {}), preset
        sizes = [SizedEngines(manifest, engines, states), *other_sizes]
        self.networks = Networks(sizes, self.watch, settings.resize, settings.in_flight - 1)
        self._tracker = StreamTracker(self.method, self.networks, settings)
        self._calls = PendingCalls()
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
        device: int = 0,
        settings: SessionSettings = DEFAULTS,
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
    ) -> Session:
        """A session on the bundle (or its folder), its graphs run by `engine`, a name of backends.BACKENDS.

        Of a bundle of several sizes, the engines of a size are opened, and built, for the first frame that needs them.

        `threads` of the network on the CPU; None takes all cores. `batch`: the most frames one call of `step_batch`
        will bring; TensorRT engines are built for it. `device`: number of the GPU, as CUDA counts those it is shown.
        Raises BundleError, EngineError, UsageError or SettingsError.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        method = method_of(opened.manifest, association, preset)
        each = threads_of_each(threads, calls=settings.in_flight - 1)
        frames = batch + method.clip_frames - 1
        options = EngineOptions(each, device, batch=frames, clip_frames=method.clip_frames)
        main, *others = engines_by_size(opened.with_room_for(method.settings), engine, options)
        return cls(opened.manifest, main.engines, settings, association, preset, main.states, others)

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
            with self.watch.stage("preprocess"):
                batches = self.networks.prepare(frames, times)
            for batch in batches:
                batch.network.open()
            results: list[FrameResult] = []
            for batch in batches:
                results += self._run(self._tracker.next_clips(batch), keep_in_flight=self.settings.in_flight - 1)
            return results

    def flush(self) -> list[FrameResult]:
        """Results that waited for the next frame, at the end of the stream; its last clip may be a short one."""
        with self._blas.limit(limits=1, user_api="blas"):
            return self._run(self._tracker.last_clip(), keep_in_flight=0)

    def reset(self) -> None:
        """Starts a new stream: frames, ids, events and times begin again."""
        self._calls.clear()
        self._tracker.reset()
        self.watch.take(0)
        self.times = StageTimes()
        self.last_times = StageTimes()

    def show(self, classes: str | Sequence[str] | None = None, score: float = 0.0) -> None:
        """From now on results have only objects of `classes`, names or one text with commas, None for all, that score
        at least `score`. All are tracked. Raises UsageError for classes that the bundle lacks, with the nearest."""
        names = tuple(self.manifest.classes)
        self.shown = Shown(names, labels_of(names, classes), score)

    def change(self, **association: Any) -> None:
        """Goes on with other association settings, without opening engines again: `session.change(birth_score=0.7)`.

        Thresholds take effect with the next frame, and objects stay. A setting that chooses how objects are compared or
        remembered ends all tracks, as `cut` does. Raises SettingsError for an unknown setting, UsageError where results
        are not taken yet, or for other lengths of clips.
        """
        self._require_nothing_pending("change")
        changes = {**self._association, **association}
        method = method_of(self.manifest, changes, self._preset)
        self._tracker.use(method)
        self.method, self._association = method, changes

    def cut(self) -> None:
        """The next frame is of another scene: objects and what is remembered of them are dropped, ids go on.

        Results of earlier frames must have been taken, with `flush` where any wait.
        """
        self._require_nothing_pending("cut")
        self._tracker.cut()

    def save(self) -> SavedStream:
        """The stream as it is now, to go on from with `restore`, in this session or another of the same bundle."""
        self._require_nothing_pending("save")
        return self._tracker.save()

    def restore(self, saved: SavedStream) -> None:
        """Goes on from a stream that was saved, in place of the present one. Raises UsageError where it is of another
        bundle, size or association settings."""
        self._require_open()
        self.networks.open(saved.network)
        self._calls.clear()
        self._tracker.restore(saved)

    def _require_nothing_pending(self, doing: str) -> None:
        self._require_open()
        if len(self._calls):
            raise UsageError(
                f"{doing}: results of {len(self._calls)} calls are not taken yet; call flush() first, or open the "
                "session with in_flight 1"
            )

    def _require_open(self) -> None:
        if self._closed:
            raise UsageError("the session is closed; open a new one")

    def close(self) -> None:
        """Frees the engines; the session cannot be used any more."""
        if not self._closed:
            self._closed = True
            self._tracker.close()
            self.networks.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def network(self) -> Network:
        """The network at the bundle's main size."""
        return self.networks.main

    @property
    def events(self) -> SessionEvents:
        """Counts of what happened to the stream so far."""
        return self._tracker.events

    @property
    def _state(self) -> Any:
        return self._tracker.state

    def _run(self, clips: Sequence[Batch], keep_in_flight: int) -> list[FrameResult]:
        """Submits `clips`; results of all that was submitted, in order, until `keep_in_flight` calls are left."""
        for clip in clips:
            self._calls.submit([(self._tracker, clip)])
        results: list[FrameResult] = []
        for call in self._calls.finish(keep_in_flight):
            [found] = update_together(call, self.watch)
            if isinstance(found, VisrtError):
                raise found
            with self.watch.stage("masks"):
                results += [self.shown.of(make()) for make in found]
            self.last_times = self.watch.take(sum(len(outputs) for _, outputs in call))
            self.times = self.times.plus(self.last_times)
        return results

    def _check(self, frames: Sequence[Frame], times: Sequence[float | None]) -> None:
        """Refuses what is no frame or no time before anything is done with any of them."""
        self._require_open()
        if len(times) != len(frames):
            raise UsageError(f"{len(times)} times were given for {len(frames)} frames; give one a frame, or none")
        check_times(times)
        check_frames(frames)
