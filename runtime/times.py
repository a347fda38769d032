"""The time of a frame, stage by stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from time import perf_counter

__all__ = ["StageTimes", "Stopwatch"]

FIRST = ("preprocess", "copy_in", "frame_engine", "copy_out")
LAST = ("association", "mask_engine", "masks")
"""The stages of every network, in order. copy_in: of an engine whose calls return before it has computed, the copy to
page-locked memory and the enqueuing of the call. frame_engine: until its outputs are there. copy_out: those that the
host needs. masks: resizing and RLE. Between the two come the engines of further graphs, named after them:
clip_engine."""

ALWAYS = frozenset({*FIRST, *LAST} - {"copy_in"})
"""Stages that are reported even where they took no time."""


@dataclass(frozen=True)
class StageTimes:
    """Seconds by stage, summed over `frames` frames. A stage that never ran may be left out."""

    frames: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def plus(self, other: StageTimes) -> StageTimes:
        seconds = dict(self.seconds)
        for stage, more in other.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + more
        return StageTimes(self.frames + other.frames, seconds)

    def part(self, frames: int) -> StageTimes:
        """The share of `frames` of them: all take the same."""
        share = frames / max(self.frames, 1)
        return StageTimes(frames, {stage: share * seconds for stage, seconds in self.seconds.items()})

    def by_stage(self) -> dict[str, float]:
        """Seconds by stage in the order of a frame's way, without the stages that this network does not have."""
        graphs = sorted(self.seconds.keys() - {*FIRST, *LAST})
        seconds = {stage: self.seconds.get(stage, 0.0) for stage in (*FIRST, *graphs, *LAST)}
        return {stage: spent for stage, spent in seconds.items() if spent or stage in ALWAYS}

    def ms_per_frame(self) -> dict[str, float]:
        """Mean milliseconds per frame by stage; zero before the first frame."""
        return {stage: 1e3 * seconds / max(self.frames, 1) for stage, seconds in self.by_stage().items()}


class Stopwatch:
    """Measures stages; a stage inside another is taken out of the outer one, so that the sum is the whole.

    clock: seconds; `time.thread_time` measures what the caller's own thread computes, without any waiting.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or perf_counter
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def stage(self, name: str) -> AbstractContextManager[None]:
        return _Stage(self, name)

    def take(self, frames: int) -> StageTimes:
        """The times measured since the last call, as the times of `frames` frames."""
        times = StageTimes(frames, self._seconds)
        self._seconds = defaultdict(float)
        return times

    def change(self) -> list[str]:
        """Gives the time since the last change to the stage that was running; those that run, the innermost last."""
        now = self.clock()
        if self._running:
            self._seconds[self._running[-1]] += now - self._since
        self._since = now
        return self._running


class _Stage:
    """A stage while it runs: there are a dozen a frame, and one of `contextlib.contextmanager` takes twice as long."""

    __slots__ = ("_name", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch, self._name = watch, name

    def __enter__(self) -> None:
        self._watch.change().append(self._name)

    def __exit__(self, *error: object) -> None:
        self._watch.change().pop()
