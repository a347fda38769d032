"""Pictures in memory: decoded once, with their objects as one map of ids and with half-size copies for shrinking."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, decode_region
from visrt.training.data.frames import AnnotatedFrame
from visrt.training.data.segmentations import area_px, box_px

__all__ = ["MAX_OBJECTS", "ByteCache", "Picture", "halvings", "read_picture", "read_rgb"]

Image = NDArray[np.uint8]
MAX_OBJECTS = 150
"""Objects of one picture that get an id; beyond that the smallest are left out."""


@dataclass(frozen=True)
class Picture:
    """levels: uint8 RGB [h, w, 3], each half the size of the one before. ids: uint8 [h, w], 0 where no object is, else
    k + 1 for `labels[k]`; where masks overlap the smaller object lies in front. hidden: like `ids`, what lies one
    object further behind, two, ... tracks: as annotated.
    """

    levels: tuple[Image, ...]
    ids: Image
    labels: tuple[int, ...]
    tracks: tuple[int, ...]
    hidden: tuple[Image, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of `ids` and of the largest level."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(image.nbytes for image in (*self.levels, self.ids, *self.hidden))


def read_rgb(path: Path) -> Image:
    """uint8 RGB [h, w, 3] as stored: annotations refer to the pixels before any EXIF rotation."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DataError(f"{path}: cannot be decoded; expected a JPEG or PNG picture")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def read_picture(frame: AnnotatedFrame, size: tuple[int, int]) -> Picture:
    """`frame` decoded, shrunk to `size` (height, width) if that is smaller."""
    image = read_rgb(frame.path)
    if image.shape[:2] != (frame.height_px, frame.width_px):
        sizes = f"{image.shape[0]} x {image.shape[1]}; its annotation says {frame.height_px} x {frame.width_px}"
        raise DataError(f"{frame.path}: is {sizes} (height x width)")
    objects = sorted(frame.objects, key=lambda o: area_px(o.rle), reverse=True)[:MAX_OBJECTS]
    ids, *hidden = _painted([o.rle for o in objects], (frame.height_px, frame.width_px))
    if size != image.shape[:2]:
        image = np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA))
        ids, *hidden = (cv2.resize(one, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) for one in (ids, *hidden))
    labels, tracks = tuple(o.label for o in objects), tuple(o.track for o in objects)
    return Picture(halvings(image), ids, labels, tracks, tuple(hidden))


def _painted(masks: Sequence[Rle], size: tuple[int, int]) -> list[Image]:
    """Maps uint8 [h, w] of k + 1 where mask k is, one over the other: the front, what lies behind it, ..."""
    maps = [np.zeros(size, np.uint8)]
    for k, rle in enumerate(masks):
        x, y, w, h = box_px(rle)
        inside = decode_region(rle, (x, y, w, h)) > 0
        pushed = np.full(int(inside.sum()), k + 1, np.uint8)
        for one in maps:
            region = one[y : y + h, x : x + w]
            behind = region[inside]
            region[inside] = pushed
            pushed = behind
            if not pushed.any():
                break
        else:
            maps.append(np.zeros(size, np.uint8))
            maps[-1][y : y + h, x : x + w][inside] = pushed
    return maps


def halvings(image: Image, smallest_px: int = 24) -> tuple[Image, ...]:
    """`image` and its half-size copies down to `smallest_px`: warping down from the next larger one does not alias."""
    levels = [image]
    while min(levels[-1].shape[:2]) >= 2 * smallest_px:
        h, w = levels[-1].shape[:2]
        levels.append(np.asarray(cv2.resize(levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA)))
    return tuple(levels)


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByteCache(Generic[K, V]):
    """The values last used, up to `limit_bytes` in all; `make` builds a missing one, `weigh` tells its bytes."""

    def __init__(self, make: Callable[[K], V], weigh: Callable[[V], int], limit_bytes: int) -> None:
        self._make, self._weigh, self._limit = make, weigh, limit_bytes
        self._values: OrderedDict[K, V] = OrderedDict()
        self._bytes = 0

    def __getitem__(self, key: K) -> V:
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._make(key)
        self._values[key] = value
        self._bytes += self._weigh(value)
        while self._bytes > self._limit and len(self._values) > 1:
            self._bytes -= self._weigh(self._values.popitem(last=False)[1])
        return value
