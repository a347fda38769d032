"""Everything the engines of a GenVIS bundle say of frames, for parity: each frame as clips of its own.

A clip is the first of its video, so that nothing depends on other frames, and shows the frame once, and again for each
longer length the bundle was exported for as many times as that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from visrt.runtime.arrays import Array, Floats
from visrt.runtime.engines.engine import Engine
from visrt.runtime.methods.outputs import Outputs, checked_batch, mask_logits_of

__all__ = ["asked_lengths", "genvis_outputs", "roles_of_clip"]

SEEN = {"class_logits": "class_logits", "prototypes": "embeddings", "mask_embeddings": "mask_embeddings"}
"""Outputs of the clip graph that are compared at every length, and the roles they have."""


def asked_lengths(clip_lengths: Sequence[int]) -> list[int]:
    """The clip lengths that are compared: one frame is always among them, as a last clip may be short."""
    return sorted({1, *clip_lengths})


def roles_of_clip(outputs: Mapping[str, Array], length: int) -> Outputs:
    """Outputs of the clip graph by role: all of a clip of one frame, of a longer one what is seen."""
    if length == 1:
        return {SEEN.get(name, name): values for name, values in outputs.items()}
    return {f"{role}@{length}": outputs[name] for name, role in SEEN.items()}


def genvis_outputs(
    engines: Mapping[str, Engine], images: Array, valid_sizes: Array, base: Floats, clip_lengths: Sequence[int]
) -> Outputs:
    """All outputs for `images`, each as a first clip, which starts from `base` [S, C]."""
    made = checked_batch(engines["frame"]({"images": images, "valid_sizes": valid_sizes}), len(images))
    frames = [_of_clips(engines["clip"], queries, base, clip_lengths) for queries in made["frame_queries"].numpy()]
    outputs = {role: np.stack([frame[role] for frame in frames]) for role in frames[0]}
    masks = mask_logits_of(engines["masks"], outputs["mask_embeddings"], made["mask_features"])
    return {role: tensor.numpy() for role, tensor in made.items()} | outputs | {"mask_logits": masks}


def _of_clips(engine: Engine, frame_queries: Floats, base: Floats, clip_lengths: Sequence[int]) -> Outputs:
    roles: Outputs = {}
    for length in asked_lengths(clip_lengths):
        queries = np.repeat(frame_queries[None], length, axis=0)
        given = engine({"frame_queries": queries, "instance_queries": base})
        roles |= roles_of_clip({name: tensor.numpy() for name, tensor in given.items()}, length)
    return roles
