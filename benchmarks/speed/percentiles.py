"""Durations in, percentiles out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Percentiles", "by_stage", "percentiles"]


@dataclass(frozen=True)
class Percentiles:
    """Of `samples` durations, in milliseconds."""

    samples: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float

    @property
    def fps(self) -> float:
        """What a steady run at the mean gives a second; zero without samples."""
        return 1e3 / self.mean_ms if self.mean_ms else 0.0


def percentiles(durations_s: Sequence[float]) -> Percentiles:
    """Percentiles of `durations_s`, seconds, with linear interpolation; all zero where there are none."""
    if not durations_s:
        return Percentiles(0, 0.0, 0.0, 0.0, 0.0)
    milliseconds = 1e3 * np.asarray(durations_s, dtype=np.float64)
    p50, p95, p99 = (float(value) for value in np.percentile(milliseconds, (50, 95, 99)))
    return Percentiles(len(milliseconds), float(milliseconds.mean()), p50, p95, p99)


def by_stage(frames: Sequence[Mapping[str, float]]) -> dict[str, Percentiles]:
    """Percentiles of each stage from the seconds of each frame by stage; a stage a frame lacks took it no time."""
    stages = list(dict.fromkeys(stage for frame in frames for stage in frame))
    return {stage: percentiles([frame.get(stage, 0.0) for frame in frames]) for stage in stages}
