"""Where the time of a frame goes, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from time import perf_counter

__all__ = ["SOMETIMES", "STAGES", "StageTimes", "Stopwatch"]

SOMETIMES = ("copy_in", "clip_engine", "head_engine", "head_lite_engine")
"""Stages that only some families or engines have; told where they took time.

copy_in: of an engine that answers later, the copy to page-locked memory and the enqueuing of the call.
"""

STAGES = (
    "preprocess",
    "copy_in",
    "frame_engine",
    "copy_out",
    *SOMETIMES[1:],
    "association",
    "mask_engine",
    "masks",
)
"""frame_engine: until it has answered. copy_out: what the host needs of its outputs. masks: resizing and RLE."""


@dataclass(frozen=True)
class StageTimes:
    """Seconds by stage, summed over `frames` frames."""

    frames: int = 0
    seconds: Mapping[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def plus(self, other: StageTimes) -> StageTimes:
        seconds = {stage: self.seconds[stage] + other.seconds[stage] for stage in STAGES}
        return StageTimes(self.frames + other.frames, seconds)

    def part(self, frames: int) -> StageTimes:
        """The share of `frames` of them: all take the same."""
        share = frames / max(self.frames, 1)
        return StageTimes(frames, {stage: share * seconds for stage, seconds in self.seconds.items()})

    def told(self) -> dict[str, float]:
        """Seconds by stage, without the stages that only other families have."""
        return {stage: seconds for stage, seconds in self.seconds.items() if seconds or stage not in SOMETIMES}

    def ms_a_frame(self) -> dict[str, float]:
        """Mean milliseconds a frame by stage; zero before the first frame."""
        return {stage: 1e3 * seconds / max(self.frames, 1) for stage, seconds in self.told().items()}


class Stopwatch:
    """Measures stages; a stage inside another is taken out of the outer one, so that the sum is the whole.

    clock: seconds; `time.thread_time` measures what the caller's own thread computes, without any waiting.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.clock = clock or perf_counter
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def take(self, frames: int) -> StageTimes:
        """What was measured since the last call, as the times of `frames` frames."""
        times = replace(StageTimes(), frames=frames, seconds=self._seconds)
        self._seconds = dict.fromkeys(STAGES, 0.0)
        return times

    def _charge(self) -> None:
        """Gives the time since the last change to the stage that was running."""
        now = self.clock()
        if self._running:
            self._seconds[self._running[-1]] += now - self._since
        self._since = now
