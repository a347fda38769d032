"""State in GPU memory between calls: buffers that are written and read on the stream of the graph that uses them.

The stream's order is what makes them safe: a copy into a buffer is done behind every call that was enqueued before and
reads it, and before every call that is enqueued after. What comes from the other stream, or goes there, is waited for
by events; see `Order`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from visrt.runtime.arrays import CLOSED, Array, Tensor
from visrt.runtime.engines.trt.cuda import DeviceMemory, Gpu, PinnedMemory, Stream
from visrt.runtime.engines.trt.device_tensor import DeviceTensor, Order, Shape, copy_tensors
from visrt.runtime.errors import EngineError

__all__ = ["DeviceBuffer", "Staging"]

STAGING_BYTES = 4 * 2**20

STATE = "state"
"""What errors call a tensor of a buffer."""


class Staging:
    """Page-locked memory through which tensors pass between host and device on `stream` now and then, in pieces.

    It is allocated when it is first needed. Pieces that are on their way lie one behind the other; when it is full, it
    is waited for.
    """

    def __init__(self, gpu: Gpu, stream: Stream) -> None:
        self._gpu, self.stream = gpu, stream
        self._memory: PinnedMemory | None = None
        self._used = 0

    def upload(self, address: int, array: Array) -> None:
        """Enqueues the upload of an array, which may change afterwards. The context must be current."""
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for first, size in _pieces(flat.nbytes):
            part = self._free(size)
            part[:] = flat[first : first + size]
            self._gpu.upload(address + first, part, self.stream)

    def download(self, address: int, size: int) -> Array:
        """uint8 [size], read when all that was enqueued is done. The context must be current."""
        flat = np.empty(size, np.uint8)
        for first, length in _pieces(size):
            part = self._free(length)
            self._gpu.download(part, address + first, self.stream)
            self.stream.synchronize()
            self._used = 0
            flat[first : first + length] = part
        return flat

    def ends(self) -> list[Callable[[], None]]:
        """Steps that free it."""
        held, self._memory = self._memory, None
        return [] if held is None else [held.free]

    def _free(self, size: int) -> Array:
        """`size` bytes that no copy on its way uses."""
        if self._memory is None:
            self._memory = self._gpu.pin(STAGING_BYTES, "page-locked memory for tensors that stay on the GPU")
        if self._used + size > STAGING_BYTES:
            self.stream.synchronize()
            self._used = 0
        part = self._memory.array[self._used : self._used + size]
        self._used += size
        return part


def _pieces(size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of pieces that fit the page-locked memory."""
    return ((first, min(STAGING_BYTES, size - first)) for first in range(0, size, STAGING_BYTES))


class DeviceBuffer:
    """A tensor that stays in GPU memory; see `arrays.Buffer`. address: of its memory, also when that was freed."""

    def __init__(self, gpu: Gpu, staging: Staging, shape: Shape, dtype: np.dtype[Any], what: str) -> None:
        """Allocates it for `what`, on the stream of `staging`; the context must be current."""
        self.gpu, self.generation, self.shape, self.dtype = gpu, 0, shape, dtype
        self.bytes = prod(shape) * dtype.itemsize
        self._staging, self._what = staging, what
        self.order = Order(gpu, staging.stream)
        self._memory: DeviceMemory | None = gpu.allocate(self.bytes, what)
        self.address = self._memory.address
        gpu.clear(self.address, self.bytes, self.order.stream)
        self.order.written()

    @property
    def tensor(self) -> DeviceTensor:
        self.address_of(STATE)
        return DeviceTensor(self, self.generation, STATE, self.shape, self.dtype, self.shape)

    def write(self, values: Array | Tensor) -> None:
        self._check(self.shape, values)
        with self.gpu.current(f"{self._what}, writing"), self._written():
            self._copy(self.address_of(STATE), values)

    def write_entries(self, at: int, values: Array | Tensor) -> None:
        slots, entries, *entry = self.shape
        one = len(values.shape) < len(self.shape)
        count = 1 if one else values.shape[1]
        self._check((slots, *entry) if one else (slots, count, *entry), values)
        if not 0 <= at <= entries - count:
            raise IndexError(f"{count} entries at {at} of a ring of {entries}")
        step = prod(entry) * self.dtype.itemsize
        first, pitch, width = self.address_of(STATE) + at * step, entries * step, count * step
        with self.gpu.current(f"{self._what}, writing entries"), self._written():
            if isinstance(values, DeviceTensor) and values.compact:
                with values.holder.order.reading(self.order.stream):
                    self.gpu.copy_rows(first, pitch, values.address, width, width, slots, self.order.stream)
                return
            for slot in range(slots):
                row = values[slot] if isinstance(values, np.ndarray) else values.row(slot)
                self._copy(first + slot * pitch, row)

    def numpy(self) -> Array:
        return self.tensor.numpy()

    @property
    def is_open(self) -> bool:
        return self._memory is not None

    def close(self) -> None:
        """Frees it when all that was enqueued is done."""
        if ends := self.ends():
            self.gpu.release(ends)

    def ends(self) -> list[Callable[[], None]]:
        """Outdates its tensors; returns the steps that free it."""
        held, self._memory = self._memory, None
        self.generation += 1
        return [] if held is None else [held.free, *self.order.ends()]

    def address_of(self, role: str) -> int:
        if self._memory is None:
            raise EngineError(CLOSED)
        return self.address

    def read(self, tensor: DeviceTensor) -> Array:
        with self.gpu.current(f"{self._what}, reading"):
            flat = self._staging.download(tensor.address, tensor.bytes)
        return flat.view(tensor.dtype).reshape(tensor.shape)

    def outdated(self, role: str) -> EngineError:
        return EngineError(CLOSED)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """What is enqueued inside writes."""
        self.order.before_writing()
        yield
        self.order.written()

    def _copy(self, address: int, values: Array | Tensor) -> None:
        """Enqueues a copy to `address`, where it lies without padding."""
        if isinstance(values, DeviceTensor):
            copy_tensors(self.order.stream, address, values.shape, [values])
        else:
            self._staging.upload(address, values if isinstance(values, np.ndarray) else values.numpy())

    def _check(self, shape: Shape, values: Array | Tensor) -> None:
        if values.shape != shape or values.dtype != self.dtype:
            raise EngineError(
                f"{self._what}: given {values.dtype} {list(values.shape)}, expected {self.dtype} {list(shape)}"
            )
        if isinstance(values, DeviceTensor) and values.holder.gpu is not self.gpu:
            raise EngineError(f"{self._what}: given a tensor of another bundle's engine; give it as .numpy()")
