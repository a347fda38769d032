"""GenVIS's memory of a video: one entry a clip, read slot by slot, in float32 on the host (GenVIS, section 3.3).

The published code keeps every entry until the video ends: 205 KB a clip for 100 slots of 256 channels, 22 GB an hour
online at 30 frames a second. Here the number of entries has a cap. Until it is reached, nothing differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats

__all__ = ["Memory", "MemoryEntry", "empty_memory", "forget_slots_before", "read", "read_across_slots", "update_memory"]


@dataclass(frozen=True)
class MemoryEntry:
    """The memory entry of clip number `clip` for each slot: keys and values [S, C]."""

    clip: int
    keys: Floats
    values: Floats


@dataclass(frozen=True)
class Memory:
    """entries: by clip. since [S]: the first clip that counts for each slot; what it was before is forgotten."""

    entries: tuple[MemoryEntry, ...]
    since: NDArray[np.int64]


def empty_memory(slots: int) -> Memory:
    return Memory((), np.zeros(slots, dtype=np.int64))


def read(memory: Memory, key: Floats) -> Floats:
    """The memory read [S, C] of each slot with its `key` [S, C] from its own past; zeros where it has none.

    One head and no scaling, as published: softmax over the clips of <key, K> weighs their V.
    """
    if not memory.entries:
        return np.zeros_like(key)
    similarity = np.stack([np.einsum("sc,sc->s", key, entry.keys) for entry in memory.entries])
    weights = _softmax_over_clips(np.where(_known(memory), similarity, np.float32(-np.inf)))
    total = np.zeros_like(key)
    for weight, entry in zip(weights, memory.entries, strict=True):
        total += weight[:, None] * entry.values
    return total


def read_across_slots(memory: Memory, key: Floats) -> Floats:
    """The paper's ablation (table 5, "global"): each slot reads what all slots were."""
    if not memory.entries:
        return np.zeros_like(key)
    known = _known(memory).ravel()
    keys, values = (
        np.concatenate([getattr(entry, name) for entry in memory.entries])[known] for name in ("keys", "values")
    )
    weights = _softmax_over_clips((key @ keys.T).T)
    return np.asarray(weights.T @ values, dtype=np.float32)


def update_memory(memory: Memory, entry: MemoryEntry, cap: int) -> Memory:
    """The memory with `entry`, at most `cap` entries: the newer half of them are the newest clips without a gap.

    The others are spaced over the time before, and the first stays: beyond the cap the one is dropped whose two
    neighbours are closest to each other, of equals the oldest.
    """
    entries = (*memory.entries, entry)
    if len(entries) > cap:
        clips = np.array([kept.clip for kept in entries])
        older = max(1, len(entries) - cap // 2 - 1)
        gaps = (clips[2:] - clips[:-2])[: older - 1] if older > 1 else np.zeros(1)
        drop = 1 + int(gaps.argmin()) if cap > 2 else 0
        entries = (*entries[:drop], *entries[drop + 1 :])
    return replace(memory, entries=entries)


def forget_slots_before(memory: Memory, slots: NDArray[np.bool_], clip: int) -> Memory:
    """The memory in which `slots` [S] have no past before number `clip`."""
    return replace(memory, since=np.where(slots, clip, memory.since))


def _known(memory: Memory) -> NDArray[np.bool_]:
    """The entries that count, bool [M, S]."""
    clips = np.array([entry.clip for entry in memory.entries])
    return np.asarray(clips[:, None] >= memory.since)


def _softmax_over_clips(similarity: Floats) -> Floats:
    """Weights along the first axis; where all is -inf, zeros."""
    if not len(similarity):
        return similarity
    peak = similarity.max(axis=0)
    powers: Floats = np.exp(similarity - np.where(np.isfinite(peak), peak, np.float32(0)))
    total = powers.sum(axis=0)
    return np.asarray(powers / np.where(total > 0, total, 1), dtype=np.float32)
