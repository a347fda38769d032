"""One video stream: frames in, in order; objects with steady ids out."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from visrt.runtime.backends import EngineOptions, open_engines
from visrt.runtime.bundle import Bundle, open_bundle
from visrt.runtime.bundle_states import initial_states
from visrt.runtime.clip_buffer import ClipBuffer, full_clips
from visrt.runtime.clip_family import Tensors, clip_frames_of
from visrt.runtime.engine import Engine
from visrt.runtime.errors import NumericalError, UsageError
from visrt.runtime.families import family_of
from visrt.runtime.family import Track
from visrt.runtime.following import FollowedFrame, PlacedFrame, follower_of
from visrt.runtime.image import RESIZERS, Frame, Letterbox
from visrt.runtime.manifest import Manifest
from visrt.runtime.mask_resize import MaskResize, mask_resize
from visrt.runtime.network import FrameOutputs, Network, StartedFrames
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.times import StageTimes, Stopwatch

__all__ = ["Session", "SessionEvents", "SessionSettings"]


@dataclass(frozen=True)
class SessionSettings:
    """default_fps: frames a second where the caller gives no times.

    bad_frames_max: after so many frames in a row with NaN or infinity from the network the session gives up.
    resize: "pillow_bilinear" or "cv2_area" in place of what the manifest says. in_flight: 2 hands a frame to the
    engine before the last one is finished, so that a GPU and the host work at a time; results come a frame later.
    """

    default_fps: float = 30.0
    bad_frames_max: int = 10
    resize: str | None = None
    in_flight: int = 1

    def __post_init__(self) -> None:
        if self.in_flight not in (1, 2):
            raise UsageError(f"in_flight is {self.in_flight}; expected 1, or 2 for an engine on a GPU")
        if not self.default_fps > 0 or self.bad_frames_max < 1:
            raise UsageError(f"{self}: expected default_fps above 0 and bad_frames_max of 1 or more")
        if self.resize is not None and self.resize not in RESIZERS:
            raise UsageError(f"resize {self.resize!r} is unknown; choose one of {', '.join(RESIZERS)}")


@dataclass(frozen=True)
class SessionEvents:
    """What happened to the stream, counted.

    frames: taken in. size_changes: frames of another size than the one before. restarts: of these, the ones whose
    aspect differs, so that all objects were lost. bad_frames: the network gave NaN or infinity, so the frame has no
    objects. zero_queries: queries whose embedding was zero; such a one takes no part in its frame. dropped_slots: slots
    of a clip for which the network gave NaN or infinity; such a one begins anew. time_jumps: times that lay before the
    last one and were taken for it.
    """

    frames: int = 0
    size_changes: int = 0
    restarts: int = 0
    bad_frames: int = 0
    zero_queries: int = 0
    dropped_slots: int = 0
    time_jumps: int = 0


@dataclass(frozen=True)
class StartedClips:
    """Frames of one call of the frame engine, with their times, and the lengths of the clips they are."""

    frames: StartedFrames
    times: Sequence[float | None]
    lengths: Sequence[int]


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
        settings: SessionSettings = SessionSettings(),
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
        self._watch = Stopwatch()
        self.family = family_of(manifest, association, preset)
        self.network = Network(engines, manifest.input, self._watch, settings.resize, states)
        self._follower = follower_of(self.family, self.network)
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
        settings: SessionSettings = SessionSettings(),
        association: Mapping[str, Any] | None = None,
        preset: str | None = None,
    ) -> Session:
        """A session on the bundle (or its folder), its graphs run by `engine`: cpu, cuda, tensorrt or tensorrt-rtx.

        `threads` of one operator on the CPU; None takes all cores. `batch`: the most frames one call of `step_batch`
        will bring; TensorRT engines are built for it. Raises BundleError, EngineError, UsageError or SettingsError.
        """
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        states = initial_states(opened)
        frames_a_call = batch + clip_frames_of(family_of(opened.manifest, association, preset)) - 1
        engines = open_engines(opened, engine, EngineOptions(threads, batch=frames_a_call))
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
            waiting = self._waiting.followed_by(self.network.prepare(frames), times)
            self._start(waiting, full_clips(waiting.inputs.fits, self._follower.clip_frames))
            return self._finish(leave=self.settings.in_flight - 1)

    def flush(self) -> list[FrameResult]:
        """Results that waited for the next frame, at the end of the stream; its last clip may be a short one."""
        with self._blas.limit(limits=1, user_api="blas"):
            if len(self._waiting):
                self._start(self._waiting, [len(self._waiting)])
            return self._finish(leave=0)

    def reset(self) -> None:
        """Starts a new stream: frames, ids, events and times begin again."""
        self._follower.start()
        self._waiting: ClipBuffer = ClipBuffer()
        self._started: deque[StartedClips] = deque()
        self._resize: MaskResize | None = None
        self._bad_in_a_row = 0
        self._time_s = 0.0
        self._watch.take(0)
        self.events = SessionEvents()
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
    def _state(self) -> Any:
        return self._follower.state

    def _start(self, waiting: ClipBuffer, lengths: Sequence[int]) -> None:
        """Hands the first clips that wait, of these lengths, to the frame engine in one call."""
        first, self._waiting = waiting.split(sum(lengths))
        if lengths:
            self._started.append(StartedClips(self.network.start(first.inputs), first.times_s, lengths))

    def _finish(self, leave: int) -> list[FrameResult]:
        """Results of the frames that were started, in order, until `leave` calls of the engine are in flight."""
        results: list[FrameResult] = []
        while len(self._started) > leave:
            started = self._started.popleft()
            outputs = self.network.finish(started.frames)
            for start, stop in pairwise(accumulate(started.lengths, initial=0)):
                results += self._results(outputs[start:stop], started.times[start:stop])
            self._count_times(len(outputs))
        return results

    def _results(self, clip: Sequence[FrameOutputs], times: Sequence[float | None]) -> list[FrameResult]:
        """Results of the next clip; from here on everything is in the order of the stream."""
        first = self.events.frames
        frames = [self._placed(outputs, first + i, times[i]) for i, outputs in enumerate(clip)]
        with self._watch.stage("association"):
            followed = self._follower.follow(frames)
        for frame in followed:
            self._count(frame)
        with self._watch.stage("masks"):
            return [
                FrameResult(first + i, frame.now_s, frame.outputs.fit.source, _objects(found.tracks, frame.resize))
                for i, (frame, found) in enumerate(zip(frames, followed, strict=True))
            ]

    def _placed(self, outputs: FrameOutputs, index: int, time_s: float | None) -> PlacedFrame:
        now_s = self._now(index, time_s)
        return PlacedFrame(outputs, self._fit_to(outputs.fit), now_s)

    def _count(self, frame: FollowedFrame) -> None:
        """Counts one frame. Raises NumericalError after too many bad ones in a row."""
        events = self.events
        self.events = replace(
            events,
            frames=events.frames + 1,
            bad_frames=events.bad_frames + (frame.error is not None),
            zero_queries=events.zero_queries + frame.zero_queries,
            dropped_slots=events.dropped_slots + frame.dropped_slots,
        )
        self._bad_in_a_row = 0 if frame.error is None else self._bad_in_a_row + 1
        if frame.error is not None and self._bad_in_a_row >= self.settings.bad_frames_max:
            raise NumericalError(f"{self._bad_in_a_row} frames in a row: {frame.error}") from frame.error

    def _fit_to(self, fit: Letterbox) -> MaskResize:
        """The mask resize for a frame that lies like `fit`. Another aspect is another picture: objects are lost."""
        last = self._resize
        if last is None or last.fit != fit:
            self._resize = mask_resize(fit)
        if last is not None and last.fit.source != fit.source:
            self.events = replace(self.events, size_changes=self.events.size_changes + 1)
            if not last.fit.like(fit):
                self.events = replace(self.events, restarts=self.events.restarts + 1)
                self._follower.restart()
        assert self._resize is not None
        return self._resize

    def _now(self, index: int, time_s: float | None) -> float:
        """Seconds of this frame; time never runs backwards, as ages are measured with it."""
        now_s = index / self.settings.default_fps if time_s is None else float(time_s)
        if index and now_s < self._time_s:
            self.events = replace(self.events, time_jumps=self.events.time_jumps + 1)
            now_s = self._time_s
        self._time_s = now_s
        return now_s

    def _count_times(self, frames: int) -> None:
        self.last_times = self._watch.take(frames)
        self.times = self.times.plus(self.last_times)

    def _check(self, frames: Sequence[Frame], times: Sequence[float | None]) -> None:
        """Refuses what is no frame or no time before anything is done with any of them."""
        if self._closed:
            raise UsageError("the session is closed; open a new one")
        if len(times) != len(frames):
            raise UsageError(f"{len(times)} times were given for {len(frames)} frames; give one a frame, or none")
        for time_s in times:
            if time_s is not None and not np.isfinite(time_s):
                raise UsageError(f"time_s is {time_s}; expected seconds from the start of the stream, or None")
        for frame in frames:
            if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
                raise UsageError(f"frame is {_told(frame)}; expected a uint8 array [height, width, 3], RGB")
            if not frame.size:
                raise UsageError(f"frame is {_told(frame)}; expected at least one pixel")


def _objects(tracks: Sequence[Track], resize: MaskResize) -> tuple[TrackedObject, ...]:
    return tuple(found for track in tracks if (found := _tracked_object(track, resize)))


def _tracked_object(track: Track, resize: MaskResize) -> TrackedObject | None:
    """The object at the source's size; None if nothing of its mask is left there."""
    mask = resize.source_mask(track.mask_logits)
    return None if mask is None else TrackedObject(track.id, track.label, track.score, mask.box, mask.rle)


def _told(frame: object) -> str:
    if isinstance(frame, np.ndarray):
        return f"{frame.dtype} {list(frame.shape)}"
    return f"a {type(frame).__name__}"
