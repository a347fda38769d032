"""GenVIS's memory of a video: which clips it holds, and where in the rings that the memory graph reads (GenVIS, section
3.3).

The published code keeps every entry until the video ends: 205 KB a clip for 100 slots of 256 channels, 22 GB an hour
online at 30 frames a second. Here the number of entries has a cap. Until it is reached, nothing differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats

__all__ = [
    "NO_CLIP",
    "Memory",
    "empty_memory",
    "forget_slots_before",
    "place_of_next",
    "read_across_slots",
    "with_clip",
    "with_room",
]

NO_CLIP = -1
"""In place of a clip's number, of an entry that holds none."""


@dataclass(frozen=True)
class Memory:
    """clips int32 [M]: number of the clip in each entry of the rings, in any order; entries are filled one after the
    other. since int32 [S]: the first clip that counts for each slot; what it was before is forgotten. used: entries
    that hold a clip."""

    clips: NDArray[np.int32]
    since: NDArray[np.int32]
    used: int


def empty_memory(slots: int) -> Memory:
    return Memory(np.full(1, NO_CLIP, dtype=np.int32), np.zeros(slots, dtype=np.int32), used=0)


def with_room(memory: Memory, cap: int) -> Memory:
    """The memory with an entry for one more clip, unless it holds `cap`: entries double, so that they are few sizes."""
    if memory.used < len(memory.clips) or memory.used >= cap:
        return memory
    return replace(memory, clips=np.concatenate([memory.clips, np.full_like(memory.clips, NO_CLIP)]))


def place_of_next(memory: Memory, cap: int) -> int:
    """The entry that the next clip gets: of `cap` entries the newer half are the newest clips without a gap.

    The others are spaced over the time before, and the first stays: beyond the cap the one is dropped whose two
    neighbours are closest to each other, of equals the oldest, and its entry is used again.
    """
    held = memory.used
    if held < cap:
        return held
    by_age = memory.clips[:held].argsort()
    if held < 3:
        return int(by_age[0])
    clips = memory.clips[by_age[: held - held // 2 + 1]]
    return int(by_age[1 + (clips[2:] - clips[:-2]).argmin()])


def with_clip(memory: Memory, clip: int, place: int) -> Memory:
    """The memory with number `clip` in the entry `place`."""
    clips = memory.clips.copy()
    clips[place] = clip
    return Memory(clips, memory.since, max(memory.used, place + 1))


def forget_slots_before(memory: Memory, slots: NDArray[np.bool_], clip: int) -> Memory:
    """The memory in which `slots` [S] have no past before number `clip`."""
    return replace(memory, since=np.where(slots, np.int32(clip), memory.since))


def read_across_slots(memory: Memory, key: Floats, keys: Floats, values: Floats) -> Floats:
    """The paper's ablation (table 5, "global"): each slot reads [S, C] what all slots were.

    `key` [S, C], `keys` and `values` [S, M, C]; zeros where nothing counts.
    """
    counts = memory.clips >= memory.since[:, None]
    if not counts.any():
        return np.zeros_like(key)
    similarity = key @ keys[counts].T
    powers = np.exp(similarity - similarity.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True) @ values[counts], dtype=np.float32)
