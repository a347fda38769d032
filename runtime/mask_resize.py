"""Stride-4 mask logits -> the mask of the source frame, computed inside the object's box only.

The published models resize twice: bilinear to the network input, crop to the valid area, bilinear to the source
frame, then `> 0`. Both resizes work on rows and columns apart, so the way of the rows is one matrix and the way of the
columns another, each the product of two bilinear ones: mask = rows @ logits @ columns.T. That is exact, and any
rectangle of the result needs only those rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Array, in_float32
from visrt.runtime.image import Letterbox
from visrt.runtime.masks import Rle, box_of_region, encode_region

__all__ = ["STRIDE", "MaskResize", "SourceMask", "bilinear", "mask_resize"]

STRIDE = 4
"""Pixels of the network input to one cell of the mask logits."""

TILE = 64
"""Columns of the source made at once: a tile needs few columns of the logits, the matrix is zero elsewhere."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SourceMask:
    """A mask at the size of the source frame: its RLE and its tight box x, y, width, height in pixels."""

    rle: Rle
    box: tuple[int, int, int, int]


def bilinear(size: int, new_size: int) -> NDArray[np.float64]:
    """Weights [new_size, size] of bilinear interpolation along one axis, align_corners False."""
    at = np.maximum(0, (np.arange(new_size) + 0.5) * (size / new_size) - 0.5)
    low = np.minimum(at.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weights = np.zeros((new_size, size))
    weights[np.arange(new_size), low] += 1 - (at - low)
    weights[np.arange(new_size), high] += at - low
    return weights


@dataclass(frozen=True)
class Axis:
    """The way of one axis: weights [source, cells], and the cells [first, last] that each source pixel reads."""

    weights: Floats
    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @property
    def cells(self) -> int:
        """The number of cells that show the frame: those that any source pixel reads."""
        return int(self.weights.shape[1])

    def reached_by(self, cells: Any) -> slice:
        """The source pixels, as one range, that read any of the marked `cells`; empty if there are none."""
        marked = np.flatnonzero(cells)
        if not len(marked):
            return slice(0, 0)
        return slice(int(np.searchsorted(self.last, marked[0])), int(np.searchsorted(self.first, marked[-1], "right")))

    def read_by(self, pixels: slice) -> slice:
        """The cells that a range of source pixels reads."""
        return slice(int(self.first[pixels.start]), int(self.last[pixels.stop - 1]) + 1)


def _axis(network: int, valid: int, source: int) -> Axis:
    weights = (bilinear(valid, source) @ bilinear(network // STRIDE, network)[:valid]).astype(np.float32)
    reads = weights > 0
    last = weights.shape[1] - 1 - reads[:, ::-1].argmax(axis=1)
    return Axis(weights[:, : last[-1] + 1], reads.argmax(axis=1), last)


@dataclass(frozen=True)
class MaskResize:
    """The way from mask logits to masks of one letterbox's source frame."""

    fit: Letterbox
    rows: Axis
    columns: Axis

    def crop(self, logits: Array) -> Array:
        """The part of mask logits [..., H / 4, W / 4] that shows the frame; the rest shows padding."""
        return logits[..., : self.rows.cells, : self.columns.cells]

    def source_mask(self, logits: Array) -> SourceMask | None:
        """The mask of cropped `logits` [h, w], float32 or float16, at the source size, None if it is empty there."""
        logits = in_float32(logits)
        rows, columns = self._reached_by(logits)
        if rows.stop <= rows.start or columns.stop <= columns.start:
            return None
        region = np.empty((columns.stop - columns.start, rows.stop - rows.start), dtype=bool)
        for tile, part in self._tiles(logits, rows, columns):
            np.greater(part, 0, out=region[tile.start - columns.start : tile.stop - columns.start])
        corner = (rows.start, columns.start)
        box = box_of_region(region, corner)
        return None if box is None else SourceMask(encode_region(region, corner, self.fit.source), box)

    def certainty(self, logits: Floats) -> tuple[float, int]:
        """Over the pixels of `source_mask`, the sum of their probabilities (sigmoid) to be inside, and how many they
        are."""
        rows, columns = self._reached_by(logits)
        probabilities, pixels = 0.0, 0
        for _, part in self._tiles(logits, rows, columns):
            inside = part[part > 0].astype(np.float64)
            probabilities += float((1 / (1 + np.exp(-inside))).sum())
            pixels += len(inside)
        return probabilities, pixels

    def _reached_by(self, logits: Floats) -> tuple[slice, slice]:
        """The rows and the columns of the source outside which the mask of `logits` is empty."""
        inside = logits > 0
        return self.rows.reached_by(inside.any(axis=1)), self.columns.reached_by(inside.any(axis=0))

    def _tiles(self, logits: Floats, rows: slice, columns: slice) -> Iterator[tuple[slice, Floats]]:
        """The logits of a rectangle of the source, some columns at a time: which, and theirs, [columns, rows]."""
        if rows.stop <= rows.start or columns.stop <= columns.start:
            return
        cells, wide = self.rows.read_by(rows), self.columns.read_by(columns)
        tall = logits[cells, wide].T @ self.rows.weights[rows, cells].T
        for start in range(columns.start, columns.stop, TILE):
            tile = slice(start, min(start + TILE, columns.stop))
            cells = self.columns.read_by(tile)
            yield tile, self.columns.weights[tile, cells] @ tall[cells.start - wide.start : cells.stop - wide.start]


def mask_resize(fit: Letterbox) -> MaskResize:
    """The mask resize that belongs to the letterbox `fit`."""
    (height, width), (valid_height, valid_width), (source_height, source_width) = fit.network, fit.valid, fit.source
    return MaskResize(fit, _axis(height, valid_height, source_height), _axis(width, valid_width, source_width))
