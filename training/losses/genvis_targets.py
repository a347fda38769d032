"""Which slot learns which object in each clip of a video (GenVIS, Heo et al., CVPR 2023).

Unified video label assignment (section 3.2): an object keeps its slot over the clips. The published code is less strict
than the paper: a slot whose object is away in a clip may be given to a newcomer. The paper's own rule and the ablations
of its table 4 have names too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from visrt.models.layers import in_float32
from visrt.training.losses.points import at_points
from visrt.training.losses.targets import FrameTargets, MatchSettings, pairwise_bce, pairwise_dice

__all__ = [
    "ASSIGNMENTS",
    "ClipTargets",
    "Held",
    "assigned_by_correspondence",
    "assigned_each_clip",
    "assigned_strict",
    "assigned_unified",
    "at_points_of_frames",
    "clip_cost",
    "nothing_held",
    "video_targets",
]

FORBIDDEN = 1e6
"""Cost of a pair that must not be."""


@dataclass(frozen=True)
class ClipTargets:
    """All N objects of a video, in one order for all its clips, as they are in a clip of T frames.

    labels int64 [N]; masks float [N, T, H, W] (0 or 1); visible bool [N]: in any frame of the clip.
    """

    labels: Tensor
    masks: Tensor
    visible: Tensor


@dataclass(frozen=True)
class Held:
    """The slot of each object, int64 [N], and whether it has one since a clip in which it was seen, bool [N].

    The slots of objects that have none yet mean nothing.
    """

    slots: Tensor
    seen: Tensor


def video_targets(frames: Sequence[FrameTargets], clip_frames: int) -> list[ClipTargets]:
    """The objects of a video's `frames`, ids 0 to N - 1, in each of its clips of `clip_frames` frames."""
    count = max((int(frame.ids.max()) + 1 for frame in frames if len(frame.ids)), default=0)
    device = frames[0].labels.device
    labels = torch.zeros(count, dtype=torch.int64, device=device)
    masks = torch.zeros(count, len(frames), *frames[0].masks.shape[1:], device=device)
    for t, frame in enumerate(frames):
        labels[frame.ids] = frame.labels
        masks[frame.ids, t] = frame.masks
    return [ClipTargets(labels, clip, clip.flatten(1).any(1)) for clip in masks.split(clip_frames, dim=1)]


def nothing_held(objects: int, device: torch.device | None = None) -> Held:
    """Before the first clip."""
    slots = torch.zeros(objects, dtype=torch.int64, device=device)
    return Held(slots, torch.zeros(objects, dtype=torch.bool, device=device))


@torch.no_grad()
@in_float32
def clip_cost(class_logits: Tensor, sampled: Tensor, labels: Tensor, truth: Tensor, settings: MatchSettings) -> Tensor:
    """Cost [S, N] of every pair of a slot, with `class_logits` [S, K + 1], and an object of `labels` [N].

    At the same points of the frames of a clip: mask logits of slots `sampled` [S, P], masks of objects `truth` [N, P].
    """
    return (
        settings.class_cost * -class_logits.float().softmax(-1)[:, labels]
        + settings.mask_cost * pairwise_bce(sampled, truth)
        + settings.dice_cost * pairwise_dice(sampled, truth)
    )


def at_points_of_frames(maps: Tensor, points: Tensor) -> Tensor:
    """Values [M, T * P] of `maps` [M, T, h, w] at `points` [1, P, 2], (x, y) in 0..1, of every frame."""
    return at_points(maps.transpose(0, 1), points.expand(maps.shape[1], -1, -1)).transpose(0, 1).flatten(1)


def assigned_unified(cost: Tensor, visible: Tensor, held: Held) -> Held:
    """The slots held after a clip in which objects `visible` [N] are seen: newcomers take slots, the others keep
    theirs.

    `cost` [S, N]. Slots whose objects were seen before and are visible now are not given away.
    """
    return _with_newcomers(cost, visible, held, occupied=held.seen & visible)


def assigned_strict(cost: Tensor, visible: Tensor, held: Held) -> Held:
    """As `assigned_unified`, but a slot is never given away, even while its object is away (the paper's alpha)."""
    return _with_newcomers(cost, visible, held, occupied=held.seen)


def assigned_by_correspondence(cost: Tensor, visible: Tensor, held: Held) -> Held:
    """The paper's "correspondence learning" (table 4): the first clip is matched, and the others take over its pairs.

    This project's reading, after EfficientVIS, to which the term goes back: what the first clip with an object does not
    show gets no slot, so a newcomer is not learned.
    """
    return held if bool(held.seen.any()) else assigned_unified(cost, visible, held)


def assigned_each_clip(cost: Tensor, visible: Tensor, held: Held) -> Held:
    """Each clip is matched by itself, whatever was held before: nothing is learned about identity."""
    alone = assigned_unified(cost, visible, nothing_held(len(visible), cost.device))
    return replace(alone, seen=held.seen | visible)


ASSIGNMENTS: Mapping[str, Callable[[Tensor, Tensor, Held], Held]] = MappingProxyType(
    {
        "unified": assigned_unified,
        "strict": assigned_strict,
        "correspondence": assigned_by_correspondence,
        "each_clip": assigned_each_clip,
    }
)
"""By name, what is held after a clip, from the cost [S, N], the objects visible in it, and what was held before."""


def _with_newcomers(cost: Tensor, visible: Tensor, held: Held, occupied: Tensor) -> Held:
    """`occupied` [N]: objects whose slots no newcomer may take."""
    new = visible & ~held.seen
    cost = torch.nan_to_num(cost.clone(), nan=FORBIDDEN, posinf=FORBIDDEN, neginf=-FORBIDDEN)
    cost[:, ~new] = FORBIDDEN
    cost[held.slots[occupied]] = FORBIDDEN
    matched = _matched(cost)
    first = not bool(held.seen.any())
    slots = matched if first else torch.where(new, matched, held.slots)
    return Held(slots, held.seen | visible)


def _matched(cost: Tensor) -> Tensor:
    """The slot [N] of each object in the cheapest one-to-one assignment; there are at least as many slots."""
    rows, columns = linear_sum_assignment(cost.cpu().numpy())
    slots = torch.zeros(cost.shape[1], dtype=torch.int64)
    slots[torch.as_tensor(columns)] = torch.as_tensor(rows)
    return slots.to(cost.device)
