"""Segmentations as data sets write them (compressed RLE, uncompressed RLE, polygons) to one checked form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visrt.runtime.masks import Rle

__all__ = ["area_px", "box_px", "rle_from_counts", "rle_from_polygons", "rle_from_text"]


def rle_from_text(counts: str, size: tuple[int, int]) -> Rle:
    """Compressed RLE of a mask of `size` (height, width). Raises ValueError if its runs do not fill it exactly."""
    _check_runs(_runs(counts), size)
    return {"size": list(size), "counts": counts}


def rle_from_counts(counts: Sequence[int], size: tuple[int, int]) -> Rle:
    """Compressed RLE of uncompressed run lengths (column-major, the first run is background)."""
    _check_runs(np.asarray(counts, np.int64), size)
    return _told(coco_mask.frPyObjects({"size": list(size), "counts": list(counts)}, *size))


def rle_from_polygons(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """Union of polygons x0, y0, x1, y1, ... in pixels. Raises ValueError for fewer than three corners."""
    for i, polygon in enumerate(polygons):
        if len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"polygon {i} has {len(polygon)} numbers; expected x, y of at least three corners")
    if not polygons:
        raise ValueError("no polygon; expected at least one")
    return _told(coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], *size)))


def area_px(rle: Rle) -> int:
    """Number of pixels of the mask."""
    return int(coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode()}))


def box_px(rle: Rle) -> tuple[int, int, int, int]:
    """Tight box x, y, width, height of the mask; zeros for an empty one."""
    x, y, w, h = coco_mask.toBbox({"size": rle["size"], "counts": rle["counts"].encode()})
    return int(x), int(y), int(w), int(h)


def _told(rle: dict[str, object]) -> Rle:
    size, counts = rle["size"], rle["counts"]
    assert isinstance(size, list)
    assert isinstance(counts, bytes)
    return {"size": [int(n) for n in size], "counts": counts.decode()}


def _runs(counts: str) -> NDArray[np.int64]:
    """Run lengths of compressed `counts`: 5 bits a character, low first, bit 6 = more follow, bit 5 of the last = sign;
    from the fourth run on each is a difference to the run two before. pycocotools decodes malformed text blindly.
    """
    chars = np.frombuffer(counts.encode("ascii", "replace"), np.uint8).astype(np.int64) - 48
    if len(chars) == 0 or chars.min() < 0 or chars.max() > 63 or chars[-1] & 0x20:
        raise ValueError("counts is not a compressed run-length text")
    starts = np.flatnonzero(np.r_[True, (chars[:-1] & 0x20) == 0])
    lengths = np.diff(np.r_[starts, len(chars)])
    if lengths.max() > 6:
        raise ValueError("counts holds a run longer than any picture")
    place = np.arange(len(chars)) - np.repeat(starts, lengths)
    values = np.add.reduceat((chars & 0x1F) << (5 * place), starts)
    values -= np.where(chars[starts + lengths - 1] & 0x10, 1 << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _check_runs(runs: NDArray[np.int64], size: tuple[int, int]) -> None:
    if len(runs) and runs.min() < 0:
        raise ValueError(f"a run of {runs.min()} pixels; expected runs of 0 or more")
    if runs.sum() != size[0] * size[1]:
        raise ValueError(f"runs cover {runs.sum()} pixels; the picture has {size[0]} x {size[1]}")
