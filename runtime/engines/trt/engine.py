"""One graph of a bundle on TensorRT.

A call enqueues and returns at once: upload, execution, copies back, each behind the other on the stream. Its tensors
wait for the GPU only when they are read. Two calls of an engine can be in flight, each in a slot of its own; the
stream's order lets the masks of one frame read its features while the next frame is already enqueued behind.

Buffers, workspace and execution contexts are created once and kept until the engine is closed: a call allocates none.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from visrt.runtime.arrays import Array, Feed, HostTensor, Joined, Tensor
from visrt.runtime.bundles.contract import check_feeds
from visrt.runtime.bundles.dynamic_axes import CLIPS, CLIPS_SETTING, PADDED
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.trt.buffer import DeviceBuffer
from visrt.runtime.engines.trt.context import TrtContext
from visrt.runtime.engines.trt.cuda import GpuMemoryError
from visrt.runtime.engines.trt.cuda_graph import CaptureRefusedError
from visrt.runtime.engines.trt.device_tensor import ALIGNMENT, DeviceTensor, Sizes, bytes_of, shape_of
from visrt.runtime.engines.trt.execution import Execution, ExecutionRefusedError
from visrt.runtime.engines.trt.library import Flavour
from visrt.runtime.engines.trt.log import Line, log_text
from visrt.runtime.engines.trt.plan import Plan
from visrt.runtime.engines.trt.slot import BufferSlot
from visrt.runtime.errors import EngineError

__all__ = ["SLOTS", "TrtEngine"]

PROVIDERS: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

SLOTS = 2
"""Calls of an engine that can be in flight."""

EXECUTIONS_MAX = 64
"""Execution contexts an engine keeps; beyond that, the least recently used one is freed."""

IN_PLACE_EXECUTIONS = 32
"""With so many, inputs that no execution knows yet are copied: a copy on the GPU costs less than a new context."""


@dataclass(frozen=True)
class Binding:
    """The key of an execution: sizes of the dynamic axes, slot, and where inputs lie that are read in place."""

    sizes: tuple[tuple[str, int], ...]
    slot: int
    in_place: tuple[tuple[str, int], ...]


class TrtEngine:
    """One graph on the GPU of its bundle.

    provider: "TensorRT 10.13.3", as the library reports it. captures: CUDA graphs recorded. retries: calls that failed
    once and succeeded in a fresh context.
    """

    def __init__(
        self,
        context: TrtContext,
        plan: Plan,
        graph: GraphSpec,
        axes: Mapping[str, tuple[int, ...]],
        device_roles: frozenset[str],
        answers: int = SLOTS,
    ) -> None:
        """axes: for each dynamic axis the sizes it is run at, in rising order; others are padded to the next.

        device_roles: roles that go from one graph to another on the device, and states. answers: how many calls leave
        tensors on the device that are valid at a time. With more than there are slots they are copied: graphs that
        serve one stream are called for each before the next graph takes all of their tensors together.
        """
        self.is_async: Literal[True] = True
        self.provider = f"{PROVIDERS[context.library.flavour]} {context.library.version}"
        self.captures = 0
        self.retries = 0
        self._context, self._plan, self._graph, self._axes = context, plan, graph, axes
        self._executions: OrderedDict[Binding, Execution] = OrderedDict()
        self._capture = context.capture
        self._turn = 0
        self._buffers: set[DeviceBuffer] = set()
        self._open = True
        largest = {symbol: sizes[-1] for symbol, sizes in axes.items()}
        self._slots: list[BufferSlot] = []
        self._kept: deque[BufferSlot] = deque()
        context.join()
        try:
            with context.gpu.current(f"{graph.file.file}, allocating its buffers"):
                for _ in range(SLOTS):
                    self._slots.append(BufferSlot(context.gpu, graph, largest, device_roles))
                    self._slots[-1].prepare()
                leaves_tensors = bool(device_roles & graph.outputs.keys())
                for _ in range(answers if answers > SLOTS and leaves_tensors else 0):
                    self._kept.append(BufferSlot(context.gpu, graph, largest, device_roles, in_place=False))
                    self._kept[-1].prepare_kept()
        except EngineError:
            self.close()
            raise

    @property
    def notices(self) -> tuple[str, ...]:
        """What makes this engine slower than it could be, such as missing CUDA graphs."""
        return tuple(self._context.notices)

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        self._require_open()
        check_feeds(self._graph, feeds)
        sizes = _dynamic_sizes(self._graph, feeds)
        if 0 in sizes.values():
            return self._empty_outputs(sizes)
        padded = {symbol: self._padded(symbol, size) for symbol, size in sizes.items()}
        with self._context.gpu.current(self._file):
            return dict(self._call(feeds, sizes, padded))

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceBuffer:
        """GPU memory for state, kept until it or the engine is closed."""
        self._require_open()
        self._forget_closed()
        what = f"{self._file}, state {list(shape)}"
        with self._context.gpu.current(what):
            buffer = DeviceBuffer(self._context.gpu, self._context.staging, shape, np.dtype(dtype), what)
        self._buffers.add(buffer)
        return buffer

    def close(self) -> None:
        """Frees what the engine holds, and with the last engine of a bundle what they share. Outdates its tensors."""
        if not self._open:
            return
        self._context.gpu.require_owner()
        self._open = False
        ends = [end for slot in (*self._slots, *self._kept) for end in slot.ends()]
        ends += [end for buffer in self._buffers for end in buffer.ends()]
        self._context.gpu.release([self._drop_executions, *ends, self._plan.close])
        self._context.leave()

    def __del__(self) -> None:
        """Frees an engine that was never closed, unless this is another thread, where CUDA refuses to free anything."""
        if getattr(self, "_open", False) and self._context.gpu.owned and not sys.is_finalizing():
            self.close()

    @property
    def _file(self) -> str:
        return self._graph.file.file

    def _require_open(self) -> None:
        if not self._open:
            raise EngineError(f"{self._file}: the engine is closed; open the bundle again")

    def _forget_closed(self) -> None:
        """Frees the executions that read buffers which were closed; closing waited for them."""
        closed = {buffer for buffer in self._buffers if not buffer.is_open}
        self._buffers -= closed
        addresses = {buffer.address for buffer in closed if buffer.in_place}
        for binding in [known for known in self._executions if addresses & {at for _, at in known.in_place}]:
            self._executions.pop(binding).close()

    def _call(self, feeds: Mapping[str, Feed], sizes: Sizes, padded: Sizes) -> dict[str, DeviceTensor]:
        """Enqueues the whole call in the slot of the call before the last."""
        index, self._turn = self._turn, (self._turn + 1) % SLOTS
        slot = self._slots[index]
        slot.take()
        binding = self._binding(index, feeds, padded)
        for role in feeds.keys() - dict(binding.in_place).keys():
            slot.place(role, feeds[role], padded)
        self._start(binding)
        outputs = slot.outputs(sizes, padded)
        if not self._kept:
            return outputs
        self._kept.rotate()
        return self._kept[0].keep(outputs)

    def _binding(self, slot: int, feeds: Mapping[str, Feed], padded: Sizes) -> Binding:
        """Reads in place what can be, unless that takes one execution too many."""
        places = ((role, self._place(role, feed, padded)) for role, feed in feeds.items())
        in_place = tuple((role, address) for role, address in places if address is not None)
        binding = Binding(tuple(padded.items()), slot, in_place)
        if binding in self._executions or len(self._executions) < IN_PLACE_EXECUTIONS:
            return binding
        return replace(binding, in_place=())

    def _place(self, role: str, feed: Feed, padded: Sizes) -> int | None:
        """The address of an input if it lies on the device as TensorRT needs it, and may be read there."""
        tensors = feed.rows if isinstance(feed, Joined) else (feed,)
        for tensor in tensors:
            if isinstance(tensor, DeviceTensor) and tensor.holder.gpu is not self._context.gpu:
                raise EngineError(f"{self._file}: input {role!r} is of another bundle's engine; give it as .numpy()")
        whole = _in_one_piece(tensors)
        if whole is None or not whole.holder.in_place or whole.bytes != bytes_of(self._graph.inputs[role], padded):
            return None
        address = whole.address
        return address if address % ALIGNMENT == 0 else None

    def _start(self, binding: Binding) -> None:
        """Starts the execution of `binding`; if that fails, frees all contexts and tries once more in a new one."""
        with self._context.log.listening() as lines:
            try:
                self._execution(binding).start()
            except (ExecutionRefusedError, GpuMemoryError):
                self._context.gpu.settle()
                self._drop_executions()
                try:
                    self._execution(binding).start()
                except (ExecutionRefusedError, GpuMemoryError) as error:
                    raise self._failed(error, lines) from None
                self.retries += 1

    def _failed(self, error: Exception, lines: list[Line]) -> EngineError:
        return EngineError(
            f"{self._file}: {error}, also in a fresh context; TensorRT says: {log_text(lines)}; use a smaller batch "
            "(--batch) if memory is short, and see `visrt verify` whether the engine works on this GPU"
        )

    def _execution(self, binding: Binding) -> Execution:
        """The execution of `binding`. Its second call records its CUDA graph."""
        execution = self._executions.get(binding)
        if execution is None:
            return self._new_execution(binding)
        self._executions.move_to_end(binding)
        if self._capture is None or execution.captured:
            return execution
        try:
            execution.record(self._capture)
        except CaptureRefusedError as error:
            self._capture = None
            self._context.notice(f"{self._file} runs without CUDA graphs, which costs some speed: {error}")
            # TensorRT does not define the state of a context whose recording was aborted. It has no work left, because
            # taking its slot waited for it.
            self._executions.pop(binding).close()
            return self._new_execution(binding)
        self.captures += 1
        return execution

    def _new_execution(self, binding: Binding) -> Execution:
        if len(self._executions) >= EXECUTIONS_MAX:
            self._context.gpu.settle()
            self._executions.popitem(last=False)[1].close()
        sizes, slot, specs = dict(binding.sizes), self._slots[binding.slot], self._graph.inputs
        dynamic = [spec for spec in specs.values() if not all(isinstance(axis, int) for axis in spec.shape)]
        shapes = {spec.name: shape_of(spec, sizes) for spec in dynamic}
        tensors, in_place = {**specs, **self._graph.outputs}, dict(binding.in_place)
        ports = {role: slot.ports[role].address for role in tensors.keys() - in_place.keys()}
        addresses = {spec.name: (in_place | ports)[role] for role, spec in tensors.items()}
        shared = self._context
        execution = Execution(self._plan.context(), shared.gpu.handle, shared.workspace, shapes, addresses)
        self._executions[binding] = execution
        return execution

    def _drop_executions(self) -> None:
        while self._executions:
            self._executions.popitem()[1].close()

    def _padded(self, symbol: str, size: int) -> int:
        """The size at which the engine runs an axis of `size`."""
        sizes = self._axes[symbol]
        if size > sizes[-1]:
            raise EngineError(
                f"{self._file}: {symbol} is {size}, the engine was opened for 1 to {sizes[-1]}; {_remedy(symbol, size)}"
            )
        if symbol not in PADDED and size not in sizes:
            raise EngineError(f"{self._file}: {symbol} is {size}, the engine runs {', '.join(map(str, sizes))}")
        return next(known for known in sizes if known >= size)

    def _empty_outputs(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """Outputs of a call without frames or masks; the GPU is not used."""
        return {
            role: HostTensor(np.empty(shape_of(spec, sizes), spec.dtype)) for role, spec in self._graph.outputs.items()
        }


def _remedy(symbol: str, size: int) -> str:
    """What to do where an axis of `size` is too long."""
    if symbol == CLIPS:
        return f"open it with {CLIPS_SETTING} of {size} or more"
    return "give it less at once, or open it for more (--batch)"


def _in_one_piece(tensors: Sequence[Array | Tensor]) -> DeviceTensor | None:
    """All of `tensors` as one, if they lie on the device one behind the other."""
    first, rest = tensors[0], tensors[1:]
    if not isinstance(first, DeviceTensor) or not first.compact:
        return None
    last = first
    for tensor in rest:
        if not isinstance(tensor, DeviceTensor) or not tensor.follows(last):
            return None
        last = tensor
    shape = (len(tensors), *first.shape)
    return first.part(shape, shape, 0)


def _dynamic_sizes(graph: GraphSpec, feeds: Mapping[str, Feed]) -> dict[str, int]:
    """The size of each dynamic axis in `feeds`, which fit the graph."""
    return {
        axis: size
        for role, spec in graph.inputs.items()
        for axis, size in zip(spec.shape, feeds[role].shape, strict=True)
        if isinstance(axis, str)
    }
