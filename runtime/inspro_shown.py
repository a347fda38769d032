"""When an InsPro slot is an object that a user sees, and with which id, label and score."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.clip_family import Sighting
from visrt.runtime.family import Floats

__all__ = ["Shown", "nothing_shown", "shown_after", "sightings_of", "without_lost", "without_slots"]

NO_OBJECT = -1


@dataclass(frozen=True)
class Shown:
    """What is known of each of N slots as an object.

    ids [N], -1 for none; seen_s [N]: when it was last shown; seen_frames [N]: how often. mean [N, K]: running average
    of its class scores over these frames, None before the first frame.
    """

    ids: NDArray[np.int64]
    seen_s: NDArray[np.float64]
    seen_frames: NDArray[np.int64]
    mean: Floats | None
    next_id: int


def nothing_shown(slots: int, next_id: int) -> Shown:
    none = np.full(slots, NO_OBJECT, dtype=np.int64)
    return Shown(none, np.full(slots, -np.inf), np.zeros(slots, dtype=np.int64), None, next_id)


def without_slots(shown: Shown, gone: NDArray[np.bool_]) -> Shown:
    """Without ids and scores of the slots that are `gone` [N]."""
    return replace(shown, ids=np.where(gone, NO_OBJECT, shown.ids), seen_frames=np.where(gone, 0, shown.seen_frames))


def without_lost(shown: Shown, now_s: float, lost_s: float | None) -> Shown:
    """Without the objects that were not shown for longer than `lost_s`; None: none is ever lost."""
    if lost_s is None:
        return shown
    return without_slots(shown, (shown.ids != NO_OBJECT) & (now_s - shown.seen_s > lost_s))


def shown_after(
    shown: Shown, chances: Floats, now_s: float, *, birth_score: float, keep_score: float, window_frames: int, most: int
) -> tuple[Shown, NDArray[np.intp]]:
    """What is known after a frame with `chances` [N, K] of the classes, and the slots that are shown in it, at `most`.

    An object is born in a slot from `birth_score` on and shown from `keep_score` on; ids are given in order of score.
    Its average is that of the first `window_frames`, then an exponential one.
    """
    scores = chances.max(axis=1)
    by_score = np.argsort(-scores, kind="stable")
    enough = scores >= np.where(shown.ids == NO_OBJECT, birth_score, keep_score)
    visible = by_score[enough[by_score]][:most]
    newborn = visible[shown.ids[visible] == NO_OBJECT]
    ids, seen_s, seen_frames = shown.ids.copy(), shown.seen_s.copy(), shown.seen_frames.copy()
    ids[newborn] = shown.next_id + np.arange(len(newborn))
    seen_s[visible] = now_s
    seen_frames[visible] += 1
    mean = np.zeros_like(chances) if shown.mean is None else shown.mean.copy()
    weight = np.maximum(1 / seen_frames[visible], 1 / window_frames).astype(np.float32)[:, None]
    mean[visible] += weight * (chances[visible] - mean[visible])
    return Shown(ids, seen_s, seen_frames, mean, shown.next_id + len(newborn)), visible


def sightings_of(shown: Shown, visible: NDArray[np.intp], mask_embeddings: Floats) -> list[Sighting]:
    """What is shown of the `visible` slots, by id: the class with the best average score, and that score (causal)."""
    assert shown.mean is not None
    mean = shown.mean
    slots = sorted(visible.tolist(), key=lambda slot: int(shown.ids[slot]))
    return [Sighting(int(shown.ids[s]), int(mean[s].argmax()), float(mean[s].max()), mask_embeddings[s]) for s in slots]
