"""Everything the engines of an InsPro bundle say of frames, for parity: each frame as a video of its own, shown twice.

The first time it starts from the learned pairs with an empty bank, the second time from what the first handed over; the
lite head, where there is one, starts there too. The picture is taken to fill the network input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from visrt.runtime.arrays import Array, Feed, Floats, Tensor
from visrt.runtime.engines.engine import Engine
from visrt.runtime.mask_resize import STRIDE
from visrt.runtime.methods.inspro_pairs import HostPairs, update_pairs
from visrt.runtime.methods.outputs import Outputs, checked_batch, slot_masks_of

__all__ = ["RunHead", "box_logits", "frame_of_stream", "inspro_outputs", "named", "roles_of_frames", "running"]

AGAIN, LITE = "@2", "@lite"

RunHead = Callable[[str, Mapping[str, Array]], Outputs]
"""Calls a head by name for frames of B streams with what it takes from host and states; adds the rest. Its outputs by
role, [B, ...]."""

NO_LEAST = 0.0
"""Of a box's sides in parity: whether a side lies just above a limit or below it hangs on rounding."""


def roles_of_frames(run: RunHead, pairs: HostPairs, heads: tuple[str, ...]) -> Outputs:
    """The outputs that are compared, by role, [B, ...]; `heads`: "head", and "head_lite" where there is one."""
    first = run("head", pairs.feeds("head", NO_LEAST))
    pairs = update_pairs(pairs, first, bank_takes_it=True)
    roles = named(first, "") | named(run("head", pairs.feeds("head", NO_LEAST)), AGAIN)
    if "head_lite" in heads:
        roles |= named(run("head_lite", pairs.feeds("head_lite", NO_LEAST)), LITE)
    return roles


def inspro_outputs(
    engines: Mapping[str, Engine], images: Array, valid_sizes: Array, pairs: HostPairs, size: tuple[int, int]
) -> Outputs:
    """All outputs for `images` of a network for inputs of `size` (height, width); each starts from its `pairs`."""
    made = checked_batch(engines["frame"]({"images": images, "valid_sizes": valid_sizes}), len(images))
    pictures = np.tile(np.array(size, dtype=np.float32), (len(images), 1))
    outputs = roles_of_frames(running(engines, made["pyramid"], pictures), pairs, tuple(engines))
    return _with_shapes(outputs, engines, made, size)


def frame_of_stream(
    seen: Outputs, engines: Mapping[str, Engine], made: Mapping[str, Tensor], size: tuple[int, int]
) -> Outputs:
    """What a head has `seen` in one frame of a stream, by the roles that parity knows, [1, ...], and the masks or boxes
    of all slots; `made`: the frame graph's outputs for it. All of a slot that is invalid is NaN."""
    outputs = _with_shapes(named(seen, ""), engines, made, size)
    invalid = ~np.isfinite(seen["class_logits"]).all(axis=2)
    for role in outputs.keys() - {"mask_features"}:
        outputs[role] = np.where(
            invalid.reshape(*invalid.shape, *[1] * (outputs[role].ndim - 2)), np.nan, outputs[role]
        )
    return outputs


def _with_shapes(
    outputs: Outputs, engines: Mapping[str, Engine], made: Mapping[str, Tensor], size: tuple[int, int]
) -> Outputs:
    """`outputs` [B, ...] of the heads with the masks of all slots, or without a masks graph with their boxes."""
    if "masks" not in engines:
        return {**outputs, "box_logits": box_logits(outputs["boxes"], size)}
    features = made["mask_features"]
    masks = slot_masks_of(engines["masks"], outputs["mask_embeddings"], features)
    return {**outputs, "mask_features": features.numpy(), "mask_logits": masks}


def running(engines: Mapping[str, Engine], pyramid: Feed, picture_sizes: Feed) -> RunHead:
    """Calls a head by name for frames with their `pyramid` [B, pixels, C] and `picture_sizes` [B, 2]."""

    def run(graph: str, feeds: Mapping[str, Array]) -> Outputs:
        given = engines[graph]({**feeds, "pyramid": pyramid, "picture_sizes": picture_sizes})
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


def named(outputs: Outputs, which: str) -> Outputs:
    """Outputs by the roles that parity knows. Class logits get a zero for "no object", which sigmoid scores lack."""
    logits = outputs["class_logits"]
    others = outputs.keys() - {"class_logits", "object_features", "restarted"}
    roles = {
        "class_logits": np.concatenate([logits, np.zeros_like(logits[..., :1])], axis=-1),
        "embeddings": outputs["object_features"],
        **{role: outputs[role] for role in outputs if role in others},
    }
    return {role + which: values for role, values in roles.items()}
