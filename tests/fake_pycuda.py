"""pycuda.driver on a fake GPU: the part of it that visrt uses, named and shaped as there, and as strict."""

from __future__ import annotations

import enum
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
from fake_cuda_bindings import cuda_bindings
from fake_gpu import CudaFault, Gpu, HostMemory

from visrt.runtime.engines.trt import cuda

__all__ = ["Layer", "install_cuda", "pycuda_driver"]

Layer = Literal["pycuda", "cuda-bindings"]
"""The libraries that visrt calls CUDA's driver by."""

DEFAULT: Layer = "pycuda"


def install_cuda(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> None:
    """Makes `import pycuda.driver` and `from cuda.bindings import driver` find the fakes, in a process that has used no
    other GPU. If DEFAULT is cuda-bindings, there is no pycuda."""
    modules: dict[str, Any] = {
        "pycuda": ModuleType("pycuda"),
        "pycuda.driver": pycuda_driver(gpu),
        "cuda": ModuleType("cuda"),
        "cuda.bindings": ModuleType("cuda.bindings"),
        "cuda.bindings.driver": cuda_bindings(gpu),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    if DEFAULT == "cuda-bindings":
        monkeypatch.setitem(sys.modules, "pycuda", None)
        monkeypatch.delitem(sys.modules, "pycuda.driver")
    monkeypatch.setattr(cuda, "_CONTEXTS", gpu.kept_contexts)


class event_flags(enum.IntEnum):  # noqa: N801
    DEFAULT = 0
    BLOCKING_SYNC = 1
    DISABLE_TIMING = 2


INNER = ("driver", "gpu", "kinds", "told", "clean_up", "initialised", "in_one_piece", "address_of", "native")
"""Names in the function below that pycuda does not have."""


def pycuda_driver(gpu: Gpu) -> Any:
    """The module pycuda.driver, all its calls on `gpu`."""
    driver: Any = ModuleType("pycuda.driver")

    class Error(Exception):
        """pycuda's own; what CUDA answers becomes one of its children."""

    class MemoryError(Error): ...

    class LogicError(Error): ...

    class LaunchError(Error): ...

    class RuntimeError(Error): ...

    kinds = {"CUDA_ERROR_OUT_OF_MEMORY": MemoryError, "CUDA_ERROR_LAUNCH_FAILED": LaunchError}

    def told(what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except CudaFault as fault:
            raise kinds.get(str(fault), LogicError)(f"{what} failed: {fault}") from None

    def in_one_piece(array: Any) -> Any:
        """Its bytes, in the order in which they lie."""
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            raise ValueError("ndarray is not contiguous")
        return array.reshape(-1, order="A").view(np.uint8)

    def address_of(given: Any) -> int:
        """Boost.Python takes Python's own integers and its allocations, but no numpy.int64."""
        if not isinstance(given, (int, DeviceAllocation)) or isinstance(given, bool):
            raise TypeError(f"Python argument types did not match C++ signature: {type(given).__name__} as CUdeviceptr")
        return int(given)

    def native(stream: Stream | None) -> Any:
        assert stream is not None, "the default stream is none of ours"
        return stream._stream

    def clean_up(call: Callable[[], None]) -> None:
        """Frees: it makes a context current if none is, and of what fails then it only warns."""
        if not gpu.stack:
            told("cuCtxPushCurrent", lambda: gpu.push(gpu.epoch))
            gpu.pop()
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
            return Context(gpu.retain())

    class Context:
        """The primary context: retained once for each of these, and pushed and popped by any thread.

        Its maker's thread releases it by detaching, or with the last reference. That pushes it and leaves it there, as
        pycuda does.
        """

        _valid = False

        def __init__(self, epoch: int) -> None:
            self._thread, self._epoch, self._valid = threading.get_ident(), epoch, True
            gpu.objects.add(self)

        def push(self) -> None:
            if not self._valid:
                raise LogicError("cuCtxPushCurrent failed: invalid device context")
            told("cuCtxPushCurrent", lambda: gpu.push(self._epoch))

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
                gpu.stack.append(self._epoch)
                gpu.release()

        def __del__(self) -> None:
            if self._valid:
                self.detach()

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
            gpu.event_flags.append(flags)
            self._mark: tuple[Any, int] | None = None
            gpu.objects.add(self)

        def record(self, stream: Stream | None = None) -> Event:
            self._mark = told("cuEventRecord", lambda: gpu.mark(native(stream)))
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
        assert dtype == np.uint8, "only bytes are modelled"
        return np.asarray(told("cuMemHostAlloc", lambda: gpu.pin(int(shape), PagelockedHostAllocation)))

    def memcpy_htod_async(dest: Any, src: Any, stream: Stream | None = None) -> None:
        target, source = address_of(dest), in_one_piece(src)
        told("cuMemcpyHtoDAsync", lambda: gpu.upload(native(stream), target, source))

    def memcpy_dtoh_async(dest: Any, src: Any, stream: Stream | None = None) -> None:
        if not dest.flags.writeable:
            raise ValueError("buffer source array is read-only")
        target, source = in_one_piece(dest), address_of(src)
        told("cuMemcpyDtoHAsync", lambda: gpu.download(native(stream), target, source))

    def memcpy_dtod_async(dest: Any, src: Any, size: int, stream: Stream | None = None) -> None:
        target, source = address_of(dest), address_of(src)
        told("cuMemcpyDtoDAsync", lambda: gpu.copy(native(stream), target, source, size))

    class Memcpy2D:
        """Of the kinds that there are, only a copy within the device, of rows that lie a pitch apart."""

        src_x_in_bytes = src_y = dst_x_in_bytes = dst_y = 0
        src_pitch = dst_pitch = width_in_bytes = height = 0

        def set_src_device(self, devptr: int) -> None:
            self._source = address_of(devptr)

        def set_dst_device(self, devptr: int) -> None:
            self._target = address_of(devptr)

        def __call__(self, stream: Stream) -> None:
            given = (self._target, self.dst_pitch, self._source, self.src_pitch, self.width_in_bytes, self.height)
            told("cuMemcpy2DAsync", lambda: gpu.copy_rows(native(stream), *given))

    def memset_d8_async(dest: Any, data: int, size: int, stream: Stream | None = None) -> None:
        target = address_of(dest)
        told("cuMemsetD8Async", lambda: gpu.fill(native(stream), target, data, size))

    for name, value in list(locals().items()):
        if name not in INNER:
            setattr(driver, name, value)
    driver.event_flags = event_flags
    return driver
