"""Candidates in turn, round by round, so that other load on the machine affects all of them alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from visrt.benchmarks.speed.candidates import ENGINES, STAGE_NAMES, Candidate, Opening, Run
from visrt.benchmarks.speed.percentiles import Percentiles, by_stage, percentiles

__all__ = ["METHOD", "Figures", "Spread", "figures_of", "interleave", "spread"]

METHOD = (
    "Wall-clock time of every frame, from asking the decoder for it to its line on disk; nothing is left out.",
    "A stage ends when its result is on the host: asynchronous engines are waited for.",
    "With several frames in flight, the network's time and its FPS count only what the host waits for.",
    "Each candidate first runs one round of warm-up that is not counted; opening and first frame are reported apart.",
    "A round is a whole video; candidates take turns, and every second round has the opposite order.",
    "FPS and CPU time are the median of the rounds with the least and the most; percentiles are over all frames.",
)


@dataclass(frozen=True)
class Spread:
    """A figure of several rounds: the median, and the least and the most."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    return Spread(median(values), min(values), max(values))


@dataclass(frozen=True)
class Figures:
    """The figures of one candidate.

    stages: those that took time, in the order of a frame's way. fps: end to end. engines_fps: if nothing but the
    engines took time. cpu_ms: of all threads, a frame. busy: the load of the machine, by all programs, at the end.
    """

    name: str
    opening: Opening
    rounds: int
    frame: Percentiles
    stages: Mapping[str, Percentiles]
    fps: Spread
    engines_fps: Spread
    cpu_ms: Spread
    objects: float
    busy: float


def interleave(
    candidates: Sequence[Candidate], rounds: int, say: Callable[[str], None] = lambda line: None
) -> list[Figures]:
    """Open all candidates, warm each up, and run `rounds` rounds of each in turn."""
    measured: dict[int, list[Run]] = {at: [] for at in range(len(candidates))}
    with ExitStack() as held:
        openings = []
        for candidate in candidates:
            say(f"opening {candidate.name}")
            openings.append(candidate.open())
            held.callback(candidate.close)
            candidate.run()
        for number in range(rounds):
            order = list(enumerate(candidates))
            for at, candidate in order if number % 2 == 0 else reversed(order):
                say(f"round {number + 1} of {rounds}: {candidate.name}")
                measured[at].append(candidate.run())
    return [figures_of(candidate.name, openings[at], measured[at]) for at, candidate in enumerate(candidates)]


def figures_of(name: str, opening: Opening, rounds: Sequence[Run]) -> Figures:
    """The figures of one candidate's runs."""
    frames = [frame for one in rounds for frame in one.frames]
    stages = by_stage(frames)
    return Figures(
        name=name,
        opening=opening,
        rounds=len(rounds),
        frame=percentiles([sum(frame.values()) for frame in frames]),
        stages={stage: stages[stage] for stage in STAGE_NAMES if stage in stages and stages[stage].mean_ms},
        fps=spread([len(one.frames) / one.wall_s for one in rounds]),
        engines_fps=spread([len(one.frames) / max(_engine_s(one), 1e-9) for one in rounds]),
        cpu_ms=spread([1e3 * one.cpu_s / len(one.frames) for one in rounds]),
        objects=sum(one.objects for one in rounds) / len(frames),
        busy=os.getloadavg()[0],
    )


def _engine_s(one: Run) -> float:
    return sum(frame.get(stage, 0.0) for frame in one.frames for stage in ENGINES)
