"""Masks as COCO run-length encodings."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["Rle", "decode"]


class Rle(TypedDict):
    """COCO compressed RLE, column-major runs: size [H, W] and counts as ASCII text, ready for json."""

    size: list[int]
    counts: str


def decode(rle: Rle) -> NDArray[np.bool_]:
    """The mask [H, W] of a trusted `rle`; what comes from outside goes through a validator first."""
    mask: NDArray[np.uint8] = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()})
    return mask.astype(bool)
