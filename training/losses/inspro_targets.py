"""Temporally consistent matching (InsPro, section 3.3): an object keeps its query from its first frame on.

Costs are those of Sparse R-CNN: focal, L1 of boxes as parts of the picture, generalised IoU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from visrt.models.interaction import StageOutputs
from visrt.models.layers import in_float32
from visrt.training.losses.boxes import pairwise_giou
from visrt.training.losses.targets import Matches

__all__ = ["BoxCosts", "BoxTargets", "Held", "consistent_matches", "pairwise_costs"]

Held = Mapping[int, int]
"""The query that each object seen so far holds, by the object's id. A query is held for ever."""

UNKNOWN_COST = 1e6


@dataclass(frozen=True)
class BoxTargets:
    """The objects of one frame: labels int64 [G], ids int64 [G] within the clip, boxes [G, 4] in pixels, and masks
    float [G, H, W] of the network input, 0 or 1; None where only boxes are learned. size: height and width in pixels of
    the picture inside the input."""

    labels: Tensor
    ids: Tensor
    boxes: Tensor
    masks: Tensor | None
    size: tuple[int, int]

    @property
    def sides(self) -> Tensor:
        """The picture's width, height, width, height [4], by which boxes are divided to lie in 0..1."""
        height, width = self.size
        return torch.tensor([width, height, width, height], dtype=torch.float32, device=self.boxes.device)


@dataclass(frozen=True)
class BoxCosts:
    """Weights of a pair's cost, and the focal loss's alpha and gamma."""

    label: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    alpha: float = 0.25
    gamma: float = 2.0


@torch.no_grad()
@in_float32
def pairwise_costs(stage: StageOutputs, target: BoxTargets, costs: BoxCosts) -> Tensor:
    """Cost [N, G] of every pair of query and object; `stage` of one picture, without its batch axis."""
    probabilities = stage.class_logits.float().sigmoid()
    taken = costs.alpha * (1 - probabilities) ** costs.gamma * -(probabilities + 1e-8).log()
    left = (1 - costs.alpha) * probabilities**costs.gamma * -(1 - probabilities + 1e-8).log()
    label = (taken - left)[:, target.labels]
    boxes = stage.boxes.float()
    l1 = torch.cdist(boxes / target.sides, target.boxes / target.sides, p=1)
    return costs.label * label + costs.l1 * l1 - costs.giou * pairwise_giou(boxes, target.boxes)


def consistent_matches(cost: Tensor, ids: Tensor, held: Held) -> tuple[Matches, dict[int, int]]:
    """Matches of a frame whose objects have `ids` [G], at `cost` [N, G], and what is held after it.

    Objects seen before keep their query. New ones are matched among the queries that nobody holds: the query of an
    object that is gone takes no part any more. Where there are more new objects than free queries, the dearest are left
    out.
    """
    listed = ids.tolist()
    held = dict(held)
    free = [query for query in range(len(cost)) if query not in set(held.values())]
    new = [place for place, one in enumerate(listed) if one not in held]
    # A diverged step must not end a run of hours: the losses report NaN, the assignment needs finite numbers.
    finite = torch.nan_to_num(cost[free][:, new], nan=UNKNOWN_COST, posinf=UNKNOWN_COST, neginf=-UNKNOWN_COST)
    rows, columns = linear_sum_assignment(finite.cpu().numpy())
    held |= {listed[new[column]]: free[row] for row, column in zip(rows, columns, strict=True)}
    places = [place for place, one in enumerate(listed) if one in held]
    queries = [held[listed[place]] for place in places]
    return Matches(*(torch.tensor(what, dtype=torch.int64, device=cost.device) for what in (queries, places))), held
