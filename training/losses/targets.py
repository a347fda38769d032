"""Assignment of objects to the queries that learn them: Hungarian matching as in Mask2Former (and DETR before it)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from visrt.models.decoder import LayerPrediction
from visrt.models.layers import in_float32
from visrt.training.losses.points import at_points, random_points

__all__ = ["FrameTargets", "MatchSettings", "Matches", "match_layers"]


@dataclass(frozen=True)
class FrameTargets:
    """The objects of one frame: labels int64 [N], masks float [N, H, W] (0 or 1), ids int64 [N] within the clip."""

    labels: Tensor
    masks: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Matches:
    """Matched pairs of one frame: query i learns object j. `queries` and `objects` are int64 [M]."""

    queries: Tensor
    objects: Tensor


@dataclass(frozen=True)
class MatchSettings:
    """Cost of a pair: class * (-p) + mask * BCE + dice * dice, over `points` random points shared by all masks."""

    class_cost: float = 2.0
    mask_cost: float = 5.0
    dice_cost: float = 5.0
    points: int = 12544


@torch.no_grad()
@in_float32
def match_layers(
    layers: list[LayerPrediction], mask_features: Tensor, targets: list[FrameTargets], settings: MatchSettings
) -> list[list[Matches]]:
    """Matches [layer][frame]. The points are drawn once a frame and serve every layer.

    Mask logits at the points are `mask_embeddings @ (mask features at the points)`: sampling and the inner product
    commute, so no full mask is formed for the queries that stay unmatched. Costs are float32 under mixed precision: the
    sum of the cross-entropies over the points exceeds float16.
    """
    classes = torch.stack([layer.class_logits for layer in layers]).float().softmax(-1)
    embeddings = torch.stack([layer.mask_embeddings for layer in layers]).float()
    matches = [
        _match_frame(classes[:, b], embeddings[:, b], mask_features[b].float(), target, settings)
        for b, target in enumerate(targets)
    ]
    return [[frame[i] for frame in matches] for i in range(len(layers))]


def _match_frame(
    classes: Tensor, embeddings: Tensor, features: Tensor, target: FrameTargets, settings: MatchSettings
) -> list[Matches]:
    """Matches of one frame for each layer; `classes` [L, Q, K + 1], `embeddings` [L, Q, D], `features` [D, h, w]."""
    if len(target.labels) == 0:
        nothing = torch.empty(0, dtype=torch.int64, device=classes.device)
        return [Matches(nothing, nothing)] * len(classes)
    points = random_points(1, settings.points, features.device)
    logits = embeddings @ at_points(features[None], points)[0]  # [L, Q, P]
    truth = at_points(target.masks[None], points)[0]  # [N, P]
    cost = (
        settings.class_cost * -classes[:, :, target.labels]
        + settings.mask_cost * pairwise_bce(logits, truth)
        + settings.dice_cost * pairwise_dice(logits, truth)
    )
    return [_assigned(layer_cost) for layer_cost in cost]


def _assigned(cost: Tensor) -> Matches:
    """The cheapest one-to-one pairs of `cost` [Q, N]."""
    # A diverged step must not end a run of hours: the losses report NaN, the assignment needs finite numbers.
    finite = torch.nan_to_num(cost, nan=1e6, posinf=1e6, neginf=-1e6)
    queries, objects = linear_sum_assignment(finite.cpu().numpy())
    return Matches(torch.as_tensor(queries, device=cost.device), torch.as_tensor(objects, device=cost.device))


def pairwise_bce(logits: Tensor, truth: Tensor) -> Tensor:
    """Mean binary cross-entropy [..., Q, N] of every pair of `logits` [..., Q, P] and `truth` [N, P]."""
    inside = F.softplus(-logits) @ truth.transpose(0, 1)
    outside = F.softplus(logits) @ (1 - truth).transpose(0, 1)
    return (inside + outside) / truth.shape[1]


def pairwise_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """Dice loss [..., Q, N] of every pair of `logits` [..., Q, P] and `truth` [N, P]."""
    probability = logits.sigmoid()
    overlap = 2 * probability @ truth.transpose(0, 1)
    total = probability.sum(-1, keepdim=True) + truth.sum(-1)
    return 1 - (overlap + 1) / (total + 1)
