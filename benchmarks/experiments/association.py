"""What association costs a frame, and whether it stays flat: every preset on a synthetic stream, on one core.

    python -m visrt.benchmarks.experiments.association --write

The stream has 100 queries of 256 channels and 30 objects, some hidden in each frame; in the endless one some also leave
and new ones come. "association": everything from queries to tracks, masks of one cell and no mask NMS. "with_masks":
masks of 120 x 216 cells as they come from the masks engine, made beforehand, and NMS on. "nms": mask NMS alone.
"endless": 10,000 frames, by thousands.

Times are CPU time of the one thread, in short rounds: where other programs use the machine they disturb the caches but
are not waited for. The best round's median says what a frame costs, the percentiles over all rounds what was met.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from time import thread_time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from visrt.benchmarks.accuracy.result_files import (
    COMPARED_PRESETS,
    EXPERIMENT_RESULTS,
    add_result_options,
    preset_settings,
    write_result,
)
from visrt.benchmarks.speed.memory import rss_mb
from visrt.benchmarks.speed.percentiles import percentiles
from visrt.benchmarks.speed.scripted import disc_masks
from visrt.runtime.arrays import Floats
from visrt.runtime.methods.mask_bits import packed
from visrt.runtime.methods.method import PerFrameMethod
from visrt.runtime.methods.nms import nms, smoothed_iou
from visrt.runtime.methods.queries import Queries
from visrt.runtime.methods.registry import method_from_preset

__all__ = ["StreamSettings", "array_bytes", "endless", "follower", "frames_of", "measure"]

CELLS = (120, 216)
FPS = 30.0
NMS_SCENES = 10
NMS_MASKS = (10, 30, 60, 100)


@dataclass(frozen=True)
class StreamSettings:
    """A synthetic stream. change: the chance that an object leaves for good in a frame and another comes for it.

    hidden: the chance that an object is not seen in a frame. noise: of an embedding, relative to its length.
    """

    queries: int = 100
    objects: int = 30
    channels: int = 256
    classes: int = 40
    change: float = 0.02
    hidden: float = 0.05
    noise: float = 0.2
    seed: int = 0


def frames_of(settings: StreamSettings) -> Iterator[Queries]:
    """The queries of each frame, without end, in an order shuffled anew for each frame."""
    random = np.random.default_rng(settings.seed)
    who = _looks(random, settings.objects, settings)
    while True:
        new = random.random(settings.objects) < settings.change
        who[new] = _looks(random, int(new.sum()), settings)
        seen = random.random(settings.objects) >= settings.hidden
        embeddings = _looks(random, settings.queries, settings)
        embeddings[: settings.objects] *= settings.noise
        embeddings[: settings.objects] += who
        logits = random.normal(0, 0.5, (settings.queries, settings.classes + 1)).astype(np.float32)
        logits[:, -1] += 9
        logits[: settings.objects, 0] += np.where(seen, 16, 0)
        order = random.permutation(settings.queries)
        yield Queries(logits, embeddings, np.eye(settings.queries, dtype=np.float32)).take(order)


def _looks(random: np.random.Generator, count: int, settings: StreamSettings) -> Floats:
    """Random embeddings [count, C] of length 8, as long as products of trained ones are decisive."""
    drawn = random.normal(size=(count, settings.channels)).astype(np.float32)
    looks: Floats = 8 * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return looks


@dataclass
class Follower:
    """A stream that is followed, frame by frame; each call for masks gets the first of `masks` [Q, h, w]."""

    family: PerFrameMethod[Any]
    masks: Floats
    state: Any
    frames: int = 0

    def seconds(self, queries: Queries) -> float:
        """CPU seconds that the next frame takes."""
        now_s = self.frames / FPS
        self.frames += 1
        started = thread_time()
        _, self.state = self.family.associate(queries, self._first, now_s, self.state)
        return thread_time() - started

    def _first(self, wanted: Floats) -> Floats:
        return self.masks[: len(wanted)]


def follower(preset: str, masks: Floats, **changes: Any) -> Follower:
    family = method_from_preset(preset, changes)
    return Follower(family, masks, family.start())


@dataclass(frozen=True)
class Task:
    """Something timed: what it belongs to and its name; how many CPU seconds it takes for each of `frames`."""

    what: str
    name: str
    seconds: Callable[[Any], float]
    frames: Sequence[Any]


def measure(rounds: int, frames: int, settings: StreamSettings) -> dict[str, dict[str, Any]]:
    """Milliseconds a frame by what is measured. All take turns, so that each meets the machine's quiet moments."""
    tasks = tasks_of(frames, settings)
    found: dict[str, dict[str, Any]] = {task.what: {} for task in tasks}
    durations = [[[task.seconds(frame) for frame in task.frames] for task in tasks] for _ in range(rounds)]
    for at, task in enumerate(tasks):
        found[task.what][task.name] = _told([one_round[at] for one_round in durations])
    return found


def tasks_of(frames: int, settings: StreamSettings) -> list[Task]:
    source = frames_of(settings)
    stream = [next(source) for _ in range(frames)]
    one_cell, whole = np.ones((settings.queries, 1, 1), np.float32), disc_masks(settings.queries, CELLS)
    alone = [
        Task("association", name, follower(name, one_cell, nms_iou=1.0).seconds, stream) for name in COMPARED_PRESETS
    ]
    complete = [Task("with_masks", name, follower(name, whole).seconds, stream) for name in COMPARED_PRESETS]
    order = Task("canonical_order", "all", lambda queries: _seconds(queries.in_canonical_order), stream)
    scenes = {count: [disc_masks(count, CELLS, seed) > 0 for seed in range(NMS_SCENES)] for count in NMS_MASKS}
    suppression = [Task("nms", str(count), _nms_seconds, inside) for count, inside in scenes.items()]
    return [*alone, *complete, order, *suppression]


def _nms_seconds(inside: NDArray[np.bool_]) -> float:
    return _seconds(lambda: nms(packed(inside), 0.6, smoothed_iou))


def _seconds(call: Callable[[], Any]) -> float:
    started = thread_time()
    call()
    return thread_time() - started


def _told(rounds: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of several rounds of durations: the least median of a round, and percentiles over all, in milliseconds."""
    best = min(percentiles(durations).p50_ms for durations in rounds)
    overall = percentiles([duration for durations in rounds for duration in durations])
    return {"best_round_p50_ms": best, **asdict(overall)}


def endless(preset: str, thousands: int, settings: StreamSettings) -> list[dict[str, float]]:
    """By thousand frames of one stream: median CPU milliseconds a frame, ids given so far, bytes of state, RSS."""
    stream = follower(preset, np.ones((settings.queries, 1, 1), np.float32), nms_iou=1.0)
    source = frames_of(settings)
    found = []
    for _ in range(thousands):
        durations = [stream.seconds(next(source)) for _ in range(1000)]
        found.append(
            {
                "frames": stream.frames,
                "p50_ms": percentiles(durations).p50_ms,
                "ids_given": stream.state.next_id,
                "state_bytes": array_bytes(stream.state),
                "rss_mb": rss_mb(),
            }
        )
    return found


def array_bytes(value: object) -> int:
    """Bytes of all arrays a state holds."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if is_dataclass(value):
        return sum(array_bytes(getattr(value, field.name)) for field in fields(value))
    return 0


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Cost of association a frame, and over an endless stream.")
    add_result_options(parser, EXPERIMENT_RESULTS / "association.json")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--frames", type=int, default=20, help="frames a round")
    parser.add_argument("--thousands", type=int, default=10, help="length of the endless stream")
    return parser.parse_args(argv)


def settings_of(given: argparse.Namespace) -> dict[str, Any]:
    rounds = {"rounds": given.rounds, "frames_a_round": given.frames, "thousands": given.thousands}
    stream = {**asdict(StreamSettings()), "cells": CELLS}
    return {**stream, **rounds, "nms_masks": NMS_MASKS, "nms_scenes": NMS_SCENES, "presets": preset_settings()}


def main() -> None:
    given = arguments()
    settings = StreamSettings()
    with threadpool_limits(1):
        measured = measure(given.rounds, given.frames, replace(settings, change=0.0))
        streams = {name: endless(name, given.thousands, settings) for name in ("minvis", "memory", "ctvis")}
    write_result(given.out, settings_of(given), {"ms_a_frame": _rounded(measured), "endless": _rounded(streams)})
    for what in ("association", "with_masks", "nms"):
        print(what, {name: round(figures["best_round_p50_ms"], 3) for name, figures in measured[what].items()})


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
