"""Frames as the network takes them, and the first ones of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.errors import SourceError
from visrt.runtime.image import RESIZERS, letterbox_into
from visrt.runtime.sources.video import read_video

__all__ = ["Frames", "clip_frames"]


@dataclass(frozen=True)
class Frames:
    """Images for the frame graph in order: uint8 RGB [T, H, W, 3], and valid_sizes int32 [T, 2], height and width that
    each fills in the network input."""

    images: NDArray[np.uint8]
    valid_sizes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, kept: Sequence[int]) -> Frames:
        return Frames(self.images[list(kept)], self.valid_sizes[list(kept)])


def clip_frames(source: str | Path, spec: InputSpec, limit: int) -> Frames:
    """At most the first `limit` frames of `source`, a video or a folder of images, fitted as a session fits them."""
    images, sizes = [], []
    for frame in islice(read_video(source), limit):
        image = np.empty((*spec.image_size, 3), np.uint8)
        sizes.append(letterbox_into(image, frame.image, spec, RESIZERS[spec.resize]).valid)
        images.append(image)
    if not images:
        raise SourceError(f"{source}: gives no frame; expected a video or a folder of images")
    return Frames(np.stack(images), np.array(sizes, np.int32))
