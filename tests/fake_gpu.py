"""A GPU as a program sees it through the CUDA driver, without one: the machine behind fake_pycuda and fake_tensorrt.

What makes a missing wait, a stale buffer or a leak visible:
- device memory is numbers, not arrays: the host reads it through a copy only, and only inside a live allocation;
- work on a stream is done when someone waits for it, not before, so that who does not wait reads what was there;
- freed memory is filled with rubbish, on both sides;
- only page-locked memory is copied later; ordinary memory is copied at once, and counted;
- a captured graph does what was recorded, at the addresses that were recorded;
- streams know nothing of each other but by events: who does not wait for one reads what was there before;
- two streams that compute in one workspace at a time both write rubbish;
- after a failed kernel every call fails, as the context is lost.

It has a clock, `Gpu.timeline`. All work is free until a test sets `Gpu.costs`.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visrt.benchmarks.speed.gpu_timeline import Part, Timeline, Work

__all__ = ["GREATEST_PRIORITY", "RUBBISH", "Costs", "CudaFault", "Faults", "Gpu", "HostMemory", "Operation", "Stream"]

Bytes = NDArray[np.uint8]
RUBBISH = 0xDB
"""Fills memory that holds nothing: as float32 or float16 a number that no network gives."""

MAX_PITCH = 2**31 - 1
"""Bytes between rows of a copy in two dimensions, as GPUs report it."""

CONTEXT_BYTES = 4096
"""Memory of the GPU that an execution context takes, beside its workspace."""

CONTEXT_HOST_BYTES = 2**20

ALIGNMENT = 512
FIRST_STREAM = 0x5000
GREATEST_PRIORITY = -5
FIRST_ADDRESS = 0x7F00_0000_0000


class CudaFault(Exception):  # noqa: N818
    """What a driver call answers in place of success: "CUDA_ERROR_OUT_OF_MEMORY"."""


@dataclass
class Faults:
    """What goes wrong next; a number counts down with each time it does.

    out_of_memory_at: numbers of device allocations, from 1, that find no memory. missing_functions: of the driver, by
    name, which an old one does not have; "libcuda" for all.
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
    missing_functions: set[str] = field(default_factory=set)

    def strikes(self, name: str) -> bool:
        """Whether fault `name` happens now."""
        left = getattr(self, name)
        setattr(self, name, max(left - 1, 0))
        return bool(left)


@dataclass
class Costs:
    """Seconds that work takes. kernels: of one execution, by the shapes of its inputs. bytes_per_s: of copies to the
    GPU and from it. call_s: host time of each call of the driver."""

    kernels: Callable[[Mapping[str, tuple[int, ...]]], float] = lambda shapes: 0.0
    bytes_per_s: float = float("inf")
    call_s: float = 0.0


@dataclass
class Operation:
    """One piece of work on a stream; `what` names it in the stream's record.

    part: of the GPU that does it. workspace: address and size of the scratch memory it needs. spoil: what happens in
    place of its result where another stream uses that memory at the same time.
    """

    what: str
    run: Callable[[], None]
    cost_s: float = 0.0
    part: Part = "kernels"
    workspace: tuple[int, int] | None = None
    spoil: Callable[[], None] = lambda: None
    spoiled: bool = False


@dataclass
class Stream:
    """priority: as CUDA counts, the lowest number is the highest."""

    handle: int
    flags: int
    priority: int = 0
    queue: list[Operation] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    capture: list[Operation] | None = None
    captured_by: int = 0
    broken: bool = False

    @property
    def issued(self) -> int:
        return len(self.works)

    @property
    def done(self) -> int:
        return self.issued - len(self.queue)


class HostMemory:
    """Page-locked memory, whose views know it as their `base`."""

    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu = gpu
        self.bytes = np.full(size, RUBBISH, dtype=np.uint8)
        self.__array_interface__ = self.bytes.__array_interface__
        self.address: int = self.bytes.__array_interface__["data"][0]
        gpu.pinned[self.address] = self

    def release(self) -> None:
        with self._gpu.call("free_host"):
            self._gpu._forbid_while_capturing()
            if self._gpu.pinned.pop(self.address, None) is None:
                raise CudaFault("CUDA_ERROR_INVALID_VALUE")
            self.bytes[:] = RUBBISH


class Gpu:
    """One card. counts: calls by name, and bytes copied ("htod_bytes"). record: what streams did, in order.

    objects: the streams, events, engines, contexts and so on that are alive. retained: how often the primary context is
    held. epoch: counts the primary contexts there were; each goes with its last holder, and with it all that is in it.
    event_flags: of all events that were made. static_epoch: of the context in which TensorRT's static objects lie.
    contexts: TensorRT's execution contexts among the objects, each of which takes memory. kept_contexts: what
    visrt keeps of the primary context to the end of the process.
    """

    def __init__(
        self, memory_mb: int = 64, name: str = "NVIDIA Fake 4090", capability: tuple[int, int] = (8, 9)
    ) -> None:
        self.name, self.capability, self.memory_bytes = name, capability, memory_mb * 2**20
        self.faults, self.costs, self.timeline = Faults(), Costs(), Timeline()
        self.counts: Counter[str] = Counter()
        self.record: list[str] = []
        self.pinned: dict[int, HostMemory] = {}
        self.objects: weakref.WeakSet[Any] = weakref.WeakSet()
        self.contexts: weakref.WeakSet[Any] = weakref.WeakSet()
        self.retained = 0
        self.epoch = 0
        self.kept_contexts: dict[tuple[str, int], Any] = {}
        self.static_epoch: int | None = None
        self.event_flags: list[int] = []
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
        self.timeline.advance(self.costs.call_s)
        if not self.stack:
            raise CudaFault("CUDA_ERROR_INVALID_CONTEXT")
        self._require_alive(self.stack[-1])
        if self.lost is not None:
            raise CudaFault(self.lost)
        yield

    # Memory

    @property
    def free_bytes(self) -> int:
        held = sum(block.size for block in self._memory.values())
        return self.memory_bytes - held - CONTEXT_BYTES * len(self.contexts)

    @property
    def context_host_bytes(self) -> int:
        """Memory of the host that execution contexts take."""
        return CONTEXT_HOST_BYTES * len(self.contexts)

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

    def retain(self) -> int:
        """The primary context, by its epoch."""
        self.retained += 1
        return self.epoch

    def release(self) -> None:
        """Gives the primary context back; with its last holder it goes, and so does all that is in it."""
        if not self.retained:
            raise CudaFault("CUDA_ERROR_INVALID_CONTEXT")
        self.retained -= 1
        if not self.retained:
            self.epoch += 1
            self._memory.clear()
            self._streams.clear()
            self.pinned.clear()

    def push(self, epoch: int) -> None:
        """Makes the primary context of `epoch` current. After a failed kernel this may fail too."""
        if self.lost is not None:
            raise CudaFault(self.lost)
        self._require_alive(epoch)
        self.stack.append(epoch)

    def pop(self) -> int:
        if not self.stack:
            raise CudaFault("CUDA_ERROR_INVALID_CONTEXT")
        return self.stack.pop()  # type: ignore[no-any-return]

    def _require_alive(self, epoch: int) -> None:
        if epoch != self.epoch:
            raise CudaFault("CUDA_ERROR_CONTEXT_IS_DESTROYED")

    @property
    def left(self) -> dict[str, int]:
        """What is held, by kind, but for the primary context, which one holder may keep to the end of the process."""
        held = Counter(type(thing).__name__ for thing in self.objects)
        del held["Context"]
        held.update(memory=self.allocated, pinned=len(self.pinned), streams=len(self._streams))
        held.update({name: self.counts[name] for name in ("events", "graphs", "recordings")})
        held.update(stack=len(self.stack), contexts=max(self.retained - 1, 0))
        return dict(+held)

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

    def pin(self, size: int, kind: type[HostMemory] = HostMemory) -> HostMemory:
        with self.call("pin"):
            self._forbid_while_capturing()
            if self.faults.strikes("pin"):
                raise CudaFault("CUDA_ERROR_OUT_OF_MEMORY")
            return kind(self, size)

    # Copies, of bytes in one piece

    def upload(self, stream: Stream, address: int, source: Bytes) -> None:
        with self.call("htod"):
            self.counts["htod_bytes"] += source.nbytes
            pinned = self.is_pinned(source)
            self.counts["pageable"] += not pinned
            data = source if pinned else source.copy()

            def copy() -> None:
                self.view(address, data.nbytes)[:] = data

            self.enqueue_copy(stream, "htod", copy, data.nbytes, "up")

    def download(self, stream: Stream, target: Bytes, address: int) -> None:
        with self.call("dtoh"):
            self.counts["dtoh_bytes"] += target.nbytes

            def copy() -> None:
                target[:] = self.view(address, target.nbytes)

            self.enqueue_copy(stream, "dtoh", copy, target.nbytes, "down")
            if not self.is_pinned(target):
                self.counts["pageable"] += 1
                self.wait(stream)

    def copy(self, stream: Stream, target: int, source: int, size: int) -> None:
        with self.call("dtod"):
            self.counts["dtod_bytes"] += size

            def copy() -> None:
                self.view(target, size)[:] = self.view(source, size)

            self.enqueue(stream, Operation("dtod", copy))

    def copy_rows(
        self, stream: Stream, target: int, pitch: int, source: int, source_pitch: int, width: int, rows: int
    ) -> None:
        with self.call("dtod"):
            self.counts["dtod_bytes"] += width * rows
            if min(pitch, source_pitch) < width or max(pitch, source_pitch) > MAX_PITCH:
                raise CudaFault("CUDA_ERROR_INVALID_VALUE")

            def copy() -> None:
                for row in range(rows):
                    self.view(target + row * pitch, width)[:] = self.view(source + row * source_pitch, width)

            self.enqueue(stream, Operation("dtod", copy))

    def fill(self, stream: Stream, address: int, value: int, size: int) -> None:
        with self.call("memset"):

            def fill() -> None:
                self.view(address, size)[:] = value

            self.enqueue(stream, Operation("memset", fill))

    # Streams: work is put into a queue and done when someone waits.

    def create_stream(self, flags: int, priority: int = 0) -> Stream:
        """priority: from -5, the greatest, to 0."""
        with self.call("create_stream"):
            if self.faults.strikes("stream"):
                raise CudaFault("CUDA_ERROR_OUT_OF_MEMORY")
            handle = FIRST_STREAM + 16 * self.counts["create_stream"]
            self._streams[handle] = Stream(handle, flags, priority=max(GREATEST_PRIORITY, min(priority, 0)))
            self.timeline.add_stream(handle, self._streams[handle].priority)
            return self._streams[handle]

    def destroy_stream(self, stream: Stream) -> None:
        self._streams.pop(stream.handle, None)

    def stream(self, handle: int) -> Stream:
        if handle not in self._streams:
            known = FIRST_STREAM < handle <= FIRST_STREAM + 16 * self.counts["create_stream"]
            raise CudaFault("CUDA_ERROR_CONTEXT_IS_DESTROYED" if known and self.epoch else "CUDA_ERROR_INVALID_HANDLE")
        return self._streams[handle]

    def begin_capture(self, stream: Stream) -> None:
        with self.call("begin_capture"):
            if stream.capture is not None:
                raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
            stream.capture, stream.captured_by = [], threading.get_ident()
            stream.broken = self.faults.strikes("capture")

    def end_capture(self, stream: Stream) -> list[Operation]:
        """What was recorded. In the thread-local mode only the thread that began can end it."""
        with self.call("end_capture"):
            if stream.capture is None:
                raise CudaFault("CUDA_ERROR_INVALID_VALUE")
            if stream.captured_by != threading.get_ident():
                raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD")
            operations, stream.capture = stream.capture, None
            if stream.broken:
                raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_INVALIDATED")
            return operations

    def enqueue(self, stream: Stream, operation: Operation) -> None:
        if stream.capture is not None:
            stream.capture.append(operation)
        else:
            self._put(stream, operation)

    def enqueue_copy(self, stream: Stream, what: str, copy: Callable[[], None], size: int, part: Part) -> None:
        """A copy of `size` bytes between host and device."""
        self.enqueue(stream, Operation(what, copy, size / self.costs.bytes_per_s, part))

    def mark(self, stream: Stream) -> tuple[Stream, int]:
        """What an event records: the work that `stream` was given so far."""
        with self.call("record_event"):
            self._forbid_in_capture(stream)
            return stream, stream.issued

    def let_wait(self, stream: Stream, mark: tuple[Stream, int] | None) -> None:
        """What `stream` is given from now on begins after the work that `mark` names, of any stream."""
        self._forbid_in_capture(stream)
        if mark is not None and mark[1]:
            other, until = mark
            wait = Operation("wait", partial(self._do, other, until))
            self._put(stream, wait, [other.works[until - 1]])

    def _put(self, stream: Stream, operation: Operation, after: Iterable[Work] = ()) -> None:
        operation = replace(operation)
        for other in self._in_the_workspace_of(stream, operation):
            self.counts["workspace_clashes"] += 1
            operation.spoiled = other.spoiled = True
        stream.queue.append(operation)
        work = self.timeline.enqueue(stream.handle, operation.what, operation.part, operation.cost_s, after)
        stream.works.append(work)

    def _in_the_workspace_of(self, stream: Stream, operation: Operation) -> list[Operation]:
        """Work of other streams, that nobody has waited for, in the same scratch memory or a part of it."""
        if operation.workspace is None:
            return []
        start, size = operation.workspace
        queued = [one for other in self._streams.values() if other is not stream for one in other.queue]
        places = [(one, *one.workspace) for one in queued if one.workspace is not None]
        return [one for one, first, length in places if first < start + size and start < first + length]

    def wait(self, stream: Stream, until: int | None = None) -> None:
        """Does the work of `stream` up to its operation number `until`, or all; the clock goes on to its end."""
        self._forbid_in_capture(stream)
        last = stream.issued if until is None else until
        self._do(stream, last)
        if last:
            self.timeline.wait(stream.works[last - 1])
        if self.lost is not None:
            raise CudaFault(self.lost)

    def _do(self, stream: Stream, last: int) -> None:
        while stream.done < last:
            operation = stream.queue.pop(0)
            if self.lost is not None:
                continue
            try:
                operation.run()
                if operation.spoiled:
                    operation.spoil()
            except CudaFault as fault:
                self.lost = str(fault)
            if operation.what != "wait":
                self.record.append(operation.what)

    def _forbid_in_capture(self, stream: Stream) -> None:
        """Events and waits are no part of what is recorded here."""
        if stream.capture is not None:
            stream.broken = True
            raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")

    def _forbid_while_capturing(self) -> None:
        """In the thread-local mode, the capturing thread may make no call that could wait for the device; others may,
        on their streams."""
        for stream in self._streams.values():
            if stream.capture is not None and stream.captured_by == threading.get_ident():
                stream.broken = True
                raise CudaFault("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED")
