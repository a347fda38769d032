"""Losses of GenVIS over the clips of a video: classes and masks of slots after every layer, and similarity.

As the release means it: its weights, each decoder layer with an assignment of its own. (One state of the released code
names the similarity loss otherwise than its weight, by which it counts once with 1 instead of once a clip with 0.5.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from visrt.models.decoder import LayerPrediction
from visrt.models.layers import in_float32
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.losses.genvis_targets import (
    ASSIGNMENTS,
    ClipTargets,
    Held,
    at_points_of_frames,
    clip_cost,
    nothing_held,
    video_targets,
)
from visrt.training.losses.mask2former import LossSettings, dice_loss
from visrt.training.losses.points import at_points, random_points, uncertain_points
from visrt.training.losses.targets import FrameTargets, Matches, match_layers

__all__ = ["class_loss", "learned", "mask_losses", "similarity_loss", "target_classes", "video_losses"]


class ClipPrediction(NamedTuple):
    """The outputs for one clip of T frames, in each of N streams.

    class_logits and mask_embeddings of each decoder layer, [N, S, K + 1] and [N, S, D]; for the similarity loss,
    frame_embeddings [N, T, Q, E] and slot_embeddings [N, S, E] of the last.
    """

    class_logits: list[Tensor]
    mask_embeddings: list[Tensor]
    frame_embeddings: Tensor
    slot_embeddings: Tensor


class VideoOutputs(NamedTuple):
    """The outputs for B videos of F frames. Streams are L * B, those of a frame layer together.

    clips: in order of time. mask_features [B, F, D, h, w]: of the video part. frame_layers: the frame decoder's last L
    layers, and frame_mask_features [B * F, D', h, w]: for matching its queries with objects.
    """

    clips: list[ClipPrediction]
    mask_features: Tensor
    frame_layers: list[LayerPrediction]
    frame_mask_features: Tensor


@dataclass(frozen=True)
class Seen:
    """A clip of T frames as the matching sees it. targets: its objects. features [T, D, h, w]: for masks of slots.

    At P random points of each frame, shared by all slots, layers and streams: sampled_features [D, T * P], from which
    mask logits are made (sampling and the inner product commute), and sampled_masks [N, T * P].
    """

    targets: ClipTargets
    features: Tensor
    sampled_features: Tensor
    sampled_masks: Tensor


@dataclass(frozen=True)
class Stream:
    """One video as one layer of the frame decoder shows it: its clips, and for each frame the queries of that layer
    that found an object, by its id.
    """

    clips: list[Seen]
    matches: list[Matches]


@in_float32
def video_losses(
    outputs: VideoOutputs,
    targets: list[FrameTargets],
    settings: LossSettings,
    video: GenVisTraining,
    counts: Sequence[float],
) -> dict[str, Tensor]:
    """Weighted losses by name, summed over clips and layers; `targets` of B * F frames.

    `counts`: for each clip of a video, the objects visible in it, over all streams of the step, times this batch's
    share of the step's clips.
    """
    streams = _streams(outputs, targets, settings, video)
    zero = outputs.mask_features.sum() * 0
    losses = dict.fromkeys(("class", "mask", "dice"), zero)
    objects = [len(stream.clips[0].targets.labels) for stream in streams]
    held = [[nothing_held(count, zero.device) for count in objects] for _ in outputs.clips[0].class_logits]
    similar = zero
    for number, clip in enumerate(outputs.clips):
        clips = [stream.clips[number] for stream in streams]
        layers = [_layer_losses(clip, at, clips, before, settings, video) for at, before in enumerate(held)]
        held = [after for after, _ in layers]
        count = counts[number]
        for _, terms in layers:
            losses = {
                "class": losses["class"] + settings.class_weight * terms[0],
                "mask": losses["mask"] + settings.mask_weight * terms[1] / count,
                "dice": losses["dice"] + settings.dice_weight * terms[2] / count,
            }
        if video.similarity_weight:
            similar = similar + video.similarity_weight * _similarity(clip, number, streams, held[-1], video)
    return losses | ({"similarity": similar} if video.similarity_weight else {})


def _streams(
    outputs: VideoOutputs, targets: list[FrameTargets], settings: LossSettings, video: GenVisTraining
) -> list[Stream]:
    frames = outputs.mask_features.shape[1]
    videos = []
    for b, features in enumerate(outputs.mask_features):
        objects = video_targets(targets[b * frames : (b + 1) * frames], video.clip_frames)
        pairs = zip(objects, features.split(video.clip_frames), strict=True)
        videos.append([_seen(of_clip, maps, settings.match.points) for of_clip, maps in pairs])
    return [
        Stream(clips, layer[b * frames : (b + 1) * frames])
        for layer in _found(outputs, targets, settings, video)
        for b, clips in enumerate(videos)
    ]


@torch.no_grad()
def _seen(targets: ClipTargets, features: Tensor, points: int) -> Seen:
    places = random_points(1, points, features.device)
    sampled = at_points_of_frames(features.float().transpose(0, 1), places)
    return Seen(targets, features, sampled, at_points_of_frames(targets.masks, places))


def _found(
    outputs: VideoOutputs, targets: list[FrameTargets], settings: LossSettings, video: GenVisTraining
) -> list[list[Matches]]:
    """For each frame layer and frame the queries that found objects, by id; only the similarity loss asks for them."""
    if not video.similarity_weight:
        return [[] for _ in outputs.frame_layers]
    matches = match_layers(outputs.frame_layers, outputs.frame_mask_features, targets, settings.match)
    return [
        [Matches(pairs.queries, target.ids[pairs.objects]) for pairs, target in zip(layer, targets, strict=True)]
        for layer in matches
    ]


def _layer_losses(
    clip: ClipPrediction,
    layer: int,
    clips: list[Seen],
    held: list[Held],
    settings: LossSettings,
    video: GenVisTraining,
) -> tuple[list[Held], tuple[Tensor, Tensor, Tensor]]:
    """The slots held after a clip by the assignment of `layer`, by stream, and class, BCE and dice losses."""
    logits, embeddings = clip.class_logits[layer], clip.mask_embeddings[layer]
    assign = ASSIGNMENTS[video.assignment]
    after, chosen, truth, classes = [], [], [], []
    for n, seen in enumerate(clips):
        targets = seen.targets
        sampled = embeddings[n].detach().float() @ seen.sampled_features
        cost = clip_cost(logits[n], sampled, targets.labels, seen.sampled_masks, settings.match)
        now = assign(cost, targets.visible, held[n])
        objects = learned(targets, now)
        classes.append(target_classes(logits[n], targets, now))
        chosen.append(torch.einsum("sd,tdhw->sthw", embeddings[n, now.slots[objects]], seen.features))
        truth.append(targets.masks[objects])
        after.append(now)
    label = class_loss(logits, torch.stack(classes), settings.no_object_weight)
    return after, (label, *_sampled_mask_losses(torch.cat(chosen), torch.cat(truth), settings))


def learned(targets: ClipTargets, held: Held) -> Tensor:
    """Which objects [N] a clip teaches: those visible in it that have a slot."""
    return targets.visible & held.seen


def target_classes(class_logits: Tensor, targets: ClipTargets, held: Held) -> Tensor:
    """The target classes [S] of slots with `class_logits` [S, K + 1]: "no object" where their object is not in the
    clip."""
    truth = torch.full(class_logits.shape[:1], class_logits.shape[1] - 1, dtype=torch.int64, device=held.slots.device)
    objects = learned(targets, held)
    truth[held.slots[objects]] = targets.labels[objects]
    return truth


def class_loss(class_logits: Tensor, truth: Tensor, no_object_weight: float) -> Tensor:
    """Cross-entropy over `class_logits` [N, S, K + 1]; `truth` [N, S]."""
    weight = torch.ones(class_logits.shape[-1], device=class_logits.device)
    weight[-1] = no_object_weight
    return F.cross_entropy(class_logits.float().flatten(0, 1), truth.flatten(), weight)


def _sampled_mask_losses(chosen: Tensor, truth: Tensor, settings: LossSettings) -> tuple[Tensor, Tensor]:
    if not len(chosen):
        return chosen.sum(), chosen.sum()
    with torch.no_grad():
        points = uncertain_points(
            chosen.float().flatten(0, 1), settings.points, settings.oversample, settings.importance
        )
    return mask_losses(chosen, truth, points)


def mask_losses(chosen: Tensor, truth: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of mask BCE and dice over M objects, each over the points of all T frames of its clip.

    Logits `chosen` [M, T, h, w], masks `truth` [M, T, H, W]; `points` [M * T, P, 2], (x, y) in 0..1.
    """
    frames = chosen.shape[1]
    sampled, truth = (
        at_points(masks.float().flatten(0, 1)[:, None], points)[:, 0].unflatten(0, (-1, frames)).flatten(1)
        for masks in (chosen, truth)
    )
    bce = F.binary_cross_entropy_with_logits(sampled, truth, reduction="none").mean(1).sum()
    return bce, dice_loss(sampled.sigmoid(), truth).sum()


def _similarity(
    clip: ClipPrediction, number: int, streams: list[Stream], held: list[Held], video: GenVisTraining
) -> Tensor:
    """The similarity loss of clip `number`: frame queries that found an object, and slots that hold it."""
    first = number * video.clip_frames
    groups = []
    for n, stream in enumerate(streams):
        frames = stream.matches[first : first + video.clip_frames]
        objects = learned(stream.clips[number].targets, held[n])
        embeddings = [clip.frame_embeddings[n, t, pairs.queries] for t, pairs in enumerate(frames)]
        ids = torch.cat([*(pairs.objects for pairs in frames), objects.nonzero()[:, 0]])
        groups.append((torch.cat([*embeddings, clip.slot_embeddings[n, held[n].slots[objects]]]), ids))
    return similarity_loss(groups)


def similarity_loss(groups: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean cross-entropy over the pairs within each group: are two embeddings, by inner product, of one object?

    A group is embeddings [M, E] with the id [M] of the object of each.
    """
    losses = []
    for embeddings, ids in groups:
        products = embeddings.float() @ embeddings.float().T
        same = (ids[:, None] == ids[None]).float()
        losses.append(F.binary_cross_entropy_with_logits(products, same, reduction="none").flatten())
    joined = torch.cat(losses)
    return joined.sum() / max(len(joined), 1)
