"""Everything a bundle's engines say of frames, the masks of all queries included: what parity compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from visrt.runtime.agreement import FrameAnswer, packed_masks
from visrt.runtime.engine import Array, Engine, Tensor
from visrt.runtime.errors import EngineError
from visrt.runtime.family import Queries

__all__ = ["Ask", "Outputs", "answers_of", "checked_batch", "mask_logits_of", "outputs_of"]

Outputs = dict[str, Array]
"""By role, [B, ...]; `mask_logits` [B, Q, h, w] are those of all queries."""

Ask = Callable[[Mapping[str, Engine], Array, Array], Outputs]
"""How the engines of a family are asked: all roles for `images` of `valid_sizes`, one call of the frame graph."""


def outputs_of(engines: Mapping[str, Engine], images: Array, valid_sizes: Array) -> Outputs:
    """What `engines` say of `images`, uint8 RGB [B, H, W, 3], of `valid_sizes` int32 [B, 2]: one call of the frame
    graph and, as in a session, one of the masks graph for each frame, on the features the first gave."""
    given = checked_batch(engines["frame"]({"images": images, "valid_sizes": valid_sizes}), len(images))
    outputs = {role: tensor.numpy() for role, tensor in given.items()}
    masks = [
        mask_logits_of(engines["masks"], outputs["mask_embeddings"][i], given["mask_features"].row(i))
        for i in range(len(images))
    ]
    return {**outputs, "mask_logits": np.stack(masks)}


def checked_batch(given: dict[str, Tensor], frames: int) -> dict[str, Tensor]:
    """What the frame graph gave. Raises EngineError if it is not of as many frames as it was asked for."""
    for role, tensor in given.items():
        if tensor.shape[0] != frames:
            raise EngineError(
                f"output {role!r} holds {tensor.shape[0]} frames of a batch of {frames}; export the bundle again"
            )
    return given


def mask_logits_of(engine: Engine, mask_embeddings: Array, mask_features: Tensor) -> Array:
    """In the precision of the features, which stay on their device."""
    embeddings = mask_embeddings.astype(mask_features.dtype, copy=False)
    return engine({"mask_embeddings": embeddings, "mask_features": mask_features})["mask_logits"].numpy()


def answers_of(outputs: Outputs) -> list[FrameAnswer]:
    """The answers of the frames of one call."""
    roles = ("class_logits", "embeddings", "mask_embeddings")
    small = [outputs[role].astype(np.float32, copy=False) for role in roles]
    masks = packed_masks(outputs["mask_logits"])
    return [FrameAnswer(Queries(*(array[i] for array in small)), masks[i]) for i in range(len(masks))]
