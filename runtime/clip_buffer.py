"""Frames that wait until their clip is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visrt.runtime.image import Letterbox
from visrt.runtime.network import FrameInputs

__all__ = ["ClipBuffer", "full_clips"]

NO_FRAMES = FrameInputs(np.empty((0,), dtype=np.uint8), ())


@dataclass(frozen=True)
class ClipBuffer:
    """Frames in order, ready for the frame engine, and their times in seconds."""

    inputs: FrameInputs = NO_FRAMES
    times_s: tuple[float | None, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def followed_by(self, inputs: FrameInputs, times_s: Sequence[float | None]) -> ClipBuffer:
        return ClipBuffer(self.inputs.followed_by(inputs), (*self.times_s, *times_s))

    def split(self, count: int) -> tuple[ClipBuffer, ClipBuffer]:
        """The first `count` frames, and the others."""
        inputs, times_s = self.inputs, self.times_s
        return ClipBuffer(inputs[:count], times_s[:count]), ClipBuffer(inputs[count:], times_s[count:])


def full_clips(fits: Sequence[Letterbox], clip_frames: int) -> list[int]:
    """Lengths of the clips among frames that lie like `fits`; what is left behind them waits for more.

    A clip ends after `clip_frames` frames, or before a picture of another aspect: nothing is followed across that.
    """
    lengths: list[int] = []
    length = 0
    for index, fit in enumerate(fits):
        if length and not fit.like(fits[index - 1]):
            lengths.append(length)
            length = 0
        length += 1
        if length == clip_frames:
            lengths.append(length)
            length = 0
    return lengths
