"""MinVIS and CTVIS: Mask2Former trained frame by frame, optionally with losses over clips for its embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visrt.models.checkpoints.start import start_from_init, take_known_classes
from visrt.models.mask2former import Mask2Former
from visrt.training.batches import Batch, validation_clips
from visrt.training.learner import Trained
from visrt.training.losses.mask2former import association_losses, frame_losses
from visrt.training.losses.targets import Matches
from visrt.training.quality import clip_quality
from visrt.training.settings import TrainSettings

__all__ = ["FrameLearner"]


class TrainedLayers(Trained):
    """The network as the losses want it: every layer's prediction, mask features, embeddings of the last layer."""

    network: Mask2Former

    def __init__(self, network: Mask2Former) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[list[Any], Tensor, Tensor]:
        layers, mask_features = self.network.layers(images)
        return layers, mask_features, self.network.embeddings(layers[-1].queries)


class FrameLearner:
    """One run of MinVIS or CTVIS."""

    qualities: tuple[str, ...] = ("recall", "precision", "linked")

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    def start(self) -> TrainedLayers:
        settings = self.settings
        trained = TrainedLayers(Mask2Former(settings.network))
        if settings.loss.contrast == "off" and not settings.loss.identity_weight:
            trained.freeze("sem_seg_head.predictor.reid_embed.")
        start = start_from_init(trained.network, settings.init, settings.init_takes)
        trained.start_report = start.lines() if start else ()
        if settings.init_takes == "network":
            trained.start_report += take_known_classes(trained.network, settings.init, settings.data.clips.classes)
        return trained

    def counts(self, batch: Batch) -> list[float]:
        """Target masks."""
        return [batch.mask_count]

    def losses(self, trained: nn.Module, batch: Batch, counts: Sequence[float]) -> dict[str, Tensor]:
        """Frames of all clips go through the network together."""
        settings = self.settings.loss
        layers, mask_features, embeddings = trained(batch.images)
        [mask_count] = counts
        losses, matches = frame_losses(layers, mask_features, batch.targets, settings, mask_count)
        objects = [Matches(m.queries, t.ids[m.objects]) for m, t in zip(matches, batch.targets, strict=True)]
        return losses | association_losses(embeddings.unflatten(0, (-1, batch.frames)), objects, settings)

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(network, Mask2Former)
        return clip_quality(network, validation_clips(self.settings), device)
