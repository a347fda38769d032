"""One stream's tracks: frames for the network in, its outputs back, the objects of each frame at the source's size
out."""

from __future__ import annotations

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.clock import Clock
from visrt.runtime.errors import EngineError, NumericalError, UsageError, VisrtError
from visrt.runtime.image import RESIZERS, Letterbox
from visrt.runtime.mask_resize import MaskResize, mask_resize
from visrt.runtime.masks import Rle
from visrt.runtime.methods.method import (
    BoxTrack,
    FrameOutputs,
    FrameTracks,
    Track,
    TrackingMethod,
)
from visrt.runtime.methods.registry import fits_state
from visrt.runtime.network import (
    Batch,
    FrameStates,
    Network,
    Networks,
    StreamGraphs,
    StreamSteps,
    drive,
    of_stream,
)
from visrt.runtime.results import FrameResult, MakeResult, SessionEvents, TrackedObject
from visrt.runtime.times import Stopwatch

__all__ = ["PendingCalls", "SavedStream", "SessionSettings", "StreamTracker", "check_times", "update_together"]

Wait = Callable[[], list[FrameOutputs]]
"""Waits for a call of the frame engine and gives the outputs for each of its frames."""

BAD_UPDATES_OF_A_STATE = 3
"""After so many frames, or clips, in a row with NaN or infinity a network that carries state begins from its first
one."""

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
class SavedStream:
    """A stream between two frames; what it holds is for `StreamTracker.restore` alone.

    network: of which it is, as text. settings: of the association. states: of the engines, by name. state: of the
    method. fit: of the last frame, None before the first. waiting: frames of a clip that is not full yet.
    """

    network: str
    settings: Any
    states: Mapping[str, Array]
    state: Any
    fit: Letterbox | None
    events: SessionEvents
    inputs: tuple[tuple[int, int], ...]
    bad_in_a_row: int
    clock: Clock
    waiting: tuple[Array, tuple[Letterbox, ...], tuple[float | None, ...]] | None


class StreamTracker:
    """Tracks the objects of one stream: `next_clips` gives what the network is to see, `update` takes its outputs.

    inputs: sizes (height, width) of the network input that its frames had, in order of their first use.
    """

    def __init__(self, method: TrackingMethod[Any], networks: Networks, settings: SessionSettings) -> None:
        self._method, self._networks, self._settings = method, networks, settings
        self.clip_frames = method.clip_frames
        self._carried: dict[Network, FrameStates] = {}
        self.reset()

    def reset(self) -> None:
        """Begins a new stream: frames, ids, events and times begin again."""
        self.close()
        self.state: Any = None
        self.events = SessionEvents()
        self.inputs: tuple[tuple[int, int], ...] = ()
        self._network = self._networks.main
        self._waiting: Batch | None = None
        self._resize: MaskResize | None = None
        self._bad_in_a_row = 0
        self._clock = Clock(step_s=1 / self._settings.default_fps)

    def use(self, method: TrackingMethod[Any]) -> None:
        """Goes on with `method`, the same with other settings; where its state does not fit, as after a cut."""
        fits = fits_state(self._method, method)
        self._method = method
        if not fits:
            self.cut()

    def next_clips(self, batch: Batch) -> list[Batch]:
        """The frames of the clips that are full with the next frames of the stream; the others wait for more.

        Frames that wait for another network than that of `batch` are a short clip of their own.
        """
        if self.clip_frames == 1:
            return [batch]
        before = self.last_clip() if self._waiting and self._waiting.network is not batch.network else []
        waiting = Batch.joined([self._waiting, batch]) if self._waiting else batch
        ready = sum(length for length, full in _clips(waiting.fits, self.clip_frames) if full)
        self._waiting = waiting[ready:]
        return [*before, waiting[:ready]] if ready else before

    def last_clip(self) -> list[Batch]:
        """The frames that still wait at the end of the stream, if any."""
        waiting, self._waiting = self._waiting, None
        return [waiting] if waiting else []

    def carried(self, network: Network) -> FrameStates:
        """What the stream carries in `network`."""
        if network not in self._carried:
            self._carried[network] = FrameStates(network.new_states())
        return self._carried[network]

    def close(self) -> None:
        """Gives back the memory in which the engines keep the stream's state."""
        while self._carried:
            self._carried.popitem()[1].states.close()

    def update(self, outputs: Sequence[FrameOutputs]) -> StreamSteps[list[MakeResult]]:
        """What makes the results of the next frames of the stream, from the network's `outputs`; see `drive`.

        Raises NumericalError after too many frames in a row for which the network gave NaN or infinity.
        """
        results: list[MakeResult] = []
        for length, _ in _clips([frame.fit for frame in outputs], self.clip_frames):
            first = self.events.frames
            clip = [self._on_the_clock(frame) for frame in outputs[len(results) :][:length]]
            tracks = yield from self._update_method(clip)
            for one in tracks:
                self._count(one)
            results += [
                partial(_result, first + i, frame.now_s, one.tracks, frame.resize)
                for i, (frame, one) in enumerate(zip(clip, tracks, strict=True))
            ]
        return results

    def _update_method(self, clip: Sequence[FrameOutputs]) -> StreamSteps[list[FrameTracks]]:
        """The tracks of each frame; one with NaN or infinity is left out of its clip and leaves the state as it was."""
        tracks: dict[int, FrameTracks] = {}
        for at, frame in enumerate(clip):
            try:
                frame.check_finite()
            except NumericalError as error:
                tracks[at] = FrameTracks(error=error)
        finite = [at for at in range(len(clip)) if at not in tracks]
        if finite:
            frames = [clip[at] for at in finite]
            states = self.carried(self._network).states
            steps = self._method.update(frames, StreamGraphs(self._network, states), self.state)
            try:
                found, self.state = yield from of_stream(steps, self._network, states)
            except NumericalError as error:
                found = [FrameTracks(error=error)] * len(finite)
            tracks |= dict(zip(finite, found, strict=True))
        return [tracks[at] for at in range(len(clip))]

    def _count(self, frame: FrameTracks) -> None:
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
        if self._network.stateful and self._bad_in_a_row == BAD_UPDATES_OF_A_STATE * self.clip_frames:
            self._restart("gave NaN or infinity in %d frames in a row", self._bad_in_a_row)

    def _on_the_clock(self, frame: FrameOutputs) -> FrameOutputs:
        """`frame` with its time and mask resize. Time never runs backwards; another aspect drops all tracks."""
        clock = self._clock.at(None if frame.time_s is None else float(frame.time_s))
        if frame.time_s is not None and clock.time_s != frame.time_s + self._clock.offset_s:
            self.events = replace(self.events, time_jumps=self.events.time_jumps + 1)
        self._clock, now_s = clock, clock.time_s or 0.0
        last = self._resize
        if last is None or last.fit != frame.fit:
            self._resize = mask_resize(frame.fit)
            self._network = self._networks.of(frame.fit.source)
            self.inputs = tuple(dict.fromkeys([*self.inputs, frame.fit.network]))
        if last is None:
            self.state = self._method.start(self._network.states)
        elif last.fit.source != frame.fit.source:
            self.events = replace(self.events, size_changes=self.events.size_changes + 1)
            if not last.fit.like(frame.fit):
                old, new = (f"{height}x{width}" for height, width in (last.fit.source, frame.fit.source))
                self._restart("pictures are %s in place of %s (height x width)", new, old)
        return FrameOutputs(frame.fit, frame.tensors, frame.device, now_s, self._resize)

    def save(self) -> SavedStream:
        """The stream as it is now: its frames so far are all it depends on, and nothing that comes changes it."""
        waiting = self._waiting
        return SavedStream(
            self._network.identity,
            self._method.settings,
            {} if self._resize is None else self.carried(self._network).states.save(),
            self.state,
            None if self._resize is None else self._resize.fit,
            self.events,
            self.inputs,
            self._bad_in_a_row,
            self._clock,
            None if waiting is None else (waiting.images.copy(), waiting.fits, waiting.times_s),
        )

    def restore(self, saved: SavedStream) -> None:
        """Goes on from a stream that was saved. Raises UsageError where it does not fit, and then changes nothing."""
        network = next((one for one in self._networks if one.identity == saved.network), None)
        if network is None:
            known = ", ".join(one.identity for one in self._networks)
            raise UsageError(
                f"the stream was saved with a network of {saved.network}, this bundle has {known}; restore it with the "
                "bundle that it was saved with"
            )
        if saved.settings != self._method.settings:
            raise UsageError(
                f"the stream was saved with {saved.settings}, this session has {self._method.settings}; open it with "
                "the same association settings"
            )
        restored = FrameStates(network.new_states())
        if saved.fit is not None:
            restored.states.restore(saved.states)
        self.reset()
        self._network, self._carried = network, {network: restored}
        restored.fit = saved.fit
        self.state, self.events, self.inputs = saved.state, saved.events, saved.inputs
        self._bad_in_a_row, self._clock = saved.bad_in_a_row, saved.clock
        self._resize = None if saved.fit is None else mask_resize(saved.fit)
        self._waiting = None if saved.waiting is None else Batch(*saved.waiting, network)

    def cut(self) -> None:
        """The next frame is of another scene: objects and what is remembered of them are dropped, ids go on."""
        if self._resize is not None:
            self.events = replace(self.events, cuts=self.events.cuts + 1)
            self._begin_again()

    def _restart(self, why: str, *values: object) -> None:
        self.events = replace(self.events, restarts=self.events.restarts + 1)
        self._begin_again()
        LOGGER.warning(
            f"after %d frames {why}: objects and what is remembered of them are dropped, their ids are not given again",
            self.events.frames,
            *values,
        )

    def _begin_again(self) -> None:
        self.state = self._method.restart(self.state, self._network.states)
        for network in [network for network in self._carried if network is not self._network]:
            self._carried.pop(network).states.close()
        self.carried(self._network).states.restart()


Part = tuple[StreamTracker, Batch]
"""Frames of one stream in a call."""


class PendingCalls:
    """Calls of frame engines that were submitted and not yet finished, in order.

    A call for several streams that fails is repeated stream by stream: a GPU that is short of memory may still have
    enough for one. retried_calls: how many were.
    """

    def __init__(self) -> None:
        self.retried_calls = 0
        self._calls: deque[tuple[Wait | None, Sequence[Part]]] = deque()

    def __len__(self) -> int:
        return len(self._calls)

    def submit(self, parts: Sequence[Part]) -> None:
        """Hands frames of streams, each of which comes once, to their frame engines, in one call for each network."""
        calls: defaultdict[Network, list[Part]] = defaultdict(list)
        for part in parts:
            calls[part[1].network].append(part)
        for network, together in calls.items():
            wait: Wait | None = None
            try:
                wait = network.submit([(batch, tracker.carried(network)) for tracker, batch in together])
            except EngineError:
                if len(together) == 1 or network.stateful_frames:
                    raise
            self._calls.append((wait, together))

    def finish(self, keep_in_flight: int) -> Iterator[list[tuple[StreamTracker, list[FrameOutputs]]]]:
        """The outputs of each call by stream, in order, until `keep_in_flight` calls are left."""
        while len(self._calls) > keep_in_flight:
            wait, parts = self._calls.popleft()
            try:
                if wait is None:
                    raise EngineError("the engine refused the call")
                outputs = iter(wait())
            except EngineError:
                if len(parts) == 1 or parts[0][1].network.stateful_frames:
                    raise
                self.retried_calls += 1
                for tracker, batch in parts:
                    yield [(tracker, batch.network.submit([(batch, tracker.carried(batch.network))])())]
            else:
                yield [(tracker, [next(outputs) for _ in range(len(batch))]) for tracker, batch in parts]

    def clear(self) -> None:
        """Drops what is in flight."""
        self._calls.clear()


def update_together(
    parts: Sequence[tuple[StreamTracker, list[FrameOutputs]]], watch: Stopwatch
) -> list[list[MakeResult] | VisrtError]:
    """What makes the results of streams from their outputs, or the error of a stream, in order; see
    `StreamTracker.update`."""
    return drive([tracker.update(outputs) for tracker, outputs in parts], watch)


def check_times(times_s: Sequence[float | None]) -> None:
    """Raises UsageError for a time that is NaN or infinite."""
    for time_s in times_s:
        if time_s is not None and not np.isfinite(time_s):
            raise UsageError(f"time_s is {time_s}; expected seconds from the start of the stream, or None")


def _clips(fits: Sequence[Letterbox], clip_frames: int) -> list[tuple[int, bool]]:
    """The lengths of the clips that successive frames make, and whether each is full.

    A clip is full after `clip_frames` frames, or before a picture of another aspect: nothing is tracked across that.
    """
    changes = [at for at, (one, other) in enumerate(pairwise(fits), start=1) if not one.like(other)]
    clips: list[tuple[int, bool]] = []
    for start, stop in pairwise([0, *changes, len(fits)]):
        whole, rest = divmod(stop - start, clip_frames)
        clips += [(clip_frames, True)] * whole + ([(rest, stop < len(fits))] if rest else [])
    return clips


def _result(index: int, time_s: float, tracks: Sequence[Track | BoxTrack], resize: MaskResize | None) -> FrameResult:
    """The tracks with their masks or boxes at the source's size, without those of which nothing is left there."""
    assert resize is not None
    shapes = [(track, _shape(track, resize)) for track in tracks]
    objects = tuple(TrackedObject(track.id, track.label, track.score, *shape) for track, shape in shapes if shape)
    return FrameResult(index, time_s, resize.fit.source, objects)


def _shape(track: Track | BoxTrack, resize: MaskResize) -> tuple[tuple[int, int, int, int], Rle | None] | None:
    """Box and mask at the source's size, None where nothing is left."""
    if isinstance(track, BoxTrack):
        box = resize.fit.source_box(track.corners)
        return None if box is None else (box, None)
    mask = resize.source_mask(track.mask_logits)
    return None if mask is None else (mask.box, mask.rle)
