"""Everything a bundle's engines say of frames, the masks of all queries included: what parity compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from visrt.runtime.arrays import Array, Tensor
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import EngineError

__all__ = ["PER_FRAME", "FullOutputs", "Outputs", "checked_batch", "mask_logits_of", "outputs_of"]

Outputs = dict[str, Array]
"""By role, [B, ...]; `mask_logits` [B, Q, h, w] are those of all queries."""


class FullOutputs(NamedTuple):
    """The functions that give parity all outputs of a bundle's engines; see `TrackingMethod.full_outputs`.

    run: gives them for `images` of `valid_sizes`. graph_of: the graph that gives a role, for messages.
    """

    run: Callable[[Mapping[str, Engine], Array, Array], Outputs]
    graph_of: Callable[[str], str]


def outputs_of(
    engines: Mapping[str, Engine],
    images: Array,
    valid_sizes: Array,
    more_feeds: Mapping[str, Array] = MappingProxyType({}),
) -> Outputs:
    """All outputs for `images`, uint8 RGB [B, H, W, 3], of `valid_sizes` int32 [B, 2], where one graph gives the
    queries: one call of the frame graph, with `more_feeds` where it takes state, and one of the masks graph for each
    frame."""
    made = checked_batch(engines["frame"]({"images": images, "valid_sizes": valid_sizes, **more_feeds}), len(images))
    outputs = {role: tensor.numpy() for role, tensor in made.items()}
    return {
        **outputs,
        "mask_logits": mask_logits_of(engines["masks"], outputs["mask_embeddings"], made["mask_features"]),
    }


def checked_batch(outputs: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
    """The frame graph's outputs. Raises EngineError if they are not of as many frames as it was given."""
    for role, tensor in outputs.items():
        if tensor.shape[0] != frames:
            raise EngineError(
                f"output {role!r} holds {tensor.shape[0]} frames of a batch of {frames}; export the bundle again"
            )
    return outputs


def mask_logits_of(engine: Engine, mask_embeddings: Array, mask_features: Tensor) -> Array:
    """Mask logits [B, Q, h, w] of embeddings [B, Q, D], as in a session one call of the masks engine for each frame.

    In the precision of the features, which stay on their device.
    """
    embeddings = mask_embeddings.astype(mask_features.dtype, copy=False)
    calls = ({"mask_embeddings": rows, "mask_features": mask_features.row(i)} for i, rows in enumerate(embeddings))
    return np.stack([engine(feeds)["mask_logits"].numpy() for feeds in calls])


def slot_masks_of(engine: Engine, mask_embeddings: Array | Tensor, mask_features: Tensor) -> Array:
    """Mask logits [B, Q, h, w] of all slots, from embeddings [B, Q, D] and features, on their device, of B streams."""
    streams, slots = mask_embeddings.shape[:2]
    every = np.tile(np.arange(slots, dtype=np.int32), (streams, 1))
    feeds: dict[str, Array | Tensor] = {
        "slots": every,
        "mask_embeddings": mask_embeddings,
        "mask_features": mask_features,
    }
    return engine(feeds)["mask_logits"].numpy()


PER_FRAME = FullOutputs(outputs_of, lambda role: "masks" if role == "mask_logits" else "frame")
"""Of networks whose frame graph gives the queries."""
