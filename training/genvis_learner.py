"""GenVIS: the video part, trained over the clips of a video on a frame part that stays as it is."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from visrt.models.genvis import GenVis
from visrt.training.batches import Batch, validation_clips
from visrt.training.genvis_quality import video_quality
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.genvis_start import start_from
from visrt.training.genvis_video import TrainedVideo
from visrt.training.losses.genvis import video_losses
from visrt.training.losses.mask2former import Mean
from visrt.training.settings import TrainSettings

__all__ = ["GenVisLearner"]


class GenVisLearner:
    """One run of GenVIS."""

    def __init__(self, settings: TrainSettings, video: GenVisTraining) -> None:
        self.settings = settings
        self.video = video

    def start(self) -> TrainedVideo:
        network = GenVis(self.video.network(self.settings.network))
        start_from(network, Path(self.settings.init or ""), self.video.new_part)
        return TrainedVideo(network, self.video)

    def losses(self, trained: nn.Module, batch: Batch, mean: Mean) -> dict[str, Tensor]:
        outputs = trained(batch.images, batch.frames)
        return video_losses(outputs, batch.targets, self.settings.loss, self.video, mean)

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(network, GenVis)
        return video_quality(TrainedVideo(network, self.video), validation_clips(self.settings), device)
