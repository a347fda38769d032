"""pycuda.driver and cuda.bindings.driver on a fake GPU: the part of them that visrt uses, named and shaped as there."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fake_gpu import CudaFault, Gpu, HostMemory, Operation

__all__ = ["cuda_bindings", "install_cuda", "pycuda_driver"]


def install_cuda(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Makes `import pycuda.driver` and `from cuda.bindings import driver` find the fakes."""
    modules = {
        "pycuda": ModuleType("pycuda"),
        "pycuda.driver": pycuda_driver(gpu),
        "cuda": ModuleType("cuda"),
        "cuda.bindings": ModuleType("cuda.bindings"),
        "cuda.bindings.driver": cuda_bindings(gpu),
    }
    for name, module in modules.items():
        monkeypatch.setitem(__import__("sys").modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)


MAX_PITCH = 2**31 - 1
"""Bytes between rows of a copy in two dimensions, as GPUs report it."""


class event_flags(enum.IntEnum):  # noqa: N801
    DEFAULT = 0
    BLOCKING_SYNC = 1
    DISABLE_TIMING = 2


def pycuda_driver(gpu: Gpu) -> Any:
    """The module pycuda.driver, all its calls on `gpu`."""
    driver: Any = ModuleType("pycuda.driver")

    class Error(Exception):
        """pycuda's own; what CUDA answers becomes one of its children."""

    class MemoryError(Error): ...

    class LogicError(Error): ...

    class LaunchError(Error): ...

    class RuntimeError(Error): ...

    kinds = {"CUDA_ERROR_OUT_OF_MEMORY": MemoryError, "CUDA_ERROR_ILLEGAL_ADDRESS": LogicError}

    def told(what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except CudaFault as fault:
            raise kinds.get(str(fault), LogicError)(f"{what} failed: {fault}") from None

    def clean_up(call: Callable[[], None]) -> None:
        """Frees: it makes a context current if none is, and of what fails then it only warns."""
        if not gpu.stack:
            told("cuCtxPushCurrent", lambda: gpu.push(None))
            gpu.stack.pop()
            raise AssertionError("pycuda would free in a context that we did not make current")
        try:
            call()
        except CudaFault:
            gpu.counts["clean_ups_failed"] += 1

    class PagelockedHostAllocation(HostMemory):
        def free(self) -> None:
            clean_up(self.release)

    initialised = False

    def init(flags: int = 0) -> None:
        nonlocal initialised
        if gpu.faults.strikes("init"):
            raise LogicError("cuInit failed: no CUDA-capable device is detected")
        initialised = True

    def get_driver_version() -> int:
        return 13000

    class Device:
        def __init__(self, ordinal: int) -> None:
            if not initialised:
                raise LogicError("cuDeviceGet failed: initialization error")
            if ordinal >= Device.count():
                raise LogicError("cuDeviceGet failed: invalid device ordinal")

        @staticmethod
        def count() -> int:
            if not initialised:
                raise LogicError("cuDeviceGetCount failed: initialization error")
            return 1

        def name(self) -> str:
            return gpu.name

        def compute_capability(self) -> tuple[int, int]:
            return gpu.capability

        def total_memory(self) -> int:
            return gpu.memory_bytes

        def retain_primary_context(self) -> Context:
            gpu.retained += 1
            return Context()

    class Context:
        """The primary context: retained once for each of these, pushed and popped by the thread that made it.

        Detaching pushes it, releases it and leaves it there, as pycuda does.
        """

        def __init__(self) -> None:
            self._thread = threading.get_ident()
            self._valid = True
            gpu.objects.add(self)

        def push(self) -> None:
            if not self._valid:
                raise LogicError("cuCtxPushCurrent failed: invalid device context")
            told("cuCtxPushCurrent", lambda: gpu.push(self))

        @staticmethod
        def pop() -> None:
            if not gpu.stack:
                raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
            gpu.stack.pop()

        def detach(self) -> None:
            if not self._valid:
                raise LogicError("context::detach failed: invalid device context - cannot detach from invalid context")
            self._valid = False
            if self._thread == threading.get_ident():
                gpu.retained -= 1
                gpu.strayed += 1

    class Stream:
        _stream: Any = None

        def __init__(self, flags: int = 0) -> None:
            self._stream = told("cuStreamCreate", lambda: gpu.create_stream(flags))
            gpu.objects.add(self)

        def synchronize(self) -> None:
            def wait() -> None:
                with gpu.call("stream_synchronize"):
                    gpu.wait(self._stream)

            told("cuStreamSynchronize", wait)

        def wait_for_event(self, evt: Event) -> None:
            def wait() -> None:
                with gpu.call("wait_for_event"):
                    gpu.let_wait(self._stream, evt._mark)

            told("cuStreamWaitEvent", wait)

        @property
        def handle(self) -> int:
            return self._stream.handle  # type: ignore[no-any-return]

        def __del__(self) -> None:
            if self._stream is not None:
                gpu.destroy_stream(self._stream)

    class Event:
        def __init__(self, flags: int = 0) -> None:
            def create() -> None:
                with gpu.call("create_event"):
                    pass

            told("cuEventCreate", create)
            self._mark: tuple[Any, int] | None = None
            gpu.objects.add(self)

        def record(self, stream: Stream | None = None) -> Event:
            assert stream is not None, "the default stream is none of ours"
            self._mark = told("cuEventRecord", lambda: gpu.mark(stream._stream))
            return self

        def synchronize(self) -> Event:
            def wait() -> None:
                with gpu.call("event_synchronize"):
                    if self._mark is not None:
                        gpu.wait(*self._mark)

            told("cuEventSynchronize", wait)
            return self

    class DeviceAllocation:
        def __init__(self, address: int) -> None:
            self._address: int | None = address

        def __int__(self) -> int:
            assert self._address is not None
            return self._address

        __index__ = __int__

        def free(self) -> None:
            if self._address is None:
                raise LogicError("device_allocation::free failed: invalid handle")
            clean_up(lambda: gpu.free(int(self)))
            self._address = None

    def mem_alloc(bytes: int, /) -> DeviceAllocation:
        return DeviceAllocation(told("cuMemAlloc", lambda: gpu.allocate(bytes)))

    def mem_get_info() -> tuple[int, int]:
        return gpu.free_bytes, gpu.memory_bytes

    def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
        def pin() -> PagelockedHostAllocation:
            with gpu.call("pin"):
                if gpu.faults.strikes("pin"):
                    raise CudaFault("CUDA_ERROR_OUT_OF_MEMORY")
                return PagelockedHostAllocation(gpu, int(np.prod(shape)) * np.dtype(dtype).itemsize)

        memory = told("cuMemHostAlloc", pin)
        return (
            np.ndarray(shape, dtype, buffer=np.asarray(memory), order="C") if dtype != np.uint8 else np.asarray(memory)
        )

    def memcpy_htod_async(dest: Any, src: Any, stream: Stream | None = None) -> None:
        source = np.asarray(src).reshape(-1).view(np.uint8)
        address = int(dest)

        def enqueue() -> None:
            with gpu.call("htod"):
                gpu.counts["htod_bytes"] += source.nbytes
                pinned = gpu.is_pinned(source)
                gpu.counts["pageable"] += not pinned
                data = source if pinned else source.copy()

                def copy() -> None:
                    gpu.view(address, data.nbytes)[:] = data

                gpu.enqueue(stream._stream, Operation("htod", copy))  # type: ignore[union-attr]

        told("cuMemcpyHtoDAsync", enqueue)

    def memcpy_dtoh_async(dest: Any, src: Any, stream: Stream | None = None) -> None:
        target = dest.reshape(-1).view(np.uint8)
        address = int(src)

        def enqueue() -> None:
            with gpu.call("dtoh"):
                gpu.counts["dtoh_bytes"] += target.nbytes

                def copy() -> None:
                    target[:] = gpu.view(address, target.nbytes)

                gpu.enqueue(stream._stream, Operation("dtoh", copy))  # type: ignore[union-attr]
                if not gpu.is_pinned(target):
                    gpu.counts["pageable"] += 1
                    gpu.wait(stream._stream)  # type: ignore[union-attr]

        told("cuMemcpyDtoHAsync", enqueue)

    def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Stream | None = None) -> None:
        target, address = int(dest), int(src)

        def enqueue() -> None:
            with gpu.call("dtod"):
                gpu.counts["dtod_bytes"] += size

                def copy() -> None:
                    gpu.view(target, size)[:] = gpu.view(address, size)

                gpu.enqueue(stream._stream, Operation("dtod", copy))  # type: ignore[union-attr]

        told("cuMemcpyDtoDAsync", enqueue)

    class Memcpy2D:
        """Of the kinds that there are, only a copy within the device, of rows that lie a pitch apart."""

        src_x_in_bytes = src_y = dst_x_in_bytes = dst_y = 0
        src_pitch = dst_pitch = width_in_bytes = height = 0

        def set_src_device(self, devptr: int) -> None:
            self._source = int(devptr)

        def set_dst_device(self, devptr: int) -> None:
            self._target = int(devptr)

        def __call__(self, stream: Stream) -> None:
            width, rows, source, target = self.width_in_bytes, self.height, self._source, self._target
            pitches = self.src_pitch, self.dst_pitch

            def enqueue() -> None:
                with gpu.call("dtod"):
                    gpu.counts["dtod_bytes"] += width * rows
                    if min(pitches) < width or max(pitches) > MAX_PITCH:
                        raise CudaFault("CUDA_ERROR_INVALID_VALUE")
                    gpu.enqueue(stream._stream, Operation("dtod", copy))

            def copy() -> None:
                for row in range(rows):
                    gpu.view(target + row * pitches[1], width)[:] = gpu.view(source + row * pitches[0], width)

            told("cuMemcpy2DAsync", enqueue)

    def memset_d8_async(dest: Any, data: int, size: int, stream: Stream | None = None) -> None:
        target = int(dest)

        def enqueue() -> None:
            with gpu.call("memset"):

                def fill() -> None:
                    gpu.view(target, size)[:] = data

                gpu.enqueue(stream._stream, Operation("memset", fill))  # type: ignore[union-attr]

        told("cuMemsetD8Async", enqueue)

    for name, value in list(locals().items()):
        if name not in ("driver", "gpu", "kinds", "told", "clean_up", "initialised"):
            setattr(driver, name, value)
    driver.event_flags = event_flags
    return driver


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class CUgraph:
    """Recorded operations."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations


class CUgraphExec(CUgraph):
    """Recorded operations that can be launched."""

    alive = True


def cuda_bindings(gpu: Gpu) -> Any:
    """The module cuda.bindings.driver: no call raises, each answers with a tuple whose first place is a CUresult."""
    driver: Any = ModuleType("cuda.bindings.driver")

    def answer(call: Callable[[], tuple[Any, ...]], values: int) -> tuple[Any, ...]:
        try:
            return (CUresult.CUDA_SUCCESS, *call())
        except CudaFault as fault:
            return (CUresult[str(fault)], *[None] * values)

    def cuCtxPopCurrent() -> tuple[Any, ...]:  # noqa: N802
        assert not gpu.stack, "this would pop what pycuda has pushed"
        if not gpu.strayed:
            return (CUresult.CUDA_ERROR_INVALID_CONTEXT, None)
        gpu.strayed -= 1
        return (CUresult.CUDA_SUCCESS, None)

    def cuStreamBeginCapture(hStream: int, mode: CUstreamCaptureMode) -> tuple[Any, ...]:  # noqa: N802, N803
        def begin() -> tuple[Any, ...]:
            with gpu.call("begin_capture"):
                stream = gpu.stream(int(hStream))
                if stream.capture is not None:
                    raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
                assert CUstreamCaptureMode(mode) is CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
                stream.capture, stream.broken = [], gpu.faults.strikes("capture")
                return ()

        return answer(begin, 0)

    def cuStreamEndCapture(hStream: int) -> tuple[Any, ...]:  # noqa: N802, N803
        def end() -> tuple[Any, ...]:
            with gpu.call("end_capture"):
                stream = gpu.stream(int(hStream))
                if stream.capture is None:
                    raise CudaFault("CUDA_ERROR_INVALID_VALUE")
                operations, stream.capture = stream.capture, None
                if stream.broken:
                    raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
                gpu.counts["recordings"] += 1
                return (CUgraph(operations),)

        return answer(end, 1)

    def cuGraphInstantiate(hGraph: CUgraph, flags: int) -> tuple[Any, ...]:  # noqa: N802, N803
        def instantiate() -> tuple[Any, ...]:
            with gpu.call("instantiate"):
                gpu.counts["graphs"] += 1
                return (CUgraphExec(list(hGraph.operations)),)

        return answer(instantiate, 1)

    def cuGraphLaunch(hGraphExec: CUgraphExec, hStream: int) -> tuple[Any, ...]:  # noqa: N802, N803
        def launch() -> tuple[Any, ...]:
            with gpu.call("graph_launch"):
                if not hGraphExec.alive or gpu.faults.strikes("graph_launch"):
                    raise CudaFault("CUDA_ERROR_INVALID_VALUE")
                for operation in hGraphExec.operations:
                    gpu.enqueue(gpu.stream(int(hStream)), operation)
                return ()

        return answer(launch, 0)

    def cuGraphExecDestroy(hGraphExec: CUgraphExec) -> tuple[Any, ...]:  # noqa: N802, N803
        def destroy() -> tuple[Any, ...]:
            with gpu.call("destroy_graph"):
                assert hGraphExec.alive, "destroyed twice"
                hGraphExec.alive = False
                gpu.counts["graphs"] -= 1
                return ()

        return answer(destroy, 0)

    def cuGraphDestroy(hGraph: CUgraph) -> tuple[Any, ...]:  # noqa: N802, N803
        gpu.counts["recordings"] -= 1
        hGraph.operations = []
        return (CUresult.CUDA_SUCCESS,)

    for name, value in list(locals().items()):
        if name.startswith("cu"):
            setattr(driver, name, value)
    driver.CUresult = CUresult
    driver.CUstreamCaptureMode = CUstreamCaptureMode
    return driver
