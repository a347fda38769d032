"""A quick measure of GenVIS on held-out clips, to watch a run: does each object stay in its slot?"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from visrt.training.batches import clip_batch
from visrt.training.data.clips import Clip
from visrt.training.genvis_video import TrainedVideo
from visrt.training.quality import Followed, pairs_of, rates

__all__ = ["video_quality"]


def video_quality(trained: TrainedVideo, clips: Iterable[Clip], device: torch.device) -> dict[str, float]:
    """As `quality.clip_quality`, but that nothing is linked: an object should be in one slot in all frames."""
    trained.eval()
    return rates(_followed(trained, clip, device) for clip in clips)


@torch.no_grad()
def _followed(trained: TrainedVideo, clip: Clip, device: torch.device) -> Followed:
    frame = trained.network.settings.frame
    batch = clip_batch([clip], frame.pixel_mean, frame.pixel_std).to(device)
    outputs = trained(batch.images, batch.frames)
    pairs = []
    for t, features in enumerate(outputs.mask_features[0]):
        said = outputs.clips[t // trained.settings.clip_frames]
        # The last stream is that of the last frame layer, the only one at test.
        pairs.append(pairs_of(said.class_logits[-1][-1], said.mask_embeddings[-1][-1], features, clip, t))
    slots = {slot: slot for slot in range(trained.network.settings.instances)}
    return Followed(pairs, [slots] * (len(pairs) - 1))
