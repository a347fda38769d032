"""A GPU that computes nothing and takes the time it is told to, under the real runtime for TensorRT.

It is a layer of CUDA's calls and the few objects of TensorRT that `runtime/engines/trt` asks for. Memory is the host's;
what a graph answers is scripted. The clock (`Timeline`) is that of the thread that uses the GPU: the CPU time it
spends, so that nothing else that runs on the machine counts, and the time it would wait. What the simulation itself
does is left out; each call of the driver takes a time that is given.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from time import thread_time
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from visrt.benchmarks.speed.gpu_timeline import Timeline, Work
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.dynamic_axes import combinations, profile_of
from visrt.runtime.bundles.manifest import GraphSpec, Manifest
from visrt.runtime.engines.trt.context import TrtContext
from visrt.runtime.engines.trt.cuda import Gpu
from visrt.runtime.engines.trt.engine import TrtEngine
from visrt.runtime.engines.trt.library import TensorRt
from visrt.runtime.engines.trt.trt import start_engines
from visrt.runtime.errors import UsageError

__all__ = ["GpuSpeed", "SimulatedGpu", "simulated_engines"]

ALIGNMENT = 512


@dataclass(frozen=True)
class GpuSpeed:
    """What a GPU is given to take. network_ms: of one call, by the frames in it; between and beyond them a straight
    line. masks_ms: of one call of the masks graph. up_down_gb_s: of copies between host and GPU; within_gb_s: within
    the GPU, where each byte is read and written. call_us: of the host, for each call of the driver.
    """

    network_ms: Mapping[int, float]
    masks_ms: float = 0.1
    up_down_gb_s: float = 25.0
    within_gb_s: float = 2000.0
    call_us: float = 4.0

    def __post_init__(self) -> None:
        if not self.network_ms or min(self.network_ms) < 1 or min(self.network_ms.values()) <= 0:
            raise UsageError(f"{self}: expected milliseconds above 0 for calls of 1 or more frames")

    def network_s(self, frames: int) -> float:
        known = sorted(self.network_ms)
        if len(known) == 1:
            return 1e-3 * self.network_ms[known[0]] * frames / known[0]
        low = max([at for at in known[:-1] if at <= frames], default=known[0])
        high = known[known.index(low) + 1]
        slope = (self.network_ms[high] - self.network_ms[low]) / (high - low)
        return 1e-3 * (self.network_ms[low] + slope * (frames - low))


@dataclass
class _Stream:
    gpu: SimulatedGpu
    handle: int
    last: Work | None = None

    def synchronize(self) -> None:
        with self.gpu.driver():
            if self.last is not None:
                self.gpu.timeline.wait(self.last)

    def wait(self, event: Any) -> None:
        with self.gpu.driver():
            if event.mark is not None:
                self.last = self.gpu.timeline.enqueue(self.handle, "wait", "kernels", 0.0, [event.mark])

    def free(self) -> None: ...


@dataclass
class _Event:
    gpu: SimulatedGpu
    mark: Work | None = None

    def record(self, stream: Any) -> None:
        with self.gpu.driver():
            self.mark = stream.last

    def synchronize(self) -> None:
        with self.gpu.driver():
            if self.mark is not None:
                self.gpu.timeline.wait(self.mark)

    def free(self) -> None: ...


class _NeverError(Exception):
    """Nothing fails here."""


Kernels = Callable[[str, Mapping[str, Array]], None]
"""Writes the outputs of a graph, by its name, to the arrays of its tensors by role."""


@dataclass
class SimulatedGpu:
    """See `cuda.Layer`. left_out_s: CPU time of the simulation itself. network_s: when each call of the frame graph was
    enqueued."""

    speed: GpuSpeed
    kernels: Kernels
    timeline: Timeline = field(default_factory=Timeline)
    left_out_s: float = 0.0
    network_s: list[float] = field(default_factory=list)
    name: str = "simulated"
    error: type[Exception] = _NeverError
    memory_error: type[Exception] = _NeverError
    _streams: dict[int, _Stream] = field(default_factory=dict)
    _left_s: float = field(default_factory=thread_time)

    @contextmanager
    def driver(self) -> Iterator[None]:
        """A call of the driver, up to which the host's clock goes on. What is done inside takes no time of the host's
        but that of the call and of waiting."""
        entered = thread_time()
        self.timeline.advance(entered - self._left_s + 1e-6 * self.speed.call_us)
        try:
            yield
        finally:
            self._left_s = thread_time()
            self.left_out_s += self._left_s - entered

    def pause(self, wait: Callable[[], None]) -> None:
        """Does what is no part of the host's work."""
        entered = thread_time()
        self.timeline.advance(entered - self._left_s)
        wait()
        self._left_s = thread_time()
        self.left_out_s += self._left_s - entered

    def count(self) -> int:
        return 1

    def card(self, index: int) -> tuple[str, tuple[int, int], int]:
        return "simulated GPU", (9, 0), 80 * 2**30

    def version(self) -> int:
        return 13000

    def retain(self, index: int) -> Any:
        return self.name

    def push(self, context: Any) -> None: ...

    def pop(self) -> None: ...

    def stream(self, flags: int) -> _Stream:
        return self._new_stream(priority=0)

    def urgent_stream(self, flags: int) -> _Stream:
        return self._new_stream(priority=-5)

    def _new_stream(self, priority: int) -> _Stream:
        stream = _Stream(self, len(self._streams) + 1)
        self._streams[stream.handle] = stream
        self.timeline.add_stream(stream.handle, priority)
        return stream

    def event(self, flags: int) -> _Event:
        return _Event(self)

    def allocate(self, size: int) -> tuple[int, Callable[[], None]]:
        memory = np.zeros(size + ALIGNMENT, np.uint8)
        start = memory.ctypes.data
        return start + -start % ALIGNMENT, lambda memory=memory: None

    def memory(self) -> tuple[int, int]:
        return 80 * 2**30, 80 * 2**30

    def pin(self, size: int) -> tuple[Array, Callable[[], None]]:
        return np.zeros(size, np.uint8), lambda: None

    def upload(self, address: int, pinned: Array, stream: _Stream) -> None:
        with self.driver():
            ctypes.memmove(address, pinned.ctypes.data, pinned.nbytes)
            self._copy(stream, "up", pinned.nbytes)

    def download(self, pinned: Array, address: int, stream: _Stream) -> None:
        with self.driver():
            ctypes.memmove(pinned.ctypes.data, address, pinned.nbytes)
            self._copy(stream, "down", pinned.nbytes)

    def copy(self, address: int, source: int, size: int, stream: _Stream) -> None:
        with self.driver():
            self._within(stream, size)

    def copy_rows(
        self, address: int, pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: _Stream
    ) -> None:
        with self.driver():
            self._within(stream, width * rows)

    def clear(self, address: int, size: int, stream: _Stream) -> None:
        with self.driver():
            self._within(stream, size)

    def _copy(self, stream: _Stream, part: Any, size: int) -> None:
        seconds = size / (1e9 * self.speed.up_down_gb_s)
        stream.last = self.timeline.enqueue(stream.handle, part, part, seconds)

    def _within(self, stream: _Stream, size: int) -> None:
        seconds = 2 * size / (1e9 * self.speed.within_gb_s)
        stream.last = self.timeline.enqueue(stream.handle, "copy", "kernels", seconds)

    def execute(self, graph: str, frames: int, arrays: Mapping[str, Array], handle: int) -> None:
        """An execution of `graph`, of so many `frames`, at once as far as its outputs go."""
        with self.driver():
            self.kernels(graph, arrays)
            seconds = self.speed.network_s(frames) if graph == "frame" else 1e-3 * self.speed.masks_ms
            if graph == "frame":
                self.network_s.append(self.timeline.now_s)
            stream = self._streams[handle]
            stream.last = self.timeline.enqueue(handle, graph, "kernels", seconds)


class _Execution:
    """An execution context; see TensorRT's IExecutionContext."""

    active_optimization_profile = 0

    def __init__(self, gpu: SimulatedGpu, name: str, graph: GraphSpec) -> None:
        self._gpu, self._name, self._graph = gpu, name, graph
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._arrays: dict[str, Array] = {}

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._arrays:
            self._gpu.pause(self._bind)
        frames = next(iter(self._arrays.values())).shape[0]
        self._gpu.execute(self._name, frames, self._arrays, stream_handle)
        return True

    def _bind(self) -> None:
        inputs = self._graph.inputs
        axes = {
            axis: size
            for spec in inputs.values()
            for axis, size in zip(spec.shape, self._shapes.get(spec.name, ()), strict=False)
        }
        for role, spec in {**inputs, **self._graph.outputs}.items():
            shape = tuple(axes[axis] if isinstance(axis, str) else axis for axis in spec.shape)
            size = int(np.prod(shape)) * np.dtype(spec.dtype).itemsize
            memory = memoryview((ctypes.c_uint8 * size).from_address(self._addresses[spec.name]))
            self._arrays[role] = np.frombuffer(memory, np.dtype(spec.dtype)).reshape(shape)


class _Engine:
    """A deserialised engine; see TensorRT's ICudaEngine."""

    device_memory_size_v2 = 2**20

    def __init__(self, gpu: SimulatedGpu, name: str, graph: GraphSpec, profile: Mapping[str, tuple[int, ...]]) -> None:
        self._gpu, self._name, self._graph, self._profile = gpu, name, graph, profile
        self._tensors = {spec.name: spec for spec in [*graph.inputs.values(), *graph.outputs.values()]}

    @property
    def num_io_tensors(self) -> int:
        return len(self._tensors)

    def get_tensor_name(self, index: int) -> str:
        return list(self._tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in {spec.name for spec in self._graph.inputs.values()} else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self._tensors[name].dtype)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else -1 for axis in self._tensors[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shape = self._tensors[name].shape
        return [tuple(self._profile[a][at] if isinstance(a, str) else a for a in shape) for at in range(3)]

    def create_execution_context(self, strategy: Any) -> _Execution:
        return _Execution(self._gpu, self._name, self._graph)


class _Severity(IntEnum):
    ERROR = 1
    WARNING = 2


def _library() -> TensorRt:
    module: Any = ModuleType("simulated_tensorrt")
    module.ILogger = type("ILogger", (), {"Severity": _Severity})
    module.Runtime = lambda logger: None
    module.TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    module.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    return TensorRt(module, "tensorrt", "0.0 (simulated)")


class _Context(TrtContext):
    """Without CUDA graphs: an execution is one call here as there."""

    def _open_captures(self) -> None: ...


def simulated_engines(gpu: SimulatedGpu, manifest: Manifest, batch: int) -> dict[str, TrtEngine]:
    """The engines of `manifest` on `gpu`, warm, for calls of up to `batch` frames."""
    context = _Context(Gpu(layer=gpu), _library())
    profiles = {name: profile_of(manifest, name, batch) for name in manifest.graphs}
    engines = start_engines(
        context, manifest, batch, lambda name: _Engine(gpu, name, manifest.graphs[name], profiles[name])
    )
    for engine in engines.values():
        engine.warm(combinations(engine.axes, clip_frames=1))
    return engines
