"""A GPU as a program sees it through the CUDA driver, without one: the machine behind fake_pycuda and fake_tensorrt.

What makes a missing wait, a stale buffer or a leak visible:
- device memory is numbers, not arrays: the host reads it through a copy only, and only inside a live allocation;
- work on a stream is done when someone waits for it, not before, so that who does not wait reads what was there;
- freed memory is filled with rubbish, on both sides;
- only page-locked memory is copied later; ordinary memory is copied at once, and counted;
- a captured graph does what was recorded, at the addresses that were recorded;
- after a failed kernel every call fails, as the context is lost.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["RUBBISH", "CudaFault", "Faults", "Gpu", "HostMemory", "Stream"]

Bytes = NDArray[np.uint8]
RUBBISH = 0xDB
"""Fills memory that holds nothing: as float32 or float16 a number that no network gives."""

ALIGNMENT = 512
FIRST_ADDRESS = 0x7F00_0000_0000


class CudaFault(Exception):  # noqa: N818
    """What a driver call answers in place of success: "CUDA_ERROR_OUT_OF_MEMORY"."""


@dataclass
class Faults:
    """What goes wrong next; a number counts down with each time it does.

    out_of_memory_at: numbers of device allocations, from 1, that find no memory.
    """

    out_of_memory_at: set[int] = field(default_factory=set)
    deserialize: int = 0
    deserialize_memory: int = 0
    build: int = 0
    build_warnings: list[str] = field(default_factory=list)
    build_errors: list[str] = field(default_factory=list)
    context: int = 0
    input_shape: int = 0
    tensor_address: int = 0
    execution: int = 0
    kernel: int = 0
    capture: int = 0
    not_capturable: bool = False
    graph_launch: int = 0
    pin: int = 0
    init: int = 0
    stream: int = 0
    runtime: int = 0

    def strikes(self, name: str) -> bool:
        """Whether fault `name` happens now."""
        left = getattr(self, name)
        setattr(self, name, max(left - 1, 0))
        return bool(left)


@dataclass
class Operation:
    """One piece of work on a stream; `what` names it in the stream's record."""

    what: str
    run: Callable[[], None]


@dataclass
class Stream:
    handle: int
    flags: int
    queue: list[Operation] = field(default_factory=list)
    issued: int = 0
    capture: list[Operation] | None = None
    broken: bool = False

    @property
    def done(self) -> int:
        return self.issued - len(self.queue)


class HostMemory:
    """Page-locked memory, whose views know it as their `base`."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu = gpu
        self.bytes = np.full(size, RUBBISH, dtype=np.uint8)
        self.__array_interface__ = self.bytes.__array_interface__
        self.address = self.bytes.__array_interface__["data"][0]
        gpu.pinned[self.address] = self

    def release(self) -> None:
        with self._gpu.call("free_host"):
            if self._gpu.pinned.pop(self.address, None) is None:
                raise CudaFault("CUDA_ERROR_INVALID_VALUE")
            self.bytes[:] = RUBBISH


class Gpu:
    """One card. counts: calls by name, and bytes copied ("htod_bytes"). record: what streams did, in order.

    objects: the streams, events, engines, contexts and so on that are alive. strayed: contexts that are on CUDA's stack
    though pycuda knows nothing of them.
    """

    def __init__(
        self, memory_mb: int = 64, name: str = "NVIDIA Fake 4090", capability: tuple[int, int] = (8, 9)
    ) -> None:
        self.name, self.capability, self.memory_bytes = name, capability, memory_mb * 2**20
        self.faults = Faults()
        self.counts: Counter[str] = Counter()
        self.record: list[str] = []
        self.pinned: dict[int, HostMemory] = {}
        self.objects: weakref.WeakSet[Any] = weakref.WeakSet()
        self.retained = 0
        self.strayed = 0
        self.lost: str | None = None
        self._memory: dict[int, Bytes] = {}
        self._next = FIRST_ADDRESS
        self._streams: dict[int, Stream] = {}
        self._threads = threading.local()

    # Contexts: each thread has a stack, and no call works without a current one.

    @property
    def stack(self) -> list[Any]:
        """This thread's pushed contexts."""
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        return self._threads.stack  # type: ignore[no-any-return]

    @contextmanager
    def call(self, name: str) -> Iterator[None]:
        """A call of the driver: it needs a current context, and fails for good after a failed kernel."""
        self.counts[name] += 1
        if not self.stack:
            raise CudaFault("CUDA_ERROR_INVALID_CONTEXT")
        if self.lost is not None:
            raise CudaFault(self.lost)
        yield

    # Memory

    @property
    def free_bytes(self) -> int:
        return self.memory_bytes - sum(block.size for block in self._memory.values())

    @property
    def allocated(self) -> int:
        """Live device allocations."""
        return len(self._memory)

    def allocate(self, size: int) -> int:
        with self.call("allocate"):
            self._forbid_while_capturing()
            if size <= 0:
                raise CudaFault("CUDA_ERROR_INVALID_VALUE")
            if self.counts["allocate"] in self.faults.out_of_memory_at or size > self.free_bytes:
                raise CudaFault("CUDA_ERROR_OUT_OF_MEMORY")
            address = self._next
            self._next += (size + 2 * ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
            self._memory[address] = np.full(size, RUBBISH, dtype=np.uint8)
            return address

    def free(self, address: int) -> None:
        with self.call("free"):
            self._forbid_while_capturing()
            if self._memory.pop(address, None) is None:
                raise CudaFault("CUDA_ERROR_INVALID_VALUE")

    def push(self, context: Any) -> None:
        """After a failed kernel this may fail too."""
        if self.lost is not None:
            raise CudaFault(self.lost)
        self.stack.append(context)

    def view(self, address: int, size: int) -> Bytes:
        """Device memory, for work on a stream."""
        for base, block in self._memory.items():
            if base <= address and address + size <= base + block.size:
                return block[address - base : address - base + size]
        raise CudaFault("CUDA_ERROR_ILLEGAL_ADDRESS")

    def holds(self, address: int, size: int) -> bool:
        try:
            self.view(address, size)
        except CudaFault:
            return False
        return True

    def is_pinned(self, array: Bytes) -> bool:
        """Whether all of `array` lies in page-locked memory."""
        start = array.__array_interface__["data"][0]
        return any(base <= start and start + array.nbytes <= base + len(m.bytes) for base, m in self.pinned.items())

    # Streams: work is put into a queue and done when someone waits.

    def create_stream(self, flags: int) -> Stream:
        with self.call("create_stream"):
            if self.faults.strikes("stream"):
                raise CudaFault("CUDA_ERROR_OUT_OF_MEMORY")
            handle = 0x5000 + 16 * self.counts["create_stream"]
            self._streams[handle] = Stream(handle, flags)
            return self._streams[handle]

    def destroy_stream(self, stream: Stream) -> None:
        self._streams.pop(stream.handle)

    def stream(self, handle: int) -> Stream:
        if handle not in self._streams:
            raise CudaFault("CUDA_ERROR_INVALID_HANDLE")
        return self._streams[handle]

    def enqueue(self, stream: Stream, operation: Operation) -> None:
        if stream.capture is not None:
            stream.capture.append(operation)
        else:
            stream.queue.append(operation)
            stream.issued += 1

    def wait(self, stream: Stream, until: int | None = None) -> None:
        """Does the work of `stream` up to its operation number `until`, or all."""
        if stream.capture is not None:
            stream.broken = True
            raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
        last = stream.issued if until is None else until
        while stream.done < last:
            operation = stream.queue.pop(0)
            if self.lost is not None:
                continue
            try:
                operation.run()
            except CudaFault as fault:
                self.lost = str(fault)
            self.record.append(operation.what)
        if self.lost is not None:
            raise CudaFault(self.lost)

    def _forbid_while_capturing(self) -> None:
        """In the thread-local mode, the capturing thread may make no call that could wait for the device."""
        for stream in self._streams.values():
            if stream.capture is not None:
                stream.broken = True
                raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
