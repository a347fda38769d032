"""The buffers of one engine call, and the tensors that point into them.

An engine has two slots, so that two calls can be in flight: while the host works on the outputs of one, the GPU
computes the other. A call waits only for the call before the last, whose slot it reuses.

Tensors that go through the host lie together, inputs in one block and outputs in another, so that each call is one copy
up and one copy down. Every graph reads and writes buffers of its own: what another graph made is copied there, which
costs a GPU less than the execution context and the CUDA graph that each further address would take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod

import numpy as np

from visrt.runtime.arrays import Array, Feed, Joined
from visrt.runtime.bundles.manifest import GraphSpec, TensorSpec
from visrt.runtime.engines.trt.buffer import Staging
from visrt.runtime.engines.trt.cuda import DeviceMemory, Gpu, PinnedMemory
from visrt.runtime.engines.trt.device_tensor import (
    ALIGNMENT,
    DeviceTensor,
    Order,
    Shape,
    Sizes,
    bytes_of,
    copy_tensors,
    shape_of,
    stretches,
)
from visrt.runtime.errors import EngineError

__all__ = ["BufferSlot"]


class Block:
    """Memory of tensors that go through the host together: on the device, and page-locked with the same layout."""

    def __init__(self, gpu: Gpu, file: str, specs: Mapping[str, TensorSpec], largest: Sizes) -> None:
        """Allocates it for `specs` at their largest; the context must be current."""
        self._specs = specs
        size = _layout(specs, largest)[1]
        what = f"{file}, memory for {', '.join(map(repr, specs))},"
        self.device: DeviceMemory = gpu.allocate(size, what)
        try:
            self.pinned: PinnedMemory = gpu.pin(size, what)
        except EngineError:
            self.device.free()
            raise
        self.offsets: Mapping[str, int] = {}
        self._known: dict[tuple[tuple[str, int], ...], Mapping[str, int]] = {}

    def lay_out(self, sizes: Sizes) -> None:
        """Sets `offsets` for a call at `sizes`; those of the few combinations that calls have are worked out once."""
        key = tuple(sizes.items())
        if key not in self._known:
            self._known[key] = _layout(self._specs, sizes)[0]
        self.offsets = self._known[key]

    def ends(self) -> list[Callable[[], None]]:
        """Steps that free it."""
        return [self.device.free, self.pinned.free]


def _layout(specs: Mapping[str, TensorSpec], sizes: Sizes) -> tuple[dict[str, int], int]:
    """Offsets of tensors that lie one behind the other, as TensorRT needs them, and the bytes of all."""
    offsets, end = {}, 0
    for role, spec in specs.items():
        offsets[role] = end
        end += -(-bytes_of(spec, sizes) // ALIGNMENT) * ALIGNMENT
    return offsets, end


class BufferSlot:
    """Buffers of one call. Its tensors are valid until `take` gives them to the next call.

    device_roles: roles that one graph passes to another on the device, and states. Of these, outputs are copied to the
    host only when they are read.
    """

    def __init__(
        self,
        gpu: Gpu,
        graph: GraphSpec,
        largest: Sizes,
        device_roles: frozenset[str],
        staging: Staging,
        reader: Staging,
    ) -> None:
        """staging: of the stream that uses it. reader: through which the host reads what stays on the device."""
        self.gpu, self.generation, self.device_roles = gpu, 0, device_roles
        self.order = Order(gpu, staging.stream)
        self._graph, self._largest, self._staging, self._reader = graph, largest, staging, reader
        self._blocks: dict[str, Block] = {}
        self._device: dict[str, DeviceMemory] = {}

    def prepare(self) -> None:
        """Allocates what every call needs, so that no call has to; the context must be current."""
        for side in (self._graph.inputs, self._graph.outputs):
            if host := {role: spec for role, spec in side.items() if role not in self.device_roles}:
                block = Block(self.gpu, self._graph.file.file, host, self._largest)
                self._blocks |= dict.fromkeys(host, block)
        for role in self.device_roles & self._graph.inputs.keys():
            self._allocate(role)
        self.prepare_kept()

    def prepare_kept(self) -> None:
        """Allocates what `keep` needs, and every call."""
        for role in self.device_roles & self._graph.outputs.keys():
            self._allocate(role)

    def _allocate(self, role: str) -> None:
        spec = {**self._graph.inputs, **self._graph.outputs}[role]
        what = f"{self._graph.file.file}, tensor {role!r}"
        self._device[role] = self.gpu.allocate(bytes_of(spec, self._largest), what)

    def take(self) -> None:
        """Invalidates the tensors of the slot's last call, and waits until the GPU has finished that call."""
        self.generation += 1
        self.order.wait_for_written()
        self.order.before_writing()

    def clear(self) -> None:
        """Enqueues zeros for all inputs."""
        blocks = {block for role, block in self._blocks.items() if role in self._graph.inputs}
        devices = [memory for role, memory in self._device.items() if role in self._graph.inputs]
        for memory in [*(block.device for block in blocks), *devices]:
            self.gpu.clear(memory.address, memory.bytes, self.order.stream)

    def lay_out(self, sizes: Sizes) -> None:
        """Sets where the tensors of a call at `sizes` lie."""
        for block in set(self._blocks.values()):
            block.lay_out(sizes)

    def place(self, feeds: Mapping[str, Feed], sizes: Sizes) -> None:
        """Enqueues what brings `feeds` into the slot's own buffers, at `sizes`."""
        self.lay_out(sizes)
        spans: list[tuple[int, int]] = []
        for role, feed in feeds.items():
            rows, lead = (feed.rows, feed.lead) if isinstance(feed, Joined) else ((feed,), ())
            room = shape_of(self._graph.inputs[role], sizes)[len(lead) :]
            tensors = [row for row in rows if isinstance(row, DeviceTensor)]
            if len(tensors) == len(rows):
                copy_tensors(self.order.stream, self.address_of(role), room, tensors)
                continue
            step = prod(room) * feed.dtype.itemsize
            for at, row in enumerate(rows):
                if isinstance(row, DeviceTensor):
                    copy_tensors(self.order.stream, self.address_of(role) + at * step, room, [row])
                else:
                    array = row if isinstance(row, np.ndarray) else row.numpy()
                    spans += self._from_host(role, at * step, room, array)
        block = next((self._blocks[role] for role in self._graph.inputs if role in self._blocks), None)
        for start, end in _joined(spans):
            assert block is not None
            self.gpu.upload(block.device.address + start, block.pinned.array[start:end], self.order.stream)

    def _from_host(self, role: str, offset: int, room: Shape, array: Array) -> list[tuple[int, int]]:
        """Puts an array to where `room` lies, `offset` bytes into an input; gives the stretches of the block, from and
        to, that are still to be uploaded. Padding of integers is zeros: they may be indices."""
        if role not in self._blocks:
            padded = array
            if array.shape != room:
                padded = np.zeros(room, array.dtype)
                padded[tuple(map(slice, array.shape))] = array
            self._staging.upload(self.address_of(role) + offset, padded)
            return []
        first = self._blocks[role].offsets[role] + offset
        size = prod(room) * array.itemsize
        pinned = self._blocks[role].pinned.array[first : first + size].view(array.dtype).reshape(room)
        shape: Shape = array.shape
        if room != shape and not np.issubdtype(array.dtype, np.floating):
            pinned[...] = 0
            shape = room
        pinned[tuple(map(slice, array.shape))] = array
        return [(first + start, first + start + length) for start, length in stretches(shape, room, array.itemsize)]

    def outputs(self, sizes: Sizes, padded: Sizes) -> dict[str, DeviceTensor]:
        """Enqueues the copies to the host, without padding, and the end of the call; returns the outputs."""
        outputs = {
            role: DeviceTensor(
                self, self.generation, role, shape_of(spec, sizes), np.dtype(spec.dtype), shape_of(spec, padded)
            )
            for role, spec in self._graph.outputs.items()
        }
        spans: list[tuple[int, int]] = []
        block = None
        for role in outputs.keys() & self._blocks.keys():
            block, tensor = self._blocks[role], outputs[role]
            first = block.offsets[role]
            pieces = stretches(tensor.shape, tensor.room, tensor.dtype.itemsize)
            spans += [(first + start, first + start + length) for start, length in pieces]
        for start, end in _joined(spans):
            assert block is not None
            self.gpu.download(block.pinned.array[start:end], block.device.address + start, self.order.stream)
        self.order.written()
        return outputs

    def keep(self, outputs: Mapping[str, DeviceTensor]) -> dict[str, DeviceTensor]:
        """`outputs` of another slot's call: those on the device as copies in this slot, valid until its next `keep`."""
        self.generation += 1
        self.order.before_writing()
        kept = dict(outputs)
        for role in outputs.keys() & self.device_roles:
            tensor = outputs[role]
            copy_tensors(self.order.stream, self.address_of(role), tensor.shape, [tensor])
            kept[role] = DeviceTensor(self, self.generation, role, tensor.shape, tensor.dtype, tensor.shape)
        self.order.written()
        return kept

    def read(self, tensor: DeviceTensor) -> Array:
        """The tensor on the host, in memory of its own."""
        with self.gpu.current(f"{self._graph.file.file}, reading {tensor.role!r}"):
            size = prod(tensor.room) * tensor.dtype.itemsize
            if tensor.role in self._device:
                with self.order.reading(self._reader.stream):
                    flat = self._reader.download(tensor.address, size)
            else:
                self.order.wait_for_written()
                block = self._blocks[tensor.role]
                first = block.offsets[tensor.role] + tensor.offset
                flat = block.pinned.array[first : first + size]
            return flat.view(tensor.dtype).reshape(tensor.room)[tuple(map(slice, tensor.shape))].copy()

    def address_of(self, role: str) -> int:
        if role in self._device:
            return self._device[role].address
        return self._blocks[role].device.address + self._blocks[role].offsets[role]

    def outdated(self, role: str) -> EngineError:
        return EngineError(
            f"tensor {role!r} is outdated: its engine was called twice since, or was closed; use an answer before the "
            "call after the next, or copy it with .numpy()"
        )

    def ends(self) -> list[Callable[[], None]]:
        """Invalidates the slot's tensors; returns the steps that free it, which may fail if the GPU was lost."""
        self.generation += 1
        blocks, devices = set(self._blocks.values()), list(self._device.values())
        self._blocks, self._device = {}, {}
        return [*(end for block in blocks for end in block.ends()), *(one.free for one in devices), *self.order.ends()]


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches of a block, from and to, in order; those between which nothing but alignment lies are one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start - joined[-1][1] < ALIGNMENT:
            start = joined.pop()[0]
        joined.append((start, end))
    return joined
