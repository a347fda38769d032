"""Tensors in GPU memory: how they lie there, with padding where an engine runs at a larger size, who holds them, and
which streams may use them when."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import TensorSpec
from visrt.runtime.engines.trt.cuda import Gpu, Stream
from visrt.runtime.errors import EngineError

__all__ = [
    "ALIGNMENT",
    "DeviceTensor",
    "Holder",
    "Order",
    "Shape",
    "Sizes",
    "bytes_of",
    "copy_tensors",
    "shape_of",
    "steps_of",
    "stretches",
]

ALIGNMENT = 256
"""Bytes. TensorRT takes only addresses that are multiples of it."""

Sizes = Mapping[str, int]
"""The size of each dynamic axis by its symbol: {"batch": 2}."""

Shape = tuple[int, ...]


def shape_of(spec: TensorSpec, sizes: Sizes) -> Shape:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)


def bytes_of(spec: TensorSpec, sizes: Sizes) -> int:
    return prod(shape_of(spec, sizes)) * np.dtype(spec.dtype).itemsize


def steps_of(room: Shape, itemsize: int) -> Shape:
    """Bytes from one index to the next along each axis of a tensor that lies as `room`."""
    return tuple(prod(room[axis + 1 :]) * itemsize for axis in range(len(room)))


def stretches(shape: Shape, room: Shape, itemsize: int) -> list[tuple[int, int]]:
    """Offset and length in bytes of every stretch without padding, for a tensor of `shape` in memory laid out as
    `room`, at least as large along each axis."""
    outer = next((axis for axis in range(len(shape)) if shape[axis + 1 :] == room[axis + 1 :]), 0)
    length = prod(shape[outer:]) * itemsize
    if outer == 0:
        return [(0, length)]
    steps = steps_of(room, itemsize)
    offsets = (sum(map(int.__mul__, index, steps)) for index in np.ndindex(*shape[:outer]))
    return [(offset, length) for offset in offsets]


class Order:
    """The order of two streams at memory that `stream` alone writes: who reads it waits for what was written, and what
    is written next waits for who reads. Within one stream the order is that of the calls."""

    def __init__(self, gpu: Gpu, stream: Stream) -> None:
        self.stream = stream
        self._written, self._read = gpu.event(), gpu.event()
        self._reader: Stream | None = None
        self._done = True

    def before_writing(self) -> None:
        """What `stream` does next may write. The host does not wait."""
        if self._reader is not None:
            self.stream.wait(self._read)
            self._reader = None

    def written(self) -> None:
        """All that was written is enqueued."""
        self._written.record(self.stream)
        self._done = False

    def wait_for_written(self) -> None:
        """The host waits for it, once."""
        if not self._done:
            self._written.synchronize()
            self._done = True

    @contextmanager
    def reading(self, stream: Stream) -> Iterator[None]:
        """What is enqueued on `stream` inside may read."""
        if stream is self.stream:
            yield
            return
        assert self._reader in (None, stream), "a GPU has two streams"
        if not self._done:
            stream.wait(self._written)
        yield
        self._read.record(stream)
        self._reader = stream

    def ends(self) -> list[Callable[[], None]]:
        """Steps that free it."""
        return [self._written.free, self._read.free]


class Holder(Protocol):
    """Memory that device tensors point into: the slot of a call, or a buffer of state.

    generation: of the tensors that are valid now. order: of the streams that use it.
    """

    gpu: Gpu
    generation: int
    order: Order

    def address_of(self, role: str) -> int: ...

    def read(self, tensor: DeviceTensor) -> Array:
        """The tensor on the host, in memory of its own."""
        ...

    def outdated(self, role: str) -> EngineError: ...


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in GPU memory, `offset` bytes into that of its holder.

    room: its shape with the padding that lies between its numbers.
    """

    holder: Holder
    generation: int
    role: str
    shape: Shape
    dtype: np.dtype[Any]
    room: Shape
    offset: int = 0

    @property
    def device(self) -> str:
        return f"cuda:{self.holder.gpu.index}"

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @property
    def compact(self) -> bool:
        """Whether no padding lies between its numbers."""
        return self.shape[1:] == self.room[1:]

    @property
    def address(self) -> int:
        self.require_valid()
        return self.holder.address_of(self.role) + self.offset

    def require_valid(self) -> None:
        if self.holder.generation != self.generation:
            raise self.holder.outdated(self.role)

    def row(self, index: int) -> DeviceTensor:
        """Item `index` of the first axis, in the same memory."""
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"row {index} of a tensor with {self.shape[0]}")
        step = steps_of(self.room, self.dtype.itemsize)[0]
        return self.part(self.shape[1:], self.room[1:], index * step)

    def part(self, shape: Shape, room: Shape, offset: int) -> DeviceTensor:
        """What lies `offset` bytes behind the beginning."""
        return DeviceTensor(self.holder, self.generation, self.role, shape, self.dtype, room, self.offset + offset)

    def follows(self, other: DeviceTensor) -> bool:
        """Whether it begins where `other` ends, in the same memory."""
        same = self.holder is other.holder and (self.generation, self.role) == (other.generation, other.role)
        return same and self.compact and other.compact and self.offset == other.offset + other.bytes

    def numpy(self) -> Array:
        """A copy on the host, which stays as it is; waits until the GPU has computed it."""
        self.require_valid()
        return self.holder.read(self)


def copy_tensors(stream: Stream, address: int, room: Shape, tensors: Sequence[DeviceTensor]) -> None:
    """Enqueues copies of `tensors`, one behind the other, to memory at `address` where each lies as `room`."""
    gpu = tensors[0].holder.gpu
    step = prod(room) * tensors[0].dtype.itemsize
    with ExitStack() as reading:
        for order in dict.fromkeys(tensor.holder.order for tensor in tensors):
            reading.enter_context(order.reading(stream))
        whole = _in_one_piece(tensors)
        if whole is not None and tensors[0].shape == room:
            gpu.copy(address, whole.address, whole.bytes, stream)
            return
        for index, tensor in enumerate(tensors):
            _copy(stream, address + index * step, room, tensor)


def _copy(stream: Stream, address: int, room: Shape, tensor: DeviceTensor) -> None:
    if tensor.compact and tensor.shape[1:] == room[1:]:
        tensor.holder.gpu.copy(address, tensor.address, tensor.bytes, stream)
        return
    step = steps_of(room, tensor.dtype.itemsize)[0]
    for index in range(tensor.shape[0]):
        _copy(stream, address + index * step, room[1:], tensor.row(index))


def _in_one_piece(tensors: Sequence[DeviceTensor]) -> DeviceTensor | None:
    """All of `tensors` as one, if they lie one behind the other."""
    first = tensors[0]
    if not first.compact or not all(after.follows(before) for before, after in pairwise(tensors)):
        return None
    shape = (len(tensors), *first.shape)
    return first.part(shape, shape, 0)
