"""Subjects in turn, round by round, so that each meets the machine's quiet and its busy moments alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from visrt.benchmarks.percentiles import Percentiles, by_stage, percentiles
from visrt.benchmarks.subjects import ENGINES, STAGE_NAMES, Opening, Round, Subject

__all__ = ["METHOD", "Figures", "Spread", "figures_of", "interleave", "spread"]

METHOD = (
    "Wall-clock time of every frame, from asking the decoder for it to its line on disk; nothing is left out.",
    "A stage ends when its result is on the host: an engine that answers later is waited for.",
    "With more frames in flight the network's time, and its FPS, are what of it the host has to wait for.",
    "Each subject first runs one whole round that is not counted (warm-up); opening and first frame are told apart.",
    "Rounds are whole videos; subjects take turns round by round, every second time in the opposite order.",
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
    """What was measured of one subject.

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
    subjects: Sequence[Subject], rounds: int, say: Callable[[str], None] = lambda line: None
) -> list[Figures]:
    """Opens all subjects, warms each up, and runs `rounds` rounds of each in turn."""
    measured: dict[int, list[Round]] = {at: [] for at in range(len(subjects))}
    with ExitStack() as held:
        openings = []
        for subject in subjects:
            say(f"opening {subject.name}")
            openings.append(subject.open())
            held.callback(subject.close)
            subject.round()
        for number in range(rounds):
            order = list(enumerate(subjects))
            for at, subject in order if number % 2 == 0 else reversed(order):
                say(f"round {number + 1} of {rounds}: {subject.name}")
                measured[at].append(subject.round())
    return [figures_of(subject.name, openings[at], measured[at]) for at, subject in enumerate(subjects)]


def figures_of(name: str, opening: Opening, rounds: Sequence[Round]) -> Figures:
    """The figures of one subject's rounds."""
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


def _engine_s(one: Round) -> float:
    return sum(frame.get(stage, 0.0) for frame in one.frames for stage in ENGINES)
