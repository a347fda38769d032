"""What GenVIS remembers of a video: the memory graph's read, slot by slot, and which clips a ring of entries keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from visrt.export.genvis import MemoryGraph
from visrt.runtime.methods.genvis_memory import (
    NO_CLIP,
    Memory,
    empty_memory,
    forget_slots_before,
    place_of_next,
    read_across_slots,
    with_clip,
    with_room,
)

SLOTS, CHANNELS = 4, 8
NO_CAP = 10**6
Floats = NDArray[np.float32]


def some(*seed: int, times: float = 1.0) -> Floats:
    return np.float32(times) * np.random.default_rng(seed).standard_normal((SLOTS, CHANNELS), dtype=np.float32)


class Ring:
    """A memory and the rings that go with it: clip number n gave keys `some(n, 0)` and values `some(n, 1)`."""

    def __init__(self, cap: int = NO_CAP) -> None:
        self.memory, self.cap = empty_memory(SLOTS), cap
        self.keys, self.values = (np.zeros((SLOTS, 1, CHANNELS), np.float32) for _ in range(2))

    def add(self, clip: int, times: float = 1.0) -> None:
        self.memory = with_room(self.memory, self.cap)
        room = len(self.memory.clips) - self.keys.shape[1]
        self.keys, self.values = (np.pad(ring, ((0, 0), (0, room), (0, 0))) for ring in (self.keys, self.values))
        place = place_of_next(self.memory, self.cap)
        self.keys[:, place], self.values[:, place] = some(clip, 0, times=times), some(clip, 1)
        self.memory = with_clip(self.memory, clip, place)

    def read(self, key: Floats, base: Floats | None = None) -> Floats:
        """By the memory graph."""
        rows = np.zeros_like(key) if base is None else base
        feeds = (rows, key, self.keys, self.values, self.memory.clips, self.memory.since)
        return np.asarray(MemoryGraph()(*map(torch.from_numpy, feeds)).numpy())


def ring_of(clips: int, cap: int = NO_CAP) -> Ring:
    ring = Ring(cap)
    for clip in range(clips):
        ring.add(clip)
    return ring


def memory_of(clips: int, cap: int = NO_CAP) -> Memory:
    memory = empty_memory(SLOTS)
    for clip in range(clips):
        memory = with_room(memory, cap)
        memory = with_clip(memory, clip, place_of_next(memory, cap))
    return memory


def clips_in(memory: Memory) -> list[int]:
    return sorted(int(clip) for clip in memory.clips if clip != NO_CLIP)


def after_next(kept: Sequence[int], clip: int, cap: int) -> list[int]:
    """The rule by its definition, on the clips by age: beyond the cap the newest half stay, and of the others the one
    goes whose neighbours are closest to each other, of equals the oldest; never the first."""
    clips = [*kept, clip]
    if len(clips) <= cap:
        return clips
    if cap < 3:
        return clips[1:]
    candidates = range(1, len(clips) - cap // 2 - 1)
    drop = min(candidates, key=lambda at: clips[at + 1] - clips[at - 1])
    return clips[:drop] + clips[drop + 1 :]


def attended(key: Floats, clips: Sequence[int], slot: int, times: float = 1.0) -> Floats:
    """Softmax attention of a slot over its `clips`, in double precision; zeros over none."""
    keys = np.array([some(clip, 0, times=times)[slot] for clip in clips], dtype=float).reshape(-1, CHANNELS)
    values = np.array([some(clip, 1)[slot] for clip in clips]).reshape(-1, CHANNELS)
    similarity = keys @ key[slot].astype(float)
    weights = np.exp(similarity - similarity.max(initial=-np.inf))
    return np.asarray(weights @ values / max(weights.sum(), 1), dtype=np.float32)


def test_an_empty_memory_gives_zeros() -> None:
    ring = Ring()
    assert not ring.read(some(0)).any()
    assert not read_across_slots(ring.memory, some(0), ring.keys, ring.values).any()


def test_one_entry_is_read_whole_whatever_the_key_and_added_to_the_base() -> None:
    assert np.array_equal(ring_of(1).read(some(9), base=some(8)), some(8) + some(0, 1))


@given(
    cap=st.integers(1, 12),
    clips=st.integers(0, 40),
    since=st.lists(st.integers(0, 45), min_size=SLOTS, max_size=SLOTS),
    times=st.sampled_from([0.1, 1.0, 30.0]),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_reading_is_softmax_attention_of_each_slot_over_the_clips_that_count_for_it(
    cap: int, clips: int, since: list[int], times: float
) -> None:
    """In rings whose entries were used again, with entries that are empty, and slots that forgot some or all."""
    ring, key = Ring(cap), some(99)
    for clip in range(clips):
        ring.add(clip, times)
    for slot, first in enumerate(since):
        ring.memory = forget_slots_before(ring.memory, np.arange(SLOTS) == slot, first)
    given = ring.read(key)
    for slot, first in enumerate(since):
        counting = [clip for clip in clips_in(ring.memory) if clip >= first]
        np.testing.assert_allclose(given[slot], attended(key, counting, slot, times), rtol=1e-4, atol=1e-4)


def test_the_order_of_entries_does_not_matter() -> None:
    ring, key = ring_of(7, cap=7), some(3)
    expected, order = ring.read(key), np.random.default_rng(0).permutation(len(ring.memory.clips))
    ring.keys, ring.values = ring.keys[:, order], ring.values[:, order]
    ring.memory = replace(ring.memory, clips=ring.memory.clips[order])
    np.testing.assert_allclose(ring.read(key), expected, rtol=1e-5, atol=1e-6)


def test_reading_across_slots_sees_every_slot_of_every_clip_that_counts() -> None:
    ring, key = ring_of(3), some(99)
    ring.memory = forget_slots_before(ring.memory, np.array([False, True, False, False]), clip=2)
    counting = [(clip, slot) for clip in range(3) for slot in range(SLOTS) if slot != 1 or clip >= 2]
    keys, values = (np.array([some(clip, which)[slot] for clip, slot in counting]) for which in (0, 1))
    weights = np.exp(key.astype(float) @ keys.T)
    expected = weights / weights.sum(axis=1, keepdims=True) @ values
    given = read_across_slots(ring.memory, key, ring.keys, ring.values)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clips", [1, 2, 5])
def test_huge_similarities_stay_numbers(clips: int) -> None:
    ring = Ring()
    for clip in range(clips):
        ring.add(clip, times=1e18)
    for key in (some(5, times=1e18), -some(5, times=1e18)):
        assert np.isfinite(ring.read(key)).all()


@given(cap=st.integers(1, 20), skips=st.lists(st.integers(0, 5), max_size=8))
@hypothesis_settings(max_examples=40, deadline=None)
def test_by_index_the_same_clips_are_kept_as_by_the_rules_definition(cap: int, skips: list[int]) -> None:
    """Over thousands of clips in all, also where numbers are left out."""
    memory, kept, clip = empty_memory(SLOTS), list[int](), 0
    for at in range(400):
        memory = with_room(memory, cap)
        memory = with_clip(memory, clip, place_of_next(memory, cap))
        kept = after_next(kept, clip, cap)
        assert clips_in(memory) == kept
        clip += 1 + (skips[at % len(skips)] if skips else 0)


@given(st.integers(3, 20), st.integers(0, 60))
@hypothesis_settings(deadline=None)
def test_the_cap_keeps_the_newest_half_the_first_and_never_more(cap: int, clips: int) -> None:
    kept = clips_in(memory_of(clips, cap))
    assert len(kept) == min(clips, cap)
    assert kept[len(kept) - min(clips, cap // 2) :] == list(range(clips - min(clips, cap // 2), clips))
    if clips:
        assert kept[0] == 0


@given(st.integers(8, 24), st.integers(50, 200))
@hypothesis_settings(deadline=None)
def test_beyond_the_cap_what_is_old_is_spaced_within_a_factor_of_four(cap: int, clips: int) -> None:
    older = clips_in(memory_of(clips, cap))[: -(cap // 2)]
    gaps = np.diff(older)
    assert gaps[:-1].max() <= 4 * gaps[:-1].min()


def test_below_the_cap_reading_equals_the_uncapped_memory_exactly() -> None:
    assert np.array_equal(ring_of(7, cap=7).read(some(1)), ring_of(7).read(some(1)))


def test_entries_double_until_the_cap_has_room() -> None:
    """A ring has few sizes, all of them powers of two."""
    sizes = [len(memory_of(clips, cap=5).clips) for clips in range(12)]
    assert sizes == [1, 1, 2, 4, 4] + [8] * 7


def test_a_forgotten_slot_reads_only_what_comes_after_and_others_as_before() -> None:
    slots = np.array([False, True, False, False])
    ring, before, key = ring_of(3), ring_of(3), some(7)
    ring.memory = forget_slots_before(ring.memory, slots, clip=3)
    assert not ring.read(key)[1].any()
    assert np.array_equal(ring.read(key)[~slots], before.read(key)[~slots])
    ring.add(3)
    assert np.array_equal(ring.read(key)[1], some(3, 1)[1])


def test_remembering_leaves_the_memory_before_as_it_was() -> None:
    before = memory_of(3, cap=3)
    with_clip(before, 3, place_of_next(before, 3))
    assert clips_in(before) == [0, 1, 2]
