"""One stage of dynamic instance interaction: a query looks into its box and moves it (Sparse R-CNN, Sun et al., CVPR
2021, section 3.3). Published key layout."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.feature_pyramid import PyramidRows
from visrt.models.layers import Attention, Block
from visrt.models.roi_align import BINS, Outside, roi_align

__all__ = ["DynamicConv", "InteractionStage", "StageOutputs", "moved_boxes"]

BOX_WEIGHTS = (2.0, 2.0, 1.0, 1.0)
"""Predicted changes of centre and size are divided by these."""

LOG_GROWTH_MAX = math.log(100_000.0 / 16)
"""A box grows by at most this factor in a stage."""

PRIOR = 0.01
"""Score of every class before training, so that the focal loss starts steady."""


class StageOutputs(NamedTuple):
    """class_logits [B, N, K], before sigmoid, without background; boxes [B, N, 4], x1, y1, x2, y2 in pixels, float32,
    not clipped; object_features [B, N, C], the next stage's queries."""

    class_logits: Tensor
    boxes: Tensor
    object_features: Tensor


class DynamicConv(nn.Module):
    """Two 1x1 convolutions over the features of a box whose weights are made from its query."""

    def __init__(self, dim: int, dynamic_dim: int) -> None:
        super().__init__()
        self.dim, self.dynamic_dim = dim, dynamic_dim
        self.dynamic_layer = nn.Linear(dim, 2 * dim * dynamic_dim)
        self.norm1 = nn.LayerNorm(dynamic_dim)
        self.norm2 = nn.LayerNorm(dim)
        self.out_layer = nn.Linear(dim * BINS * BINS, dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """Object features [B, N, C], from queries [B, N, C] and the `features` [B, N, 49, C] of their boxes."""
        down, up = self.dynamic_layer(queries).chunk(2, dim=-1)
        x = F.relu(self.norm1(features @ down.unflatten(-1, (self.dim, self.dynamic_dim))))
        x = F.relu(self.norm2(x @ up.unflatten(-1, (self.dynamic_dim, self.dim))))
        return F.relu(self.norm3(self.out_layer(x.flatten(2))))


class InteractionStage(Block):
    """Self-attention of the queries, interaction with the features of their boxes, then class and change of the box."""

    def __init__(
        self,
        *,
        dim: int,
        heads: int,
        feedforward_dim: int,
        dynamic_dim: int,
        classes: int,
        class_layers: int,
        box_layers: int,
        outside: Outside,
    ) -> None:
        super().__init__()
        self.outside = outside
        self.self_attn = Attention(dim, heads)
        self.inst_interact = DynamicConv(dim, dynamic_dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim) for _ in range(3))
        self.cls_module = _tower(dim, class_layers)
        self.reg_module = _tower(dim, box_layers)
        self.class_logits = nn.Linear(dim, classes)
        self.bboxes_delta = nn.Linear(dim, 4)
        _init(self)

    def forward(self, pyramid: PyramidRows, queries: Tensor, boxes: Tensor) -> StageOutputs:
        """The stage for `queries` [B, N, C] with `boxes` [B, N, 4] in pixels; where they look is not learned through
        what they see, but from where they are moved."""
        boxes = boxes.float()
        features = roi_align(pyramid, boxes.detach(), self.outside)
        return self.predict(self.look(self.attend(queries), features), boxes)

    def attend(self, queries: Tensor) -> Tensor:
        """Queries [B, N, C] after they exchanged."""
        out: Tensor = self.norm1(queries + self.self_attn(queries, queries, queries))
        return out

    def look(self, queries: Tensor, features: Tensor) -> Tensor:
        """Object features [B, N, C] of exchanged queries and the `features` [B, N, 49, C] in their boxes."""
        x = self.norm2(queries + self.inst_interact(queries, features))
        out: Tensor = self.norm3(x + self.linear2(F.relu(self.linear1(x))))
        return out

    def predict(self, object_features: Tensor, boxes: Tensor) -> StageOutputs:
        """Class, and box moved from `boxes` [B, N, 4], of `object_features` [B, N, C]."""
        class_logits = self.class_logits(self.cls_module(object_features))
        deltas = self.bboxes_delta(self.reg_module(object_features))
        return StageOutputs(class_logits, moved_boxes(boxes, deltas), object_features)


def moved_boxes(boxes: Tensor, deltas: Tensor) -> Tensor:
    """`boxes` [..., 4] in pixels moved and scaled by `deltas` [..., 4], in float32 in every precision."""
    changes = deltas.float() / torch.tensor(BOX_WEIGHTS, dtype=torch.float32, device=boxes.device)
    low, high = boxes.float().chunk(2, dim=-1)
    size = high - low
    shift, growth = changes.chunk(2, dim=-1)
    centre = shift * size + (low + 0.5 * size)
    half = 0.5 * growth.clamp(max=LOG_GROWTH_MAX).exp() * size
    return torch.cat((centre - half, centre + half), dim=-1)


def _tower(dim: int, layers: int) -> nn.Sequential:
    parts = [[nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim), nn.ReLU()] for _ in range(layers)]
    return nn.Sequential(*(module for part in parts for module in part))


def _init(stage: InteractionStage) -> None:
    for parameter in stage.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    nn.init.constant_(stage.class_logits.bias, -math.log((1 - PRIOR) / PRIOR))
