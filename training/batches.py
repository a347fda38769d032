"""Clips to tensors: what one training step consumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from visrt.runtime.errors import SettingsError
from visrt.training.data.clips import Clip, ClipDataset
from visrt.training.losses.targets import FrameTargets
from visrt.training.run_settings import RunSettings
from visrt.training.settings import DataSettings

__all__ = ["Batch", "clip_batch", "clip_loader", "training_clips", "validation_clips"]


SIZE_DIVISOR = 32
"""Sides of a batch are multiples of this, as every backbone's coarsest level asks for."""


@dataclass(frozen=True)
class Batch:
    """Clips of `frames` frames each, flattened: images [B * T, 3, H, W] (normalised RGB) and B * T frame targets.

    sizes: height and width of each clip's frames, in the upper left of the images; beyond are zeros and no objects.
    """

    images: Tensor
    targets: list[FrameTargets]
    frames: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def mask_count(self) -> int:
        return sum(len(target.labels) for target in self.targets)

    def to(self, device: torch.device) -> Batch:
        targets = [FrameTargets(*(t.to(device) for t in (f.labels, f.masks, f.ids))) for f in self.targets]
        return replace(self, images=self.images.to(device), targets=targets)


def clip_batch(clips: Sequence[Clip], mean: Sequence[float], std: Sequence[float]) -> Batch:
    """A batch of clips of one length, normalised by `mean` and `std` (RGB, 0..255 units).

    As released, smaller clips are padded right and below with zeros after normalising.
    """
    sizes = tuple((clip.frames.shape[1], clip.frames.shape[2]) for clip in clips)
    height, width = (-(-max(sides) // SIZE_DIVISOR) * SIZE_DIVISOR for sides in zip(*sizes, strict=True))
    length = len(clips[0].frames)
    images = torch.zeros(len(clips) * length, 3, height, width).contiguous(memory_format=torch.channels_last)
    offset, scale = torch.tensor(mean).view(3, 1, 1), torch.tensor(std).view(3, 1, 1)
    for clip, (h, w), padded in zip(clips, sizes, images.split(length), strict=True):
        padded[..., :h, :w] = (torch.from_numpy(clip.frames).permute(0, 3, 1, 2).float() - offset) / scale
    targets = [_frame_targets(clip, t, (height, width)) for clip in clips for t in range(length)]
    return Batch(images, targets, length, sizes)


def _frame_targets(clip: Clip, t: int, size: tuple[int, int]) -> FrameTargets:
    """The objects visible in frame `t`, in an image of `size`; their ids are their places in the clip."""
    masks = torch.from_numpy(clip.masks[:, t])
    ids = masks.flatten(1).any(1).nonzero()[:, 0]
    below, right = size[0] - masks.shape[1], size[1] - masks.shape[2]
    return FrameTargets(torch.from_numpy(clip.labels)[ids], F.pad(masks[ids].float(), (0, right, 0, below)), ids)


def training_clips(settings: RunSettings, processes: int) -> ClipDataset:
    """All clips of a run. Raises SettingsError if the data has another number of classes than the network."""
    length = settings.optim.steps * settings.optim.batch * processes
    dataset = ClipDataset(settings.data.sources, settings.data.clips, length, settings.seed)
    if len(dataset.classes) != settings.network.classes:
        raise SettingsError(
            f"network.classes is {settings.network.classes}, the data has {len(dataset.classes)}: "
            f"{', '.join(dataset.classes)}; make them agree"
        )
    return dataset


def clip_loader(
    dataset: ClipDataset, settings: RunSettings, done_steps: int, process: int, processes: int
) -> DataLoader[Any]:
    """The batches from step `done_steps` on for one of `processes`; clip i is the same in every run of this seed."""
    batch, steps = settings.optim.batch, settings.optim.steps
    indices = [(step * processes + process) * batch + i for step in range(done_steps, steps) for i in range(batch)]
    network = settings.network
    return DataLoader(
        Subset[Clip](dataset, indices),  # type: ignore[arg-type]  # a map-style data set by its methods
        batch_size=batch,
        num_workers=settings.data.workers,
        collate_fn=partial(clip_batch, mean=network.pixel_mean, std=network.pixel_std),
        worker_init_fn=_one_thread,
        # A forked worker inherits OpenCV's thread pool without its threads and waits for them for ever.
        multiprocessing_context="spawn" if settings.data.workers else None,
        prefetch_factor=4 if settings.data.workers else None,
        # Without one of its own it draws from the generator of the loss points, and a resumed run would draw once more.
        generator=torch.Generator(),
    )


def validation_clips(settings: RunSettings) -> list[Clip]:
    """The same held-out clips at every call."""
    return _held_out_clips(settings.data, settings.seed)


@cache
def _held_out_clips(data: DataSettings, seed: int) -> list[Clip]:
    chosen = replace(data.clips, part="held_out", frames=data.validation_frames)
    dataset = ClipDataset(data.sources, chosen, data.validation_clips, seed + 1)
    return [dataset[i] for i in range(len(dataset))]


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
