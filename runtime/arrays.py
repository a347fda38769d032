"""Arrays and tensors as they go between engines and the host, and the little arithmetic that everybody needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import EngineError

__all__ = [
    "CLOSED",
    "Array",
    "Buffer",
    "Feed",
    "Floats",
    "HostBuffer",
    "HostTensor",
    "Joined",
    "Tensor",
    "Tensors",
    "all_finite",
    "in_float32",
    "positive",
    "softmax",
]

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


@dataclass(frozen=True)
class Joined:
    """Tensors of one shape and dtype that an engine takes as one: [*lead, *row]. `lead` is [streams], or [streams,
    frames]. Rows that lie on a device are joined there."""

    rows: tuple[Tensor, ...]
    lead: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.rows) == prod(self.lead) > 0, (len(self.rows), self.lead)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.lead, *self.rows[0].shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.rows[0].dtype

    def numpy(self) -> Array:
        """On the host; one row alone is not copied there."""
        if len(self.rows) == 1:
            return self.rows[0].numpy().reshape(self.shape)
        return np.stack([row.numpy() for row in self.rows]).reshape(self.shape)


Feed = Array | Tensor | Joined
"""One input of an engine's call."""


class Buffer(Protocol):
    """Memory where an engine runs that keeps a tensor between calls: zeros until it is written.

    What is written is there for all calls after it. Raises EngineError once it is closed.
    """

    @property
    def tensor(self) -> Tensor:
        """All of it, for a call."""
        ...

    @property
    def bytes(self) -> int: ...

    def write(self, values: Array | Tensor) -> None:
        """Copies `values` of its own shape."""
        ...

    def write_entries(self, at: int, values: Array | Tensor) -> None:
        """Copies one entry [Q, C], or more of them [Q, n, C], to where entry `at` of [Q, entries, C] lies, and on."""
        ...

    def numpy(self) -> Array:
        """A copy on the host."""
        ...

    def close(self) -> None: ...


class HostBuffer:
    """A buffer in host memory."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._array: Array | None = np.zeros(shape, dtype)

    @property
    def tensor(self) -> HostTensor:
        return HostTensor(self._open)

    @property
    def bytes(self) -> int:
        return self._open.nbytes

    def write(self, values: Array | Tensor) -> None:
        self._open[...] = _host(values)

    def write_entries(self, at: int, values: Array | Tensor) -> None:
        entries = _host(values)
        place = self._open[:, at] if entries.ndim == 2 else self._open[:, at : at + entries.shape[1]]
        place[...] = entries

    def numpy(self) -> Array:
        return self._open.copy()

    def close(self) -> None:
        self._array = None

    @property
    def _open(self) -> Array:
        if self._array is None:
            raise EngineError(CLOSED)
        return self._array


CLOSED = "this state belongs to a stream that was closed; open a new session, or restore a saved stream in one"


def _host(values: Array | Tensor) -> Array:
    return values if isinstance(values, np.ndarray) else values.numpy()


def in_float32(array: Array) -> Floats:
    """The numbers in float32; an array in float32 is not copied. The bits of float16 are moved to their places, which
    takes a quarter of the time of numpy's conversion."""
    if array.dtype != np.float16:
        return array.astype(np.float32, copy=False)
    bits = np.ascontiguousarray(array).view(np.int16)
    if not all_finite(array):
        return array.astype(np.float32)
    wide = bits.astype(np.int32)
    wide <<= 13
    wide &= FLOAT16_BITS
    floats: Floats = wide.view(np.float32)
    floats *= FLOAT16_SCALE
    return floats.reshape(array.shape)


def all_finite(array: Array) -> bool:
    """Whether no number is NaN or infinite."""
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    sizes = array.view(np.int16) & FLOAT16_SIZE
    return not sizes.size or bool(sizes.max() < FLOAT16_INFINITY)


def positive(array: Array) -> NDArray[np.bool_]:
    """Which numbers are above zero, of an array without NaN. As integers, float16 compare 70 times faster."""
    return (array.view(np.int16) if array.dtype == np.float16 else array) > 0


FLOAT16_SIZE, FLOAT16_INFINITY = np.int16(0x7FFF), np.int16(0x7C00)
"""The bits of a float16 but its sign; as integers they grow with the number, and NaN comes after infinity."""

FLOAT16_BITS = np.int32(np.uint32(0x8FFFE000).astype(np.int32))
"""Of a float16 that was moved up by 13 bits: its sign, which fills bits 28 to 31, once, its exponent and its number."""

FLOAT16_SCALE = np.float32(2.0**112)
"""Between the exponents of float16 and float32, whose zero points are 15 and 127."""


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis."""
    powers: Floats = logits - logits.max(axis=-1, keepdims=True)
    np.exp(powers, out=powers)
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers
