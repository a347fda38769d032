"""What visrt asks of CUDA's driver, step by step and without TensorRT: memory, copies, events, recording, reopening.

A copy within the device stands for the engine. A step that fails does not keep the others from being tried.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from visrt.runtime.arrays import Array
from visrt.runtime.engines.trt.cuda import DeviceMemory, Gpu, Layer, PinnedMemory, Stream
from visrt.runtime.engines.trt.cuda_graph import open_capture
from visrt.runtime.errors import EngineError, one_line

__all__ = ["CudaSteps"]

BYTES = 2**23
"""About eight images of 480x864 in uint8, a wide call."""

REPEATS = 20
OPENED_AGAIN = 5
ROWS, PITCH = 16, 2**12

Figures = dict[str, Any]


class CudaSteps:
    """Tries each step on GPU number `device` by the layer that `layer_of` gives.

    figures: what was measured. steps: "ok", or why not, by name. faults: of the steps that failed.
    """

    def __init__(self, layer_of: Callable[[], Layer], device: int) -> None:
        self._layer_of, self._device = layer_of, device
        self.figures: Figures = {}
        self.steps: dict[str, str] = {}
        self._gpu: Gpu | None = None

    @property
    def faults(self) -> list[str]:
        return [f"{step}: {outcome}" for step, outcome in self.steps.items() if outcome not in PASSED]

    def run(self) -> Figures:
        """All steps; "fault" is in the figures if any failed."""
        self._try("open", self._open)
        if self._gpu is not None:
            self._on(self._gpu, "")
            self._try("close", self._gpu.close)
            self._try(f"open and close {OPENED_AGAIN} times", self._open_again)
            self._after_torch()
        faults = {"fault": " | ".join(self.faults)} if self.faults else {}
        return {**self.figures, "steps": self.steps, **faults}

    def _try(self, step: str, work: Callable[[], None]) -> None:
        try:
            work()
            self.steps.setdefault(step, "ok")
        except Exception as error:
            # Whatever it is, an argument that a library does not take among others: the other steps tell more.
            traceback.print_exc()
            kind = "" if isinstance(error, EngineError) else f"{type(error).__name__}: "
            self.steps[step] = f"{kind}{one_line(error)}"

    def _open(self) -> None:
        self._gpu = gpu = Gpu(self._device, self._layer_of())
        self.figures |= {"gpu": gpu.label, "cuda": gpu.cuda}
        if gpu.notices:
            raise EngineError("; ".join(gpu.notices))

    def _on(self, gpu: Gpu, when: str) -> None:
        """The steps on a GPU that is open; `when` goes behind their names."""
        for step, work in STEPS.items():

            def try_it(work: Callable[[Gpu], Mapping[str, float]] = work) -> None:
                with gpu.current(step):  # noqa: B023
                    found = work(gpu)
                self.figures |= {} if when else found

            self._try(f"{step}{when}", try_it)

    def _open_again(self) -> None:
        for number in range(OPENED_AGAIN):
            gpu = Gpu(self._device, self._layer_of())
            try:
                with gpu.current(f"opened again, number {number + 1}"):
                    _copies(gpu)
                    _recording(gpu)
            finally:
                gpu.close()

    def _after_torch(self) -> None:
        """The same with the context of torch current in this thread, and torch goes on as before."""
        step = "beside torch"
        try:
            import torch
        except ImportError:
            self.steps[step] = NO_TORCH
            return
        if not torch.cuda.is_available():
            self.steps[step] = NO_TORCH_CUDA
            return

        def beside() -> None:
            device = f"cuda:{self._device}"
            ones = torch.ones(BYTES, device=device)
            gpu = Gpu(self._device, self._layer_of())
            try:
                self._on(gpu, f" {step}")
            finally:
                gpu.close()
            if float(ones.sum()) != BYTES or float(torch.ones(3, device=device).sum()) != 3:
                raise EngineError("torch computes wrong sums after visrt has used the GPU in its thread")

        self._try(step, beside)


NO_TORCH, NO_TORCH_CUDA = "not tried: torch is not installed", "not tried: this torch finds no CUDA"
PASSED = ("ok", NO_TORCH, NO_TORCH_CUDA)


@contextmanager
def _room(gpu: Gpu) -> Iterator[tuple[PinnedMemory, PinnedMemory, DeviceMemory, DeviceMemory]]:
    """Two pieces of page-locked memory, the second of zeros, and two on the device; freed at the end."""
    what = "the check of CUDA"
    held: list[Callable[[], None]] = []
    try:
        up, down = gpu.pin(BYTES, what), gpu.pin(BYTES, what)
        held += [up.free, down.free]
        source, target = gpu.allocate(BYTES, what), gpu.allocate(BYTES, what)
        held += [source.free, target.free]
        up.array[:] = np.random.default_rng(0).integers(0, 256, BYTES, dtype=np.uint8)
        down.array[:] = 0
        yield up, down, source, target
    finally:
        gpu.settle()
        for free in held:
            free()


def _same(expected: Array, found: Array, what: str) -> None:
    if wrong := int(np.count_nonzero(expected != found)):
        raise EngineError(f"{what}: {wrong} of {found.size} bytes came back wrong")


def _copies(gpu: Gpu) -> Mapping[str, float]:
    """Page-locked memory up, a copy on the device, and down again, an event at the end of each; in GB/s."""
    with _room(gpu) as (up, down, source, target):
        seconds: dict[str, list[float]] = {}
        event = gpu.event()
        enqueued: dict[str, Callable[[], None]] = {
            "up_gb_s": lambda: gpu.upload(source.address, up.array),
            "device_gb_s": lambda: gpu.copy(target.address, source.address, BYTES),
            "down_gb_s": lambda: gpu.download(down.array, target.address),
        }
        try:
            for _ in range(REPEATS):
                for name, enqueue in enqueued.items():
                    start = perf_counter()
                    enqueue()
                    event.record(gpu.stream)
                    event.synchronize()
                    seconds.setdefault(name, []).append(perf_counter() - start)
        finally:
            event.free()
        _same(up.array, down.array, "up, across and down again")
        return {name: BYTES / 1e9 / max(median(found), 1e-9) for name, found in seconds.items()}


def _two_streams(gpu: Gpu) -> Mapping[str, float]:
    """The second stream reads what the first one wrote, behind an event."""
    with _room(gpu) as (up, down, source, target):
        written = gpu.event()
        try:
            gpu.upload(source.address, up.array)
            written.record(gpu.stream)
            gpu.side.wait(written)
            gpu.copy(target.address, source.address, BYTES, gpu.side)
            gpu.download(down.array, target.address, gpu.side)
            gpu.side.synchronize()
        finally:
            written.free()
        _same(up.array, down.array, "from stream to stream")
    return {}


def _rows_and_zeros(gpu: Gpu) -> Mapping[str, float]:
    """Rows with gaps, and memory that is cleared."""
    with _room(gpu) as (up, down, source, target):
        gpu.upload(source.address, up.array)
        gpu.clear(target.address, BYTES)
        gpu.copy_rows(target.address, PITCH, source.address, 2 * PITCH, PITCH // 2, ROWS)
        gpu.download(down.array, target.address)
        gpu.stream.synchronize()
        expected = np.zeros_like(down.array)
        taken = up.array[: 2 * PITCH * ROWS].reshape(ROWS, 2 * PITCH)[:, : PITCH // 2]
        expected[: PITCH * ROWS].reshape(ROWS, PITCH)[:, : PITCH // 2] = taken
        _same(expected, down.array, "rows and zeros")
    return {}


def _recording(gpu: Gpu) -> Mapping[str, float]:
    """A copy recorded as a CUDA graph on each stream and launched twice, the second time on other data; in us."""
    launch_us = 0.0
    for stream in (gpu.stream, gpu.side):
        with _room(gpu) as (up, down, source, target):
            launch_us = _launched(gpu, stream, up.array, down.array, source.address, target.address)
    return {"launch_us": launch_us}


def _launched(gpu: Gpu, stream: Stream, up: Array, down: Array, source: int, target: int) -> float:
    def enqueue() -> bool:
        gpu.copy(target, source, BYTES, stream)
        return True

    enqueue()
    stream.synchronize()
    graph = open_capture(stream.handle).record(enqueue)
    try:
        for number in range(2):
            up[:] = np.random.default_rng(number + 1).integers(0, 256, BYTES, dtype=np.uint8)
            gpu.upload(source, up, stream)
            start = perf_counter()
            if not graph.launch(stream.handle):
                raise EngineError(f"launch {number + 1} of a CUDA graph was refused")
            launch_us = 1e6 * (perf_counter() - start)
            gpu.download(down, target, stream)
            stream.synchronize()
            _same(up, down, f"launch {number + 1} of a CUDA graph")
    finally:
        gpu.settle()
        graph.destroy()
    return launch_us


STEPS: Mapping[str, Callable[[Gpu], Mapping[str, float]]] = {
    "copies": _copies,
    "two streams": _two_streams,
    "rows and zeros": _rows_and_zeros,
    "CUDA graph": _recording,
}
