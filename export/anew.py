"""A bundle's checkpoint run anew by torch, on frames that the bundle does not hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visrt.export.contract import producer
from visrt.export.families import read_for
from visrt.export.frames import Frames
from visrt.export.reference import reference_on
from visrt.runtime.errors import CheckpointError
from visrt.runtime.manifest import Manifest
from visrt.runtime.reference import Reference

__all__ = ["reference_anew"]


def reference_anew(
    path: Path, manifest: Manifest, images: NDArray[np.uint8], valid_sizes: NDArray[np.int32]
) -> Reference:
    """What torch computes in float32 from the checkpoint at `path` on `images` [T, H, W, 3], the graph's input.

    Raises CheckpointError if the bundle of `manifest` was not made from that very file: nothing could be told from
    how far another network's outputs lie from its.
    """
    model = read_for(manifest.family, path, manifest.input, manifest.association)
    made = manifest.producer
    given = producer(path).checkpoint_sha256
    if given != made.checkpoint_sha256:
        raise CheckpointError(
            f"{path}: sha256 {given[:12]}; bundle {manifest.name!r} was exported from {made.checkpoint}, sha256 "
            f"{made.checkpoint_sha256[:12]}: give that file, or export this one"
        )
    return reference_on(model, Frames(images, valid_sizes))
