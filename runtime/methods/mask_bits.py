"""Masks as packed bits: eight pixels a byte, so that areas and overlaps are an AND and a popcount.

About twice as fast as a matrix product of the masks as floats, and exact at any size.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bits", "areas", "bit_counts", "counts_by_table", "packed", "shared_areas", "unpacked"]

Bits = NDArray[np.uint64]
"""Masks [N, words]: each row a mask row by row, zeros after its last pixel."""

BITS_OF_BYTE = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
WORD_BYTES = 8


def packed(masks: NDArray[np.bool_]) -> Bits:
    """The bits [N, words] of masks [N, h, w]."""
    in_bytes = np.packbits(masks.reshape(len(masks), prod(masks.shape[1:])), axis=1)
    whole_words = -(-in_bytes.shape[1] // WORD_BYTES) * WORD_BYTES
    filled = np.zeros((len(masks), whole_words), dtype=np.uint8)
    filled[:, : in_bytes.shape[1]] = in_bytes
    return filled.view(np.uint64)


def unpacked(bits: Bits, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The masks [N, h, w] of `size` (h, w) in `bits` [N, words]."""
    pixels = np.unpackbits(bits.view(np.uint8), axis=1, count=prod(size))
    return pixels.reshape(len(bits), *size).astype(bool)


def areas(bits: Bits) -> NDArray[np.int64]:
    """Number of set bits [N] of each row of `bits` [N, words]."""
    counted: NDArray[np.int64] = bit_counts(bits).sum(axis=1, dtype=np.int64)
    return counted


def shared_areas(a: Bits, b: Bits) -> NDArray[np.int64]:
    """Pixels [n, N] that each mask of `a` [n, words] shares with each of `b` [N, words]."""
    shared = np.zeros((len(a), len(b)), dtype=np.int64)
    for row, mask in zip(shared, a, strict=True):
        row[:] = areas(mask & b)
    return shared


def counts_by_table(bits: Bits) -> NDArray[np.uint8]:
    counted: NDArray[np.uint8] = BITS_OF_BYTE[bits.view(np.uint8)]
    return counted


bit_counts = getattr(np, "bitwise_count", counts_by_table)
"""numpy 2 counts bits itself; before it a table does, by byte."""
