"""Engines that answer with what a reference expects, after one thing in it was changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array, HostTensor, Tensor
from visrt.runtime.engines.engine import HostEngine
from visrt.runtime.parity.reference import Reference, reference_from_outputs

__all__ = ["FRAMES", "QUERIES", "Change", "Recorded", "Values", "expected_values", "reference_of_values"]

QUERIES, FRAMES = 50, 3
Values = dict[str, Array]
Change = Callable[[Values], None]


def expected_values() -> Values:
    """Outputs by role, [FRAMES, ...], of a network that never was. A third of the queries are sure of a class."""
    random = np.random.default_rng(0)
    shapes = {
        "class_logits": (QUERIES, 4),
        "embeddings": (QUERIES, 8),
        "mask_embeddings": (QUERIES, 8),
        "mask_features": (8, 6, 9),
        "mask_logits": (QUERIES, 6, 9),
    }
    values = {role: random.normal(size=(FRAMES, *shape)).astype(np.float32) for role, shape in shapes.items()}
    values["class_logits"][:, ::3, 0] += 6
    return values


def reference_of_values() -> Reference:
    """`expected_values` as a reference, on frames whose only pixel is their number."""
    values = expected_values()
    images = np.arange(FRAMES, dtype=np.uint8).reshape(FRAMES, 1, 1, 1)
    frames = ({role: array[t] for role, array in values.items()} for t in range(FRAMES))
    return reference_from_outputs(images, np.zeros((FRAMES, 2), np.int32), frames)


class Recorded(HostEngine):
    """Both graphs: the expected values after `change`."""

    provider = "recorded"

    def __init__(self, change: Change = lambda _: None) -> None:
        self.outputs = expected_values()
        change(self.outputs)

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, Tensor]:
        if "images" not in feeds:
            # The frame is found by its mask embeddings; if they match none it is frame 0.
            same = (self.outputs["mask_embeddings"] == feeds["mask_embeddings"]).all(axis=(1, 2))
            return {"mask_logits": HostTensor(self.outputs["mask_logits"][int(same.argmax())])}
        frames = feeds["images"].ravel()
        return {role: HostTensor(array[frames]) for role, array in self.outputs.items() if role != "mask_logits"}

    def close(self) -> None:
        pass
