"""Masks as COCO run-length encodings: written from a region, decoded whole or in part, foreign ones checked first."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visrt.runtime.errors import DataError

__all__ = [
    "PIXELS_MAX",
    "Rle",
    "box_of_region",
    "checked_rle",
    "decode",
    "decode_region",
    "encode_region",
    "rectangle",
    "run_lengths",
]

PIXELS_MAX = 2**28
"""A foreign mask larger than 16384 x 16384 is refused before anything is allocated for it."""


class Rle(TypedDict):
    """COCO compressed RLE, column-major runs: size [H, W] and counts as ASCII text, ready for json."""

    size: list[int]
    counts: str


def decode(rle: Rle) -> NDArray[np.bool_]:
    """The mask [H, W] of a trusted `rle`; what comes from outside goes through `checked_rle` first."""
    height, width = rle["size"]
    runs = run_lengths(rle["counts"])
    colours = np.arange(len(runs)) % 2 == 1
    return np.repeat(colours, runs).reshape(width, height).T


def decode_region(rle: Rle, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """The part of a trusted `rle` inside `box` (x, y, width, height) as 0 and 1, [height, width].

    The pixels outside the box's columns are not touched: on a large frame they are most of the cost of `decode`.
    """
    x, y, width, height = box
    rows = rle["size"][0]
    ends = np.cumsum(run_lengths(rle["counts"]))
    lengths = np.minimum(np.maximum(ends - x * rows, 0), width * rows)
    lengths[1:] -= lengths[:-1].copy()
    columns = np.repeat(np.arange(len(lengths), dtype=np.uint8) & 1, lengths).reshape(width, rows)
    return np.ascontiguousarray(columns[:, y : y + height].T)


def encode_region(columns: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]) -> Rle:
    """RLE of a mask of `size` (H, W) that is empty outside a region with `corner` (top, left).

    `columns` [region width, region height] holds the region transposed, as COCO's runs go down the columns. The
    bytes are those of pycocotools on the whole mask.
    """
    (height, width), (top, left) = size, corner
    padded = np.zeros((columns.shape[0], columns.shape[1] + 2), dtype=bool)
    padded[:, 1:-1] = columns
    edges = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    column, row = np.divmod(edges, columns.shape[1] + 1)
    counts = _lengths_between((left + column) * height + top + row, height * width)
    compressed = coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return {"size": [height, width], "counts": compressed["counts"].decode("ascii")}


def _lengths_between(edges: NDArray[np.int64], pixels: int) -> NDArray[np.int64]:
    """Lengths of the runs, zeros first, from the places where a run of ones starts, ends, starts ...

    A run that reaches the foot of a column and goes on at the head of the next ends and starts at one place: one run.
    """
    joins = np.flatnonzero(edges[1:] == edges[:-1])
    if len(joins):
        edges = np.delete(edges, np.concatenate([joins, joins + 1]))
    ends_full = len(edges) > 0 and edges[-1] == pixels
    bounds = np.concatenate([[0], edges, [] if ends_full else [pixels]]).astype(np.int64)
    return bounds[1:] - bounds[:-1]


def rectangle(box: tuple[int, int, int, int], size: tuple[int, int]) -> Rle:
    """The mask of a frame of `size` (H, W) that fills `box` (x, y, width, height) inside it."""
    x, y, width, height = box
    return encode_region(np.ones((width, height), dtype=bool), (y, x), size)


def box_of_region(columns: NDArray[np.bool_], corner: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Tight x, y, width, height of the mask in a region, transposed as in `encode_region`; None if it is empty."""
    xs = np.flatnonzero(columns.any(axis=1))
    if not len(xs):
        return None
    ys = np.flatnonzero(columns.any(axis=0))
    top, left = corner
    return left + int(xs[0]), top + int(ys[0]), int(xs[-1] - xs[0]) + 1, int(ys[-1] - ys[0]) + 1


def checked_rle(value: object, where: str, size: tuple[int, int] | None = None) -> Rle:
    """A foreign RLE, compressed or as a list of counts, as an `Rle` that is safe to decode.

    Raises DataError with `where`, the json path, if it breaks the format or is not of the expected `size` (H, W).
    """
    if not isinstance(value, dict) or not {"size", "counts"} <= value.keys():
        raise DataError(f"{where}: expected an RLE, an object with 'size' and 'counts'; found {_short(value)}")
    height, width = _checked_size(value["size"], f"{where}.size", size)
    counts = value["counts"]
    try:
        runs = list(counts) if isinstance(counts, list) else run_lengths(counts).tolist()
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}.counts: {error}; found {_short(counts)}") from None
    if not all(type(run) is int and run >= 0 for run in runs):
        raise DataError(f"{where}.counts: expected run lengths of zero or more; found {_short(counts)}")
    if sum(runs) != height * width:
        raise DataError(f"{where}.counts: runs cover {sum(runs)} pixels; expected {height} x {width}")
    compressed = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    return {"size": [height, width], "counts": compressed["counts"].decode("ascii")}


def _checked_size(value: Any, where: str, expected: tuple[int, int] | None) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
        raise DataError(f"{where}: expected [height, width] in pixels; found {_short(value)}")
    height, width = value
    if height * width > PIXELS_MAX:
        raise DataError(f"{where}: {height} x {width} is beyond the limit of {PIXELS_MAX} pixels")
    if expected is not None and (height, width) != expected:
        raise DataError(f"{where}: mask of {height} x {width}; expected {expected[0]} x {expected[1]}")
    return height, width


def run_lengths(counts: object) -> NDArray[np.int64]:
    """Lengths of the runs, zeros first, in the text of an RLE.

    A number is 5 bits a character, counted from "0", with bit 32 set while more follow. From the fourth on they are
    differences to the last but one, so that both colours add up on their own.
    """
    if not isinstance(counts, str | bytes):
        raise TypeError("expected text or a list of numbers")
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    symbols = np.frombuffer(text, dtype=np.uint8) - np.uint8(48)
    codes = symbols.astype(np.int64)
    ends = np.flatnonzero((symbols & 32) == 0)
    starts = np.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    lengths = ends - starts + 1
    if len(codes) and (symbols.max() >= 64 or codes[-1] & 32 or lengths.max() > 6):
        raise ValueError("the text is not of an RLE, or cut short")
    parts = (codes & 31) << 5 * (np.arange(len(codes)) - np.repeat(starts, lengths))
    runs: NDArray[np.int64] = np.add.reduceat(parts, starts) if len(ends) else parts
    runs -= np.where(codes[ends] & 16, 1 << 5 * lengths, 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
