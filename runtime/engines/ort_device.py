"""Tensors and state of ONNX Runtime in the memory of a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np

from visrt.runtime.arrays import CLOSED, Array, Joined, Tensor
from visrt.runtime.engines.gpu_copies import RowsCopy
from visrt.runtime.errors import EngineError

__all__ = ["Copies", "DeviceBuffer", "DeviceMemory", "DeviceTensor"]


class Copies(Protocol):
    """See `gpu_copies.GpuCopies`."""

    def run(self, copies: Iterable[RowsCopy]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in device memory: `owner` is the OrtValue whose buffer holds it, `offset` where it starts, in bytes."""

    owner: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: str
    offset: int = 0

    @property
    def address(self) -> int:
        return int(self.owner.data_ptr()) + self.offset

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def row(self, index: int) -> DeviceTensor:
        """Item `index` of the first axis, in the same memory."""
        step = prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceTensor(self.owner, self.shape[1:], self.dtype, self.device, self.offset + index * step)

    def numpy(self) -> Array:
        whole: Array = self.owner.numpy().reshape(-1).view(np.uint8)
        return whole[self.offset : self.offset + self.bytes].view(self.dtype).reshape(self.shape)


class DeviceMemory:
    """Makes tensors in the memory of device number `device`, and copies within it. memory: "cuda".

    open_copies: what copies between tensors there, opened when it is first needed.
    """

    def __init__(self, memory: str, device: int, open_copies: Callable[[], Copies]) -> None:
        self.memory, self.device = memory, device
        self.open = True
        self._open_copies = open_copies
        self._copies: Copies | None = None

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceTensor:
        from onnxruntime import OrtValue

        value = OrtValue.ortvalue_from_shape_and_type(list(shape), dtype.type, self.memory, self.device)
        return DeviceTensor(value, shape, dtype, f"{self.memory}:{self.device}")

    def on_device(self, values: Array | Tensor) -> DeviceTensor:
        """`values`, which lie there already or are brought there now."""
        if isinstance(values, DeviceTensor):
            return values
        array = values if isinstance(values, np.ndarray) else values.numpy()
        tensor = self.empty(array.shape, array.dtype)
        tensor.owner.update_inplace(np.ascontiguousarray(array))
        return tensor

    def joined(self, feed: Joined) -> DeviceTensor:
        """The tensors of several streams as one: where they lie if they follow each other, else copied there."""
        rows = [self.on_device(row) for row in feed.rows]
        if all(row.owner is last.owner and row.offset == last.offset + last.bytes for last, row in pairwise(rows)):
            first = rows[0]
            return DeviceTensor(first.owner, feed.shape, feed.dtype, first.device, first.offset)
        whole, size = self.empty(feed.shape, feed.dtype), rows[0].bytes
        self.copy(RowsCopy(whole.address + at * size, size, row.address, size, size) for at, row in enumerate(rows))
        return whole

    def copy(self, copies: Iterable[RowsCopy]) -> None:
        if self._copies is None:
            self._copies = self._open_copies()
        self._copies.run(copies)

    def close(self) -> None:
        self.open = False
        if self._copies is not None:
            self._copies.close()
            self._copies = None


class DeviceBuffer:
    """State in device memory; see `arrays.Buffer`."""

    def __init__(self, memory: DeviceMemory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._memory = memory
        self._tensor: DeviceTensor | None = memory.empty(shape, dtype)
        self.write(np.zeros(shape, dtype))

    @property
    def tensor(self) -> DeviceTensor:
        if self._tensor is None or not self._memory.open:
            raise EngineError(CLOSED)
        return self._tensor

    @property
    def bytes(self) -> int:
        return self.tensor.bytes

    def write(self, values: Array | Tensor) -> None:
        own = self.tensor
        _check(values, own.shape, own.dtype)
        if isinstance(values, DeviceTensor):
            self._memory.copy([RowsCopy(own.address, own.bytes, values.address, own.bytes, own.bytes)])
        else:
            array = values if isinstance(values, np.ndarray) else values.numpy()
            own.owner.update_inplace(np.ascontiguousarray(array))

    def write_entries(self, at: int, values: Array | Tensor) -> None:
        own = self.tensor
        slots, entries, *entry = own.shape
        one = len(values.shape) < len(own.shape)
        count = 1 if one else values.shape[1]
        _check(values, (slots, *entry) if one else (slots, count, *entry), own.dtype)
        if not 0 <= at <= entries - count:
            raise IndexError(f"{count} entries at {at} of a ring of {entries}")
        source, step = self._memory.on_device(values), prod(entry) * own.dtype.itemsize
        width = count * step
        self._memory.copy([RowsCopy(own.address + at * step, entries * step, source.address, width, width, slots)])

    def numpy(self) -> Array:
        return self.tensor.numpy().copy()

    def close(self) -> None:
        self._tensor = None


def _check(values: Array | Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if values.shape != shape or values.dtype != dtype:
        raise EngineError(f"state: given {values.dtype} {list(values.shape)}, expected {dtype} {list(shape)}")
