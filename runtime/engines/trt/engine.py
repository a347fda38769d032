"""One graph of a bundle on TensorRT.

A call enqueues and returns at once: upload, execution, copy back, each behind the other on the stream of its lane. Its
tensors wait for the GPU only when they are read. Two calls of an engine can be in flight, each in a slot of its own.
Between the lanes stand events: the masks of one frame wait for its features and for nothing else, though the next frame
is already at work, and the frame after that waits until the features were read.

Buffers, workspaces and execution contexts are created once and kept until the engine is closed: a call allocates none.
There is a context for each slot and each combination of sizes; `warm` makes those that calls can have.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from visrt.runtime.arrays import Feed, HostTensor, Joined, Tensor
from visrt.runtime.bundles.contract import check_feeds
from visrt.runtime.bundles.dynamic_axes import CLIPS, CLIPS_SETTING, PADDED
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.trt.buffer import DeviceBuffer
from visrt.runtime.engines.trt.context import Lane, TrtContext
from visrt.runtime.engines.trt.cuda import GpuMemoryError
from visrt.runtime.engines.trt.cuda_graph import CaptureRefusedError
from visrt.runtime.engines.trt.device_tensor import DeviceTensor, Sizes, shape_of
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

REFUSALS_MAX = 3
"""One refused recording may be chance, as when something else frees memory of the GPU meanwhile."""


@dataclass(frozen=True)
class Binding:
    """The key of an execution: sizes of the dynamic axes, and slot."""

    sizes: tuple[tuple[str, int], ...]
    slot: int


class TrtEngine:
    """One graph on the GPU of its bundle.

    provider: "TensorRT 10.13.3", as the library reports it. axes: for each dynamic axis the sizes it is run at.
    captures: CUDA graphs recorded. refusals: recordings that failed; after three of them none is tried any more.
    retries: calls that failed once and succeeded in a fresh context.
    """

    def __init__(
        self,
        context: TrtContext,
        lane: Lane,
        plan: Plan,
        graph: GraphSpec,
        axes: Mapping[str, tuple[int, ...]],
        device_roles: frozenset[str],
        answers: int = SLOTS,
    ) -> None:
        """lane: of `context`, where it runs. axes: for each dynamic axis the sizes it is run at, in rising order;
        others are padded to the next.

        device_roles: roles that go from one graph to another on the device, and states. answers: how many calls leave
        tensors on the device that are valid at a time. With more than there are slots they are copied: graphs that
        serve one stream are called for each before the next graph takes all of their tensors together.
        """
        self.is_async: Literal[True] = True
        self.provider = f"{PROVIDERS[context.library.flavour]} {context.library.version}"
        self.captures = 0
        self.refusals = 0
        self.retries = 0
        self._context, self._plan, self._graph, self.axes = context, plan, graph, axes
        self._lane, self._capture = lane, lane.capture
        self._executions: dict[Binding, Execution] = {}
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
                    self._slots.append(self._new_slot(largest, device_roles))
                    self._slots[-1].prepare()
                leaves_tensors = bool(device_roles & graph.outputs.keys())
                for _ in range(answers if answers > SLOTS and leaves_tensors else 0):
                    self._kept.append(self._new_slot(largest, device_roles))
                    self._kept[-1].prepare_kept()
        except EngineError:
            self.close()
            raise

    def _new_slot(self, largest: Sizes, device_roles: frozenset[str]) -> BufferSlot:
        reader = self._context.side.staging
        return BufferSlot(self._context.gpu, self._graph, largest, device_roles, self._lane.staging, reader)

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

    def warm(self, combinations: Iterable[Sizes]) -> None:
        """Makes the execution contexts of these `combinations` of sizes and records their CUDA graphs, by calls with
        zeros, so that no call has to. EngineError where that fails."""
        self._require_open()
        with self._context.gpu.current(f"{self._file}, warming up"):
            for slot in self._slots:
                slot.take()
                slot.clear()
            for sizes in combinations:
                for at, slot in enumerate(self._slots):
                    for _ in range(2):
                        slot.take()
                        slot.lay_out(sizes)
                        self._start(_binding(sizes, at))
                        slot.order.written()

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceBuffer:
        """GPU memory for state, kept until it or the engine is closed."""
        self._require_open()
        self._buffers = {buffer for buffer in self._buffers if buffer.is_open}
        what = f"{self._file}, state {list(shape)}"
        with self._context.gpu.current(what):
            buffer = DeviceBuffer(self._context.gpu, self._lane.staging, shape, np.dtype(dtype), what)
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

    def _call(self, feeds: Mapping[str, Feed], sizes: Sizes, padded: Sizes) -> dict[str, DeviceTensor]:
        """Enqueues the whole call in the slot of the call before the last."""
        self._refuse_unusable(feeds)
        index, self._turn = self._turn, (self._turn + 1) % SLOTS
        slot = self._slots[index]
        slot.take()
        slot.place(feeds, padded)
        self._start(_binding(padded, index))
        outputs = slot.outputs(sizes, padded)
        if not self._kept:
            return outputs
        self._kept.rotate()
        return self._kept[0].keep(outputs)

    def _refuse_unusable(self, feeds: Mapping[str, Feed]) -> None:
        """Raises EngineError for tensors that are outdated, or on another GPU."""
        for role, feed in feeds.items():
            for tensor in feed.rows if isinstance(feed, Joined) else (feed,):
                if isinstance(tensor, DeviceTensor):
                    tensor.require_valid()
                    if tensor.holder.gpu is not self._context.gpu:
                        raise EngineError(
                            f"{self._file}: input {role!r} is of another bundle's engine; give it as .numpy()"
                        )

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
        if self._capture is None or execution.captured:
            return execution
        try:
            execution.record(self._capture)
        except CaptureRefusedError as error:
            self.refusals += 1
            if self.refusals == REFUSALS_MAX:
                self._capture = None
                self._context.notice(f"{self._file} runs without CUDA graphs, which costs some speed: {error}")
            # TensorRT does not define the state of a context whose recording was aborted. It has no work left, because
            # taking its slot waited for it.
            self._executions.pop(binding).close()
            return self._new_execution(binding)
        self.captures += 1
        return execution

    def _new_execution(self, binding: Binding) -> Execution:
        sizes, slot = dict(binding.sizes), self._slots[binding.slot]
        dynamic = [
            spec for spec in self._graph.inputs.values() if not all(isinstance(axis, int) for axis in spec.shape)
        ]
        shapes = {spec.name: shape_of(spec, sizes) for spec in dynamic}
        tensors = {**self._graph.inputs, **self._graph.outputs}
        addresses = {spec.name: slot.address_of(role) for role, spec in tensors.items()}
        stream, workspace = self._lane.stream.handle, self._lane.workspace
        execution = Execution(self._plan.context(), stream, workspace, shapes, addresses)
        self._executions[binding] = execution
        return execution

    def _drop_executions(self) -> None:
        while self._executions:
            self._executions.popitem()[1].close()

    def _padded(self, symbol: str, size: int) -> int:
        """The size at which the engine runs an axis of `size`."""
        sizes = self.axes[symbol]
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


def _binding(sizes: Sizes, slot: int) -> Binding:
    return Binding(tuple(sorted(sizes.items())), slot)


def _dynamic_sizes(graph: GraphSpec, feeds: Mapping[str, Feed]) -> dict[str, int]:
    """The size of each dynamic axis in `feeds`, which fit the graph."""
    return {
        axis: size
        for role, spec in graph.inputs.items()
        for axis, size in zip(spec.shape, feeds[role].shape, strict=True)
        if isinstance(axis, str)
    }
