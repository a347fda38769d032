"""One NVIDIA GPU as one thread uses it: context, two streams, events, device and pinned host memory.

The calls of the driver are made by a layer, a thin file for each library that has them. All policy is here.

The primary context is used, not one of our own: it is the context that CUDA's runtime API, and with it TensorRT, takes
for a device. It is pushed for each call and popped again, so that other users of the GPU in this process find their
own context as they left it, and a program that ends without closing us ends well: pycuda aborts a process whose
context is still pushed.

A layer's library is imported when a GPU is opened, never before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from visrt.runtime.arrays import Array
from visrt.runtime.engines.driver_api import DriverError, driver_api
from visrt.runtime.engines.options import usable_cores
from visrt.runtime.errors import EngineError, install_hint, one_line

__all__ = [
    "LAYERS",
    "DeviceMemory",
    "Event",
    "Gpu",
    "GpuMemoryError",
    "Layer",
    "PinnedMemory",
    "Stream",
    "cuda_layer",
    "megabytes",
]

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: work that others put on CUDA's default stream neither waits for ours nor breaks a capture."""

BLOCKING_SYNC, DISABLE_TIMING = 1, 2
"""Flags of events: CU_EVENT_BLOCKING_SYNC and CU_EVENT_DISABLE_TIMING."""

FEW_CORES = 5
"""Below so many, as on a Jetson, a core is worth more than the microseconds that a sleeping thread wakes up later."""

LAYERS = ("pycuda", "cuda-bindings")
"""The libraries that a layer is made of; the first that is installed is used."""

_CONTEXTS: dict[tuple[str, int], Any] = {}
"""The primary contexts in use by name of the layer and index of the GPU, kept to the end of the process.

The primary context is destroyed when nobody holds it any more. TensorRT keeps objects of it in static memory, which
the next engine would find destroyed.
"""

_RETAINING = threading.Lock()


class GpuMemoryError(EngineError):
    """The GPU, or the host for page-locked memory, has not enough free memory."""


class Stream(Protocol):
    """What is enqueued on it runs in order. handle: the stream as TensorRT and the driver API take it."""

    @property
    def handle(self) -> int: ...

    def synchronize(self) -> None:
        """Waits until all that was enqueued is done."""
        ...

    def wait(self, event: Event) -> None:
        """Lets what is enqueued from now on begin when `event` has come, as it was recorded last. The host goes on."""
        ...

    def free(self) -> None: ...


class Event(Protocol):
    """A mark on a stream. One that was never recorded counts as come."""

    def record(self, stream: Stream) -> None: ...

    def synchronize(self) -> None:
        """Waits until the stream has come to the mark."""
        ...

    def free(self) -> None: ...


@dataclass(frozen=True)
class DeviceMemory:
    """Memory on the GPU; the address is CUDA's, a multiple of 256 at least."""

    address: int
    bytes: int
    free: Callable[[], None]


@dataclass(frozen=True)
class PinnedMemory:
    """Page-locked host memory, uint8 [bytes]: the only kind that CUDA copies while the host goes on.

    free: unmaps it, after which no view of `array` may be used any more.
    """

    array: Array
    free: Callable[[], None]


class Layer(Protocol):
    """The calls of CUDA's driver by one library. They raise `error`, and `memory_error`, a child of it, if memory is
    short. But for the first four and `push`, they need a current context."""

    name: str
    error: type[Exception]
    memory_error: type[Exception]

    def count(self) -> int:
        """GPUs of this machine; the first call of all."""
        ...

    def card(self, index: int) -> tuple[str, tuple[int, int], int]:
        """Name, compute capability and bytes of memory of a GPU."""
        ...

    def version(self) -> int:
        """The newest CUDA that the driver serves: 13000 for 13.0."""
        ...

    def retain(self, index: int) -> Any:
        """The primary context of a GPU, which is never released."""
        ...

    def push(self, context: Any) -> None: ...

    def pop(self) -> None: ...

    def stream(self, flags: int) -> Stream: ...

    def urgent_stream(self, flags: int) -> Stream:
        """A stream whose kernels go before those of other streams; DriverError if the driver makes none."""
        ...

    def event(self, flags: int) -> Event: ...

    def allocate(self, size: int) -> tuple[int, Callable[[], None]]:
        """The address of `size` bytes on the device, and what frees them."""
        ...

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory that are free, and all."""
        ...

    def pin(self, size: int) -> tuple[Array, Callable[[], None]]:
        """uint8 [size] in page-locked memory, and what frees it."""
        ...

    def upload(self, address: int, pinned: Array, stream: Any) -> None: ...

    def download(self, pinned: Array, address: int, stream: Any) -> None: ...

    def copy(self, address: int, source: int, size: int, stream: Any) -> None: ...

    def copy_rows(
        self, address: int, pitch: int, source: int, source_pitch: int, width: int, rows: int, stream: Any
    ) -> None: ...

    def clear(self, address: int, size: int, stream: Any) -> None: ...


class Gpu:
    """A GPU with two streams, for the thread that opens it and no other.

    name: as the driver tells it. capability: compute capability, (8, 6). memory_bytes: all there is on the card.
    cuda: the newest CUDA that the driver serves, "13.0". stream: of the frame graph. side: of the other graphs, whose
    kernels go before those of the frame graph. notices: what is slower than it could be, in words.
    """

    def __init__(self, device: int = 0, layer: Layer | None = None) -> None:
        """Opens GPU number `device` by `layer`, or by a library that is installed; EngineError if there is no such GPU,
        no driver or no library for it."""
        self._layer = layer or cuda_layer()
        self.notices: list[str] = []
        self._owner = threading.current_thread()
        self.index = device
        try:
            count = self._layer.count()
            if device >= count:
                raise EngineError(f"GPU {device} was requested, this machine has {count}")
            self.name, self.capability, self.memory_bytes = self._layer.card(device)
            newest = self._layer.version()
            self.cuda = f"{newest // 1000}.{newest % 1000 // 10}"
            self._context = _retained(self._layer, device)
        except self._layer.error as error:
            raise EngineError(
                f"GPU {device} cannot be opened: {one_line(error)}; check the driver with nvidia-smi, or use "
                "--engine cpu"
            ) from error
        streams: list[Stream] = []
        try:
            with self.current("opening a stream"):
                streams.append(self._layer.stream(NON_BLOCKING))
                streams.append(self._side_stream())
        except EngineError:
            self._streams = streams
            self.close()
            raise
        self._streams = streams
        self.stream, self.side = streams

    def _side_stream(self) -> Stream:
        try:
            return self._layer.urgent_stream(NON_BLOCKING)
        except DriverError as error:
            self.notices.append(f"masks wait for kernels of the next frame, which costs some speed: {error}")
            return self._layer.stream(NON_BLOCKING)

    @property
    def label(self) -> str:
        """The GPU as engines name it: "NVIDIA L4, compute capability 8.9"."""
        return f"{self.name}, compute capability {self.capability[0]}.{self.capability[1]}"

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
            self._layer.push(self._context)
            try:
                yield
            finally:
                self._layer.pop()
        except self._layer.memory_error as error:
            raise GpuMemoryError(f"{doing}: the GPU is out of memory ({one_line(error)}); {LESS_MEMORY}") from error
        except self._layer.error as error:
            raise EngineError(
                f"{doing}: CUDA failed ({one_line(error)}); open the session again, and if that fails "
                "too, restart the process"
            ) from error

    def allocate(self, size: int, what: str) -> DeviceMemory:
        """`size` bytes on the GPU for `what`; GpuMemoryError tells how much there is. The context must be current."""
        try:
            address, free = self._layer.allocate(max(size, 1))
        except self._layer.memory_error as error:
            left, total = self._layer.memory()
            raise GpuMemoryError(
                f"{what} needs {megabytes(size)} of GPU memory, {megabytes(left)} of {megabytes(total)} are free on "
                f"{self.name}; {LESS_MEMORY}"
            ) from error
        return DeviceMemory(address, size, free)

    def pin(self, size: int, what: str) -> PinnedMemory:
        """`size` bytes of page-locked host memory for `what`. The context must be current."""
        try:
            return PinnedMemory(*self._layer.pin(max(size, 1)))
        except self._layer.memory_error as error:
            raise GpuMemoryError(
                f"{what} needs {megabytes(size)} of page-locked host memory, which is refused; {LESS_MEMORY}"
            ) from error

    def event(self) -> Event:
        """A mark that nobody times. On few cores, who waits for it sleeps: to wait in a loop would cost one of them."""
        return self._layer.event(DISABLE_TIMING | (BLOCKING_SYNC if usable_cores() < FEW_CORES else 0))

    # Copies are enqueued on `stream`, or where none is given on that of the frame graph.

    def upload(self, address: int, pinned: Array, stream: Stream | None = None) -> None:
        """Enqueues a copy of page-locked `pinned` to the device; it must not be written before the stream is there."""
        self._layer.upload(address, pinned, stream or self.stream)

    def download(self, pinned: Array, address: int, stream: Stream | None = None) -> None:
        """Enqueues a copy from the device to page-locked `pinned`; it holds nothing before the stream is there."""
        self._layer.download(pinned, address, stream or self.stream)

    def copy(self, address: int, source: int, size: int, stream: Stream | None = None) -> None:
        """Enqueues a copy of `size` bytes within the device."""
        self._layer.copy(address, source, size, stream or self.stream)

    def copy_rows(
        self,
        address: int,
        pitch: int,
        source: int,
        source_pitch: int,
        width: int,
        rows: int,
        stream: Stream | None = None,
    ) -> None:
        """Enqueues a copy within the device of `rows` pieces of `width` bytes, which begin `source_pitch` bytes apart
        and come to lie `pitch` bytes apart."""
        self._layer.copy_rows(address, pitch, source, source_pitch, width, rows, stream or self.stream)

    def clear(self, address: int, size: int, stream: Stream | None = None) -> None:
        """Enqueues zeros for `size` bytes on the device."""
        self._layer.clear(address, size, stream or self.stream)

    def settle(self) -> None:
        """Waits for all that was enqueued on both streams; its errors are ignored."""
        for stream in self._streams:
            with suppress(self._layer.error):
                stream.synchronize()

    def release(self, steps: Iterable[Callable[[], None]]) -> None:
        """Takes each of `steps` when all that was enqueued is done. Of a GPU that was lost each may fail: none is left
        out, as TensorRT's objects go all the same."""
        self.require_owner()
        pushed = self._pushed()
        try:
            self.settle()
            for step in steps:
                with suppress(self._layer.error):
                    step()
        finally:
            if pushed:
                self._layer.pop()

    def _pushed(self) -> bool:
        """Whether the context could be made current."""
        try:
            self._layer.push(self._context)
        except self._layer.error:
            return False
        return True

    def close(self) -> None:
        """Frees the streams."""
        self.release([stream.free for stream in self._streams])
        self._streams = []


LESS_MEMORY = "use a smaller batch (--batch), or end what else runs on this GPU"


def megabytes(size: float) -> str:
    return f"{size / 2**20:.1f} MB"


def cuda_layer(name: str = "") -> Layer:
    """The layer called `name`, one of LAYERS; without a name pycuda if it is installed, else cuda-bindings. EngineError
    if it is not there or does not load."""
    from visrt.runtime.engines.trt.cuda_bindings import BindingsLayer
    from visrt.runtime.engines.trt.cuda_pycuda import PycudaLayer

    if name != "cuda-bindings":
        try:
            import pycuda.driver
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "pycuda":
                raise _does_not_load(error) from None
            if name:
                raise EngineError(f"pycuda is not installed; {install_hint('trt-pycuda')}") from None
        except ImportError as error:
            raise _does_not_load(error) from None
        else:
            return PycudaLayer(pycuda.driver)
    try:
        return BindingsLayer(driver_api())
    except DriverError as error:
        missing = f"{name} was requested, but" if name else "pycuda is not installed, and"
        raise EngineError(
            f"{missing} {error}; {install_hint('trt')} on a machine with an NVIDIA driver, or use --engine cpu"
        ) from None


def _does_not_load(error: ImportError) -> EngineError:
    return EngineError(
        f"pycuda is installed but does not load ({one_line(error)}); check the driver with nvidia-smi, build pycuda "
        "again for the CUDA that is here, or pip uninstall pycuda: cuda-bindings takes its place; or use --engine cpu"
    )


def _retained(layer: Layer, device: int) -> Any:
    with _RETAINING:
        key = (layer.name, device)
        if key not in _CONTEXTS:
            _CONTEXTS[key] = layer.retain(device)
        return _CONTEXTS[key]
