"""What a user gets: one `FrameResult` a frame, with one id, one label and one score for each visible object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.masks import Rle, decode

__all__ = ["FrameResult", "TrackedObject"]


@dataclass(frozen=True)
class TrackedObject:
    """One visible object of one frame.

    id: given at birth, never reused within a stream. label: index into the bundle's classes. score: causal, 0..1.
    box: x, y, width, height in pixels of the source frame, tight around the mask. rle: COCO compressed RLE.
    """

    id: int
    label: int
    score: float
    box: tuple[int, int, int, int]
    rle: Rle

    def mask(self) -> NDArray[np.bool_]:
        """The mask [H, W] at the size of the source frame."""
        return decode(self.rle)


@dataclass(frozen=True)
class FrameResult:
    """The visible objects of frame `index` at `time_s` seconds; `size` is the source frame's (height, width)."""

    index: int
    time_s: float
    size: tuple[int, int]
    objects: tuple[TrackedObject, ...]
