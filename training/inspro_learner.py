"""InsPro and InsPro-lite in the training loop: clips whose objects keep their query from frame to frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from visrt.models.inspro import InsPro, Pairs
from visrt.models.interaction import StageOutputs
from visrt.training.batches import Batch, clip_batch, validation_clips
from visrt.training.data.clips import Clip
from visrt.training.inspro_clip import TrainedPairs, Walk, first_walk, frame_maps, seen_of, walked
from visrt.training.inspro_settings import InsProTrainSettings, check_inspro_settings
from visrt.training.inspro_start import first_network
from visrt.training.losses.boxes import boxes_of_masks, pairwise_iou
from visrt.training.losses.inspro import clip_losses
from visrt.training.losses.inspro_targets import BoxTargets
from visrt.training.losses.targets import FrameTargets

__all__ = ["InsProLearner", "box_targets", "slot_quality", "stages_of_clip"]


class InsProLearner:
    """One run of either phase."""

    qualities: tuple[str, ...] = ("recall", "precision", "held")

    def __init__(self, settings: InsProTrainSettings) -> None:
        check_inspro_settings(settings)
        self.settings = settings

    def start(self) -> TrainedPairs:
        network, start = first_network(self.settings)
        trained = TrainedPairs(network, self.settings)
        trained.start_report = start.lines() if start else ()
        return trained

    def counts(self, batch: Batch) -> list[float]:
        """None: each frame's sums are divided by its own number of objects."""
        return []

    def losses(self, trained: nn.Module, batch: Batch, counts: Sequence[float]) -> dict[str, Tensor]:
        """The mean over clips; each frame's sums are divided by its own number of objects."""
        settings = self.settings
        frames = [batch.targets[i : i + batch.frames] for i in range(0, len(batch.targets), batch.frames)]
        clips = [[box_targets(one, size) for one in clip] for clip, size in zip(frames, batch.sizes, strict=True)]
        learned_from = settings.key_frames if settings.phase == "lite" else 0
        losses = [
            clip_losses(outputs, objects, settings.loss, learned_from)
            for outputs, objects in zip(trained(batch.images, batch.frames, batch.sizes), clips, strict=True)
        ]
        return {name: torch.stack([of_clip[name] for of_clip in losses]).mean() for name in losses[0]}

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(network, InsPro)
        return slot_quality(network, self.settings, validation_clips(self.settings), device)


def box_targets(frame: FrameTargets, size: tuple[int, int]) -> BoxTargets:
    """The objects of a frame whose picture has `size` (height, width), with boxes around what is visible of them."""
    height, width = seen_of(size)
    masks = frame.masks[:, :height, :width]
    return BoxTargets(frame.labels, frame.ids, boxes_of_masks(frame.masks), masks, size)


SCORE = 0.4
IOU = 0.5


def slot_quality(
    network: InsPro, settings: InsProTrainSettings, clips: Iterable[Clip], device: torch.device
) -> dict[str, float]:
    """Recall and precision of boxes in single frames, and the share of objects that are found in the slot of the frame
    before.

    A slot counts if a class score reaches 0.4; a pair is right if the class agrees and the box IoU exceeds 0.5.
    """
    found = reported = gt = held = links = 0
    network.eval()
    for clip in clips:
        batch = clip_batch([clip], network.settings.pixel_mean, network.settings.pixel_std).to(device)
        before: dict[int, int] = {}
        stages = stages_of_clip(network, batch.images, settings, batch.sizes[0])
        for last, target in zip(stages, batch.targets, strict=True):
            slots, sure = _slots_of(last, target)
            found, reported, gt = found + len(slots), reported + sure, gt + len(target.labels)
            both = slots.keys() & before.keys()
            links += len(both)
            held += sum(slots[one] == before[one] for one in both)
            before = slots
    return {"recall": found / max(gt, 1), "precision": found / max(reported, 1), "held": held / max(links, 1)}


@torch.no_grad()
def stages_of_clip(
    network: InsPro, images: Tensor, settings: InsProTrainSettings, size: tuple[int, int] | None = None
) -> list[StageOutputs]:
    """The last stage's outputs, without batch axis, for each frame of one clip `images` [T, 3, H, W].

    size: height and width of the pictures in the upper left of the images; None where they fill them.
    """
    sizes = images.new_tensor(size or images.shape[-2:])[None]
    walk, predicted = first_walk(network, 1), []
    for t in range(len(images)):
        maps = frame_maps(network(images[t : t + 1]), 0, 1)
        if settings.phase == "lite" and t >= settings.key_frames:
            last = network.lite(maps.pyramid, walk.pairs, sizes)[-1]
            walk = Walk(Pairs(walk.pairs.queries, network.next_proposals(last.boxes, sizes)), walk.past)
        else:
            last = network.stages(maps.pyramid, walk.pairs, sizes)[-1]
            walk = walked(network, walk, last, sizes)
        predicted.append(StageOutputs(*(tensor[0] for tensor in last)))
    return predicted


def _slots_of(last: StageOutputs, target: FrameTargets) -> tuple[dict[int, int], int]:
    """The slot of each object of a frame by its id, and how many slots are sure of an object."""
    scores, labels = last.class_logits.sigmoid().max(dim=-1)
    kept = (scores >= SCORE).nonzero()[:, 0]
    iou = pairwise_iou(last.boxes[kept], boxes_of_masks(target.masks))
    iou = iou * (labels[kept][:, None] == target.labels[None])
    rows, columns = linear_sum_assignment(-iou.cpu().numpy())
    pairs: Sequence[tuple[int, int]] = list(zip(rows.tolist(), columns.tolist(), strict=True))
    return {int(target.ids[c]): int(kept[r]) for r, c in pairs if iou[r, c] > IOU}, len(kept)
