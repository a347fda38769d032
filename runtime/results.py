"""The results for the user: a `FrameResult` per frame, with one id, one label and one score for each visible object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import UsageError
from visrt.runtime.masks import Rle, decode

__all__ = ["FrameResult", "MakeResult", "SessionEvents", "TrackedObject"]


@dataclass(frozen=True)
class TrackedObject:
    """One visible object of one frame.

    id: given at birth, never reused within a stream. label: index into the bundle's classes. score: causal, 0..1.
    box: x, y, width, height in pixels of the source frame, tight around the mask. rle: COCO compressed RLE, None from a
    bundle whose network gives boxes alone.
    """

    id: int
    label: int
    score: float
    box: tuple[int, int, int, int]
    rle: Rle | None

    def mask(self) -> NDArray[np.bool_]:
        """The mask [H, W] at the size of the source frame. Raises UsageError where there are boxes alone."""
        if self.rle is None:
            raise UsageError("an object has no mask: this bundle's network gives boxes alone; use the object's box")
        return decode(self.rle)


@dataclass(frozen=True)
class FrameResult:
    """The visible objects of frame `index` at `time_s` seconds; `size` is the source frame's (height, width)."""

    index: int
    time_s: float
    size: tuple[int, int]
    objects: tuple[TrackedObject, ...]


MakeResult = Callable[[], FrameResult]
"""Makes the result of a frame from its tracks, whose masks it resizes and encodes. From any thread."""


@dataclass(frozen=True)
class SessionEvents:
    """Counts of what happened to the stream.

    frames: taken in. size_changes: frames of another size than the one before. restarts: of these, the ones whose
    aspect differs, so that all objects were lost. bad_frames: the network gave NaN or infinity, so the frame has no
    objects. zero_queries: queries whose embedding was zero; such a one takes no part in its frame. dropped_slots: slots
    of a clip for which the network gave NaN or infinity; which then restarts. time_jumps: times that lay before the
    last one and were taken for it.
    """

    frames: int = 0
    size_changes: int = 0
    restarts: int = 0
    bad_frames: int = 0
    zero_queries: int = 0
    dropped_slots: int = 0
    time_jumps: int = 0
