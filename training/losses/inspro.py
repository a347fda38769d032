"""InsPro's losses over a clip: focal classes, L1 and GIoU of boxes, dice and focal masks, and box deduplication.

Weights as published; what the paper leaves open follows Sparse R-CNN and CondInst, or is a setting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from visrt.models.condinst import dynamic_masks
from visrt.models.interaction import StageOutputs
from visrt.models.layers import in_float32
from visrt.training.losses.boxes import centres_of, pairwise_giou, pairwise_iou
from visrt.training.losses.inspro_targets import BoxCosts, BoxTargets, Held, consistent_matches, pairwise_costs
from visrt.training.losses.targets import Matches

__all__ = [
    "FramePrediction",
    "InsProLossSettings",
    "clip_losses",
    "dedup_loss",
    "focal_loss",
    "matches_of_clip",
]

MASK_STRIDE = 4


@dataclass(frozen=True)
class InsProLossSettings:
    """Weights, as published. dedup_margin: free boxes nearer to an object than the root of this part of its diagonal
    are pushed away, the dedup_boxes that overlap it most; on ImageNet-VID 0.15 was best.

    alpha, gamma: of the focal losses. matching: each stage its "own", as in Sparse R-CNN, or one for all stages by the
    "last" one; the paper does not say, and "own" learns faster. matching_over_time: "consistent", where an object keeps
    its query from frame to frame (section 3.3), or "each_frame" for itself. mask_stages: whether masks are learned at
    the "last" stage or at "every" one; it does not say that either.
    """

    label: float = 2.0
    l1: float = 5.0
    giou: float = 2.0
    dice: float = 5.0
    mask: float = 5.0
    dedup: float = 1.0
    dedup_margin: float = 0.1
    dedup_boxes: int = 5
    alpha: float = 0.25
    gamma: float = 2.0
    matching: Literal["own", "last"] = "own"
    matching_over_time: Literal["consistent", "each_frame"] = "consistent"
    mask_stages: Literal["last", "every"] = "last"
    costs: BoxCosts = field(default_factory=BoxCosts)


@dataclass(frozen=True)
class FramePrediction:
    """The network's outputs for one frame of one clip, without batch axis.

    stages: of the head, all of which learn. mask_parameters: by stage, [N, P] `placed`, None for a stage without masks:
    learning masks at the last stage only or at every one is up to who makes this. mask_features [F, H/8, W/8].
    """

    stages: Sequence[StageOutputs]
    mask_parameters: Sequence[Tensor | None]
    mask_features: Tensor | None
    mask_scale_px: float


def clip_losses(
    frames: Sequence[FramePrediction],
    targets: Sequence[BoxTargets],
    settings: InsProLossSettings,
    learned_from: int = 0,
) -> dict[str, Tensor]:
    """Weighted losses by name: summed over stages, normalised by the objects of a frame, the mean of the frames.

    Frames before `learned_from` say which query holds which object, and are not learned.
    """
    matches = matches_of_clip(frames, targets, settings)
    losses_of_clips = [
        _frame_losses(frame, target, pairs, settings)
        for frame, target, pairs in list(zip(frames, targets, matches, strict=True))[learned_from:]
    ]
    return {name: torch.stack([losses[name] for losses in losses_of_clips]).mean() for name in losses_of_clips[0]}


def matches_of_clip(
    frames: Sequence[FramePrediction], targets: Sequence[BoxTargets], settings: InsProLossSettings
) -> list[list[Matches]]:
    """Matches [frame][stage]; with consistent matching an object keeps its query from frame to frame.

    Stages are counted from the last one back, so that the lite head's only stage goes on with what the last one held.
    """
    held: dict[int, Held] = {}
    matches = []
    for frame, target in zip(frames, targets, strict=True):
        stages = len(frame.stages)
        found: dict[int, Matches] = {}
        for back in range(stages) if settings.matching == "own" else (0,):
            cost = pairwise_costs(frame.stages[-1 - back], target, settings.costs)
            found[back], after = consistent_matches(cost, target.ids, held.get(back, {}))
            if settings.matching_over_time == "consistent":
                held[back] = after
        matches.append([found.get(stages - 1 - i, found[0]) for i in range(stages)])
    return matches


def _frame_losses(
    frame: FramePrediction, target: BoxTargets, matches: Sequence[Matches], settings: InsProLossSettings
) -> dict[str, Tensor]:
    count = max(1, len(target.labels))
    losses: dict[str, Tensor] = {}
    for stage, parameters, pairs in zip(frame.stages, frame.mask_parameters, matches, strict=True):
        parts = _box_losses(stage, target, pairs, settings)
        if parameters is not None and target.masks is not None:
            parts |= _mask_losses(parameters[pairs.queries], frame, target.masks[pairs.objects], settings)
        for name, loss in parts.items():
            losses[name] = losses.get(name, 0) + getattr(settings, name) * loss / count
    return losses


@in_float32
def _box_losses(
    stage: StageOutputs, target: BoxTargets, pairs: Matches, settings: InsProLossSettings
) -> dict[str, Tensor]:
    """Sums over the objects of one stage of one frame. Every query learns its classes, matched ones their box."""
    classes = torch.zeros_like(stage.class_logits, dtype=torch.float32)
    classes[pairs.queries, target.labels[pairs.objects]] = 1
    boxes, truth = stage.boxes[pairs.queries].float(), target.boxes[pairs.objects]
    giou = pairwise_giou(boxes, truth).diagonal()
    return {
        "label": focal_loss(stage.class_logits.float(), classes, settings.alpha, settings.gamma).sum(),
        "l1": ((boxes - truth) / target.sides).abs().sum(),
        "giou": (1 - giou).sum(),
        "dedup": dedup_loss(stage.boxes.float(), target.boxes, pairs, settings.dedup_margin, settings.dedup_boxes),
    }


@in_float32
def _mask_losses(
    parameters: Tensor, frame: FramePrediction, masks: Tensor, settings: InsProLossSettings
) -> dict[str, Tensor]:
    """Sums over the matched objects; truth at every fourth pixel, as CondInst takes it."""
    assert frame.mask_features is not None
    logits = dynamic_masks(parameters.float(), frame.mask_features.float(), frame.mask_scale_px).flatten(1)
    start = MASK_STRIDE // 2
    truth = masks[:, start::MASK_STRIDE, start::MASK_STRIDE].float().flatten(1)
    focal = focal_loss(logits, truth, settings.alpha, settings.gamma).mean(dim=1).sum() if len(truth) else logits.sum()
    return {"dice": _dice_loss(logits.sigmoid(), truth).sum(), "mask": focal}


def focal_loss(logits: Tensor, truth: Tensor, alpha: float, gamma: float) -> Tensor:
    """Focal loss (Lin et al., ICCV 2017) of each of `logits`, `truth` 0 or 1."""
    probabilities = logits.sigmoid()
    right = probabilities * truth + (1 - probabilities) * (1 - truth)
    weight = alpha * truth + (1 - alpha) * (1 - truth)
    return weight * (1 - right) ** gamma * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")


def _dice_loss(probabilities: Tensor, truth: Tensor) -> Tensor:
    """CondInst's dice loss [M] of `probabilities` and `truth` [M, P], with squares in the denominator."""
    overlap = 2 * (probabilities * truth).sum(dim=1)
    return 1 - overlap / ((probabilities**2).sum(dim=1) + (truth**2).sum(dim=1) + 1e-5)


def dedup_loss(boxes: Tensor, truth: Tensor, pairs: Matches, margin: float, most: int) -> Tensor:
    """Box deduplication (InsPro, section 3.4), summed over the objects: free boxes do not crowd around what is taken.

    Of `boxes` [N, 4] those without a match, and of these for each box of `truth` [G, 4] the `most` that overlap it
    most: the mean of max(margin - d^2 / D^2, 0), d the distance of the centres and D the object's diagonal.
    """
    free = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    free[pairs.queries] = False
    others = boxes[free]
    if not len(others) or not len(truth):
        return boxes.sum() * 0
    nearest = pairwise_iou(others.detach(), truth).topk(min(most, len(others)), dim=0).indices
    apart = (centres_of(others)[nearest] - centres_of(truth)).square().sum(dim=-1)
    diagonal = (truth[:, 2:] - truth[:, :2]).square().sum(dim=-1).clamp(min=1e-6)
    return (margin - apart / diagonal).clamp(min=0).mean(dim=0).sum()
