"""The buffers of one engine call, and the tensors that point into them.

An engine has two slots, so that two calls can be in flight: while the host works on the outputs of one, the GPU
computes the other. A call waits only for the call before the last, whose slot it reuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import numpy as np

from visrt.runtime.arrays import Array, Feed, Joined
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.trt.cuda import DeviceMemory, Gpu, PinnedMemory
from visrt.runtime.engines.trt.device_tensor import (
    LARGE_BYTES,
    DeviceTensor,
    Shape,
    Sizes,
    bytes_of,
    copy_tensor,
    shape_of,
    steps_of,
    stretches,
)
from visrt.runtime.errors import EngineError

__all__ = ["BufferSlot", "Port"]


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

    device_roles: roles that one graph passes to another on the device, and states. Of these, outputs are copied to the
    host only when they are read, and inputs have buffers of their own only where they cannot be read in place.
    """

    def __init__(
        self, gpu: Gpu, graph: GraphSpec, largest: Sizes, device_roles: frozenset[str], in_place: bool = True
    ) -> None:
        self.gpu, self.in_place = gpu, in_place
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
        self.prepare_kept()
        for role in self.device_roles & self._graph.inputs.keys():
            if self._is_joined(role) or self.ports[role].bytes < LARGE_BYTES:
                self.ports[role].allocate_device()

    def prepare_kept(self) -> None:
        """Allocates what `keep` needs, and every call."""
        for role in self.device_roles & self._graph.outputs.keys():
            self.ports[role].allocate_device()

    def _is_joined(self, role: str) -> bool:
        """Whether an input takes the tensors of several streams in one call."""
        spec = self._graph.inputs[role]
        return spec.row_shape != spec.shape

    def take(self) -> None:
        """Invalidates the tensors of the slot's last call, and waits until the GPU has finished that call."""
        self.generation += 1
        self._done.synchronize()

    def place(self, role: str, feed: Feed, sizes: Sizes) -> None:
        """Enqueues what brings `feed` into the slot's own buffer of an input, at `sizes`."""
        port, room = self.ports[role], shape_of(self._graph.inputs[role], sizes)
        rows, lead = (feed.rows, feed.lead) if isinstance(feed, Joined) else ((feed,), ())
        steps = steps_of(room, feed.dtype.itemsize)
        for index, row in zip(np.ndindex(*lead), rows, strict=True):
            offset = sum(map(int.__mul__, index, steps))
            if isinstance(row, DeviceTensor):
                copy_tensor(self.gpu, port.address + offset, room[len(lead) :], row)
            else:
                self._upload(port, offset, room[len(lead) :], row if isinstance(row, np.ndarray) else row.numpy())

    def _upload(self, port: Port, offset: int, room: Shape, array: Array) -> None:
        """Enqueues the upload of an array to where `room` lies. Padding of integers is zeros: they may be indices."""
        size = prod(room) * array.itemsize
        pinned = port.pinned[offset : offset + size].view(array.dtype).reshape(room)
        shape: Shape = array.shape
        if room != shape and not np.issubdtype(array.dtype, np.floating):
            pinned[...] = 0
            shape = room
        pinned[tuple(map(slice, array.shape))] = array
        for start, length in stretches(shape, room, array.itemsize):
            first = offset + start
            self.gpu.upload(port.address + first, port.pinned[first : first + length])

    def outputs(self, sizes: Sizes, padded: Sizes) -> dict[str, DeviceTensor]:
        """Enqueues the copies to the host, without padding, and the end of the call; returns the outputs."""
        outputs = {
            role: DeviceTensor(
                self, self.generation, role, shape_of(spec, sizes), np.dtype(spec.dtype), shape_of(spec, padded)
            )
            for role, spec in self._graph.outputs.items()
        }
        for role in outputs.keys() - self.device_roles:
            self._download(outputs[role])
        self._done.record(self.gpu.stream)
        return outputs

    def keep(self, outputs: Mapping[str, DeviceTensor]) -> dict[str, DeviceTensor]:
        """`outputs` of another slot's call: those on the device as copies in this slot, valid until its next `keep`."""
        self.generation += 1
        kept = dict(outputs)
        for role in outputs.keys() & self.device_roles:
            tensor = outputs[role]
            copy_tensor(self.gpu, self.ports[role].address, tensor.shape, tensor)
            kept[role] = DeviceTensor(self, self.generation, role, tensor.shape, tensor.dtype, tensor.shape)
        return kept

    def _download(self, tensor: DeviceTensor) -> None:
        """Enqueues the copies of a tensor to where it lies in page-locked memory, without padding."""
        port = self.ports[tensor.role]
        for start, length in stretches(tensor.shape, tensor.room, tensor.dtype.itemsize):
            first = tensor.offset + start
            self.gpu.download(port.pinned[first : first + length], port.address + first)

    def read(self, tensor: DeviceTensor) -> Array:
        """The tensor on the host, in memory of its own."""
        with self.gpu.current(f"{self._graph.file.file}, reading {tensor.role!r}"):
            if tensor.role in self.device_roles:
                self._download(tensor)
                self.gpu.stream.synchronize()
            else:
                self._done.synchronize()
            size = prod(tensor.room) * tensor.dtype.itemsize
            pinned = self.ports[tensor.role].pinned[tensor.offset : tensor.offset + size]
            room = pinned.view(tensor.dtype).reshape(tensor.room)
            return room[tuple(map(slice, tensor.shape))].copy()

    def address_of(self, role: str) -> int:
        return self.ports[role].address

    def outdated(self, role: str) -> EngineError:
        return EngineError(
            f"tensor {role!r} is outdated: its engine was called twice since, or was closed; use an answer before the "
            "call after the next, or copy it with .numpy()"
        )

    def ends(self) -> list[Callable[[], None]]:
        """Invalidates the slot's tensors; returns the steps that free it, which may fail if the GPU was lost."""
        self.generation += 1
        return [*(end for port in self.ports.values() for end in port.ends()), self._done.free]
