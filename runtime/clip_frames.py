"""The first frames of a clip, as the network sees them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import SourceError
from visrt.runtime.image import RESIZERS, letterbox, network_input
from visrt.runtime.manifest import InputSpec
from visrt.runtime.video import read_video

__all__ = ["ClipFrames", "clip_frames"]


@dataclass(frozen=True)
class ClipFrames:
    """Network inputs in order: images uint8 RGB [T, H, W, 3], zero outside valid_sizes int32 [T, 2] (height, width)."""

    images: NDArray[np.uint8]
    valid_sizes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.images)


def clip_frames(source: str | Path, spec: InputSpec, limit: int) -> ClipFrames:
    """At most the first `limit` frames of `source`, a video or a folder of images, fitted as a session fits them."""
    images, sizes = [], []
    for frame in islice(read_video(source), limit):
        fit = letterbox((frame.image.shape[0], frame.image.shape[1]), (spec.height, spec.width))
        image = np.empty((spec.height, spec.width, 3), np.uint8)
        network_input(frame.image, fit, RESIZERS[spec.resize], out=image)
        images.append(image)
        sizes.append(fit.valid)
    if not images:
        raise SourceError(f"{source}: gives no frame; expected a video or a folder of images")
    return ClipFrames(np.stack(images), np.array(sizes, np.int32))
