"""Annotated videos frame by frame, as training films them, and the frames that keep their labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visrt.runtime.errors import SettingsError
from visrt.runtime.masks import Rle
from visrt.training.data.annotations import NO_TARGET, AnnotatedVideo

__all__ = ["AnnotatedFrame", "AnnotatedObject", "Frames", "frames_of", "labelled_frames", "subsampled"]


@dataclass(frozen=True)
class AnnotatedObject:
    """One object in one frame. label: its class, or NO_TARGET. track: the same number in every frame of its video."""

    label: int
    track: int
    rle: Rle


@dataclass(frozen=True, eq=False)
class AnnotatedFrame:
    """A picture on disk and its objects; `crowds` are regions whose members are not annotated one by one.

    Equal to itself only, which makes it a quick key of a cache.
    """

    path: Path
    height_px: int
    width_px: int
    objects: tuple[AnnotatedObject, ...]
    crowds: tuple[Rle, ...] = ()


Frames = tuple[AnnotatedFrame, ...]


def frames_of(video: AnnotatedVideo, labels: Mapping[int, int]) -> Frames:
    """The frames of `video`, `labels` in place of its own. What was left out of it is there as NO_TARGET."""
    tracks = [(labels[track.label], track) for track in video.tracks]
    tracks += [(NO_TARGET, track) for track in video.left_out]
    objects: list[list[AnnotatedObject]] = [[] for _ in video.pictures]
    crowds: list[list[Rle]] = [[] for _ in video.pictures]
    for number, (label, track) in enumerate(tracks):
        for t, rle in enumerate(track.masks):
            if rle is not None and track.crowd:
                crowds[t].append(rle)
            elif rle is not None:
                objects[t].append(AnnotatedObject(label, number, rle))
    return tuple(
        AnnotatedFrame(path, *video.size, tuple(objects[t]), tuple(crowds[t])) for t, path in enumerate(video.pictures)
    )


def labelled_frames(length: int, fraction: float) -> list[int]:
    """The frames of a video of `length` that keep their labels (MinVIS uses 1, 5 and 10 %): evenly spaced, at least
    one; one alone is the middle."""
    if not 0 < fraction <= 1:
        raise SettingsError(f"label_fraction is {fraction}; expected more than 0 and at most 1")
    count = max(round(length * fraction), 1)
    if count == 1:
        return [length // 2]
    return [int(t) for t in np.linspace(0, length, count, endpoint=False)]


def subsampled(frames: Frames, fraction: float) -> Frames:
    """The frames that keep their labels."""
    return tuple(frames[t] for t in labelled_frames(len(frames), fraction))
