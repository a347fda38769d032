"""The time of frames: one engine call after the other, and a whole clip from its file to its objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter

import numpy as np

from visrt.benchmarks.speed.percentiles import Percentiles, by_stage, percentiles
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.parity.verify import closing, stored_reference
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.sources.video import read_video

__all__ = ["ClipTiming", "EngineTiming", "time_clip", "time_engines"]

WARM_UP = 5


@dataclass(frozen=True)
class EngineTiming:
    """Calls of the engines alone, input and output included. frame: of `batch` frames; masks: `kept` masks of one."""

    batch: int
    kept: int
    frame: Percentiles
    masks: Percentiles

    @property
    def fps(self) -> float:
        """Frames a second, each with its masks."""
        return 1e3 / (self.frame.mean_ms / self.batch + self.masks.mean_ms)


@dataclass(frozen=True)
class ClipTiming:
    """A clip end to end, decoding included. frame: from one result to the next; stages: where that time goes."""

    frames: int
    in_flight: int
    seconds: float
    frame: Percentiles
    stages: Mapping[str, Percentiles]
    objects: int

    @property
    def fps(self) -> float:
        return self.frames / self.seconds


def time_engines(bundle: Bundle, engine: str, batch: int, kept: int, repeats: int) -> EngineTiming:
    """`repeats` calls on the bundle's reference frames, after a warm-up; small outputs and masks come to the host."""
    reference = stored_reference(bundle)
    frames = np.resize(np.arange(len(reference)), batch)
    feeds: dict[str, Array] = {"images": reference.images[frames], "valid_sizes": reference.valid_sizes[frames]}
    calls, masks = [], []
    with closing(open_engines(bundle, engine, EngineOptions(batch=batch))) as engines:
        for _ in range(WARM_UP + repeats):
            start = perf_counter()
            outputs = engines["frame"](feeds)
            embeddings = outputs["mask_embeddings"].numpy()
            for role in ("class_logits", "embeddings"):
                outputs[role].numpy()
            middle = perf_counter()
            features = outputs["mask_features"].row(0)
            chosen = embeddings[0, :kept].astype(features.dtype)
            engines["masks"]({"mask_embeddings": chosen, "mask_features": features})["mask_logits"].numpy()
            calls.append(middle - start)
            masks.append(perf_counter() - middle)
    return EngineTiming(batch, kept, percentiles(calls[WARM_UP:]), percentiles(masks[WARM_UP:]))


def time_clip(bundle: Bundle, engine: str, clip: Path, in_flight: int, limit: int) -> ClipTiming:
    """The first `limit` frames of `clip` through a session of its own, after a warm-up on the first of them."""
    with Session.open(bundle, engine, settings=SessionSettings(in_flight=in_flight)) as session:
        for frame in islice(read_video(clip), WARM_UP):
            session.step(frame.image, frame.time_s)
        session.flush()
        session.reset()
        return _timed(session, clip, in_flight, limit)


def _timed(session: Session, clip: Path, in_flight: int, limit: int) -> ClipTiming:
    stages: list[dict[str, float]] = []
    totals: list[float] = []
    ids: set[int] = set()
    start = before = perf_counter()
    for frame in islice(read_video(clip), limit):
        decoded = perf_counter()
        results = session.step(frame.image, frame.time_s)
        ids.update(found.id for result in results for found in result.objects)
        now = perf_counter()
        stages.append({"decode": decoded - before, **session.last_times.seconds})
        totals.append(now - before)
        before = now
    ids.update(found.id for result in session.flush() for found in result.objects)
    seconds = perf_counter() - start
    return ClipTiming(len(totals), in_flight, seconds, percentiles(totals), by_stage(stages), len(ids))
