"""CUDA's driver through cuda-bindings, whose wheel needs no compiler and no CUDA toolkit.

It takes addresses for arrays, so what pycuda refuses is refused here: arrays with gaps, and targets that are read-only.
Nothing is freed with its last reference.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.engines.driver_api import DriverError, DriverMemoryError, call

__all__ = ["BindingsLayer", "raise_priority"]

NAME_BYTES = 256


class BindingsStream:
    def __init__(self, cuda: Any, native: Any) -> None:
        self._cuda, self.native, self.handle = cuda, native, int(native)

    def synchronize(self) -> None:
        call(self._cuda.cuStreamSynchronize, self.native)

    def wait(self, event: Any) -> None:
        call(self._cuda.cuStreamWaitEvent, self.native, event.native, 0)

    def free(self) -> None:
        native, self.native = self.native, _Freed()
        call(self._cuda.cuStreamDestroy, native)


class BindingsEvent:
    def __init__(self, cuda: Any, native: Any) -> None:
        self._cuda, self.native = cuda, native

    def record(self, stream: Any) -> None:
        call(self._cuda.cuEventRecord, self.native, stream.native)

    def synchronize(self) -> None:
        call(self._cuda.cuEventSynchronize, self.native)

    def free(self) -> None:
        native, self.native = self.native, _Freed()
        call(self._cuda.cuEventDestroy, native)


class _Freed:
    """In place of a handle that was freed: cuda-bindings would take None for the default stream."""


class BindingsLayer:
    """See `cuda.Layer`; `cuda` is the module cuda.bindings.driver."""

    name = "cuda-bindings"
    error: type[Exception] = DriverError
    memory_error: type[Exception] = DriverMemoryError

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda

    def count(self) -> int:
        call(self._cuda.cuInit, 0)
        return int(call(self._cuda.cuDeviceGetCount))

    def card(self, index: int) -> tuple[str, tuple[int, int], int]:
        cuda, device = self._cuda, call(self._cuda.cuDeviceGet, index)
        name = bytes(call(cuda.cuDeviceGetName, NAME_BYTES, device)).split(b"\0")[0].decode()
        attributes = cuda.CUdevice_attribute
        major, minor = (
            int(call(cuda.cuDeviceGetAttribute, attribute, device))
            for attribute in (
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
            )
        )
        return name, (major, minor), int(call(cuda.cuDeviceTotalMem, device))

    def version(self) -> int:
        return int(call(self._cuda.cuDriverGetVersion))

    def retain(self, index: int) -> Any:
        return call(self._cuda.cuDevicePrimaryCtxRetain, call(self._cuda.cuDeviceGet, index))

    def push(self, context: Any) -> None:
        call(self._cuda.cuCtxPushCurrent, context)

    def pop(self) -> None:
        call(self._cuda.cuCtxPopCurrent)

    def stream(self, flags: int) -> BindingsStream:
        return BindingsStream(self._cuda, call(self._cuda.cuStreamCreate, flags))

    def urgent_stream(self, flags: int) -> BindingsStream:
        _, greatest = call(self._cuda.cuCtxGetStreamPriorityRange)
        return BindingsStream(self._cuda, call(self._cuda.cuStreamCreateWithPriority, flags, greatest))

    def event(self, flags: int) -> BindingsEvent:
        return BindingsEvent(self._cuda, call(self._cuda.cuEventCreate, flags))

    def allocate(self, size: int) -> tuple[int, Callable[[], None]]:
        memory = call(self._cuda.cuMemAlloc, size)
        return int(memory), partial(call, self._cuda.cuMemFree, memory)

    def memory(self) -> tuple[int, int]:
        free, total = call(self._cuda.cuMemGetInfo)
        return int(free), int(total)

    def pin(self, size: int) -> tuple[Array, Callable[[], None]]:
        address = int(call(self._cuda.cuMemHostAlloc, size, 0))
        array = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
        return array, partial(call, self._cuda.cuMemFreeHost, address)

    def upload(self, address: int, pinned: Array, stream: Any) -> None:
        call(self._cuda.cuMemcpyHtoDAsync, address, _address(pinned), pinned.nbytes, stream.native)

    def download(self, pinned: Array, address: int, stream: Any) -> None:
        if not pinned.flags.writeable:
            raise ValueError("the target of a copy is read-only")
        call(self._cuda.cuMemcpyDtoHAsync, _address(pinned), address, pinned.nbytes, stream.native)

    def copy(self, address: int, source: int, size: int, stream: Any) -> None:
        call(self._cuda.cuMemcpyDtoDAsync, address, source, size, stream.native)

    def copy_rows(
        self, address: int, pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: Any
    ) -> None:
        copy = self._cuda.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = self._cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch, copy.dstDevice, copy.dstPitch = source, source_pitch, address, pitch
        copy.WidthInBytes, copy.Height = width, rows
        call(self._cuda.cuMemcpy2DAsync, copy, stream.native)

    def clear(self, address: int, size: int, stream: Any) -> None:
        call(self._cuda.cuMemsetD8Async, address, 0, size, stream.native)


def raise_priority(cuda: Any, handle: int) -> None:
    """Lets the kernels of a stream that exists go before those of others; DriverError if the driver refuses."""
    _, greatest = call(cuda.cuCtxGetStreamPriorityRange)
    value = cuda.CUstreamAttrValue()
    value.priority = greatest
    call(cuda.cuStreamSetAttribute, handle, cuda.CUstreamAttrID.CU_LAUNCH_ATTRIBUTE_PRIORITY, value)


def _address(array: Array) -> int:
    if not array.flags.c_contiguous:
        raise ValueError("an array that is copied must lie in one piece")
    return int(array.__array_interface__["data"][0])
