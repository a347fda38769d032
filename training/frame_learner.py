"""MinVIS and CTVIS: Mask2Former trained frame by frame, optionally with losses over clips for its embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visrt.models.checkpoints.mask2former import load_weights
from visrt.models.efficientnet import imagenet_weights
from visrt.models.mask2former import Mask2Former
from visrt.runtime.errors import SettingsError
from visrt.training.batches import Batch, validation_clips
from visrt.training.learner import Trained
from visrt.training.losses.mask2former import Mean, association_losses, frame_losses
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

    def __init__(self, settings: TrainSettings) -> None:
        self.settings = settings

    def start(self) -> TrainedLayers:
        settings = self.settings
        network = Mask2Former(settings.network)
        if settings.init == "imagenet":
            if settings.network.backbone.kind != "efficientnet_lite0":
                raise SettingsError(
                    f"init is 'imagenet' but the backbone is {settings.network.backbone.kind}: ImageNet weights come "
                    "with EfficientNet-Lite0 only; give the path of a checkpoint"
                )
            network.backbone.load_state_dict(imagenet_weights())
        elif settings.init:
            load_weights(network, Path(settings.init))
        return TrainedLayers(network)

    def losses(self, trained: nn.Module, batch: Batch, mean: Mean) -> dict[str, Tensor]:
        """Frames of all clips go through the network together."""
        settings = self.settings.loss
        layers, mask_features, embeddings = trained(batch.images)
        mask_count = mean(batch.mask_count)
        losses, matches = frame_losses(layers, mask_features, batch.targets, settings, mask_count)
        objects = [Matches(m.queries, t.ids[m.objects]) for m, t in zip(matches, batch.targets, strict=True)]
        return losses | association_losses(embeddings.unflatten(0, (-1, batch.frames)), objects, settings)

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(network, Mask2Former)
        return clip_quality(network, validation_clips(self.settings), device)
