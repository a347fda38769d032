"""Where a video cuts to another scene: the difference of downscaled frames."""

from __future__ import annotations

from collections import deque

import cv2
import numpy as np
from numpy.typing import NDArray

from visrt.runtime.sources.source import Image, VideoSettings

__all__ = ["CutDetector"]

THUMB = (32, 18)
"""Width and height of the pictures that are compared: motion of objects is small there, a new scene is not."""

UNLIKE = 0.5
"""One minus the correlation of two pictures from which they are of two scenes. A change of exposure keeps the
correlation high."""

FAINT = 6.0
"""Grey levels by which pictures differ at least; noise on a dark scene has no correlation, and differs by less."""

BEFORE = 5
ABOVE_BEFORE = 2.5
"""A cut stands out: the difference is so many times that of each of the last frames. A fast pan is large for long."""


class CutDetector:
    """Looks at the frames of one video in order, where `settings` ask for cuts. It decides by this and earlier frames
    only."""

    def __init__(self, settings: VideoSettings) -> None:
        self._looks = settings.cuts == "find"
        self._last: NDArray[np.float32] | None = None
        self._before: deque[float] = deque(maxlen=BEFORE)

    def cuts(self, image: Image) -> bool:
        """Whether `image` [H, W, 3] begins another scene than the frame before it; False where nobody asks."""
        if not self._looks:
            return False
        thumb = cv2.resize(image, THUMB, interpolation=cv2.INTER_AREA).astype(np.float32)
        last, self._last = self._last, thumb
        if last is None:
            return False
        unlike = _unlike(last, thumb)
        found = unlike > UNLIKE and all(unlike > ABOVE_BEFORE * earlier for earlier in self._before)
        self._before.append(unlike)
        if found:
            self._before.clear()
        return found


def _unlike(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """One minus the correlation of two pictures, 0 where they hardly differ; a plain picture is like another plain one
    of its colour only."""
    if float(np.abs(a - b).mean()) < FAINT:
        return 0.0
    centred = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    spread = float(np.sqrt((centred[0] ** 2).mean() * (centred[1] ** 2).mean()))
    return 1.0 if spread < 1 else 1 - float((centred[0] * centred[1]).mean()) / spread
