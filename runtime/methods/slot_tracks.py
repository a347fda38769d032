"""Tracks of networks whose slots are objects (GenVIS, InsPro, VidEoMT): when a slot is shown, and with which id, label
and score.

The published rules judge whole videos and have no births. Here a slot gets a public id when it first scores high
enough, and is shown while it scores high enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats

__all__ = [
    "NO_OBJECT",
    "SlotTracks",
    "forget_slots",
    "mark_seen",
    "new_slot_tracks",
    "shown_objects",
    "with_mean_scores",
    "without_lost",
]

NO_OBJECT = -1

Slots = NDArray[np.intp]


@dataclass(frozen=True)
class SlotTracks:
    """The identity of each of S slots.

    ids [S]: -1 for none. visible [S]: whether it was shown in the last update. seen_s [S]: when it was last shown.
    seen_frames [S]: in how many updates it was. scores [S, K]: of each class over time, as the method keeps them; None
    before the first update. next_id: of the next object.
    """

    ids: NDArray[np.int64]
    visible: NDArray[np.bool_]
    seen_s: NDArray[np.float64]
    seen_frames: NDArray[np.int64]
    scores: Floats | None
    next_id: int


def new_slot_tracks(slots: int, next_id: int) -> SlotTracks:
    """No slot is known as anything yet."""
    none = np.full(slots, NO_OBJECT, dtype=np.int64)
    nowhere, never = np.zeros(slots, dtype=bool), np.full(slots, -np.inf)
    return SlotTracks(none, nowhere, never, np.zeros(slots, dtype=np.int64), None, next_id)


def forget_slots(tracks: SlotTracks, gone: NDArray[np.bool_]) -> SlotTracks:
    """The tracks with the slots `gone` [S] known as nothing."""
    if not gone.any():
        return tracks
    scores = None if tracks.scores is None else np.where(gone[:, None], np.float32(0), tracks.scores)
    ids, seen_frames = np.where(gone, NO_OBJECT, tracks.ids), np.where(gone, 0, tracks.seen_frames)
    return replace(tracks, ids=ids, seen_frames=seen_frames, scores=scores)


def without_lost(tracks: SlotTracks, now_s: float, lost_s: float | None) -> SlotTracks:
    """The tracks without objects that were missed in the last update and not shown for longer than `lost_s` seconds;
    None keeps all."""
    if lost_s is None:
        return tracks
    return forget_slots(tracks, (tracks.ids != NO_OBJECT) & ~tracks.visible & (now_s - tracks.seen_s > lost_s))


def mark_seen(
    tracks: SlotTracks,
    probabilities: Floats,
    now_s: float,
    *,
    birth_score: float,
    keep_score: float,
    max_objects: int,
) -> tuple[SlotTracks, Slots]:
    """The tracks after an update with `probabilities` [S, K] of the classes, and the slots shown in it, best first.

    A slot gets an id from `birth_score` on and is shown from `keep_score` on; ids are given in order of score. `scores`
    stay as they were: how they are kept over time is the method's own.
    """
    scores = probabilities.max(axis=1)
    enough = (scores >= np.where(tracks.ids == NO_OBJECT, birth_score, keep_score)).nonzero()[0]
    visible = enough[(-scores[enough]).argsort(kind="stable")][:max_objects]
    newborn = visible[tracks.ids[visible] == NO_OBJECT]
    ids, seen_s, seen_frames = tracks.ids.copy(), tracks.seen_s.copy(), tracks.seen_frames.copy()
    shown = np.zeros(len(ids), dtype=bool)
    shown[visible] = True
    ids[newborn] = tracks.next_id + np.arange(len(newborn))
    seen_s[visible] = now_s
    seen_frames[visible] += 1
    return SlotTracks(ids, shown, seen_s, seen_frames, tracks.scores, tracks.next_id + len(newborn)), visible


def with_mean_scores(tracks: SlotTracks, visible: Slots, probabilities: Floats, window_frames: int) -> SlotTracks:
    """The tracks with the `visible` slots' scores averaged: plainly over `window_frames`, then exponentially."""
    mean = np.zeros_like(probabilities) if tracks.scores is None else tracks.scores.copy()
    weight = np.maximum(1 / tracks.seen_frames[visible], 1 / window_frames).astype(np.float32)[:, None]
    mean[visible] += weight * (probabilities[visible] - mean[visible])
    return replace(tracks, scores=mean)


def shown_objects(tracks: SlotTracks, visible: Slots) -> tuple[list[tuple[int, int, float]], Slots]:
    """Id, label and score of each of the `visible` slots, by id, and these slots in that order.

    The label is the class with the best score over time, the score is that one.
    """
    assert tracks.scores is not None
    slots = visible[tracks.ids[visible].argsort()]
    scores = tracks.scores[slots]
    ids, labels, best = tracks.ids[slots].tolist(), scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist()
    return list(zip(ids, labels, best, strict=True)), slots
