"""VidEoMT's online stage in the training loop: clips whose queries travel from frame to frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from visrt.models.checkpoints.eomt_start import start_vit
from visrt.models.checkpoints.start import take_known_classes
from visrt.models.decoder import mask_logits
from visrt.models.mask2former import FrameOutputs
from visrt.models.videomt import VideoMt
from visrt.training.batches import Batch, clip_batch, validation_clips
from visrt.training.data.clips import Clip
from visrt.training.learner import Trained
from visrt.training.losses.videomt import online_losses
from visrt.training.quality import Followed, pairs_of, rates
from visrt.training.vit.videomt_settings import VideoMtTrainSettings, check_videomt_settings

__all__ = ["TrainedVideoMt", "VideoMtLearner"]

UPDATER = "query_updater."


class TrainedVideoMt(Trained):
    """The predictions of each frame of clips: before the blocks with queries but the last, and after it."""

    network: VideoMt

    def __init__(self, network: VideoMt) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, frames: int) -> list[list[FrameOutputs]]:
        """[frame][level], of all clips; `images` [B * frames, 3, H, W], clip by clip. The encoder takes all at once."""
        grid = self.network.grid(*images.shape[2:])
        clips = self.network.encoder(images, grid).unflatten(0, (-1, frames))
        queries, predictions = self.network.first_queries(clips.shape[0]), []
        for tokens in clips.unbind(1):
            levels, queries = self.network.supervised(tokens, queries, grid)
            predictions.append(levels)
        return predictions


class VideoMtLearner:
    """One run of the online stage."""

    qualities: tuple[str, ...] = ("recall", "precision", "linked")

    def __init__(self, settings: VideoMtTrainSettings) -> None:
        check_videomt_settings(settings)
        self.settings = settings

    def start(self) -> TrainedVideoMt:
        settings = self.settings
        trained = TrainedVideoMt(VideoMt(settings.network))
        start = start_vit(trained.network, settings.init, settings.init_takes)
        trained.start_report = start.lines() if start else ()
        if settings.init_takes == "network":
            trained.start_report += take_known_classes(trained.network, settings.init, settings.data.clips.classes)
        is_new = start is None or any(key.startswith(UPDATER) for key in start.new)
        if is_new and settings.first_updater == "nothing":
            nn.init.zeros_(trained.network.query_updater.weight)
            nn.init.zeros_(trained.network.query_updater.bias)
        return trained

    def counts(self, batch: Batch) -> list[float]:
        """Masks of all objects of the clips in all their frames, empty ones too."""
        ids = [frame.ids for frame in batch.targets]
        clips = [torch.cat(ids[i : i + batch.frames]).unique() for i in range(0, len(ids), batch.frames)]
        return [float(sum(len(objects) for objects in clips) * batch.frames)]

    def losses(self, trained: nn.Module, batch: Batch, counts: Sequence[float]) -> dict[str, Tensor]:
        [mask_count] = counts
        settings = self.settings
        predictions = trained(batch.images, batch.frames)
        return online_losses(predictions, batch.targets, settings.loss, settings.absent_labels, mask_count)

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        """As `quality.clip_quality`, but that nothing is linked: an object should be in one slot in all frames, and a
        slot without a pixel reports nothing.
        """
        assert isinstance(network, VideoMt)
        network.eval()
        return rates(_followed(network, clip, device) for clip in validation_clips(self.settings))


@torch.no_grad()
def _followed(network: VideoMt, clip: Clip, device: torch.device) -> Followed:
    settings, pairs = network.settings, []
    images = clip_batch([clip], settings.pixel_mean, settings.pixel_std).images.to(device)
    for t, outputs in enumerate(network(images)):
        logits, features = outputs.frame.class_logits[0], outputs.frame.mask_features[0]
        masks = mask_logits(outputs.frame.mask_embeddings, outputs.frame.mask_features)[0]
        seen = (masks > 0).flatten(1).any(1)
        visible = torch.cat((logits[:, :-1].masked_fill(~seen[:, None], -torch.inf), logits[:, -1:]), dim=1)
        pairs.append(pairs_of(visible, outputs.frame.mask_embeddings[0], features, clip, t, images.shape[2:]))
    slots = {slot: slot for slot in range(settings.queries)}
    return Followed(pairs, [slots] * (len(pairs) - 1))
