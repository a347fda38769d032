"""CUDA's driver through pycuda.

pycuda destroys streams and events with their last reference, which must go while their context is current. Its streams
take no priority; cuda-bindings raises that of a stream that pycuda made.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.engines.driver_api import driver_api
from visrt.runtime.engines.trt.cuda_bindings import raise_priority

__all__ = ["PycudaLayer"]


class PycudaStream:
    def __init__(self, stream: Any) -> None:
        self.native = stream

    @property
    def handle(self) -> int:
        return int(self.native.handle)

    def synchronize(self) -> None:
        self.native.synchronize()

    def wait(self, event: Any) -> None:
        self.native.wait_for_event(event.native)

    def free(self) -> None:
        del self.native


class PycudaEvent:
    def __init__(self, event: Any) -> None:
        self.native = event

    def record(self, stream: Any) -> None:
        self.native.record(stream.native)

    def synchronize(self) -> None:
        self.native.synchronize()

    def free(self) -> None:
        del self.native


class PycudaLayer:
    """See `cuda.Layer`; `cuda` is the module pycuda.driver."""

    name = "pycuda"

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.error: type[Exception] = cuda.Error
        self.memory_error: type[Exception] = cuda.MemoryError

    def count(self) -> int:
        self._cuda.init()
        return int(self._cuda.Device.count())

    def card(self, index: int) -> tuple[str, tuple[int, int], int]:
        found = self._cuda.Device(index)
        return found.name(), found.compute_capability(), found.total_memory()

    def version(self) -> int:
        return int(self._cuda.get_driver_version())

    def retain(self, index: int) -> Any:
        context = self._cuda.Device(index).retain_primary_context()
        # pycuda releases it with the last reference, and the end of Python drops those of modules: this one stays.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
        return context

    def push(self, context: Any) -> None:
        context.push()

    def pop(self) -> None:
        self._cuda.Context.pop()

    def stream(self, flags: int) -> PycudaStream:
        return PycudaStream(self._cuda.Stream(flags))

    def urgent_stream(self, flags: int) -> PycudaStream:
        stream = self.stream(flags)
        raise_priority(driver_api(), stream.handle)
        return stream

    def event(self, flags: int) -> PycudaEvent:
        return PycudaEvent(self._cuda.Event(flags))

    def allocate(self, size: int) -> tuple[int, Callable[[], None]]:
        allocation = self._cuda.mem_alloc(size)
        return int(allocation), allocation.free

    def memory(self) -> tuple[int, int]:
        free, total = self._cuda.mem_get_info()
        return free, total

    def pin(self, size: int) -> tuple[Array, Callable[[], None]]:
        array = self._cuda.pagelocked_empty(size, np.uint8)
        return array, array.base.free

    def upload(self, address: int, pinned: Array, stream: Any) -> None:
        self._cuda.memcpy_htod_async(address, pinned, stream.native)

    def download(self, pinned: Array, address: int, stream: Any) -> None:
        self._cuda.memcpy_dtoh_async(pinned, address, stream.native)

    def copy(self, address: int, source: int, size: int, stream: Any) -> None:
        self._cuda.memcpy_dtod_async(address, source, size, stream.native)

    def copy_rows(
        self, address: int, pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: Any
    ) -> None:
        copy = self._cuda.Memcpy2D()
        copy.set_src_device(source)
        copy.set_dst_device(address)
        copy.src_pitch, copy.dst_pitch = source_pitch, pitch
        copy.width_in_bytes, copy.height = width, rows
        copy(stream.native)

    def clear(self, address: int, size: int, stream: Any) -> None:
        self._cuda.memset_d8_async(address, 0, size, stream.native)
