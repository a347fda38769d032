"""Ways to write the sampling of deformable attention for a traced graph: equal in value, unequal in time and memory.

All pick whole rows of flattened maps, as GridSample is miscompiled by TensorRT and element-wise gathers are slow. Each
takes, for every level, `maps` [B, H, W, heads, D], `points` float32 [B, Q, heads, P, 2] (x, y in pixels) and `weights`
float32 [B, Q, heads, P], and gives the sum over levels, points and corners [B, Q, heads, D].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from visrt.models.deformable import DeformableAttention, Size

__all__ = ["FORMS", "SHIPPED", "AttentionInForm", "Form", "attention_in_form"]

SHIPPED = "level, product, planes"
"""The form of the network itself: as "level, product", with x and y apart from the start and rows in int32."""

Form = Callable[[list[Tensor], list[Tensor], list[Tensor]], Tensor]


def per_level_product(maps: list[Tensor], points: list[Tensor], weights: list[Tensor]) -> Tensor:
    """A level at once: one gather of its four corners, summed by a batched matrix product."""
    return reduce(torch.add, map(_level_by_product, maps, points, weights))


def _level_by_product(level: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    index, share = _all_corners(level, points, weights)
    return _product(_rows(level), index, share)


def per_level_sum(maps: list[Tensor], points: list[Tensor], weights: list[Tensor]) -> Tensor:
    """A level at once: one gather of its four corners, multiplied and summed."""
    return reduce(torch.add, map(_level_by_sum, maps, points, weights))


def _level_by_sum(level: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    index, share = _all_corners(level, points, weights)
    return (_picked(_rows(level), index) * share.unsqueeze(-1)).sum(dim=-2)


def per_corner_sum(maps: list[Tensor], points: list[Tensor], weights: list[Tensor]) -> Tensor:
    """A corner of a level after the other: gather of all points, multiplied and summed."""
    terms = []
    for level, places, shares in zip(maps, points, weights, strict=True):
        rows = _rows(level)
        for index, share in _corners(level, places, shares):
            terms.append((_picked(rows, index) * share.unsqueeze(-1)).sum(dim=-2))
    return reduce(torch.add, terms)


def per_corner_product(maps: list[Tensor], points: list[Tensor], weights: list[Tensor]) -> Tensor:
    """A corner of a level after the other: gather of all points, summed by a batched matrix product."""
    terms = []
    for level, places, shares in zip(maps, points, weights, strict=True):
        rows = _rows(level)
        terms += [_product(rows, index, share) for index, share in _corners(level, places, shares)]
    return reduce(torch.add, terms)


def per_sample(maps: list[Tensor], points: list[Tensor], weights: list[Tensor]) -> Tensor:
    """One corner of one point after the other: a gather with a row a query, times its share, added up."""
    terms = []
    for level, places, shares in zip(maps, points, weights, strict=True):
        rows = _rows(level)
        for index, share in _corners(level, places, shares):
            for one, part in zip(index.unbind(-1), share.unbind(-1), strict=True):
                terms.append(_picked(rows, one) * part.unsqueeze(-1))
    return reduce(torch.add, terms)


def all_at_once(maps: list[Tensor], points: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Every corner of every level: one gather, summed by one batched matrix product."""
    return _all_product(maps, [_all_corners(*level) for level in zip(maps, points, weights, strict=True)])


def per_level_product_int32(maps: list[Tensor], points: list[Tensor], weights: list[Tensor]) -> Tensor:
    """As per_level_product, with rows counted in int32."""
    found = [_all_corners(*level, torch.int32) for level in zip(maps, points, weights, strict=True)]
    return reduce(torch.add, [_product(_rows(level), *corners) for level, corners in zip(maps, found, strict=True)])


def all_at_once_int32(maps: list[Tensor], points: list[Tensor], weights: list[Tensor]) -> Tensor:
    """As all_at_once, with rows counted in int32."""
    return _all_product(maps, [_all_corners(*level, torch.int32) for level in zip(maps, points, weights, strict=True)])


FORMS: dict[str, Form] = {
    "level, product": per_level_product,
    "level, sum": per_level_sum,
    "corner, sum": per_corner_sum,
    "corner, product": per_corner_product,
    "sample": per_sample,
    "all, product": all_at_once,
    "level, product, int32": per_level_product_int32,
    "all, product, int32": all_at_once_int32,
}


def attention_in_form(form: str, dim: int, heads: int, sizes: list[Size]) -> DeformableAttention:
    """Attention whose sampling is written in `form`, one of FORMS or SHIPPED; takes query, value, places."""
    return ShippedAttention(dim, heads, sizes) if form == SHIPPED else AttentionInForm(dim, heads, sizes, FORMS[form])


class ShippedAttention(DeformableAttention):
    """Deformable attention of the network, its sizes fixed."""

    def __init__(self, dim: int, heads: int, sizes: list[Size]) -> None:
        super().__init__(dim, heads, len(sizes))
        self.sizes = sizes

    def forward(self, query: Tensor, value: Tensor, places: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(query, value, places, self.sizes)


class AttentionInForm(DeformableAttention):
    """Deformable attention of the network with its sampling written in another form."""

    def __init__(self, dim: int, heads: int, sizes: list[Size], form: Form) -> None:
        super().__init__(dim, heads, len(sizes))
        self.sizes, self.form = sizes, form

    def forward(self, query: Tensor, value: Tensor, places: Tensor) -> Tensor:  # type: ignore[override]
        """Attended values [B, S, C]; arguments as of DeformableAttention, whose sizes are fixed here."""
        offsets = F.linear(query, self.sampling_offsets.weight, self.sampling_offsets.bias).float()
        offsets = offsets.unflatten(-1, self.sampling_offsets.order)
        weights = self.attention_weights(query).float().unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        shares = weights.unflatten(-1, (self.levels, self.points)).unbind(3)
        flat = self.value_proj(value).split([height * width for height, width in self.sizes], dim=1)
        maps = [
            level.unflatten(1, size).unflatten(-1, (self.heads, -1))
            for level, size in zip(flat, self.sizes, strict=True)
        ]
        points = [
            (places * torch.tensor([width, height], dtype=torch.float32) - 0.5)[:, None, None] + offset
            for (height, width), offset in zip(self.sizes, offsets.unbind(3), strict=True)
        ]
        out: Tensor = self.output_proj(self.form(maps, points, list(shares)).flatten(2))
        return out


def _rows(level: Tensor) -> Tensor:
    """Rows [B * (H + 2) * (W + 2) * heads, D], one zero pixel around the map: what lies outside is clamped to it."""
    return F.pad(level, (0, 0, 0, 0, 1, 1, 1, 1)).flatten(0, 3)


def _corners(
    level: Tensor, points: Tensor, weights: Tensor, counted: torch.dtype = torch.int64
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each corner in turn: rows in the type `counted` and shares in the map's dtype, both [B, Q, heads, P]."""
    batch, height, width, heads = level.shape[:4]
    corner = points.floor()
    right, down = (points - corner).unbind(-1)
    x, y = corner.to(counted).unbind(-1)
    image = torch.arange(batch)[:, None] * ((height + 2) * (width + 2) * heads)
    first = (image + torch.arange(heads)).to(counted)[:, None, :, None]
    for i, vertical in enumerate((1 - down, down)):
        line = (y + i).clamp(-1, height) + 1
        for j, horizontal in enumerate((1 - right, right)):
            column = (x + j).clamp(-1, width) + 1
            share = (weights * vertical * horizontal).to(level.dtype)
            yield (line * (width + 2) + column) * heads + first, share


def _all_corners(
    level: Tensor, points: Tensor, weights: Tensor, counted: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor]:
    """Rows and shares [B, Q, heads, 4 * P] of the four corners side by side."""
    index, share = zip(*_corners(level, points, weights, counted), strict=True)
    return torch.cat(index, dim=-1), torch.cat(share, dim=-1)


def _all_product(maps: list[Tensor], found: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The rows and shares `found` on each level, in one gather and one product."""
    rows = [_rows(level) for level in maps]
    # shape[0], as len() would fix the batch in the trace.
    starts = [sum(other.shape[0] for other in rows[:i]) for i in range(len(rows))]
    index = torch.cat([index + start for (index, _), start in zip(found, starts, strict=True)], dim=-1)
    return _product(torch.cat(rows), index, torch.cat([share for _, share in found], dim=-1))


def _picked(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [..., D] at `index` [...]."""
    out: Tensor = rows.index_select(0, index.flatten()).unflatten(0, index.shape)
    return out


def _product(rows: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """Sum [..., D] over P of the rows at `index` [..., P] times `share` [..., P], as a batched matrix product."""
    picked = rows.index_select(0, index.flatten()).unflatten(0, (-1, index.shape[-1]))
    out: Tensor = (share.flatten(0, -2).unsqueeze(1) @ picked).squeeze(1).unflatten(0, index.shape[:-1])
    return out
