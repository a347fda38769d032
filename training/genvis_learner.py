"""GenVIS: the video part, trained over the clips of a video on a frame part that stays as it is; and VITA before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from visrt.models.genvis import GenVis, Vita
from visrt.training.batches import Batch, clip_batch, validation_clips
from visrt.training.data.clips import Clip
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.genvis_start import start_from, start_vita
from visrt.training.genvis_video import TrainedVideo, TrainedVita, VideoOutputs
from visrt.training.learner import Learner
from visrt.training.losses.genvis import video_losses
from visrt.training.losses.mask2former import frame_losses
from visrt.training.quality import Followed, pairs_of, rates
from visrt.training.settings import TrainSettings

__all__ = ["GenVisLearner", "VitaLearner", "video_learner", "video_quality"]


class GenVisLearner:
    """One run of GenVIS."""

    qualities: tuple[str, ...] = ("recall", "precision", "linked")

    def __init__(self, settings: TrainSettings, video: GenVisTraining) -> None:
        self.settings = settings
        self.video = video

    def start(self) -> TrainedVideo:
        network = GenVis(self.video.network(self.settings.network))
        start = start_from(network, self.settings.init or "", self.video.new_part)
        trained = TrainedVideo(network, self.video)
        trained.start_report = start.lines()
        return trained

    def counts(self, batch: Batch) -> list[float]:
        """Objects visible in each clip of the videos, in all streams."""
        return _visible(batch, self.video)

    def losses(self, trained: nn.Module, batch: Batch, counts: Sequence[float]) -> dict[str, Tensor]:
        outputs = trained(batch.images, batch.frames)
        return video_losses(outputs, batch.targets, self.settings.loss, self.video, counts)

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(network, GenVis)
        return video_quality(TrainedVideo(network, self.video), validation_clips(self.settings), device)


class VitaLearner:
    """One run of VITA: the losses of frames and those of the clip, added."""

    qualities: tuple[str, ...] = ("recall", "precision", "linked")

    def __init__(self, settings: TrainSettings, video: GenVisTraining) -> None:
        self.settings = settings
        self.video = video

    def start(self) -> TrainedVita:
        settings = self.settings
        network = Vita(self.video.network(settings.network))
        start = start_vita(network, settings.init, settings.init_takes, self.video.new_part)
        trained = TrainedVita(network, self.video)
        trained.start_report = start.lines() if start else ()
        return trained

    def counts(self, batch: Batch) -> list[float]:
        """Target masks of frames, then objects visible in the clips, in all streams."""
        return [batch.mask_count, *_visible(batch, self.video)]

    def losses(self, trained: nn.Module, batch: Batch, counts: Sequence[float]) -> dict[str, Tensor]:
        settings, (count, *of_clips) = self.settings.loss, counts
        outputs = trained(batch.images, batch.frames)
        masks = outputs.video.frame_mask_features
        frames, _ = frame_losses(outputs.frame_layers, masks, batch.targets, settings, count)
        clip = video_losses(outputs.video, batch.targets, settings, self.video, of_clips)
        return clip | {f"frame_{name}": loss for name, loss in frames.items()}

    def quality(self, network: nn.Module, device: torch.device) -> dict[str, float]:
        assert isinstance(network, Vita)
        whole = replace(self.video, clip_frames=self.settings.data.validation_frames)
        return video_quality(TrainedVita(network, whole), validation_clips(self.settings), device)


def _visible(batch: Batch, video: GenVisTraining) -> list[float]:
    """The objects visible in each clip of the videos of `batch`, over all streams."""
    ids = [frame.ids for frame in batch.targets]
    videos = [ids[first : first + batch.frames] for first in range(0, len(ids), batch.frames)]
    starts = range(0, batch.frames, video.clip_frames)
    clips = [[torch.cat(one[start : start + video.clip_frames]) for one in videos] for start in starts]
    return [video.streams * sum(len(visible.unique()) for visible in clip) for clip in clips]


LEARNERS: dict[str, Callable[[TrainSettings, GenVisTraining], Learner]] = {
    "genvis": GenVisLearner,
    "vita": VitaLearner,
}


def video_learner(settings: TrainSettings, video: GenVisTraining) -> Learner:
    """The learner of the stage that `video` names."""
    return LEARNERS[video.stage](settings, video)


def video_quality(trained: TrainedVideo | TrainedVita, clips: Iterable[Clip], device: torch.device) -> dict[str, float]:
    """As `quality.clip_quality`, but that nothing is linked: an object should be in one slot in all frames."""
    trained.eval()
    return rates(_followed(trained, clip, device) for clip in clips)


@torch.no_grad()
def _followed(trained: TrainedVideo | TrainedVita, clip: Clip, device: torch.device) -> Followed:
    frame = trained.network.settings.frame
    batch = clip_batch([clip], frame.pixel_mean, frame.pixel_std).to(device)
    predicted = trained(batch.images, batch.frames)
    outputs = predicted if isinstance(predicted, VideoOutputs) else predicted.video
    pairs = []
    for t, features in enumerate(outputs.mask_features[0]):
        said = outputs.clips[t // trained.settings.clip_frames]
        # The last stream is that of the last frame layer, the only one at test.
        logits, embeddings = said.class_logits[-1][-1], said.mask_embeddings[-1][-1]
        pairs.append(pairs_of(logits, embeddings, features, clip, t, batch.images.shape[2:]))
    slots = {slot: slot for slot in range(trained.network.settings.instances)}
    return Followed(pairs, [slots] * (len(pairs) - 1))
