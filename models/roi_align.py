"""Features inside boxes: RoIAlign (He et al., ICCV 2017) with aligned pixels, on the level that fits each box.

Written with plain operators, because the ONNX operator becomes a plugin in TensorRT. A bilinear sample is a weighted
sum of pixels and a bin is the mean of samples, so a bin is one weighted sum of rows of the pyramid's table. The level
of a box only moves the rows it reads: no box is sorted to a level, no size depends on the data.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from visrt.models.deformable import weighted_rows
from visrt.models.feature_pyramid import STRIDES, PyramidRows

__all__ = ["BINS", "Outside", "box_levels", "roi_align"]

Outside = Literal["edge", "zero"]

BINS = 7
"""Bins along each side of a box."""

SAMPLES = 2
"""Samples along each side of a bin."""

CANONICAL_PX = 224.0
"""A box of this side reads p4 (Lin et al., equation 1)."""


def roi_align(pyramid: PyramidRows, boxes: Tensor, outside: Outside) -> Tensor:
    """Features [B, N, 49, C] in a 7 x 7 grid of bins, row by row, of `boxes` [B, N, 4] (x1, y1, x2, y2 in pixels).

    A sample outside the map takes its nearest "edge", or "zero" if it is more than a pixel outside. Places are float32
    in every precision.
    """
    boxes = boxes.float()
    level = box_levels(boxes)
    places = boxes * _of_level(level, [1 / stride for stride in STRIDES]).unsqueeze(-1) - 0.5
    heights, widths = (_of_level(level, [float(size[axis]) for size in pyramid.sizes]) for axis in (0, 1))
    rows, row_shares = _line(places[..., 1], places[..., 3], heights, outside)
    columns, column_shares = _line(places[..., 0], places[..., 2], widths, outside)
    # [B, N, 7, 1, 4, 1] with [B, N, 1, 7, 1, 4]: for each bin, 2 samples x 2 neighbours along each axis.
    line = rows * widths.to(torch.int64)[..., None, None]
    index = line[..., :, None, :, None] + columns[..., None, :, None, :]
    share = row_shares[..., :, None, :, None] * column_shares[..., None, :, None, :]
    first = _first_rows(pyramid, level)[..., None, None]
    table = pyramid.rows.flatten(0, 1)
    return weighted_rows(
        table, index.flatten(4).flatten(2, 3) + first, share.flatten(4).flatten(2, 3).to(pyramid.rows.dtype)
    )


def box_levels(boxes: Tensor) -> Tensor:
    """For `boxes` [..., 4] in pixels the level they read, int64: 0 is p2, 3 is p5.

    floor(4 + log2(side / 224 + 1e-8)), clamped, with comparisons in place of the logarithm: exact in every engine.
    """
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    side = area.clamp(min=0).sqrt() / CANONICAL_PX + 1e-8
    return (side >= 0.5).to(torch.int64) + (side >= 1.0).to(torch.int64) + (side >= 2.0).to(torch.int64)


def _of_level(level: Tensor, values: list[float]) -> Tensor:
    """The value of each box's level, float32."""
    table = torch.tensor(values, dtype=torch.float32, device=level.device)
    return table.index_select(0, level.flatten()).view_as(level)


def _line(start: Tensor, end: Tensor, size: Tensor, outside: Outside) -> tuple[Tensor, Tensor]:
    """Along one axis, for each of 7 bins, the 4 pixels it reads and their shares: int64 and float32 [B, N, 7, 4].

    `start`, `end` [B, N]: sides of the box in pixels of its level, pixel centres at whole numbers; `size` of the level.
    """
    place = _sample_places(start, end)
    size = size[..., None, None]
    weight = torch.full_like(place, 1 / SAMPLES)
    if outside == "zero":
        weight = weight * ((place >= -1) & (place <= size)).to(torch.float32)
    place = torch.minimum(place.clamp(min=0), size - 1)
    low = place.floor()
    beyond = place - low
    # Whole numbers are clamped, as these survive what is not finite: a box of NaN reads NaN, and no row but a table's.
    pixels = torch.stack((low, low + 1), dim=-1).to(torch.int64).clamp(min=0)
    pixels = torch.minimum(pixels, (size - 1).to(torch.int64).unsqueeze(-1))
    shares = torch.stack(((1 - beyond) * weight, beyond * weight), dim=-1)
    return pixels.flatten(3), shares.flatten(3)


def _sample_places(start: Tensor, end: Tensor) -> Tensor:
    """Sample positions of each bin between `start` and `end` [B, N]: [B, N, 7, 2], equally spaced."""
    bins = torch.arange(BINS, dtype=torch.float32, device=start.device).unsqueeze(-1)
    within = (torch.arange(SAMPLES, dtype=torch.float32, device=start.device) + 0.5) / SAMPLES
    size = ((end - start) / BINS)[..., None, None]
    return start[..., None, None] + bins * size + within * size


def _first_rows(pyramid: PyramidRows, level: Tensor) -> Tensor:
    """Row of the table at which the level of each box begins, int64 [B, N]."""
    starts = [sum(height * width for height, width in pyramid.sizes[:i]) for i in range(len(pyramid.sizes))]
    batch, length = pyramid.rows.shape[:2]
    image = torch.arange(batch, device=level.device).unsqueeze(-1) * length
    table = torch.tensor(starts, dtype=torch.int64, device=level.device)
    return table.index_select(0, level.flatten()).view_as(level) + image
