"""What GenVIS remembers of a video: read slot by slot, capped, forget_slots_before."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from visrt.runtime.methods.genvis_memory import (
    Memory,
    MemoryEntry,
    empty_memory,
    forget_slots_before,
    read,
    read_across_slots,
    update_memory,
)

SLOTS, CHANNELS = 4, 8
Floats = NDArray[np.float32]


def some(seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((SLOTS, CHANNELS)).astype(np.float32)


def entry(clip: int) -> MemoryEntry:
    return MemoryEntry(clip, some(2 * clip), some(2 * clip + 1))


def memory_of(clips: int, cap: int = 10**6) -> Memory:
    memory = empty_memory(SLOTS)
    for clip in range(clips):
        memory = update_memory(memory, entry(clip), cap)
    return memory


def clips_in(memory: Memory) -> list[int]:
    return [kept.clip for kept in memory.entries]


def test_an_empty_memory_gives_zeros() -> None:
    assert not read(empty_memory(SLOTS), some(0)).any()
    assert not read_across_slots(empty_memory(SLOTS), some(0)).any()


def test_one_entry_is_read_whole_whatever_the_key() -> None:
    assert np.array_equal(read(memory_of(1), some(9)), entry(0).values)


def test_reading_is_softmax_attention_of_each_slot_over_its_own_clips() -> None:
    memory, key = memory_of(5), some(99)
    for slot in range(SLOTS):
        similarity = np.array([kept.keys[slot].astype(float) @ key[slot] for kept in memory.entries])
        weights = np.exp(similarity) / np.exp(similarity).sum()
        expected = sum(w * kept.values[slot] for w, kept in zip(weights, memory.entries, strict=True))
        np.testing.assert_allclose(read(memory, key)[slot], expected, rtol=1e-4, atol=1e-5)


def test_reading_across_slots_sees_every_slot_of_every_clip() -> None:
    memory, key = memory_of(3), some(99)
    keys, values = (np.concatenate([getattr(e, name) for e in memory.entries]) for name in ("keys", "values"))
    weights = np.exp(key.astype(float) @ keys.T)
    expected = weights / weights.sum(axis=1, keepdims=True) @ values
    np.testing.assert_allclose(read_across_slots(memory, key), expected, rtol=1e-4, atol=1e-5)


def test_huge_similarities_stay_numbers() -> None:
    huge = MemoryEntry(0, some(0) * 1e18, some(1))
    memory = update_memory(update_memory(empty_memory(SLOTS), huge, 10), MemoryEntry(1, some(2) * 1e18, some(3)), 10)
    assert np.isfinite(read(memory, some(5) * 1e18)).all()


@given(st.integers(3, 20), st.integers(0, 60))
def test_the_cap_keeps_the_newest_half_the_first_and_never_more(cap: int, clips: int) -> None:
    kept = clips_in(memory_of(clips, cap))
    assert kept == sorted(set(kept))
    assert len(kept) == min(clips, cap)
    assert kept[len(kept) - min(clips, cap // 2) :] == list(range(clips - min(clips, cap // 2), clips))
    if clips:
        assert kept[0] == 0


@given(st.integers(8, 24), st.integers(50, 200))
def test_beyond_the_cap_what_is_old_is_spaced_within_a_factor_of_four(cap: int, clips: int) -> None:
    older = clips_in(memory_of(clips, cap))[: -(cap // 2)]
    gaps = np.diff(older)
    assert gaps[:-1].max() <= 4 * gaps[:-1].min()


def test_below_the_cap_reading_equals_the_uncapped_memory_exactly() -> None:
    assert np.array_equal(read(memory_of(7, cap=7), some(1)), read(memory_of(7), some(1)))


@given(st.integers(1, 2))
def test_the_smallest_caps_keep_the_newest(cap: int) -> None:
    assert clips_in(memory_of(5, cap)) in ([4], [3, 4], [0, 4])
    assert len(memory_of(5, cap).entries) == cap


def test_a_forgotten_slot_reads_only_what_comes_after_and_others_as_before() -> None:
    slots = np.array([False, True, False, False])
    memory = forget_slots_before(memory_of(3), slots, clip=3)
    key = some(7)
    assert not read(memory, key)[1].any()
    assert np.array_equal(read(memory, key)[~slots], read(memory_of(3), key)[~slots])
    later = update_memory(memory, entry(3), 10)
    assert np.array_equal(read(later, key)[1], entry(3).values[1])


def test_remembering_leaves_the_memory_before_as_it_was() -> None:
    before = memory_of(3)
    update_memory(before, entry(3), 2)
    assert clips_in(before) == [0, 1, 2]
