"""Segmentations as data sets write them (compressed RLE, uncompressed RLE, polygons) to one checked form."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, checked_rle, decode, rectangle
from visrt.training.data.json_faults import short

__all__ = ["area_px", "areas_px", "box_px", "boxes_px", "outlines_of", "rle_of", "rle_of_box", "rle_of_mask"]

FAR = 10
"""Corners may lie outside the picture, by so many times its longer side."""


def rle_of(segmentation: object, where: str, size: tuple[int, int]) -> Rle:
    """`segmentation` as compressed RLE of `size` (height, width): an RLE, a list of polygons, one bare polygon, or
    polygons with holes as kwcoco has them.

    Raises DataError with `where`, the json path, if it is not a mask of that size.
    """
    if segmentation is None:
        raise DataError(f"{where}: expected an RLE or polygons; there is no mask")
    if isinstance(segmentation, dict) and "exterior" in segmentation:
        segmentation = [segmentation]
    if isinstance(segmentation, list):
        if segmentation and isinstance(segmentation[0], dict):
            return _with_holes(segmentation, where, size)
        return _rle_from_polygons(_as_polygons(segmentation), where, size)
    return checked_rle(segmentation, where, size)


def _as_polygons(segmentation: list[Any]) -> list[Any]:
    """Lists of numbers: of one bare polygon, of corners [x, y], or of polygons of such corners."""
    if len(segmentation) > 2 and not any(isinstance(part, list | dict | str | bytes) for part in segmentation):
        return [segmentation]
    if _are_corners(segmentation):
        return [[value for corner in segmentation for value in corner]]
    if segmentation and all(isinstance(one, list) and _are_corners(one) for one in segmentation):
        return [[value for corner in one for value in corner] for one in segmentation]
    return segmentation


def _are_corners(values: list[Any]) -> bool:
    return len(values) > 2 and all(
        isinstance(one, list) and len(one) == 2 and not any(isinstance(value, list) for value in one) for one in values
    )


def _with_holes(polygons: Sequence[object], where: str, size: tuple[int, int]) -> Rle:
    """Union of polygons {exterior: [[x, y], ...], interiors: [[[x, y], ...], ...]}, each without its holes."""
    parts = []
    for i, polygon in enumerate(polygons):
        if not isinstance(polygon, dict):
            raise DataError(f"{where}[{i}]: expected an object with exterior and interiors; found {short(polygon)}")
        inside = decode(_rle_from_polygons([_flat(polygon.get("exterior"), f"{where}[{i}].exterior")], where, size))
        holes = polygon.get("interiors") or []
        for k, hole in enumerate(holes if isinstance(holes, list) else [holes]):
            inside &= ~decode(_rle_from_polygons([_flat(hole, f"{where}[{i}].interiors[{k}]")], where, size))
        parts.append(inside)
    return rle_of_mask(np.any(parts, axis=0))


def _flat(corners: object, where: str) -> list[Any]:
    if not isinstance(corners, list) or not all(isinstance(one, list) and len(one) == 2 for one in corners):
        raise DataError(f"{where}: expected a list of corners [x, y]; found {short(corners)}")
    return [value for one in corners for value in one]


def rle_of_mask(mask: NDArray[Any]) -> Rle:
    """Compressed RLE of a mask [H, W]."""
    coded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in mask.shape], "counts": coded["counts"].decode("ascii")}


Corners = NDArray[np.float64]


def outlines_of(rle: Rle) -> list[Corners]:
    """Polygons [N, 2], x and y, around the parts of a mask, along the edges of its pixels. A hole is in the polygon
    around it, which runs to the hole, around it and back the same way."""
    mask = decode(rle)
    # Twice as large, so that outlines run along the edges of pixels rather than through their centres.
    large = np.pad(mask.repeat(2, 0).repeat(2, 1), 1).astype(np.uint8)
    contours, levels = cv2.findContours(large, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outlines: dict[int, Corners] = {}
    holes: list[tuple[int, Corners]] = []
    for k, contour in enumerate(contours):
        corners = (contour[:, 0, :] // 2).astype(np.float64)
        around = int(levels[0, k, 3])
        if around < 0:
            outlines[k] = corners
        else:
            holes.append((around, corners))
    for around, hole in holes:
        outlines[around] = _with_hole(outlines[around], hole)
    return list(outlines.values())


def _with_hole(outline: Corners, hole: Corners) -> Corners:
    """One polygon, which runs from the corner of `outline` that is nearest to `hole` around that and back."""
    apart = np.abs(outline[:, None] - hole[None]).sum(2)
    i, k = np.unravel_index(int(apart.argmin()), apart.shape)
    around = np.concatenate([hole[k:], hole[: k + 1]])
    return np.concatenate([outline[: i + 1], around, outline[i:]])


HINTS = {2: ", one point", 4: ", two corners as of a box"}
"""Of lists that are too short for a polygon."""


def _rle_from_polygons(polygons: Sequence[Sequence[float]], where: str, size: tuple[int, int]) -> Rle:
    """Union of polygons x0, y0, x1, y1, ... in pixels."""
    for i, polygon in enumerate(polygons):
        _refuse_wild(polygon, f"{where}[{i}]", FAR * max(size))
        if len(polygon) < 6 or len(polygon) % 2:
            hint = HINTS.get(len(polygon), "")
            raise DataError(
                f"{where}[{i}]: a polygon of {len(polygon)} numbers{hint}; expected x and y of at least three corners"
            )
    if not polygons:
        raise DataError(f"{where}: an empty list; expected at least one polygon, or an RLE")
    parts = coco_mask.frPyObjects(polygons, *size)
    rle = parts[0] if len(parts) == 1 else coco_mask.merge(parts)
    return {"size": list(size), "counts": rle["counts"].decode("ascii")}


def _refuse_wild(polygon: object, where: str, farthest: int) -> None:
    """pycocotools walks along every edge: a corner at 1e30 would take all memory, and NaN has no place."""
    if not isinstance(polygon, list):
        raise DataError(f"{where}: expected a list of numbers, x and y in turn; found {type(polygon).__name__}")
    # All at once first; a NaN is in no order, but makes the sum one.
    if {*map(type, polygon)} <= {int, float} and max(map(abs, polygon), default=0) <= farthest and sum(polygon) < inf:
        return
    for k, value in enumerate(polygon):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= farthest:
            raise DataError(f"{where}[{k}]: expected a number of at most {farthest} pixels; found {str(value)[:30]!r}")


def area_px(rle: Rle) -> int:
    """Number of pixels of the mask."""
    return int(coco_mask.area({"size": rle["size"], "counts": rle["counts"].encode()}))


def box_px(rle: Rle) -> tuple[int, int, int, int]:
    """Tight box x, y, width, height of the mask; zeros for an empty one."""
    x, y, w, h = coco_mask.toBbox({"size": rle["size"], "counts": rle["counts"].encode()})
    return int(x), int(y), int(w), int(h)


def rle_of_box(box: object, where: str, size: tuple[int, int]) -> Rle:
    """`box`, x, y, width and height in pixels, as the mask of its rectangle within a picture of `size` (height, width).

    The rectangle has at least one pixel, as boxes of none occur in ImageNet, unless it lies outside the picture. Raises
    DataError with `where`, the json path.
    """
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{where}: expected x, y, width and height of a box; found {short(box)}")
    _refuse_wild(box, where, FAR * max(size))
    x, y, w, h = box
    if w < 0 or h < 0:
        raise DataError(f"{where}: a box of {w} x {h} pixels (width x height); expected zero or more")
    (left, width), (top, height) = _pixels(x, w, size[1]), _pixels(y, h, size[0])
    return rectangle((left, top, width, height), size)


def _pixels(start: float, length: float, side: int) -> tuple[int, int]:
    """The first of the pixels whose centre lies in a stretch, and their number, at least one, within `side`."""
    first = ceil(start - 0.5)
    end = max(ceil(start + length - 0.5), first + 1)
    first, end = max(first, 0), min(end, side)
    return (first, end - first) if end > first else (0, 0)


AREAS_AT_ONCE = 255
"""pycocotools keeps the number of masks in a byte, and under numpy 2 fails for more."""


def areas_px(counts: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.int64]:
    """Pixels [N] of the masks of `size` (height, width) with the compressed runs `counts`."""
    masks = [{"size": size, "counts": text} for text in counts]
    parts = [coco_mask.area(masks[i : i + AREAS_AT_ONCE]) for i in range(0, len(masks), AREAS_AT_ONCE)]
    return np.concatenate([np.zeros(0, np.int64), *parts]).astype(np.int64)


def boxes_px(counts: Sequence[bytes], size: tuple[int, int]) -> NDArray[np.int32]:
    """Tight boxes [N, 4], as `box_px`, of the masks of `size` (height, width) with the compressed runs `counts`."""
    boxes = coco_mask.toBbox([{"size": size, "counts": text} for text in counts])
    return np.asarray(boxes, np.int32).reshape(-1, 4)
