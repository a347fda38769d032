"""Clips to tensors: what one training step consumes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from visrt.runtime.errors import SettingsError
from visrt.training.data.clips import Clip, ClipDataset
from visrt.training.data.sources import Material, load_material
from visrt.training.losses.targets import FrameTargets
from visrt.training.run_settings import RunSettings

__all__ = [
    "Batch",
    "batches_a_step",
    "clip_batch",
    "clip_loader",
    "material_of",
    "refuse_boxes",
    "training_clips",
    "validation_clips",
]


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


def training_clips(settings: RunSettings) -> ClipDataset:
    """All clips of a run. Raises SettingsError if the data has another number of classes than the network, or boxes for
    a network that learns masks."""
    length = settings.optim.steps * settings.optim.batch
    material = material_of(settings)
    dataset = ClipDataset(settings.data.sources, settings.data.clips, length, settings.seed, material)
    if len(dataset.classes) != settings.network.classes:
        raise SettingsError(
            f"network.classes is {settings.network.classes}, the data has {len(dataset.classes)}: "
            f"{', '.join(dataset.classes)}; make them agree"
        )
    if settings.learns_masks:
        refuse_boxes(material)
    return dataset


def refuse_boxes(material: Material) -> None:
    """Raises SettingsError if some of `material` has boxes and no masks."""
    for mapped in material.sets.values():
        if mapped.columns.boxes_only:
            raise SettingsError(
                f"{mapped.path}: has boxes and no masks, which the network would learn as rectangles; give annotations "
                'with masks, or train a network of boxes (InsPro with network.outputs "boxes")'
            )


def clip_loader(
    dataset: ClipDataset, settings: RunSettings, done_steps: int, process: int = 0, processes: int = 1
) -> DataLoader[Any]:
    """The batches of one of `processes` from step `done_steps` on, `batches_a_step` of them for each step.

    Clip i of a step is the same in every run of this seed, whatever the number of processes and of clips at once.
    """
    total = settings.optim.batch
    own = total // processes
    at_once = settings.optim.clips_at_once or own
    firsts = [step * total + process * own for step in range(done_steps, settings.optim.steps)]
    batches = [
        list(range(first + start, first + min(start + at_once, own)))
        for first in firsts
        for start in range(0, own, at_once)
    ]
    network = settings.network
    # More workers than cores only take memory; torch warns of them.
    workers = min(settings.data.workers, os.cpu_count() or 1)
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # a map-style data set by its methods
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=partial(clip_batch, mean=network.pixel_mean, std=network.pixel_std),
        worker_init_fn=_one_thread,
        # A forked worker inherits OpenCV's thread pool without its threads and waits for them for ever.
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=4 if workers else None,
        # Without one of its own it draws from the generator of the loss points, and a resumed run would draw once more.
        generator=torch.Generator(),
    )


def batches_a_step(settings: RunSettings, processes: int) -> int:
    """How many batches of at most `clips_at_once` clips a process goes through in a step.

    Raises SettingsError if processes cannot share the clips of a step equally.
    """
    batch = settings.optim.batch
    if batch % processes:
        fitting = ", ".join(str(count) for count in range(1, batch + 1) if batch % count == 0)
        raise SettingsError(
            f"optim.batch is {batch} clips a step, which {processes} processes cannot share equally; start {fitting} "
            f"processes, or give a batch that {processes} divides"
        )
    own = batch // processes
    return -(-own // (settings.optim.clips_at_once or own))


def validation_clips(settings: RunSettings) -> list[Clip]:
    """The same held-out clips at every call, of what training has read."""
    data = settings.data
    key = json.dumps([asdict(data), settings.seed])
    if key not in HELD_OUT:
        chosen = replace(data.clips, part="held_out", frames=data.validation_frames)
        clips = ClipDataset(data.sources, chosen, data.validation_clips, settings.seed + 1, material_of(settings))
        HELD_OUT[key] = [clips[i] for i in range(len(clips))]
    return HELD_OUT[key]


HELD_OUT: dict[str, list[Clip]] = {}
"""Validation clips by their settings as json, which unlike the settings can be compared by value throughout."""
MATERIAL: WeakValueDictionary[str, Material] = WeakValueDictionary()
"""What a run of this process has read, by the sources as json, for as long as the run holds it."""


def material_of(settings: RunSettings) -> Material:
    sources = settings.data.sources
    key = json.dumps([asdict(source) for source in sources])
    material = MATERIAL.get(key)
    if material is None:
        material = MATERIAL[key] = load_material(sources)
    return material


def _one_thread(worker: int) -> None:
    import cv2

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
