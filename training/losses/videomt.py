"""Losses of VidEoMT over a clip: an object keeps the query that finds it in the frame where it first appears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from visrt.models.decoder import LayerPrediction
from visrt.models.layers import in_float32
from visrt.models.mask2former import FrameOutputs
from visrt.training.losses.genvis_targets import ClipTargets, assigned_strict, clip_cost, nothing_held, video_targets
from visrt.training.losses.mask2former import LossSettings, matched_losses
from visrt.training.losses.points import at_points, random_points
from visrt.training.losses.targets import FrameTargets, Matches, MatchSettings

__all__ = ["AbsentLabels", "first_appearance", "online_losses", "released_labels"]

AbsentLabels = Literal["own", "released"]

DUMMY_CLASS = 54
"""Class of an object in frames without it, as the released loader leaves it."""


@in_float32
def online_losses(
    predictions: Sequence[Sequence[FrameOutputs]],
    targets: Sequence[FrameTargets],
    settings: LossSettings,
    absent_labels: AbsentLabels,
    mask_count: float,
) -> dict[str, Tensor]:
    """Weighted losses of clips, summed over levels, by name.

    `predictions` [frame][level], of B clips each; `targets` of B * T frames, clip by clip. Every object of a clip is a
    target in all its frames, with an empty mask where it is absent. `mask_count`: those of the step, times this
    batch's share of the step's clips.
    """
    length = len(predictions)
    clips = [video_targets(targets[i : i + length], length)[0] for i in range(0, len(targets), length)]
    totals: dict[str, Tensor] = {}
    for level in zip(*predictions, strict=True):
        losses = _level_losses(level, clips, settings, absent_labels, mask_count)
        totals = {name: totals[name] + loss if name in totals else loss for name, loss in losses.items()}
    return totals


def _level_losses(
    frames: Sequence[FrameOutputs],
    clips: Sequence[ClipTargets],
    settings: LossSettings,
    absent_labels: AbsentLabels,
    mask_count: float,
) -> dict[str, Tensor]:
    """Losses of one level of all `frames`, matched by itself."""
    classes = frames[0].class_logits.shape[-1] - 1
    targets, matches = [], []
    for b, clip in enumerate(clips):
        labels, costed = clip.labels, clip.labels
        if absent_labels == "released":
            labels, costed = released_labels(clip, classes)
        queries = first_appearance(frames, b, clip, costed, settings.match)
        everything = torch.arange(len(labels), device=labels.device)
        for masks in clip.masks.unbind(1):
            targets.append(FrameTargets(labels, masks, everything))
            matches.append(Matches(queries, everything))
    joined = FrameOutputs(*(torch.stack(tensors, dim=1).flatten(0, 1) for tensors in zip(*frames, strict=True)))
    layer = LayerPrediction(joined.class_logits, joined.mask_embeddings, joined.embeddings)
    return matched_losses([layer], joined.mask_features, targets, [matches], settings, mask_count)


@torch.no_grad()
def first_appearance(
    frames: Sequence[FrameOutputs], b: int, clip: ClipTargets, labels: Tensor, settings: MatchSettings
) -> Tensor:
    """The query [N] that learns each object of clip `b`: the cheapest in the frame where the object first appears, of
    those that no earlier object has.

    `labels` [N]: the classes that the cost looks up, of which K is "no object".
    """
    held = nothing_held(len(clip.labels), clip.labels.device)
    for outputs, masks in zip(frames, clip.masks.unbind(1), strict=True):
        visible = masks.flatten(1).any(1)
        if bool((visible & ~held.seen).any()):
            points = random_points(1, settings.points, masks.device)
            sampled = (
                outputs.mask_embeddings[b].float() @ at_points(outputs.mask_features[b : b + 1].float(), points)[0]
            )
            truth = at_points(masks[None], points)[0]
            cost = clip_cost(outputs.class_logits[b], sampled, labels, truth, settings)
            held = assigned_strict(cost, visible, held)
    return held.slots


def released_labels(clip: ClipTargets, classes: int) -> tuple[Tensor, Tensor]:
    """Classes [N] that the released code teaches and those that its matching looks up: it reads them in the last frame,
    where absent objects have a dummy class, which the loss clamps to the last class and the matching to "no object".
    """
    there = clip.masks[:, -1].flatten(1).any(1)
    taught, costed = (clip.labels.new_tensor(min(DUMMY_CLASS, last)) for last in (classes - 1, classes))
    return torch.where(there, clip.labels, taught), torch.where(there, clip.labels, costed)
