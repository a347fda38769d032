"""One graph of a bundle on TensorRT.

A call enqueues and returns at once: upload, execution, copies back, each behind the other on the stream. Its tensors
wait for the GPU only when they are read. Two calls of an engine can be in flight, each in a slot of its own; the
stream's order lets the masks of one frame read its features while the next frame is already enqueued behind.

Buffers, workspace and contexts are made once and used until the engine is closed: a call allocates nothing.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visrt.runtime.contract import check_feeds
from visrt.runtime.cuda import GpuMemoryError
from visrt.runtime.cuda_graph import CaptureRefusedError
from visrt.runtime.engine import Array, HostTensor, Tensor
from visrt.runtime.errors import EngineError
from visrt.runtime.manifest import GraphSpec
from visrt.runtime.tensorrt_library import Flavour
from visrt.runtime.tensorrt_log import Line
from visrt.runtime.trt_bench import Bench
from visrt.runtime.trt_plan import Plan
from visrt.runtime.trt_run import Run, RunRefusedError
from visrt.runtime.trt_slot import ALIGNMENT, DeviceTensor, Slot, bytes_of, shape_of

__all__ = ["SLOTS", "TrtEngine"]

PROVIDERS: dict[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

SLOTS = 2
"""Calls of an engine that can be in flight."""

RUNS_MAX = 64
"""Execution contexts an engine keeps; beyond, the one that was not used for longest is given up."""


@dataclass(frozen=True)
class Binding:
    """What a run is bound to: sizes of the dynamic axes, slot, and where each input lies."""

    sizes: tuple[tuple[str, int], ...]
    slot: int
    inputs: tuple[tuple[str, int], ...]


class TrtEngine:
    """One graph on the GPU of its bundle.

    provider: "TensorRT 10.13.3" as the library tells it. captures: CUDA graphs recorded. retries: calls that failed
    once and succeeded in a fresh context.
    """

    def __init__(
        self,
        bench: Bench,
        plan: Plan,
        graph: GraphSpec,
        axes: Mapping[str, tuple[int, ...]],
        handed_over: frozenset[str],
    ) -> None:
        """axes: for each dynamic axis the sizes it is run at, rising; others are padded to the next.

        handed_over: roles that go from one graph to another on the device.
        """
        self.answers_later: Literal[True] = True
        self.provider = f"{PROVIDERS[bench.library.flavour]} {bench.library.version}"
        self.captures = 0
        self.retries = 0
        self._bench, self._plan, self._graph, self._axes = bench, plan, graph, axes
        self._runs: OrderedDict[Binding, Run] = OrderedDict()
        self._capture = bench.capture
        self._turn = 0
        self._open = True
        largest = {symbol: sizes[-1] for symbol, sizes in axes.items()}
        self._slots: list[Slot] = []
        bench.join()
        try:
            with bench.gpu.current(f"{graph.file.file}, allocating its buffers"):
                for _ in range(SLOTS):
                    self._slots.append(Slot(bench.gpu, graph, largest, handed_over))
                    self._slots[-1].prepare()
        except EngineError:
            self.close()
            raise

    @property
    def notices(self) -> tuple[str, ...]:
        """What is not as it could be: no CUDA graphs."""
        return tuple(self._bench.notices)

    def __call__(self, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        if not self._open:
            raise EngineError(f"{self._file}: the engine is closed; open the bundle again")
        check_feeds(self._graph, feeds)
        sizes = _dynamic_sizes(self._graph, feeds)
        if 0 in sizes.values():
            return self._nothing(sizes)
        padded = {symbol: self._padded(symbol, size) for symbol, size in sizes.items()}
        with self._bench.gpu.current(self._file):
            return dict(self._answer(feeds, sizes, padded))

    def close(self) -> None:
        """Frees what the engine holds, and with the last engine of a bundle what they share. Outdates its tensors."""
        if not self._open:
            return
        self._bench.gpu.require_owner()
        self._open = False
        ends = [end for slot in self._slots for end in slot.ends()]
        self._bench.gpu.release([self._drop_runs, *ends, self._plan.close])
        self._bench.leave()

    def __del__(self) -> None:
        """For one that was never closed. In another thread nothing can be freed: CUDA would refuse."""
        if getattr(self, "_open", False) and self._bench.gpu.owned and not sys.is_finalizing():
            self.close()

    @property
    def _file(self) -> str:
        return self._graph.file.file

    def _answer(
        self, feeds: Mapping[str, Array | Tensor], sizes: Mapping[str, int], padded: Mapping[str, int]
    ) -> dict[str, DeviceTensor]:
        """Enqueues the whole call in the slot of the call before the last."""
        index, self._turn = self._turn, (self._turn + 1) % SLOTS
        slot = self._slots[index]
        slot.take()
        inputs = {role: self._placed(slot, role, tensor, padded) for role, tensor in feeds.items()}
        self._start(Binding(tuple(padded.items()), index, tuple(inputs.items())))
        return slot.answer(sizes)

    def _placed(self, slot: Slot, role: str, tensor: Array | Tensor, padded: Mapping[str, int]) -> int:
        """The address where the graph reads an input: in place if it lies on the device as TensorRT needs it."""
        if not isinstance(tensor, DeviceTensor):
            return slot.place(role, tensor if isinstance(tensor, np.ndarray) else tensor.numpy())
        if tensor.slot.gpu is not self._bench.gpu:
            raise EngineError(f"{self._file}: input {role!r} is of another bundle's engine; give it as .numpy()")
        whole = tensor.bytes == bytes_of(self._graph.inputs[role], padded)
        if whole and tensor.address % ALIGNMENT == 0:
            return tensor.address
        return slot.place_copy(role, tensor)

    def _start(self, binding: Binding) -> None:
        """Starts the run of `binding`; what fails is tried once more in a fresh context, with all others given up."""
        with self._bench.log.listening() as heard:
            try:
                self._run(binding).start()
            except (RunRefusedError, GpuMemoryError):
                self._bench.gpu.settle()
                self._drop_runs()
                try:
                    self._run(binding).start()
                except (RunRefusedError, GpuMemoryError) as error:
                    raise self._failed(error, heard) from None
                self.retries += 1

    def _failed(self, error: Exception, heard: list[Line]) -> EngineError:
        said = " / ".join(dict.fromkeys(line.text for line in heard)) or "nothing"
        return EngineError(
            f"{self._file}: {error}, also in a fresh context; TensorRT says: {said}; use a smaller batch (--batch) if "
            "memory is short, and see `visrt verify` whether the engine works on this GPU"
        )

    def _run(self, binding: Binding) -> Run:
        """The run of `binding`. Its second call records its CUDA graph."""
        run = self._runs.get(binding)
        if run is None:
            return self._made(binding)
        self._runs.move_to_end(binding)
        if self._capture is None or run.captured:
            return run
        try:
            run.record(self._capture)
        except CaptureRefusedError as error:
            self._capture = None
            self._bench.notice(f"{self._file} runs without CUDA graphs, which costs some speed: {error}")
            # What a context is worth whose recording broke off, TensorRT does not say. It has no work left: its slot
            # was taken, which waits for it.
            self._runs.pop(binding).close()
            return self._made(binding)
        self.captures += 1
        return run

    def _made(self, binding: Binding) -> Run:
        if len(self._runs) >= RUNS_MAX:
            self._bench.gpu.settle()
            self._runs.popitem(last=False)[1].close()
        sizes, inputs, slot = dict(binding.sizes), dict(binding.inputs), self._slots[binding.slot]
        specs = self._graph.inputs
        dynamic = [spec for spec in specs.values() if not all(isinstance(axis, int) for axis in spec.shape)]
        shapes = {spec.name: shape_of(spec, sizes) for spec in dynamic}
        addresses = {specs[role].name: address for role, address in inputs.items()}
        addresses |= {spec.name: slot.ports[role].address for role, spec in self._graph.outputs.items()}
        run = Run(self._plan.context(), self._bench.gpu.handle, self._bench.workspace, shapes, addresses)
        self._runs[binding] = run
        return run

    def _drop_runs(self) -> None:
        while self._runs:
            self._runs.popitem()[1].close()

    def _padded(self, symbol: str, size: int) -> int:
        sizes = self._axes[symbol]
        if size > sizes[-1]:
            raise EngineError(
                f"{self._file}: {symbol} is {size}, the engine was opened for 1 to {sizes[-1]}; give it less at once, "
                "or open it for more (--batch)"
            )
        return next(known for known in sizes if known >= size)

    def _nothing(self, sizes: Mapping[str, int]) -> dict[str, Tensor]:
        """The answer to an empty question, for which the GPU is not asked."""
        return {
            role: HostTensor(np.empty(shape_of(spec, sizes), spec.dtype)) for role, spec in self._graph.outputs.items()
        }


def _dynamic_sizes(graph: GraphSpec, feeds: Mapping[str, Array | Tensor]) -> dict[str, int]:
    """The size of each dynamic axis in `feeds`, which fit the graph."""
    return {
        axis: size
        for role, spec in graph.inputs.items()
        for axis, size in zip(spec.shape, feeds[role].shape, strict=True)
        if isinstance(axis, str)
    }
