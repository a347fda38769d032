"""Non-maximum suppression on masks: of two that cover one object, one stays."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.methods.mask_bits import Bits, areas, bit_counts, packed, shared_areas

__all__ = ["FEW", "bits_iou", "iou", "mask_iou", "nms", "smoothed_iou"]

FEW = 16
"""Masks that are compared each with each at once, which takes less time than one after the other."""

Counts = NDArray[np.int64]
Ratio = Callable[[Counts, Counts], NDArray[np.float32]]


def iou(shared: Counts, union: Counts) -> NDArray[np.float32]:
    """Shared pixels over covered ones; two empty masks score zero."""
    return _ratio(shared, np.maximum(union, 1))


def smoothed_iou(shared: Counts, union: Counts) -> NDArray[np.float32]:
    """As CTVIS's released code has it: two empty masks score one, so that only the first of them stays."""
    return _ratio(shared, union, smoothing=1e-6)


def _ratio(shared: Counts, union: Counts, smoothing: float = 0) -> NDArray[np.float32]:
    above, below = (counts.astype(np.float32) + np.float32(smoothing) for counts in (shared, union))
    ratio: NDArray[np.float32] = above / below
    return ratio


def bits_iou(a: Bits, b: Bits) -> NDArray[np.float32]:
    """IoU [n, N] of the masks in `a` [n, words] with those in `b` [N, words]; a pair of empty ones scores zero."""
    shared = shared_areas(a, b)
    return iou(shared, areas(a)[:, None] + areas(b)[None, :] - shared)


def mask_iou(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """IoU [N, N] of masks [N, h, w]; a pair of empty masks scores zero."""
    bits = packed(masks)
    return bits_iou(bits, bits)


def nms(bits: Bits, iou_max: float, ratio: Ratio) -> list[int]:
    """Indices of the masks in `bits` [N, words] that stay, most important first as given.

    Each that stays puts out all after it that it covers too far, by `ratio`: a mask is compared with stayed ones only.
    """
    sizes = areas(bits)
    left = np.arange(len(bits))
    kept: list[int] = []
    if len(bits) <= FEW:
        shared = bit_counts(bits[:, None] & bits[None, :]).sum(axis=2, dtype=np.int64)
        covers = (ratio(shared, sizes[:, None] + sizes[None, :] - shared) > np.float32(iou_max)).tolist()
        for at in left.tolist():
            if not any(covers[better][at] for better in kept):
                kept.append(at)
        return kept
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        shared = areas(bits[best] & bits[left])
        left = left[~(ratio(shared, sizes[best] + sizes[left] - shared) > np.float32(iou_max))]
    return kept
