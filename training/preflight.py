"""What a run needs, looked at before its first step, and the lines that say what it will do."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from visrt.runtime.errors import DataError, OutputError, SettingsError
from visrt.training.batches import Batch, clip_batch, material_of, validation_clips
from visrt.training.data.clips import ClipDataset, ClipSettings, JitterView
from visrt.training.data.picture_size import refuse_pictures, size_fault, size_of
from visrt.training.data.sources import NoSceneError, annotated_pictures
from visrt.training.data.views import short_side_size
from visrt.training.learner import Learner
from visrt.training.run_settings import RunSettings

__all__ = [
    "activation_bytes",
    "check_disk",
    "check_pictures",
    "check_validation",
    "data_lines",
    "first_batch",
    "largest_frame",
]

WIDE = (900, 1600)
"""A picture of 16 to 9, as most videos are."""


LOOKED_AT = 20_000
"""Pictures whose heads are read before a run; of larger sets that would take minutes."""


def check_pictures(settings: RunSettings) -> None:
    """Look at the head of each annotated picture: one that is none, or of another size, would end the run later.

    Raises DataError that names them.
    """
    faults = []
    pictures = annotated_pictures(settings.data.sources, material_of(settings))
    for path, annotated in islice(pictures, LOOKED_AT):
        try:
            fault = size_fault(path, size_of(path), annotated)
        except DataError as error:
            fault = str(error)
        if fault:
            faults.append(fault)
    refuse_pictures(faults)


def check_validation(settings: RunSettings, learner: Learner) -> bool:
    """Make the held-out clips, which reads their pictures; whether there are any. Raises SettingsError, DataError.

    A run may do without, unless it is to end by their quality.
    """
    stop = settings.optim.stop
    if stop is not None and not settings.data.validation_clips:
        raise SettingsError("optim.stop needs held-out clips, but data.validation_clips is 0; give some, 12 by default")
    if stop is not None and stop.quality not in learner.qualities:
        raise SettingsError(
            f"optim.stop.quality is {stop.quality!r}, which this network is not measured by; known are "
            f"{', '.join(learner.qualities)}"
        )
    if not settings.data.validation_clips:
        return False
    try:
        validation_clips(settings)
    except NoSceneError as error:
        if stop is not None:
            raise SettingsError(f"optim.stop needs held-out clips, but {error}") from None
        return False
    return True


def check_disk(network: nn.Module, settings: RunSettings, folder: Path) -> int:
    """Bytes that the run writes. Raises OutputError if the disk of `folder` has less left.

    A state is weights and two moments of those in training; while one is written, the one before is there.
    """
    weights, trained = size_bytes(network.state_dict().values()), trained_bytes(network)
    state = weights * (2 if settings.optim.ema_decay else 1) + 2 * trained
    needed = 2 * state + weights * (2 if settings.optim.stop else 1)
    above = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise OutputError(
            f"{above}: {free / 2**30:.1f} GiB are free, but a run of this network writes {needed / 2**30:.1f} GiB "
            "(state and weights, twice while saving); free some, or give another --out"
        )
    return needed


def size_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def trained_bytes(network: nn.Module) -> int:
    return size_bytes([parameter for parameter in network.parameters() if parameter.requires_grad])


def data_lines(clips: ClipDataset, settings: RunSettings) -> list[str]:
    """The photos, videos and objects of the annotated sets, held-out ones among them, and what was left out."""
    photos = videos = 0
    objects: Counter[str] = Counter()
    for mapped in material_of(settings).sets.values():
        columns = mapped.columns
        lengths = np.diff(columns.video_frame)
        photos, videos = photos + int((lengths == 1).sum()), videos + int((lengths > 1).sum())
        counts = np.bincount(columns.track_category, minlength=len(columns.categories))
        for label, count in zip(mapped.labels, counts.tolist(), strict=True):
            if label is not None:
                objects[mapped.classes[label]] += count
    named = ", ".join(f"{name} {count}" for name, count in objects.items() if count)
    absent = [name for name in clips.classes if not objects[name]]
    without = f"; none of {len(absent)} of {len(clips.classes)} classes: {', '.join(absent)}" if absent else ""
    return [f"data: {photos} photos, {videos} videos; objects: {named or 'none'}{without}", *clips.pool.remarks]


def largest_frame(clips: ClipSettings) -> tuple[int, int]:
    """Height and width in pixels of the largest frames of a run; of a short-side view those of a picture of 16 to 9."""
    view = clips.view
    if view is None:
        return clips.height_px, clips.width_px
    if isinstance(view, JitterView):
        return view.side_px, view.side_px
    height, width = short_side_size(WIDE, max(view.short_sides_px), view.longest_px)
    return int(height), int(width)


def first_batch(clips: ClipDataset, settings: RunSettings) -> Batch:
    """The first clip of the run, which reads its pictures."""
    return clip_batch([clips[0]], settings.network.pixel_mean, settings.network.pixel_std)


def activation_bytes(learner: Learner, trained: nn.Module, batch: Batch) -> int:
    """What a forward pass of `batch` keeps for the backward pass; buffers and random numbers stay as they were."""
    kept: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*trained.parameters(), *trained.buffers())}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    buffers = [(buffer, buffer.clone()) for buffer in trained.buffers()]
    devices = [batch.images.device] if batch.images.is_cuda else []
    with torch.random.fork_rng(devices), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        losses = learner.losses(trained, batch, [max(number, 1.0) for number in learner.counts(batch)])
    del losses
    for buffer, before in buffers:
        buffer.copy_(before)
    return sum(kept.values())
