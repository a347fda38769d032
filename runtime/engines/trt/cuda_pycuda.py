"""CUDA's driver through pycuda.

pycuda destroys streams and events with their last reference, which must go while their context is current. Its streams
take no priority: cuda-bindings gives them one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.errors import EngineError, install_hint

__all__ = ["PycudaLayer", "pycuda_layer"]

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: work that others put on CUDA's default stream neither waits for ours nor breaks a capture."""


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
        self.native = None


class PycudaEvent:
    def __init__(self, event: Any) -> None:
        self.native = event

    def record(self, stream: Any) -> None:
        self.native.record(stream.native)

    def synchronize(self) -> None:
        self.native.synchronize()

    def free(self) -> None:
        self.native = None


class PycudaLayer:
    """See `cuda.Layer`."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.error: type[Exception] = cuda.Error
        self.memory_error: type[Exception] = cuda.MemoryError
        # Looked for now: an engine that dies with its last reference, at the end of the process too, cannot import.
        self._driver = _driver_api()

    def count(self) -> int:
        self._cuda.init()
        return int(self._cuda.Device.count())

    def card(self, index: int) -> tuple[str, tuple[int, int], int]:
        found = self._cuda.Device(index)
        return found.name(), found.compute_capability(), found.total_memory()

    def version(self) -> int:
        return int(self._cuda.get_driver_version())

    def retain(self, index: int) -> Any:
        return self._cuda.Device(index).retain_primary_context()

    def push(self, context: Any) -> None:
        context.push()

    def pop(self) -> None:
        self._cuda.Context.pop()

    def stream(self) -> PycudaStream:
        return PycudaStream(self._cuda.Stream(NON_BLOCKING))

    def urgent_stream(self) -> PycudaStream:
        return self.stream()

    def event(self) -> PycudaEvent:
        return PycudaEvent(self._cuda.Event(int(self._cuda.event_flags.DISABLE_TIMING)))

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

    def give_back(self, context: Any) -> None:
        """Releases the primary context, which goes when nobody else in the process holds it.

        pycuda leaves a primary context that it released on CUDA's stack, where the next to use the GPU in this thread
        finds it destroyed. pycuda cannot take it off, cuda-bindings can; without these the context is kept to the end
        of the process.
        """
        if self._driver is None:
            _KEPT.append(context)
            return
        with suppress(self.error):
            context.detach()
            self._driver.cuCtxPopCurrent()


_KEPT: list[Any] = []
"""Contexts that could not be given back."""


def pycuda_layer() -> PycudaLayer:
    """EngineError if pycuda cannot be imported."""
    try:
        import pycuda.driver
    except ImportError as error:
        raise EngineError(
            f"pycuda cannot be imported ({error}); {install_hint('trt')} on a machine with an NVIDIA driver, "
            "or use --engine cpu"
        ) from None
    return PycudaLayer(pycuda.driver)


def _driver_api() -> Any | None:
    """The driver API of cuda-bindings, None where that is not installed."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver
