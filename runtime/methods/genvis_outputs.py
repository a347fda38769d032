"""Everything the engines of a GenVIS bundle say of frames, for parity: each frame as clips of its own.

A clip is the first of its video, so that nothing depends on other frames, and shows the frame once, and again for each
longer length the bundle was exported for as many times as that. The memory is read once, after the clip of one frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from visrt.runtime.arrays import Array, Floats, Joined, Tensor
from visrt.runtime.engines.engine import Engine
from visrt.runtime.methods.outputs import Outputs, checked_batch, slot_masks_of

__all__ = ["after_a_clip", "compared_lengths", "genvis_outputs", "roles_of_clip"]

SEEN = {"class_logits": "class_logits", "prototypes": "embeddings", "mask_embeddings": "mask_embeddings"}
"""Outputs of the clip graph that are compared at every length, and the roles they have."""


def compared_lengths(clip_lengths: Sequence[int]) -> list[int]:
    """The clip lengths that are compared: one frame is always among them, as a last clip may be short."""
    return sorted({1, *clip_lengths})


def roles_of_clip(outputs: Mapping[str, Array], length: int) -> Outputs:
    """Outputs of the clip graph by role: all of a clip of one frame, of a longer one what is seen."""
    if length == 1:
        return {SEEN.get(name, name): values for name, values in outputs.items()}
    return {f"{role}@{length}": outputs[name] for name, role in SEEN.items()}


def after_a_clip(roles: Mapping[str, Array]) -> dict[str, Array]:
    """Feeds of the memory graph after a clip with `roles` [Q, C]: an entry of that clip, one that holds what the slots
    start from, and two empty ones in which their own keys would be found first."""
    key, base = roles["key"], roles["base"]
    return {
        "base": base,
        "key": key,
        "memory_keys": np.stack([roles["memory_key"], base, key, key], axis=1),
        "memory_values": np.stack([roles["memory_value"], base, key, key], axis=1),
        "clips": np.array([0, 1, -1, -1], dtype=np.int32),
        "since": np.zeros(len(key), dtype=np.int32),
    }


def genvis_outputs(
    engines: Mapping[str, Engine], images: Array, valid_sizes: Array, base: Floats, clip_lengths: Sequence[int]
) -> Outputs:
    """All outputs for `images`, each as a first clip, which starts from `base` [Q, C]."""
    made = checked_batch(engines["frame"]({"images": images, "valid_sizes": valid_sizes}), len(images))
    rows = [made["frame_queries"].row(at) for at in range(len(images))]
    roles: Outputs = {}
    for length in compared_lengths(clip_lengths):
        outputs = _of_clips(engines["clip"], rows, length, base)
        if length == 1:
            masks = slot_masks_of(engines["masks"], outputs["mask_embeddings"], made["mask_features"])
        roles |= roles_of_clip({name: tensor.numpy() for name, tensor in outputs.items()}, length)
    read = [after_a_clip({role: values[at] for role, values in roles.items()}) for at in range(len(images))]
    starts = [engines["memory"](feeds)["instance_queries"].numpy() for feeds in read]
    frame = {role: tensor.numpy() for role, tensor in made.items()}
    return frame | roles | {"instance_queries": np.stack(starts), "mask_logits": masks}


def _of_clips(engine: Engine, frame_queries: Sequence[Tensor], length: int, base: Floats) -> dict[str, Tensor]:
    """Outputs of clips that show `frame_queries` [F, C], one a stream, `length` times."""
    streams = len(frame_queries)
    queries = Joined(tuple(row for row in frame_queries for _ in range(length)), (streams, length))
    return engine({"frame_queries": queries, "instance_queries": np.repeat(base[None], streams, axis=0)})
