"""Losses of GenVIS on one clip: class of every slot, masks of the objects that are visible in it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from visrt.training.genvis_targets import ClipTargets, Held
from visrt.training.losses import dice_loss
from visrt.training.points import at_points, uncertain_points

__all__ = ["class_loss", "loss_points", "mask_losses"]


def class_loss(class_logits: Tensor, targets: ClipTargets, held: Held, no_object_weight: float) -> Tensor:
    """Cross-entropy over `class_logits` [S, K + 1]: a slot whose object is not in the clip learns "no object"."""
    no_object = class_logits.shape[1] - 1
    wanted = torch.full(class_logits.shape[:1], no_object, dtype=torch.int64, device=class_logits.device)
    wanted[held.slots[targets.visible]] = targets.labels[targets.visible]
    weight = torch.ones(no_object + 1, device=class_logits.device)
    weight[no_object] = no_object_weight
    return F.cross_entropy(class_logits.float(), wanted, weight)


def mask_losses(mask_logits: Tensor, targets: ClipTargets, held: Held, points: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of mask BCE and dice over the M visible objects, each over the points of all T frames of the clip.

    `mask_logits` [S, T, h, w]; `points` [M * T, P, 2], (x, y) in 0..1, object by object.
    """
    chosen = mask_logits[held.slots[targets.visible]].float()
    if not len(chosen):
        zero = mask_logits.sum() * 0
        return zero, zero
    frames = chosen.shape[1]
    sampled = at_points(chosen.flatten(0, 1)[:, None], points)[:, 0].unflatten(0, (-1, frames)).flatten(1)
    with torch.no_grad():
        masks = targets.masks[targets.visible].flatten(0, 1)
        truth = at_points(masks[:, None], points)[:, 0].unflatten(0, (-1, frames)).flatten(1)
    bce = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(1).sum()
    return bce, dice_loss(sampled.sigmoid(), truth).sum()


@torch.no_grad()
def loss_points(
    mask_logits: Tensor, targets: ClipTargets, held: Held, points: int, oversample: float, importance: float
) -> Tensor:
    """Points [M * T, points, 2] for `mask_losses`, most of them where the slots are unsure of their masks."""
    chosen = mask_logits[held.slots[targets.visible]].float()
    return uncertain_points(chosen.flatten(0, 1), points, oversample, importance)
