"""Whether objects keep their InsPro slot, whatever threshold shows them: the best-fitting slot, frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor

from visrt.models.inspro import InsPro
from visrt.models.interaction import StageOutputs
from visrt.training.batches import clip_batch, validation_clips
from visrt.training.inspro_learner import box_targets, stages_of_clip
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.losses.boxes import pairwise_iou
from visrt.training.losses.inspro import InsProLossSettings
from visrt.training.losses.inspro_targets import BoxTargets, consistent_matches, pairwise_costs

__all__ = ["best_slots", "fitting_slots"]

IOU = 0.5


def best_slots(network: InsPro, settings: InsProTrainSettings) -> dict[str, float]:
    """Over the held-out clips: the share of objects whose best slot has their box, at an IoU above 0.5, and of those
    found so in two frames in a row the share whose slot is the same."""
    found = wanted = kept = links = 0
    network.eval()
    for clip in validation_clips(settings):
        batch = clip_batch([clip], network.settings.pixel_mean, network.settings.pixel_std)
        before: dict[int, int] = {}
        for last, target in zip(stages_of_clip(network, batch.images, settings), batch.targets, strict=True):
            now = fitting_slots(last, box_targets(target, (clip.frames.shape[1], clip.frames.shape[2])), settings.loss)
            both = now.keys() & before.keys()
            found, wanted, links = found + len(now), wanted + len(target.labels), links + len(both)
            kept += sum(now[one] == before[one] for one in both)
            before = now
    return {"found": found / max(wanted, 1), "kept": kept / max(links, 1)}


def fitting_slots(last: StageOutputs, truth: BoxTargets, settings: InsProLossSettings) -> dict[int, int]:
    """The slot of each object by its id, matched in this frame alone, if its box is the object's."""
    matches, _ = consistent_matches(pairwise_costs(last, truth, settings.costs), truth.ids, {})
    iou: Tensor = pairwise_iou(last.boxes[matches.queries].float(), truth.boxes[matches.objects]).diagonal()
    right = torch.nonzero(iou > IOU)[:, 0]
    ids, slots = truth.ids[matches.objects][right].tolist(), matches.queries[right].tolist()
    return dict(zip(ids, slots, strict=True))
