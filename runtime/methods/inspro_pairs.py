"""What the host knows of InsPro's query-proposal pairs, which the engine keeps: which entries of the bank count.

Plain values, pure updates. `HostPairs` are pairs on the host, as parity steps through a few frames with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Array, Floats

__all__ = ["HostPairs", "Past", "first_pairs", "forget_past", "no_past", "past_feeds", "update_pairs", "with_entry"]

Slots = NDArray[np.bool_]


@dataclass(frozen=True)
class Past:
    """Which of the `entries` of a stream's bank count; 0 where the network does not attend to the past.

    The bank is a ring: each new entry takes the place of the oldest. written: how many there were ever. fill int32 [N]:
    how many of the newest count for each slot.
    """

    entries: int
    written: int
    fill: NDArray[np.int32]

    @property
    def next_entry(self) -> int:
        """Where the next entry goes."""
        return self.written % self.entries

    @property
    def ages(self) -> NDArray[np.int32]:
        """Of each entry, [E]: 1 is the newest, 0 was never written."""
        ages = (self.written - 1 - np.arange(self.entries)) % max(self.entries, 1) + 1
        return np.where(ages <= self.written, ages, 0).astype(np.int32)


def no_past(slots: int, entries: int) -> Past:
    """Before the first frame of a stream."""
    return Past(entries, 0, np.zeros(slots, dtype=np.int32))


def with_entry(past: Past) -> Past:
    """After an entry was written, the oldest gone; as it was where there is no bank."""
    fill = np.minimum(past.fill + 1, past.entries).astype(np.int32)
    return replace(past, written=past.written + 1, fill=fill) if past.entries else past


def forget_past(past: Past, slots: Slots) -> Past:
    """Nothing before counts for `slots` [N]."""
    return replace(past, fill=np.where(slots, np.int32(0), past.fill))


def past_feeds(past: Past, graph: str) -> dict[str, Array]:
    """What a head takes of the past from the host; nothing if it does not attend to it, as the lite one."""
    return {"ages": past.ages, "fill": past.fill} if graph == "head" and past.entries else {}


@dataclass(frozen=True)
class HostPairs:
    """The states of B streams on the host: queries [B, N, C], proposals [B, N, 4], x1, y1, x2, y2 as parts of the
    picture, bank [B, N, E, C], and what counts in each stream's bank."""

    queries: Floats
    proposals: Floats
    bank: Floats
    pasts: tuple[Past, ...]

    def feeds(self, graph: str, box_side_min: float) -> dict[str, Array]:
        """What a head takes of the states, and from the host."""
        pasts = [past_feeds(past, graph) for past in self.pasts]
        of_bank = {role: np.stack([past[role] for past in pasts]) for role in pasts[0]}
        return {
            "queries": self.queries,
            "proposals": self.proposals,
            "box_side_min": np.full(len(self.pasts), box_side_min, dtype=np.float32),
            **({"bank": self.bank} if of_bank else {}),
            **of_bank,
        }


def first_pairs(queries: Floats, proposals: Floats, entries: int, streams: int) -> HostPairs:
    """The learned pairs [N, C] and [N, 4] for each stream, with an empty bank."""
    slots, channels = queries.shape
    bank = np.zeros((streams, slots, entries, channels), dtype=np.float32)
    first_queries, first_proposals = (np.repeat(rows[None], streams, axis=0) for rows in (queries, proposals))
    return HostPairs(first_queries, first_proposals, bank, (no_past(slots, entries),) * streams)


def update_pairs(pairs: HostPairs, outputs: Mapping[str, Array], bank_takes_it: bool) -> HostPairs:
    """The pairs after a head's `outputs` [B, ...], of which the bank takes the object features or not."""
    bank, pasts = pairs.bank, list(pairs.pasts)
    if bank_takes_it and bank.shape[2]:
        bank = bank.copy()
        for stream, past in enumerate(pasts):
            bank[stream, :, past.next_entry] = outputs["object_features"][stream]
            pasts[stream] = with_entry(past)
    gone: Array = outputs["restarted"] > 0
    pasts = [forget_past(past, slots) for past, slots in zip(pasts, gone, strict=True)]
    return HostPairs(outputs["next_queries"], outputs["next_proposals"], bank, tuple(pasts))
