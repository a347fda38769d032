"""Boxes x1, y1, x2, y2 in pixels, the far edges outside: overlaps, and the boxes of masks."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["boxes_of_masks", "centres_of", "pairwise_giou", "pairwise_iou"]


def pairwise_iou(one: Tensor, other: Tensor) -> Tensor:
    """Overlap over union [N, M] of boxes [N, 4] and [M, 4]; 0 of boxes without area."""
    overlap, union = _overlap_and_union(one, other)
    return overlap / union.clamp(min=1e-9)


def pairwise_giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised IoU [N, M] (Rezatofighi et al., CVPR 2019), -1..1: less the part of the hull that neither fills."""
    overlap, union = _overlap_and_union(one, other)
    low = torch.minimum(one[:, None, :2], other[None, :, :2])
    high = torch.maximum(one[:, None, 2:], other[None, :, 2:])
    hull = (high - low).clamp(min=0).prod(dim=-1).clamp(min=1e-9)
    return overlap / union.clamp(min=1e-9) - (hull - union) / hull


def centres_of(boxes: Tensor) -> Tensor:
    """x and y [..., 2] of the centres of boxes [..., 4]."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Tight boxes [N, 4] of masks [N, H, W]; zeros for an empty one."""
    low_y, high_y = _reach((masks > 0.5).any(dim=2))
    low_x, high_x = _reach((masks > 0.5).any(dim=1))
    return torch.stack((low_x, low_y, high_x, high_y), dim=-1)


def _reach(marked: Tensor) -> tuple[Tensor, Tensor]:
    """The first marked place of each row [N, S], and the place after the last, as floats."""
    places = torch.arange(marked.shape[1], device=marked.device)
    first = torch.where(marked, places, marked.shape[1]).amin(dim=1)
    after = torch.where(marked, places + 1, 0).amax(dim=1)
    return torch.where(after > 0, first, 0).float(), after.float()


def _overlap_and_union(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=-1) for boxes in (one, other)]
    return overlap, areas[0][:, None] + areas[1][None, :] - overlap
