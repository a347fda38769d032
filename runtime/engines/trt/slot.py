"""The buffers of one engine call, and the tensors that point into them.

An engine has two slots, so that two calls can be in flight: while the host works on the outputs of one, the GPU
computes the other. A call waits only for the call before the last, whose slot it reuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import GraphSpec, TensorSpec
from visrt.runtime.engines.trt.cuda import DeviceMemory, Gpu, PinnedMemory
from visrt.runtime.errors import EngineError

__all__ = ["ALIGNMENT", "BufferSlot", "DeviceTensor", "Port", "bytes_of", "shape_of"]

ALIGNMENT = 256
"""Bytes. TensorRT takes only addresses that are multiples of it."""

Sizes = Mapping[str, int]
"""The size of each dynamic axis by its symbol: {"batch": 2}."""


def shape_of(spec: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in spec.shape)


def bytes_of(spec: TensorSpec, sizes: Sizes) -> int:
    return int(np.prod(shape_of(spec, sizes), dtype=np.int64)) * np.dtype(spec.dtype).itemsize


class Port:
    """Memory of one tensor of a slot at its largest size: on the device, and page-locked on the host to copy through.

    Each is allocated once, when it is first needed.
    """

    def __init__(self, gpu: Gpu, what: str, size: int) -> None:
        self.bytes = size
        self._gpu, self._what = gpu, what
        self._device: DeviceMemory | None = None
        self._pinned: PinnedMemory | None = None

    def allocate_device(self) -> DeviceMemory:
        """The memory on the device, allocated by the first call."""
        if self._device is None:
            self._device = self._gpu.allocate(self.bytes, self._what)
        return self._device

    def allocate_pinned(self) -> PinnedMemory:
        """The page-locked memory on the host, allocated by the first call."""
        if self._pinned is None:
            self._pinned = self._gpu.pin(self.bytes, self._what)
        return self._pinned

    @property
    def address(self) -> int:
        return self.allocate_device().address

    @property
    def pinned(self) -> Array:
        """uint8 [bytes]."""
        return self.allocate_pinned().array

    def ends(self) -> list[Callable[[], None]]:
        """Steps that free it."""
        held = (self._device, self._pinned)
        self._device = self._pinned = None
        return [memory.free for memory in held if memory is not None]


class BufferSlot:
    """Buffers of one call. Its tensors are valid until `take` gives them to the next call.

    device_roles: roles that one graph passes to another on the device. Of these, outputs are copied to the host only
    when they are read, and inputs have buffers of their own only when they come from elsewhere.
    """

    def __init__(self, gpu: Gpu, graph: GraphSpec, largest: Sizes, device_roles: frozenset[str]) -> None:
        self.gpu = gpu
        self.generation = 0
        self.device_roles = device_roles
        self._graph = graph
        self.ports = {
            role: Port(gpu, f"{graph.file.file}, tensor {role!r}", bytes_of(spec, largest))
            for role, spec in {**graph.inputs, **graph.outputs}.items()
        }
        self._done = gpu.event()

    def prepare(self) -> None:
        """Allocates what every call needs, so that no call has to."""
        for role in self.ports.keys() - self.device_roles:
            self.ports[role].allocate_device()
            self.ports[role].allocate_pinned()
        for role in self.device_roles & self._graph.outputs.keys():
            self.ports[role].allocate_device()

    def take(self) -> None:
        """Invalidates the tensors of the slot's last call, and waits until the GPU has finished that call."""
        self.generation += 1
        self._done.synchronize()

    def place(self, role: str, array: Array) -> int:
        """Enqueues the upload of a host array; returns its address on the device."""
        port = self.ports[role]
        pinned = port.pinned[: array.nbytes]
        pinned.view(array.dtype).reshape(array.shape)[...] = array
        self.gpu.upload(port.address, pinned)
        return port.address

    def place_copy(self, role: str, tensor: DeviceTensor) -> int:
        """Enqueues a copy of a tensor on the device into the slot's own buffer; returns the address of the buffer."""
        port = self.ports[role]
        self.gpu.copy(port.address, tensor.address, tensor.bytes)
        return port.address

    def outputs(self, sizes: Sizes) -> dict[str, DeviceTensor]:
        """Enqueues the copies to the host, without padding, and the end of the call; returns the outputs."""
        for role in self._graph.outputs.keys() - self.device_roles:
            port = self.ports[role]
            self.gpu.download(port.pinned[: bytes_of(self._graph.outputs[role], sizes)], port.address)
        self._done.record(self.gpu.stream)
        return {
            role: DeviceTensor(self, self.generation, role, shape_of(spec, sizes), np.dtype(spec.dtype))
            for role, spec in self._graph.outputs.items()
        }

    def read(self, tensor: DeviceTensor) -> Array:
        """The tensor on the host, in memory of its own."""
        with self.gpu.current(f"{self._graph.file.file}, reading {tensor.role!r}"):
            port = self.ports[tensor.role]
            part = port.pinned[tensor.offset : tensor.offset + tensor.bytes]
            if tensor.role in self.device_roles:
                self.gpu.download(part, tensor.address)
                self.gpu.stream.synchronize()
            else:
                self._done.synchronize()
            return part.view(tensor.dtype).reshape(tensor.shape).copy()

    def ends(self) -> list[Callable[[], None]]:
        """Invalidates the slot's tensors; returns the steps that free it, which may fail if the GPU was lost."""
        self.generation += 1
        return [*(end for port in self.ports.values() for end in port.ends()), self._drop_event]

    def _drop_event(self) -> None:
        """pycuda destroys an event with its last reference."""
        del self._done


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in GPU memory, `offset` bytes into its slot's buffer; outdated when the slot is taken again."""

    slot: BufferSlot
    generation: int
    role: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int = 0

    @property
    def device(self) -> str:
        return f"cuda:{self.slot.gpu.index}"

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def address(self) -> int:
        self.require_valid()
        return self.slot.ports[self.role].address + self.offset

    def require_valid(self) -> None:
        if self.slot.generation != self.generation:
            raise EngineError(
                f"tensor {self.role!r} is outdated: its engine was called twice since, or was closed; use an answer "
                "before the call after the next, or copy it with .numpy()"
            )

    def row(self, index: int) -> DeviceTensor:
        """Item `index` of the first axis, in the same memory."""
        if not 0 <= index < self.shape[0]:
            raise IndexError(f"row {index} of a tensor with {self.shape[0]}")
        step = self.bytes // self.shape[0]
        return DeviceTensor(
            self.slot, self.generation, self.role, self.shape[1:], self.dtype, self.offset + index * step
        )

    def numpy(self) -> Array:
        """A copy on the host, which stays as it is; waits until the GPU has computed it."""
        self.require_valid()
        return self.slot.read(self)
