"""What is kept of one stream between frames: its objects, the size of its pictures, its clock, and what was counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from visrt.runtime.clip_buffer import ClipBuffer, full_clips
from visrt.runtime.clip_family import AnyFamily
from visrt.runtime.errors import NumericalError, UsageError
from visrt.runtime.family import Track
from visrt.runtime.following import FollowedFrame, PlacedFrame, follower_of
from visrt.runtime.image import RESIZERS, Frame, Letterbox
from visrt.runtime.mask_resize import MaskResize, mask_resize
from visrt.runtime.network import FrameInputs, FrameOutputs, Network
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.times import Stopwatch

__all__ = ["Clips", "SessionEvents", "SessionSettings", "Stream", "check_frames", "check_times"]

Times = Sequence[float | None]

LOGGER = logging.getLogger("visrt.stream")


@dataclass(frozen=True)
class SessionSettings:
    """default_fps: frames a second where the caller gives no times.

    bad_frames_max: after so many frames in a row with NaN or infinity from the network the session gives up.
    resize: "pillow_bilinear" or "cv2_area" in place of what the manifest says. in_flight: 2 hands a frame to the
    engine before the last one is finished, so that network and host work at a time; results come a frame later. With
    3 the network sees two frames at a time, on a CPU each with half of its cores, and so on.
    """

    default_fps: float = 30.0
    bad_frames_max: int = 10
    resize: str | None = None
    in_flight: int = 1

    def __post_init__(self) -> None:
        if self.in_flight < 1:
            raise UsageError(f"in_flight is {self.in_flight}; expected 1, or 2 for network and host at a time, or more")
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
class Clips:
    """Frames of one stream that are ready for the frame engine, and the lengths of the clips they are."""

    inputs: FrameInputs
    times_s: Times
    lengths: Sequence[int]

    def __len__(self) -> int:
        return len(self.inputs)


class Stream:
    """Follows the objects of one stream: frames ready for the engine in, and what the engine said of them."""

    def __init__(self, family: AnyFamily, network: Network, settings: SessionSettings, watch: Stopwatch) -> None:
        self._settings, self._watch = settings, watch
        self._follower = follower_of(family, network)
        self.reset()

    def reset(self) -> None:
        """Begins a new stream: frames, ids, events and times begin again."""
        self._follower.start()
        self._waiting: ClipBuffer = ClipBuffer()
        self._resize: MaskResize | None = None
        self._bad_in_a_row = 0
        self._time_s = 0.0
        self.events = SessionEvents()

    @property
    def clip_frames(self) -> int:
        """Frames that are followed together, so that a result may come so many frames later."""
        return self._follower.clip_frames

    @property
    def state(self) -> Any:
        return self._follower.state

    def clips_with(self, inputs: FrameInputs, times_s: Times) -> Clips:
        """The clips that are full with the next frames; other frames wait for more."""
        waiting = self._waiting.followed_by(inputs, times_s)
        return self._split(waiting, full_clips(waiting.inputs.fits, self._follower.clip_frames))

    def last_clips(self) -> Clips:
        """What still waits at the end of the stream; the last clip may be a short one."""
        return self._split(self._waiting, [len(self._waiting)] if len(self._waiting) else [])

    def results(self, outputs: Sequence[FrameOutputs], clips: Clips) -> list[FrameResult]:
        """Results of the next `clips`, of which the frame engine said `outputs`.

        Raises NumericalError after too many frames in a row of which it said nothing but NaN or infinity.
        """
        results: list[FrameResult] = []
        for start, stop in pairwise(accumulate(clips.lengths, initial=0)):
            results += self._clip_results(outputs[start:stop], clips.times_s[start:stop])
        return results

    def _split(self, waiting: ClipBuffer, lengths: Sequence[int]) -> Clips:
        first, self._waiting = waiting.split(sum(lengths))
        return Clips(first.inputs, first.times_s, lengths)

    def _clip_results(self, clip: Sequence[FrameOutputs], times: Times) -> list[FrameResult]:
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
        if frame.error is not None and self._bad_in_a_row >= self._settings.bad_frames_max:
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
                self._tell_restart(last.fit, fit)
        assert self._resize is not None
        return self._resize

    def _tell_restart(self, before: Letterbox, now: Letterbox) -> None:
        old, new = (f"{height}x{width}" for height, width in (before.source, now.source))
        LOGGER.warning(
            "after %d frames pictures are %s in place of %s (height x width): objects and what is remembered of them "
            "are dropped, their ids are not given again",
            self.events.frames,
            new,
            old,
        )

    def _now(self, index: int, time_s: float | None) -> float:
        """Seconds of this frame; time never runs backwards, as ages are measured with it."""
        now_s = index / self._settings.default_fps if time_s is None else float(time_s)
        if index and now_s < self._time_s:
            self.events = replace(self.events, time_jumps=self.events.time_jumps + 1)
            now_s = self._time_s
        self._time_s = now_s
        return now_s


def check_times(times_s: Times) -> None:
    """Refuses what is no time."""
    for time_s in times_s:
        if time_s is not None and not np.isfinite(time_s):
            raise UsageError(f"time_s is {time_s}; expected seconds from the start of the stream, or None")


def check_frames(frames: Sequence[Frame]) -> None:
    """Refuses what is no frame before anything is done with any of them."""
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
