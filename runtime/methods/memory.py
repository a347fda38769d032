"""A memory bank of objects as a plain value: one row an object, in the order of their births, renewed by pure updates.

It is bounded: objects leave it when they are unseen for too long, and when there are too many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats
from visrt.runtime.methods.assign import unit_rows
from visrt.runtime.methods.mask_bits import Bits, packed, unpacked

__all__ = ["NO_ID", "SHARES", "Detections", "Memory", "Renewal", "born", "empty_memory", "kept", "resized", "seen"]

Indices = NDArray[np.intp]
Counts = NDArray[np.int64]

NO_ID = -1


@dataclass(frozen=True)
class Detections:
    """The detections of n objects in one frame at `now_s` seconds.

    embeddings [n, C], finite and not zero; class_logits [n, K + 1]; masks [n, words], empty where nothing needs them.
    """

    now_s: float
    embeddings: Floats
    class_logits: Floats
    masks: Bits

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: Indices) -> Detections:
        return Detections(self.now_s, self.embeddings[rows], self.class_logits[rows], self.masks[rows])


@dataclass(frozen=True)
class Memory:
    """The memory of N objects, oldest first. Each array has N rows.

    ids: what the user knows them by, NO_ID for those never shown.
    embeddings [N, C]: what detections are compared with.
    recent [N, M, C]: directions (length one) of the last M embeddings, in a ring; zeros where there were fewer.
    seen_frames: frames it was seen in, its whole life. steady_frames: the same, but counted from zero again when it
    turned out to be noise. unseen_frames: frames in a row it was not seen in, up to the last. seen_s: seconds when it
    was last seen.
    mean_logits [N, K + 1]: running average of the class logits over the frames it was seen in.
    masks [N, words]: its last mask as bits.
    """

    ids: Counts
    embeddings: Floats
    recent: Floats
    seen_frames: Counts
    steady_frames: Counts
    unseen_frames: Counts
    seen_s: NDArray[np.float64]
    mean_logits: Floats
    masks: Bits

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Renewal:
    """Settings for updating remembered objects with new detections.

    memory: a name in SHARES; momentum: the share of the current embedding under "momentum". window_frames: the class
    logits are averaged over about so many. noise_gap_frames, noise_frames: an object unseen for so many frames in a
    row, and steady for fewer than so many, was noise.
    """

    memory: str
    momentum: float
    window_frames: int
    noise_gap_frames: int
    noise_frames: int


def empty_memory(channels: int, logits: int, recent_frames: int, words: int) -> Memory:
    """A memory without objects."""
    return Memory(
        ids=np.zeros(0, dtype=np.int64),
        embeddings=np.zeros((0, channels), dtype=np.float32),
        recent=np.zeros((0, recent_frames, channels), dtype=np.float32),
        seen_frames=np.zeros(0, dtype=np.int64),
        steady_frames=np.zeros(0, dtype=np.int64),
        unseen_frames=np.zeros(0, dtype=np.int64),
        seen_s=np.zeros(0),
        mean_logits=np.zeros((0, logits), dtype=np.float32),
        masks=np.zeros((0, words), dtype=np.uint64),
    )


def kept(memory: Memory, now_s: float, lost_s: float, most: int) -> Memory:
    """Without the objects missed in a frame and unseen for longer than `lost_s` seconds; of too many, the `most` seen
    last. What was seen in the last frame is never lost, however far apart frames are."""
    rows = np.flatnonzero((memory.unseen_frames == 0) | (now_s - memory.seen_s <= lost_s))
    if len(rows) > most:
        rows = np.sort(rows[np.argsort(-memory.seen_s[rows], kind="stable")[:most]])
    return memory if len(rows) == len(memory) else _each(memory, lambda array: array[rows])


def seen(memory: Memory, rows: Indices, found: Detections, renewal: Renewal) -> Memory:
    """The memory after the objects in `rows` [n], all different, were seen as `found` [n], and the others not."""
    seen_frames = memory.seen_frames[rows] + 1
    unseen_frames = memory.unseen_frames + 1
    unseen_frames[rows] = 0
    steady_frames = memory.steady_frames.copy()
    steady_frames[rows] += 1
    noise = (unseen_frames >= renewal.noise_gap_frames) & (steady_frames < renewal.noise_frames)
    directions = unit_rows(found.embeddings)
    share = SHARES[renewal.memory](memory, rows, directions, renewal.momentum)
    weight = np.maximum(1 / seen_frames, 1 / renewal.window_frames)
    place = (rows, memory.seen_frames[rows] % memory.recent.shape[1])
    return replace(
        memory,
        embeddings=_moved(memory.embeddings, rows, found.embeddings, share),
        recent=_put(memory.recent, place, directions),
        seen_frames=_put(memory.seen_frames, rows, seen_frames),
        steady_frames=np.where(noise, 0, steady_frames),
        unseen_frames=unseen_frames,
        seen_s=_put(memory.seen_s, rows, found.now_s),
        mean_logits=_moved(memory.mean_logits, rows, found.class_logits, weight),
        masks=_put(memory.masks, rows, found.masks),
    )


def born(memory: Memory, found: Detections) -> Memory:
    """The memory and, after all others, a new object for each of `found`."""
    count = len(found)
    if not count:
        return memory
    recent = np.zeros((count, *memory.recent.shape[1:]), dtype=np.float32)
    recent[:, 0] = unit_rows(found.embeddings)
    ones = np.ones(count, dtype=np.int64)
    new = Memory(
        ids=np.full(count, NO_ID, dtype=np.int64),
        embeddings=found.embeddings,
        recent=recent,
        seen_frames=ones,
        steady_frames=ones,
        unseen_frames=np.zeros(count, dtype=np.int64),
        seen_s=np.full(count, found.now_s),
        mean_logits=found.class_logits,
        masks=found.masks,
    )
    return Memory(**{name: np.concatenate([getattr(memory, name), getattr(new, name)]) for name in _names(memory)})


def resized(memory: Memory, old: tuple[int, int], new: tuple[int, int]) -> Memory:
    """The memory with masks of `new` (h, w) for masks of `old`: cut off or filled with nothing, right and bottom."""
    rows, columns = min(old[0], new[0]), min(old[1], new[1])
    masks = np.zeros((len(memory), *new), dtype=bool)
    masks[:, :rows, :columns] = unpacked(memory.masks, old)[:, :rows, :columns]
    return replace(memory, masks=packed(masks))


Share = Callable[[Memory, Indices, Floats, float], Floats]


def previous(memory: Memory, rows: Indices, directions: Floats, momentum: float) -> Floats:
    """All of it: only the last embedding is remembered."""
    return np.ones(len(rows), dtype=np.float32)


def by_momentum(memory: Memory, rows: Indices, directions: Floats, momentum: float) -> Floats:
    """The same for each frame."""
    return np.full(len(rows), momentum, dtype=np.float32)


def similarity_guided(memory: Memory, rows: Indices, directions: Floats, momentum: float) -> Floats:
    """The more the embedding is like the last ones, the more: the mean cosine, at least 0, as in CTVIS.

    An embedding blurred by occlusion thus moves the memory little.
    """
    cosines = np.matmul(memory.recent[rows], directions[:, :, None])[:, :, 0]
    count = np.minimum(memory.seen_frames[rows], memory.recent.shape[1])
    mean: Floats = cosines.sum(axis=1) / count.astype(np.float32)
    return np.maximum(mean, 0)


SHARES: dict[str, Share] = {
    "previous": previous,
    "momentum": by_momentum,
    "similarity_guided": similarity_guided,
}
"""By name of a memory, the share [n] of the current embeddings in what is remembered of the objects in `rows` [n], from
their directions [n, C] and a momentum."""


def _moved(values: Floats, rows: Indices, towards: Floats, share: Any) -> Floats:
    """`values` with `rows` moved towards new ones, by their `share` [n] of the way."""
    part = np.asarray(share, dtype=np.float32)[:, None]
    moved: Floats = _put(values, rows, (1 - part) * values[rows] + part * towards)
    return moved


def _put(values: Any, place: Any, new: Any) -> Any:
    changed = values.copy()
    changed[place] = new
    return changed


def _each(memory: Memory, change: Callable[[Any], Any]) -> Memory:
    return Memory(**{name: change(getattr(memory, name)) for name in _names(memory)})


def _names(memory: Memory) -> list[str]:
    return [field.name for field in fields(memory)]
