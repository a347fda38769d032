"""Points at which mask losses are computed (PointRend, Kirillov et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["at_points", "random_points", "uncertain_points"]


def random_points(count: int, points: int, device: torch.device) -> Tensor:
    """Uniform points [count, points, 2] as (x, y) in 0..1."""
    return torch.rand(count, points, 2, device=device)


def at_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values [B, C, P] of `maps` [B, C, h, w] at `points` [B, P, 2], (x, y) in 0..1."""
    grid = points.unsqueeze(2) * 2 - 1
    return F.grid_sample(maps, grid, mode="bilinear", align_corners=False).squeeze(3)


def uncertain_points(logits: Tensor, points: int, oversample: float, importance: float) -> Tensor:
    """Points [M, points, 2]: a share `importance` where `logits` [M, h, w] is closest to zero, the rest uniform.

    The uncertain ones are the best of `oversample * points` random candidates.
    """
    count = len(logits)
    candidates = random_points(count, int(points * oversample), logits.device)
    uncertainty = -at_points(logits[:, None], candidates)[:, 0].abs()
    kept = int(points * importance)
    best = uncertainty.topk(kept, dim=1).indices
    chosen = candidates.gather(1, best.unsqueeze(2).expand(-1, -1, 2))
    return torch.cat((chosen, random_points(count, points - kept, logits.device)), dim=1)
