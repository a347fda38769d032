"""One NVIDIA GPU as one thread uses it, through pycuda: context, stream, events, device and pinned host memory.

The primary context is used, not one of our own: it is the context that CUDA's runtime API, and with it TensorRT, takes
for a device. It is pushed for each call and popped again, so that other users of the GPU in this process find their
own context as they left it, and a program that ends without closing us ends well: pycuda aborts a process whose
context is still pushed.

pycuda is imported when a GPU is opened, never before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.errors import EngineError, install_hint, one_line

__all__ = ["DeviceMemory", "Gpu", "GpuMemoryError", "PinnedMemory", "megabytes"]

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: work that others put on CUDA's default stream neither waits for ours nor breaks a capture."""


class GpuMemoryError(EngineError):
    """The GPU, or the host for page-locked memory, has not enough free memory."""


@dataclass(frozen=True)
class DeviceMemory:
    """Memory on the GPU; the address is CUDA's, a multiple of 256 at least."""

    address: int
    bytes: int
    allocation: Any

    def free(self) -> None:
        self.allocation.free()


@dataclass(frozen=True)
class PinnedMemory:
    """Page-locked host memory, uint8 [bytes]: the only kind that CUDA copies while the host goes on."""

    array: Array

    def free(self) -> None:
        """Unmaps it: no view of `array` may be used any more."""
        self.array.base.free()  # type: ignore[union-attr]


class Gpu:
    """A GPU with one stream, for the thread that opens it and no other.

    name: as the driver tells it. capability: compute capability, (8, 6). memory_bytes: all there is on the card.
    driver: the newest CUDA that the driver serves, "13.0".
    """

    def __init__(self, device: int = 0) -> None:
        """Opens GPU number `device`; EngineError if there is no such GPU, no driver or no pycuda."""
        self._cuda = _pycuda()
        # Looked for now: an engine that dies with its last reference, at the end of the process too, cannot import.
        self._driver = _driver_api()
        self._owner = threading.current_thread()
        self.index = device
        try:
            self._cuda.init()
            if device >= self._cuda.Device.count():
                raise EngineError(f"GPU {device} was requested, this machine has {self._cuda.Device.count()}")
            found = self._cuda.Device(device)
            self.name: str = found.name()
            self.capability: tuple[int, int] = found.compute_capability()
            self.memory_bytes: int = found.total_memory()
            newest = self._cuda.get_driver_version()
            self.driver = f"{newest // 1000}.{newest % 1000 // 10}"
            self._context = found.retain_primary_context()
        except self._cuda.Error as error:
            raise EngineError(
                f"GPU {device} cannot be opened: {one_line(error)}; check the driver with nvidia-smi, or use "
                "--engine cpu"
            ) from error
        try:
            with self.current("opening a stream"):
                self.stream = self._cuda.Stream(NON_BLOCKING)
        except EngineError:
            self._give_back()
            raise

    @property
    def label(self) -> str:
        """The GPU as engines name it: "NVIDIA L4, compute capability 8.9"."""
        return f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}"

    @property
    def handle(self) -> int:
        """The stream, as TensorRT and the driver API take it."""
        return int(self.stream.handle)

    @property
    def owned(self) -> bool:
        """Whether this is the thread that opened the GPU."""
        return threading.current_thread() is self._owner

    def require_owner(self) -> None:
        """Raises EngineError in any other thread than the one that opened the GPU."""
        if not self.owned:
            raise EngineError(
                f"thread {threading.current_thread().name!r} uses an engine of thread {self._owner.name!r}; a CUDA "
                "context has one thread: open, call, read and close the engines in the same one"
            )

    @contextmanager
    def current(self, doing: str) -> Iterator[None]:
        """Makes the context current. An error of CUDA meanwhile becomes an EngineError that starts with `doing`."""
        self.require_owner()
        try:
            self._context.push()
            try:
                yield
            finally:
                self._cuda.Context.pop()
        except self._cuda.MemoryError as error:
            raise GpuMemoryError(f"{doing}: the GPU is out of memory ({one_line(error)}); {LESS_MEMORY}") from error
        except self._cuda.Error as error:
            raise EngineError(
                f"{doing}: CUDA failed ({one_line(error)}); open the session again, and if that fails "
                "too, restart the process"
            ) from error

    def allocate(self, size: int, what: str) -> DeviceMemory:
        """`size` bytes on the GPU for `what`; GpuMemoryError tells how much there is. The context must be current."""
        try:
            allocation = self._cuda.mem_alloc(max(size, 1))
        except self._cuda.MemoryError as error:
            free, total = self._cuda.mem_get_info()
            raise GpuMemoryError(
                f"{what} needs {megabytes(size)} of GPU memory, {megabytes(free)} of {megabytes(total)} are free on "
                f"{self.name}; {LESS_MEMORY}"
            ) from error
        return DeviceMemory(int(allocation), size, allocation)

    def pin(self, size: int, what: str) -> PinnedMemory:
        """`size` bytes of page-locked host memory for `what`. The context must be current."""
        try:
            return PinnedMemory(self._cuda.pagelocked_empty(max(size, 1), np.uint8))
        except self._cuda.MemoryError as error:
            raise GpuMemoryError(
                f"{what} needs {megabytes(size)} of page-locked host memory, which is refused; {LESS_MEMORY}"
            ) from error

    def event(self) -> Any:
        """A mark for the stream: `record(stream)` sets it, `synchronize()` waits until the stream has come to it."""
        return self._cuda.Event(int(self._cuda.event_flags.DISABLE_TIMING))

    def upload(self, address: int, pinned: Array) -> None:
        """Enqueues a copy of page-locked `pinned` to the device; it must not be written before the stream is there."""
        self._cuda.memcpy_htod_async(address, pinned, self.stream)

    def download(self, pinned: Array, address: int) -> None:
        """Enqueues a copy from the device to page-locked `pinned`; it holds nothing before the stream is there."""
        self._cuda.memcpy_dtoh_async(pinned, address, self.stream)

    def copy(self, address: int, source: int, size: int) -> None:
        """Enqueues a copy of `size` bytes within the device."""
        self._cuda.memcpy_dtod_async(address, source, size, self.stream)

    def copy_rows(self, address: int, pitch: int, source: int, source_pitch: int, width: int, rows: int) -> None:
        """Enqueues a copy within the device of `rows` pieces of `width` bytes, which begin `source_pitch` bytes apart
        and come to lie `pitch` bytes apart."""
        copy = self._cuda.Memcpy2D()
        copy.set_src_device(source)
        copy.set_dst_device(address)
        copy.src_pitch, copy.dst_pitch = source_pitch, pitch
        copy.width_in_bytes, copy.height = width, rows
        copy(self.stream)

    def clear(self, address: int, size: int) -> None:
        """Enqueues zeros for `size` bytes on the device."""
        self._cuda.memset_d8_async(address, 0, size, self.stream)

    def settle(self) -> None:
        """Waits for all enqueued work; its errors are ignored."""
        with suppress(self._cuda.Error):
            self.stream.synchronize()

    def release(self, steps: Iterable[Callable[[], None]]) -> None:
        """Takes each of `steps` when all that was enqueued is done. Of a GPU that was lost each may fail: none is left
        out, as TensorRT's objects go all the same."""
        self.require_owner()
        pushed = self._pushed()
        try:
            self.settle()
            for step in steps:
                with suppress(self._cuda.Error):
                    step()
        finally:
            if pushed:
                self._cuda.Context.pop()

    def _pushed(self) -> bool:
        """Whether the context could be made current."""
        try:
            self._context.push()
        except self._cuda.Error:
            return False
        return True

    def close(self) -> None:
        """Gives stream and context back."""
        self.release([self._drop_stream])
        self._give_back()

    def _give_back(self) -> None:
        """Releases the primary context, which goes when nobody else in the process holds it.

        pycuda leaves a primary context that it released on CUDA's stack, where the next to use the GPU in this thread
        finds it destroyed. pycuda cannot take it off, cuda-bindings can; without these the context is kept to the end
        of the process.
        """
        if self._driver is None:
            _KEPT.append(self._context)
            return
        with suppress(self._cuda.Error):
            self._context.detach()
            self._driver.cuCtxPopCurrent()

    def _drop_stream(self) -> None:
        """pycuda destroys a stream with its last reference."""
        del self.stream


_KEPT: list[Any] = []
"""Contexts that could not be given back."""

LESS_MEMORY = "use a smaller batch (--batch), or end what else runs on this GPU"


def megabytes(size: float) -> str:
    return f"{size / 2**20:.1f} MB"


def _pycuda() -> Any:
    try:
        import pycuda.driver
    except ImportError as error:
        raise EngineError(
            f"pycuda cannot be imported ({error}); {install_hint('trt')} on a machine with an NVIDIA driver, "
            "or use --engine cpu"
        ) from None
    return pycuda.driver


def _driver_api() -> Any | None:
    """The driver API of cuda-bindings, None where that is not installed."""
    try:
        from cuda.bindings import driver
    except ImportError:
        return None
    return driver
