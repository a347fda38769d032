"""Non-maximum suppression on masks: of two that cover one object, one stays."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

__all__ = ["mask_iou", "mask_nms"]


def mask_iou(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """IoU [N, N] of masks [N, h, w]; a pair of empty masks scores zero.

    One matrix product: counts below 2**24 are exact in float32.
    """
    flat = masks.reshape(len(masks), prod(masks.shape[1:])).astype(np.float32)
    shared = flat @ flat.T
    areas = np.diagonal(shared)
    union = areas[:, None] + areas[None, :] - shared
    iou: NDArray[np.float32] = shared / np.maximum(union, 1)
    return iou


def mask_nms(masks: NDArray[np.bool_], iou_max: float) -> list[int]:
    """Indices of the masks [N, h, w] that stay, most important first as given: none covers a stayed one too far."""
    if iou_max >= 1 or len(masks) < 2:
        return list(range(len(masks)))
    rivals = mask_iou(masks) > iou_max
    kept: list[int] = []
    for index in range(len(masks)):
        if not rivals[index, kept].any():
            kept.append(index)
    return kept
