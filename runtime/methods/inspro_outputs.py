"""Everything the engines of an InsPro bundle say of frames, for parity: each frame as a video of its own, shown twice.

The first time it starts from the learned pairs with an empty bank, the second time from what the first handed over; the
lite head, where there is one, starts there too. The picture is taken to fill the network input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from visrt.runtime.arrays import Array, Floats, Tensor, Tensors
from visrt.runtime.engines.engine import Engine
from visrt.runtime.mask_resize import STRIDE
from visrt.runtime.methods.inspro_pairs import Pairs, feeds_of, update_bank, update_pairs
from visrt.runtime.methods.outputs import Outputs, checked_batch, mask_logits_of

__all__ = ["Look", "box_logits", "inspro_outputs", "outputs_of_frame", "roles_of_frame", "running"]

AGAIN, LITE = "@2", "@lite"

Look = Callable[[str, Tensors], Tensors]
"""Calls a head by name for one frame: as `RunGraph`, with the picture's size and pyramid added."""


def roles_of_frame(look: Look, pairs: Pairs, heads: tuple[str, ...]) -> Outputs:
    """The outputs that are compared for one frame, by role; `heads`: "head", and "head_lite" where there is one."""
    first = look("head", feeds_of(pairs, "head"))
    pairs = update_bank(update_pairs(pairs, first), first["object_features"])
    roles = _named(first, "")
    roles |= _named(look("head", feeds_of(pairs, "head")), AGAIN)
    if "head_lite" in heads:
        roles |= _named(look("head_lite", feeds_of(pairs, "head_lite")), LITE)
    return roles


def inspro_outputs(
    engines: Mapping[str, Engine], images: Array, valid_sizes: Array, pairs: Pairs, size: tuple[int, int]
) -> Outputs:
    """All outputs for `images` of a network for inputs of `size` (height, width); each video starts from `pairs`."""
    made = checked_batch(engines["frame"]({"images": images, "valid_sizes": valid_sizes}), len(images))
    frames = [
        roles_of_frame(_looking(engines, made["pyramid"].row(i), size), pairs, tuple(engines))
        for i in range(len(images))
    ]
    outputs = {role: np.stack([frame[role] for frame in frames]) for role in frames[0]}
    return _with_shapes(outputs, engines, made, size)


def outputs_of_frame(
    seen: Tensors, engines: Mapping[str, Engine], made: Mapping[str, Tensor], size: tuple[int, int]
) -> Outputs:
    """What a head has `seen` in one frame of a stream, by the roles that parity knows, [1, ...], and the masks or boxes
    of all slots; `made`: the frame graph's outputs for it."""
    return _with_shapes({role: values[None] for role, values in _named(seen, "").items()}, engines, made, size)


def _with_shapes(
    outputs: Outputs, engines: Mapping[str, Engine], made: Mapping[str, Tensor], size: tuple[int, int]
) -> Outputs:
    """`outputs` [B, ...] of the heads with the masks of all slots, or without a masks graph with their boxes."""
    if "masks" not in engines:
        return {**outputs, "box_logits": box_logits(outputs["boxes"], size)}
    masks = mask_logits_of(engines["masks"], outputs["mask_embeddings"], made["mask_features"])
    return {**outputs, "mask_features": made["mask_features"].numpy(), "mask_logits": masks}


def running(engines: Mapping[str, Engine], pyramid: Tensor) -> Look:
    """Calls a head by name for one frame with its `pyramid`."""

    def run(graph: str, feeds: Tensors) -> Tensors:
        given = engines[graph]({**feeds, "pyramid": pyramid})
        return {role: tensor.numpy() for role, tensor in given.items()}

    return run


def box_logits(boxes: Array, size: tuple[int, int]) -> Floats:
    """How far in pixels each cell at stride 4 of an input of `size` (height, width) lies inside each of `boxes`
    [..., N, 4], x1, y1, x2, y2: [..., N, h, w], above 0 inside. What parity compares of a network without masks."""
    rows, columns = (np.arange(STRIDE / 2, side, STRIDE, dtype=np.float32) for side in size)
    x1, y1, x2, y2 = (boxes[..., i, None].astype(np.float32) for i in range(4))
    down, across = np.minimum(rows - y1, y2 - rows), np.minimum(columns - x1, x2 - columns)
    inside: Floats = np.minimum(down[..., :, None], across[..., None, :])
    return inside


def _looking(engines: Mapping[str, Engine], pyramid: Tensor, size: tuple[int, int]) -> Look:
    run, picture = running(engines, pyramid), np.array(size, dtype=np.float32)
    return lambda graph, feeds: run(graph, {**feeds, "picture_size": picture})


def _named(outputs: Tensors, which: str) -> Outputs:
    """Outputs by the roles that parity knows. Class logits get a zero for "no object", which sigmoid scores lack."""
    logits = outputs["class_logits"]
    roles = {
        "class_logits": np.concatenate([logits, np.zeros_like(logits[:, :1])], axis=1),
        "embeddings": outputs["object_features"],
        **{role: values for role, values in outputs.items() if role not in ("class_logits", "object_features")},
    }
    return {role + which: values for role, values in roles.items()}
