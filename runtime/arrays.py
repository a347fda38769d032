"""Arrays and tensors as they go between engines and the host, and the little arithmetic that everybody needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Floats", "HostTensor", "Tensor", "Tensors", "softmax"]

Array = NDArray[Any]
Floats = NDArray[np.float32]

Tensors = Mapping[str, Floats]
"""Small tensors in host memory, float32, by role."""


class Tensor(Protocol):
    """One output of an engine. Valid until the engine reuses the slot it lies in; `.numpy()` copies to the host."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def device(self) -> str: ...

    def row(self, index: int) -> Tensor:
        """Item `index` of the first (batch) axis, on the same device, without that axis."""
        ...

    def numpy(self) -> Array: ...


@dataclass(frozen=True)
class HostTensor:
    """A tensor in host memory."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def device(self) -> str:
        return "cpu"

    def row(self, index: int) -> HostTensor:
        return HostTensor(self.array[index])

    def numpy(self) -> Array:
        return self.array


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities
