"""Losses of Mask2Former in each frame, and over a clip the losses that make embeddings of one object alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from visrt.models.decoder import LayerPrediction
from visrt.models.layers import in_float32
from visrt.training.losses.contrast import (
    CONTRASTS,
    ContrastName,
    ContrastSettings,
    Item,
    clip_tracks,
    contrastive_items,
    contrastive_losses,
)
from visrt.training.losses.points import at_points, uncertain_points
from visrt.training.losses.targets import FrameTargets, Matches, MatchSettings, match_layers

__all__ = ["LossSettings", "association_losses", "dice_loss", "frame_losses", "identity_loss", "matched_losses"]


@dataclass(frozen=True)
class LossSettings:
    """Weights and sampling as published: CE 2 (no-object 0.1), mask BCE 5, dice 5, on every layer.

    identity_weight: weight of the loss between frames of a clip, MinVIS's supervised matching (its table 5); 0 =
    MinVIS as published, which learns from single frames. identity_loss: the paper's "hinge" loss on inner products,
    with identity_margin, or visrt's own "info_nce" on cosines, which identity_temperature divides.
    identity_range_frames: only frames at most so many places apart in a clip are compared; 1 = consecutive ones, None =
    all.
    contrast: CTVIS's losses over a clip, by the name of one of its variants or spelt out; "off" = none.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    points: int = 12544
    oversample: float = 3.0
    importance: float = 0.75
    identity_weight: float = 0.0
    identity_loss: Literal["info_nce", "hinge"] = "info_nce"
    identity_temperature: float = 0.1
    identity_margin: Annotated[float, Field(gt=0)] = 1.0
    identity_range_frames: Annotated[int, Field(ge=1)] | None = None
    contrast: Literal["off"] | ContrastName | ContrastSettings = "off"
    match: MatchSettings = field(default_factory=MatchSettings)


@in_float32
def frame_losses(
    layers: list[LayerPrediction],
    mask_features: Tensor,
    targets: list[FrameTargets],
    settings: LossSettings,
    mask_count: float,
) -> tuple[dict[str, Tensor], list[Matches]]:
    """Weighted losses summed over layers, by name, and the last layer's matches for each frame.

    `mask_count`: target masks of the step, times this batch's share of the step's clips.
    """
    matches = match_layers(layers, mask_features, targets, settings.match)
    return matched_losses(layers, mask_features, targets, matches, settings, mask_count), matches[-1]


@in_float32
def matched_losses(
    layers: list[LayerPrediction],
    mask_features: Tensor,
    targets: list[FrameTargets],
    matches: list[list[Matches]],
    settings: LossSettings,
    mask_count: float,
) -> dict[str, Tensor]:
    """Weighted losses summed over layers, by name, of the pairs `matches` [layer][frame]."""
    mask, dice = _mask_losses(layers, mask_features, targets, matches, settings)
    label = sum(
        (
            _class_loss(layer.class_logits, targets, pairs, settings)
            for layer, pairs in zip(layers, matches, strict=True)
        ),
        start=mask_features.new_zeros(()),
    )
    return {
        "class": settings.class_weight * label,
        "mask": settings.mask_weight * mask / mask_count,
        "dice": settings.dice_weight * dice / mask_count,
    }


def _class_loss(logits: Tensor, targets: list[FrameTargets], pairs: list[Matches], settings: LossSettings) -> Tensor:
    """Cross-entropy over `logits` [B, Q, K + 1]; unmatched queries learn "no object" with a small weight."""
    no_object = logits.shape[-1] - 1
    truth = torch.full(logits.shape[:2], no_object, dtype=torch.int64, device=logits.device)
    for b, (target, pair) in enumerate(zip(targets, pairs, strict=True)):
        truth[b, pair.queries] = target.labels[pair.objects]
    weight = torch.ones(no_object + 1, device=logits.device)
    weight[no_object] = settings.no_object_weight
    return F.cross_entropy(logits.float().flatten(0, 1), truth.flatten(), weight)


def _mask_losses(
    layers: list[LayerPrediction],
    mask_features: Tensor,
    targets: list[FrameTargets],
    matches: list[list[Matches]],
    settings: LossSettings,
) -> tuple[Tensor, Tensor]:
    """Sums of mask BCE and dice over the matched pairs of all layers; masks are formed for those pairs only."""
    logits, masks = [], []
    # Taken apart at once: the gradient of each mask_features[b] alone would be as large as that of all.
    for b, (target, features) in enumerate(zip(targets, mask_features.unbind(), strict=True)):
        embeddings = torch.cat(
            [layer.mask_embeddings[b, pairs[b].queries] for layer, pairs in zip(layers, matches, strict=True)]
        )
        logits.append(torch.einsum("md,dhw->mhw", embeddings, features))
        masks.append(target.masks[torch.cat([pairs[b].objects for pairs in matches])])
    predicted, target_masks = torch.cat(logits).float(), torch.cat(masks)
    if len(predicted) == 0:
        # Of nothing, but in the graph: every process has a gradient for every parameter.
        return predicted.sum(), predicted.sum()
    with torch.no_grad():
        points = uncertain_points(predicted, settings.points, settings.oversample, settings.importance)
        truth = at_points(target_masks[:, None], points)[:, 0]
    sampled = at_points(predicted[:, None], points)[:, 0]
    bce = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(1).sum()
    return bce, dice_loss(sampled.sigmoid(), truth).sum()


def dice_loss(probability: Tensor, truth: Tensor) -> Tensor:
    """Dice loss [M] of `probability` and `truth` [M, P]."""
    overlap = 2 * (probability * truth).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + truth.sum(1) + 1)


@in_float32
def association_losses(clips: Tensor, objects: Sequence[Matches], settings: LossSettings) -> dict[str, Tensor]:
    """Weighted losses over embeddings `clips` [B, T, Q, C], by name; `objects` holds those of B * T frames by id."""
    losses = {}
    if settings.identity_weight:
        losses["identity"] = settings.identity_weight * identity_loss(clips, objects, settings)
    if settings.contrast != "off":
        chosen = CONTRASTS[settings.contrast] if isinstance(settings.contrast, str) else settings.contrast
        reid, aux = contrastive_losses(_items(clips, objects, chosen), clips.sum() * 0)
        losses["reid"], losses["reid_aux"] = chosen.reid_weight * reid, chosen.aux_weight * aux
    return losses


def _items(clips: Tensor, objects: Sequence[Matches], settings: ContrastSettings) -> list[Item]:
    """The contrastive items of all clips."""
    length = clips.shape[1]
    items = []
    for b, frames in enumerate(clips):
        tracks = clip_tracks(frames, objects[b * length : (b + 1) * length], settings)
        items += contrastive_items(frames, tracks, settings)
    return items


def identity_loss(clips: Tensor, objects: Sequence[Matches], settings: LossSettings) -> Tensor:
    """Mean over pairs of frames of a clip, and the objects in both: an object's query against all of the other frame.

    `clips` [B, T, Q, C]; `objects` holds B * T frames whose object ids agree within a clip. The choice among all
    queries, background ones included, is the choice association faces.
    """
    between, most = BETWEEN_FRAMES[settings.identity_loss], settings.identity_range_frames
    length = clips.shape[1]
    pairs = [(s, t) for s, t in combinations(range(length), 2) if most is None or t - s <= most]
    terms = [
        between(clip[s], clip[t], _common(objects[b * length + s], objects[b * length + t]), settings)
        for b, clip in enumerate(clips)
        for s, t in pairs
    ]
    losses = torch.cat(terms) if terms else clips.new_zeros(0)
    return losses.mean() if len(losses) else clips.sum() * 0


def _common(first: Matches, second: Matches) -> tuple[Tensor, Tensor]:
    """Queries of the objects matched in both frames, in the same order."""
    same = first.objects[:, None] == second.objects[None, :]
    i, j = same.nonzero(as_tuple=True)
    return first.queries[i], second.queries[j]


def _info_nce(first: Tensor, second: Tensor, pairs: tuple[Tensor, Tensor], settings: LossSettings) -> Tensor:
    """Cross-entropy [M] of the cosines over all queries, the mean of both directions."""
    similarity = F.normalize(first, dim=-1) @ F.normalize(second, dim=-1).T / settings.identity_temperature
    return -(similarity.log_softmax(1)[pairs] + similarity.log_softmax(0)[pairs]) / 2


def _hinge(first: Tensor, second: Tensor, pairs: tuple[Tensor, Tensor], settings: LossSettings) -> Tensor:
    """max(0, margin - q.k+ + q.k-) [M], the mean over all other queries k- and both directions (MinVIS, section 4.3).

    The paper gives neither margin nor mean; both are this project's reading.
    """
    products = first @ second.T
    missing = settings.identity_margin - products[pairs][:, None]
    rows, columns = products[pairs[0]], products.T[pairs[1]]
    shortfalls = ((missing + others).clamp(min=0).sum(1) - settings.identity_margin for others in (rows, columns))
    return sum(shortfalls, start=products.new_zeros(())) / (2 * max(products.shape[1] - 1, 1))


BetweenFrames = Callable[[Tensor, Tensor, tuple[Tensor, Tensor], LossSettings], Tensor]
BETWEEN_FRAMES: dict[str, BetweenFrames] = {"info_nce": _info_nce, "hinge": _hinge}
"""By name, the loss [M] of M objects between two frames with embeddings [Q, C]; `pairs`: their queries in each."""
