"""Does it stay as it is on an endless stream? Time a frame, memory and the norm of what a network carries from frame to
frame, over a clip that is looped, with slopes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

import numpy as np

from visrt.benchmarks.speed.memory import gpu_memory_mb, looped, rss_mb
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.session import Session
from visrt.runtime.sinks.journal import Journal

__all__ = ["LengthFigures", "LengthPoint", "over_length", "slope"]

SETTLED = 0.2
"""The slope leaves out this share of the points at the start, while caches and pools fill."""


@dataclass(frozen=True)
class LengthPoint:
    """After `frames` frames: memory in MB (10^6 bytes), and means over the frames since the point before.

    state_norm: the largest Euclidean norm of a vector in the state of the network; None where it carries none.
    """

    frames: int
    rss_mb: float
    gpu_mb: int | None
    ms: float
    cpu_ms: float
    state_norm: float | None = None


@dataclass(frozen=True)
class LengthFigures:
    """The points, and what grows in 10,000 frames by the line through the settled ones."""

    points: Sequence[LengthPoint]
    rss_mb_per_10k: float
    gpu_mb_per_10k: float | None
    ms_per_10k: float
    cpu_ms_per_10k: float
    state_norm_per_10k: float | None = None


def over_length(
    bundle: Bundle,
    engine: str,
    clip: Path,
    frames: int,
    points: int = 40,
    threads: int | None = None,
    device: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> LengthFigures:
    """`frames` frames of the looped clip as one stream, from its decoder to its journal, looked at `points` times."""
    every = max(1, frames // points)
    found: list[LengthPoint] = []
    with TemporaryDirectory() as folder, Session.open(bundle, engine, threads=threads, device=device) as session:
        journal = Journal(Path(folder) / "results.jsonl", session.manifest.classes)
        start, cpu = perf_counter(), process_time()
        for frame in itertools.islice(looped(clip), frames):
            for result in session.step(frame.image, frame.time_s):
                journal.write(result, frame.image)
            if (frame.index + 1) % every == 0:
                now, cpu_now = perf_counter(), process_time()
                ms, cpu_ms = 1e3 * (now - start) / every, 1e3 * (cpu_now - cpu) / every
                norm = _state_norm(session)
                found.append(LengthPoint(frame.index + 1, rss_mb(), gpu_memory_mb(device), ms, cpu_ms, norm))
                say(f"{frame.index + 1} of {frames} frames, {found[-1].rss_mb:.0f} MB")
                start, cpu = perf_counter(), process_time()
        journal.close()
    return _with_slopes(found)


def slope(frames: Sequence[float], values: Sequence[float]) -> float:
    """The growth of `values` in 10,000 frames: least squares over the settled points; 0 where there are fewer than
    two."""
    first = int(SETTLED * len(frames))
    x, y = np.asarray(frames[first:], np.float64), np.asarray(values[first:], np.float64)
    return float(np.polyfit(x, y, 1)[0]) * 1e4 if len(x) > 1 else 0.0


def _state_norm(session: Session) -> float | None:
    if not session.network.stateful:
        return None
    states = session.save().states.values()
    return max((float(np.linalg.norm(state, axis=-1).max()) for state in states if state.size), default=0.0)


def _with_slopes(points: Sequence[LengthPoint]) -> LengthFigures:
    frames = [point.frames for point in points]
    norms = [point.state_norm for point in points if point.state_norm is not None]
    gpu = [float(point.gpu_mb) for point in points if point.gpu_mb is not None]
    return LengthFigures(
        points,
        slope(frames, [point.rss_mb for point in points]),
        slope(frames, gpu) if len(gpu) == len(frames) else None,
        slope(frames, [point.ms for point in points]),
        slope(frames, [point.cpu_ms for point in points]),
        slope(frames, norms) if norms else None,
    )
