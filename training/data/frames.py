"""The frames of an annotated set as training films them, made from its columns on access; which keep their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import SettingsError
from visrt.runtime.masks import Rle
from visrt.training.data.annotations import NO_TARGET
from visrt.training.data.set_columns import SetColumns

__all__ = [
    "AnnotatedFrame",
    "AnnotatedObject",
    "FrameGroups",
    "Frames",
    "LabelledSet",
    "OnAccess",
    "frames_of_videos",
    "labelled_frames",
]

T = TypeVar("T")


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


Frames = Sequence[AnnotatedFrame]


class OnAccess(Sequence[T]):
    """`length` items; item i is `make(i)`, made whenever it is read."""

    def __init__(self, length: int, make: Callable[[int], T]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._make(i) for i in range(self._length)[index]]
        return self._make(range(self._length)[index])


class LabelledSet:
    """The frames of a set by their numbers, with `labels` [categories] for the file's categories.

    NO_TARGET is the label of a category that is left out. A frame is the same object for as long as someone holds it.
    """

    def __init__(self, columns: SetColumns, labels: NDArray[np.int64], root: Path) -> None:
        self.columns, self.labels, self.root = columns, labels, root
        self._held: WeakValueDictionary[int, AnnotatedFrame] = WeakValueDictionary()

    def __reduce__(self) -> tuple[Any, ...]:
        return LabelledSet, (self.columns, self.labels, self.root)

    def frames(self, numbers: NDArray[np.int64]) -> Frames:
        return OnAccess(len(numbers), _Numbered(self, numbers))

    def frames_of_video(self, video: int) -> Frames:
        return self.frames(np.arange(self.columns.video_frame[video], self.columns.video_frame[video + 1]))

    def has_target(self) -> NDArray[np.bool_]:
        """Which [F] of the frames show an object of a class that is no crowd."""
        columns, track = self.columns, self.columns.track_of_masks()
        target = (self.labels[columns.track_category[track]] != NO_TARGET) & ~columns.track_crowd[track]
        return np.bincount(columns.frame_of_masks()[target], minlength=columns.frames) > 0

    def frame_and_track(self, mask: int) -> tuple[AnnotatedFrame, int]:
        """The frame of `mask`, and the track of its object there."""
        number = int(np.searchsorted(self.columns.frame_mask, mask, side="right")) - 1
        video = int(self.columns.video_of(np.array([number]))[0])
        return self.frame(number), int(self._places(video)[self.columns.mask_track[mask]])

    def frame(self, number: int) -> AnnotatedFrame:
        frame = self._held.get(number)
        if frame is None:
            frame = self._held[number] = self._made(number)
        return frame

    def _made(self, number: int) -> AnnotatedFrame:
        """Objects in the order of their tracks: those of a class, then those that the class map leaves out."""
        columns = self.columns
        video = int(columns.video_of(np.array([number]))[0])
        tracks = self._tracks(video)
        labels, crowd, places = (
            self.labels[columns.track_category[tracks]],
            columns.track_crowd[tracks],
            self._places(video),
        )
        height, width = columns.video_size[video].tolist()
        objects: list[AnnotatedObject] = []
        crowds: list[Rle] = []
        first, end = columns.frame_mask[number : number + 2].tolist()
        inside = columns.mask_track[first:end]
        for i in np.argsort(places[inside]).tolist():
            track = int(inside[i])
            rle: Rle = {"size": [height, width], "counts": columns.text_of_runs(first + i)}
            if crowd[track]:
                crowds.append(rle)
            else:
                objects.append(AnnotatedObject(int(labels[track]), int(places[track]), rle))
        return AnnotatedFrame(self.root / columns.name(number), height, width, tuple(objects), tuple(crowds))

    def _tracks(self, video: int) -> slice:
        return slice(int(self.columns.video_track[video]), int(self.columns.video_track[video + 1]))

    def _places(self, video: int) -> NDArray[np.int64]:
        """The number of each track of `video` in its frames: those of a class first."""
        left_out = self.labels[self.columns.track_category[self._tracks(video)]] == NO_TARGET
        places = np.empty(len(left_out), np.int64)
        places[np.argsort(left_out, kind="stable")] = np.arange(len(left_out))
        return places


@dataclass(frozen=True)
class _Numbered:
    """Frame i of a choice of frames; a function that can be sent to another process."""

    labelled: LabelledSet
    numbers: NDArray[np.int64]

    def __call__(self, i: int) -> AnnotatedFrame:
        return self.labelled.frame(int(self.numbers[i]))


def labelled_frames(length: int, fraction: float) -> list[int]:
    """The frames of a video of `length` that keep their labels (MinVIS uses 1, 5 and 10 %): evenly spaced, at least
    one; one alone is the middle."""
    if not 0 < fraction <= 1:
        raise SettingsError(f"label_fraction is {fraction}; expected more than 0 and at most 1")
    count = max(round(length * fraction), 1)
    if count == 1:
        return [length // 2]
    return [int(t) for t in np.linspace(0, length, count, endpoint=False)]


@dataclass(frozen=True, eq=False)
class FrameGroups:
    """Videos or other scenes of a set: group i has the frames [ends[i]] to [ends[i + 1]] of `frames` [n]."""

    frames: NDArray[np.int64]
    ends: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, i: int) -> NDArray[np.int64]:
        return self.frames[self.ends[i] : self.ends[i + 1]]

    def apart(self) -> FrameGroups:
        """Each frame a group of its own."""
        return FrameGroups(self.frames, np.arange(len(self.frames) + 1))

    def most(self, values: NDArray[Any]) -> NDArray[Any]:
        """For each frame [n], the highest of `values` [n] in its group."""
        return np.repeat(np.maximum.reduceat(values, self.ends[:-1]), np.diff(self.ends)) if len(values) else values

    def only(self, kept: NDArray[np.bool_]) -> FrameGroups:
        """The frames that are `kept` [n], and the groups that have one."""
        ends = np.concatenate([[0], np.cumsum(kept)])[self.ends]
        return FrameGroups(self.frames[kept], np.unique(ends))


def frames_of_videos(columns: SetColumns, videos: NDArray[np.int64], fraction: float) -> FrameGroups:
    """Of each of `videos`, the frames that keep their labels."""
    lengths = np.diff(columns.video_frame)[videos]
    kept = {length: np.array(labelled_frames(length, fraction)) for length in np.unique(lengths).tolist()}
    starts = columns.video_frame[:-1][videos]
    chosen = [start + kept[length] for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)]
    ends = np.cumsum([0, *map(len, chosen)])
    return FrameGroups(np.concatenate([np.zeros(0, np.int64), *chosen]), ends)
