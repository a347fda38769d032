"""InsPro and InsPro-lite in the training loop: clips whose objects keep their query from frame to frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visrt.models.inspro import InsPro
from visrt.training.batches import Batch, validation_clips
from visrt.training.inspro_clip import TrainedPairs
from visrt.training.inspro_quality import slot_quality
from visrt.training.inspro_settings import InsProTrainSettings
from visrt.training.inspro_start import first_network
from visrt.training.losses.boxes import boxes_of_masks
from visrt.training.losses.inspro import clip_losses
from visrt.training.losses.inspro_targets import BoxTargets
from visrt.training.losses.mask2former import Mean
from visrt.training.losses.targets import FrameTargets

__all__ = ["InsProLearner", "box_targets"]


class InsProLearner:
    """One run of either phase."""

    def __init__(self, settings: InsProTrainSettings) -> None:
        self.settings = settings

    def start(self) -> TrainedPairs:
        return TrainedPairs(first_network(self.settings), self.settings)

    def losses(self, trained: nn.Module, batch: Batch, _: Mean) -> dict[str, Tensor]:
        """The mean over clips; each frame's sums are divided by its own number of objects."""
        settings = self.settings
        size = (batch.images.shape[2], batch.images.shape[3])
        targets = [box_targets(frame, size) for frame in batch.targets]
        clips = [targets[i : i + batch.frames] for i in range(0, len(targets), batch.frames)]
        learned_from = settings.key_frames if settings.phase == "lite" else 0
        losses = [
            clip_losses(outputs, objects, settings.loss, learned_from)
            for outputs, objects in zip(trained(batch.images, batch.frames), clips, strict=True)
        ]
        return {name: torch.stack([of_clip[name] for of_clip in losses]).mean() for name in losses[0]}

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(network, InsPro)
        return slot_quality(network, self.settings, validation_clips(self.settings), device)


def box_targets(frame: FrameTargets, size: tuple[int, int]) -> BoxTargets:
    """The objects of a frame that fills the network input of `size`, with boxes around what is visible of them."""
    return BoxTargets(frame.labels, frame.ids, boxes_of_masks(frame.masks), frame.masks, size)
