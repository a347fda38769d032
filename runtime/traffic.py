"""The bytes a frame moves between host and device, and those it leaves there, told by a manifest alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visrt.runtime.dynamic_axes import BATCH, MASKS
from visrt.runtime.manifest import Manifest, TensorSpec

__all__ = ["Movement", "Way", "traffic"]

Way = Literal["host to device", "stays on the device", "device to host"]


@dataclass(frozen=True)
class Movement:
    """One tensor of one graph, by role, and the bytes of it that a frame moves."""

    graph: str
    role: str
    way: Way
    bytes: int


def traffic(manifest: Manifest, masks: int) -> list[Movement]:
    """What one frame moves if `masks` masks of it are kept.

    What one graph hands to another stays on the device and is listed once, where it is made. On the CPU nothing moves.
    """
    sizes = {BATCH: 1, MASKS: masks}
    moved = []
    for name, graph in manifest.graphs.items():
        handed = manifest.device_roles(name)
        moved += [
            Movement(name, role, "host to device", tensor_bytes(spec, sizes))
            for role, spec in graph.inputs.items()
            if role not in handed
        ]
        moved += [
            Movement(name, role, "stays on the device" if role in handed else "device to host", size)
            for role, spec in graph.outputs.items()
            for size in (tensor_bytes(spec, sizes),)
        ]
    return moved


def tensor_bytes(spec: TensorSpec, sizes: dict[str, int]) -> int:
    """Bytes of a tensor with its dynamic axes at `sizes`; an axis that is not there counts as one."""
    shape = (axis if isinstance(axis, int) else sizes.get(axis, 1) for axis in spec.shape)
    return math.prod(shape) * np.dtype(spec.dtype).itemsize
