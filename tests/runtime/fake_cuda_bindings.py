"""cuda.bindings.driver on a fake GPU: the part of it that visrt uses, named and shaped as there, and as strict.

Calls answer with a tuple whose first place is a CUresult. They raise only where the driver or a function of it is
missing. Handles are objects of their own types; where one is expected, an integer serves too. Host memory is an
address.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
from fake_gpu import GREATEST_PRIORITY, CudaFault, Gpu, HostMemory, Operation

__all__ = ["cuda_bindings"]


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_DEVICE = 101
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_CONTEXT_IS_DESTROYED = 709
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD = 908


class CUstreamCaptureMode(enum.IntEnum):
    CU_STREAM_CAPTURE_MODE_GLOBAL = 0
    CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1
    CU_STREAM_CAPTURE_MODE_RELAXED = 2


class CUdevice_attribute(enum.IntEnum):  # noqa: N801
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUmemorytype(enum.IntEnum):
    CU_MEMORYTYPE_HOST = 1
    CU_MEMORYTYPE_DEVICE = 2


class CUstreamAttrID(enum.IntEnum):
    CU_LAUNCH_ATTRIBUTE_PRIORITY = 8


class CUstreamAttrValue:
    __slots__ = ("priority",)
    priority: int


class CUDA_MEMCPY2D:  # noqa: N801
    __slots__ = (
        *("srcMemoryType", "srcDevice", "srcPitch", "dstMemoryType", "dstDevice", "dstPitch"),
        *("WidthInBytes", "Height"),
    )
    srcMemoryType: CUmemorytype  # noqa: N815
    srcDevice: int  # noqa: N815
    srcPitch: int  # noqa: N815
    dstMemoryType: CUmemorytype  # noqa: N815
    dstDevice: int  # noqa: N815
    dstPitch: int  # noqa: N815
    WidthInBytes: int
    Height: int


class Handle:
    """A handle of the driver; anything that is a whole number makes one."""

    def __init__(self, value: Any) -> None:
        self._value: int = value._value if isinstance(value, Handle) else operator.index(value)

    def __int__(self) -> int:
        return self._value


class CUdevice(Handle): ...


class CUdeviceptr(Handle): ...


class CUcontext(Handle): ...


class CUstream(Handle): ...


class CUevent(Handle): ...


class CUgraph:
    """Recorded operations."""

    def __init__(self, operations: list[Operation]) -> None:
        self.operations = operations


class CUgraphExec(CUgraph):
    """Recorded operations that can be launched."""

    alive = True


KINDS = (CUresult, CUstreamCaptureMode, CUdevice_attribute, CUmemorytype, CUstreamAttrID, CUstreamAttrValue)
FIRST_EVENT = 0x9000


class DynamicLibNotFoundError(RuntimeError): ...


def handle(kind: type[Handle], given: Any) -> int:
    """The number of a handle. None would be the default stream, and a handle of another type is refused."""
    assert given is not None, "the default stream is none of ours"
    if isinstance(given, Handle) and not isinstance(given, kind):
        raise TypeError(f"Argument has incorrect type (expected {kind.__name__}, got {type(given).__name__})")
    return int(kind(given))


def at_address(gpu: Gpu, address: int, size: int) -> Any:
    """Bytes on the host; those in page-locked memory are what the fake knows of them."""
    for base, memory in gpu.pinned.items():
        if base <= address and address + size <= base + len(memory.bytes):
            return memory.bytes[address - base : address - base + size]
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def cuda_bindings(gpu: Gpu) -> Any:
    """The module cuda.bindings.driver, all its calls on `gpu`."""
    driver: Any = ModuleType("cuda.bindings.driver")
    events: dict[int, tuple[Any, int] | None] = {}
    initialised = False

    def offered(function: Callable[..., Any]) -> None:
        """Puts a call into the module. It returns its values, or raises what the driver answers."""
        name = function.__name__

        @functools.wraps(function)
        def answering(*given: Any) -> tuple[Any, ...]:
            if name in gpu.faults.missing_functions:
                raise RuntimeError(f'Function "{name}" not found')
            if "libcuda" in gpu.faults.missing_functions:
                raise DynamicLibNotFoundError('"cuda" is an NVIDIA driver library and can only be found')
            try:
                values = function(*given)
            except CudaFault as fault:
                return (CUresult[str(fault)], None)
            several = values if isinstance(values, tuple) else () if values is None else (values,)
            return (CUresult.CUDA_SUCCESS, *several)

        setattr(driver, name, answering)

    def stream_of(given: Any) -> Any:
        return gpu.stream(handle(CUstream, given))

    @offered
    def cuInit(Flags: int) -> None:  # noqa: N802, N803
        nonlocal initialised
        if gpu.faults.strikes("init"):
            raise CudaFault("CUDA_ERROR_NO_DEVICE")
        initialised = True

    @offered
    def cuDriverGetVersion() -> int:  # noqa: N802
        return 13000

    @offered
    def cuDeviceGetCount() -> int:  # noqa: N802
        assert initialised, "cuInit comes first"
        return 1

    @offered
    def cuDeviceGet(ordinal: int) -> CUdevice:  # noqa: N802
        if ordinal >= 1:
            raise CudaFault("CUDA_ERROR_INVALID_DEVICE")
        return CUdevice(ordinal)

    @offered
    def cuDeviceGetName(length: int, dev: CUdevice) -> bytes:  # noqa: N802
        return gpu.name.encode()[: length - 1].ljust(length, b"\0")

    @offered
    def cuDeviceGetAttribute(attrib: CUdevice_attribute, dev: CUdevice) -> int:  # noqa: N802
        return gpu.capability[CUdevice_attribute(attrib) - 75]

    @offered
    def cuDeviceTotalMem(dev: CUdevice) -> int:  # noqa: N802
        return gpu.memory_bytes

    @offered
    def cuDevicePrimaryCtxRetain(dev: CUdevice) -> CUcontext:  # noqa: N802
        return CUcontext(gpu.retain())

    @offered
    def cuDevicePrimaryCtxRelease(dev: CUdevice) -> None:  # noqa: N802
        gpu.release()

    @offered
    def cuCtxPushCurrent(ctx: CUcontext) -> None:  # noqa: N802
        gpu.push(handle(CUcontext, ctx))

    @offered
    def cuCtxPopCurrent() -> CUcontext:  # noqa: N802
        return CUcontext(gpu.pop())

    @offered
    def cuCtxGetStreamPriorityRange() -> tuple[int, int]:  # noqa: N802
        with gpu.call("priority_range"):
            return 0, GREATEST_PRIORITY

    @offered
    def cuStreamCreate(Flags: int) -> CUstream:  # noqa: N802, N803
        return CUstream(gpu.create_stream(int(Flags)).handle)

    @offered
    def cuStreamCreateWithPriority(flags: int, priority: int) -> CUstream:  # noqa: N802
        return CUstream(gpu.create_stream(int(flags), priority).handle)

    @offered
    def cuStreamSetAttribute(hStream: CUstream, attr: CUstreamAttrID, value: CUstreamAttrValue) -> None:  # noqa: N802, N803
        with gpu.call("set_attribute"):
            assert CUstreamAttrID(attr) is CUstreamAttrID.CU_LAUNCH_ATTRIBUTE_PRIORITY
            stream_of(hStream).priority = value.priority

    @offered
    def cuStreamSynchronize(hStream: CUstream) -> None:  # noqa: N802, N803
        with gpu.call("stream_synchronize"):
            gpu.wait(stream_of(hStream))

    @offered
    def cuStreamWaitEvent(hStream: CUstream, hEvent: CUevent, Flags: int) -> None:  # noqa: N802, N803
        with gpu.call("wait_for_event"):
            gpu.let_wait(stream_of(hStream), marked(hEvent))

    @offered
    def cuStreamDestroy(hStream: CUstream) -> None:  # noqa: N802, N803
        with gpu.call("destroy_stream"):
            gpu.destroy_stream(stream_of(hStream))

    def marked(event: CUevent) -> tuple[Any, int] | None:
        number = handle(CUevent, event)
        if number not in events:
            raise CudaFault("CUDA_ERROR_INVALID_HANDLE")
        return events[number]

    @offered
    def cuEventCreate(Flags: int) -> CUevent:  # noqa: N802, N803
        with gpu.call("create_event"):
            gpu.event_flags.append(int(Flags))
            number = FIRST_EVENT + gpu.counts["create_event"]
            events[number] = None
            gpu.counts["events"] += 1
            return CUevent(number)

    @offered
    def cuEventRecord(hEvent: CUevent, hStream: CUstream) -> None:  # noqa: N802, N803
        marked(hEvent)
        events[handle(CUevent, hEvent)] = gpu.mark(stream_of(hStream))

    @offered
    def cuEventSynchronize(hEvent: CUevent) -> None:  # noqa: N802, N803
        with gpu.call("event_synchronize"):
            if (mark := marked(hEvent)) is not None:
                gpu.wait(*mark)

    @offered
    def cuEventDestroy(hEvent: CUevent) -> None:  # noqa: N802, N803
        with gpu.call("destroy_event"):
            marked(hEvent)
            gpu.counts["events"] -= 1
            del events[handle(CUevent, hEvent)]

    @offered
    def cuMemAlloc(bytesize: int) -> CUdeviceptr:  # noqa: N802
        return CUdeviceptr(gpu.allocate(bytesize))

    @offered
    def cuMemFree(dptr: CUdeviceptr) -> None:  # noqa: N802
        gpu.free(handle(CUdeviceptr, dptr))

    @offered
    def cuMemGetInfo() -> tuple[int, int]:  # noqa: N802
        with gpu.call("memory"):
            return gpu.free_bytes, gpu.memory_bytes

    @offered
    def cuMemHostAlloc(bytesize: int, Flags: int) -> int:  # noqa: N802, N803
        return gpu.pin(bytesize).address

    @offered
    def cuMemFreeHost(p: int) -> None:  # noqa: N802
        memory = gpu.pinned.get(p)
        if memory is None:
            raise CudaFault("CUDA_ERROR_INVALID_VALUE")
        memory.release()
        kept.append(memory)

    kept: list[HostMemory] = []
    """Memory that was freed: who reads it by its address finds rubbish, as the host's memory is not ours to unmap."""

    @offered
    def cuMemcpyHtoDAsync(dstDevice: CUdeviceptr, srcHost: int, ByteCount: int, hStream: CUstream) -> None:  # noqa: N802, N803
        source = at_address(gpu, operator.index(srcHost), ByteCount)
        gpu.upload(stream_of(hStream), handle(CUdeviceptr, dstDevice), source)

    @offered
    def cuMemcpyDtoHAsync(dstHost: int, srcDevice: CUdeviceptr, ByteCount: int, hStream: CUstream) -> None:  # noqa: N802, N803
        target = at_address(gpu, operator.index(dstHost), ByteCount)
        gpu.download(stream_of(hStream), target, handle(CUdeviceptr, srcDevice))

    @offered
    def cuMemcpyDtoDAsync(dstDevice: CUdeviceptr, srcDevice: CUdeviceptr, ByteCount: int, hStream: CUstream) -> None:  # noqa: N802, N803
        gpu.copy(stream_of(hStream), handle(CUdeviceptr, dstDevice), handle(CUdeviceptr, srcDevice), ByteCount)

    @offered
    def cuMemcpy2DAsync(pCopy: CUDA_MEMCPY2D, hStream: CUstream) -> None:  # noqa: N802, N803
        assert pCopy.srcMemoryType == pCopy.dstMemoryType == CUmemorytype.CU_MEMORYTYPE_DEVICE
        ends = (
            handle(CUdeviceptr, pCopy.dstDevice),
            pCopy.dstPitch,
            handle(CUdeviceptr, pCopy.srcDevice),
            pCopy.srcPitch,
        )
        gpu.copy_rows(stream_of(hStream), *ends, pCopy.WidthInBytes, pCopy.Height)

    @offered
    def cuMemsetD8Async(dstDevice: CUdeviceptr, uc: int, N: int, hStream: CUstream) -> None:  # noqa: N802, N803
        gpu.fill(stream_of(hStream), handle(CUdeviceptr, dstDevice), uc, N)

    @offered
    def cuStreamBeginCapture(hStream: CUstream, mode: CUstreamCaptureMode) -> None:  # noqa: N802, N803
        assert CUstreamCaptureMode(mode) is CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        gpu.begin_capture(stream_of(hStream))

    @offered
    def cuStreamEndCapture(hStream: CUstream) -> CUgraph:  # noqa: N802, N803
        operations = gpu.end_capture(stream_of(hStream))
        gpu.counts["recordings"] += 1
        return CUgraph(operations)

    @offered
    def cuGraphInstantiate(hGraph: CUgraph, flags: int) -> CUgraphExec:  # noqa: N802, N803
        with gpu.call("instantiate"):
            gpu.counts["graphs"] += 1
            return CUgraphExec(list(hGraph.operations))

    @offered
    def cuGraphLaunch(hGraphExec: CUgraphExec, hStream: CUstream) -> None:  # noqa: N802, N803
        with gpu.call("graph_launch"):
            if not hGraphExec.alive or gpu.faults.strikes("graph_launch"):
                raise CudaFault("CUDA_ERROR_INVALID_VALUE")
            for operation in hGraphExec.operations:
                gpu.enqueue(stream_of(hStream), operation)

    @offered
    def cuGraphExecDestroy(hGraphExec: CUgraphExec) -> None:  # noqa: N802, N803
        with gpu.call("destroy_graph"):
            assert hGraphExec.alive, "destroyed twice"
            hGraphExec.alive = False
            gpu.counts["graphs"] -= 1

    @offered
    def cuGraphDestroy(hGraph: CUgraph) -> None:  # noqa: N802, N803
        gpu.counts["recordings"] -= 1
        hGraph.operations = []

    for kind in (*KINDS, CUDA_MEMCPY2D):
        setattr(driver, kind.__name__, kind)
    return driver
