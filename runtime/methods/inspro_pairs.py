"""InsPro's query-proposal pairs between frames, and each query's bank of what it was: plain values, pure updates."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats, Tensors

__all__ = [
    "Pairs",
    "feeds_of",
    "first_pairs",
    "invalid_slots",
    "reset_slots",
    "too_small",
    "update_bank",
    "update_pairs",
]

Slots = NDArray[np.bool_]


@dataclass(frozen=True)
class Pairs:
    """N pairs, and what each began as.

    queries [N, C] and proposals [N, 4], x1, y1, x2, y2 as parts of the picture. bank [E, N, C]: object features of
    frames before, the newest last, none (E = 0) where the network does not attend to them; fill [N]: how many of the
    newest count for each slot.
    """

    first_queries: Floats
    first_proposals: Floats
    queries: Floats
    proposals: Floats
    bank: Floats
    fill: Floats


def first_pairs(queries: Floats, proposals: Floats, bank: Floats | None) -> Pairs:
    """The learned pairs; nothing counts in a bank of the size of `bank`."""
    bank = np.zeros((0, *queries.shape), dtype=np.float32) if bank is None else bank
    return Pairs(queries, proposals, queries, proposals, bank, np.zeros(len(queries), dtype=np.float32))


def feeds_of(pairs: Pairs, graph: str) -> Tensors:
    """What a head takes of the pairs, by role; the lite head, and one that does not attend to the past, no bank."""
    feeds: Tensors = {"queries": pairs.queries, "proposals": pairs.proposals}
    return {**feeds, "bank": pairs.bank, "fill": pairs.fill} if graph == "head" and len(pairs.bank) else feeds


def update_pairs(pairs: Pairs, outputs: Tensors) -> Pairs:
    """The pairs after a head's `outputs`. The lite head has no next queries: those of the key frame stay."""
    return replace(pairs, queries=outputs.get("next_queries", pairs.queries), proposals=outputs["next_proposals"])


def update_bank(pairs: Pairs, object_features: Floats) -> Pairs:
    """The pairs with a new entry [N, C] in the bank, the oldest gone."""
    if not len(pairs.bank):
        return pairs
    bank = np.concatenate([pairs.bank[1:], object_features[None]])
    return replace(pairs, bank=bank, fill=np.minimum(pairs.fill + 1, len(bank)).astype(np.float32))


def reset_slots(pairs: Pairs, slots: Slots) -> Pairs:
    """The pairs with those of `slots` [N] as they were learned, without a past."""
    if not slots.any():
        return pairs
    rows = slots[:, None]
    return replace(
        pairs,
        queries=np.where(rows, pairs.first_queries, pairs.queries),
        proposals=np.where(rows, pairs.first_proposals, pairs.proposals),
        bank=np.where(rows, np.float32(0), pairs.bank),
        fill=np.where(slots, np.float32(0), pairs.fill),
    )


def invalid_slots(outputs: Tensors) -> Slots:
    """For which slots [N] a head gave NaN or infinity anywhere."""
    invalid: Slots = np.any([~np.isfinite(values).all(axis=1) for values in outputs.values()], axis=0)
    return invalid


def too_small(pairs: Pairs, side_min: float) -> Slots:
    """The slots [N] whose box has a side below `side_min` of the picture: collapsed, or clipped away outside it."""
    sides = pairs.proposals[:, 2:] - pairs.proposals[:, :2]
    small: Slots = np.any(~(sides >= side_min), axis=1)
    return small
