"""CUDA graphs: what is enqueued on a stream, recorded once and replayed with a single launch.

pycuda has no stream capture. cuda-bindings wraps the same driver API, so it takes the handle of pycuda's stream; its
other half, the runtime API, would bring a CUDA runtime of its own that must fit the driver.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from visrt.runtime.engines.driver_api import DriverError, call, driver_api
from visrt.runtime.errors import install_hint

__all__ = ["Capture", "CaptureRefusedError", "CudaGraph", "open_capture"]


class CaptureRefusedError(Exception):
    """Work that cannot be recorded, or no means to record it; the reason in words."""


@dataclass(frozen=True)
class CudaGraph:
    """Recorded work. It reads and writes the very addresses that it was recorded with."""

    cuda: Any
    handle: Any

    def launch(self, stream: int) -> bool:
        """Enqueues all of it; False if the driver refuses."""
        try:
            call(self.cuda.cuGraphLaunch, self.handle, stream)
        except DriverError:
            return False
        return True

    def destroy(self) -> None:
        """Frees it; of a launch that still runs, CUDA frees it afterwards."""
        with suppress(DriverError):
            call(self.cuda.cuGraphExecDestroy, self.handle)


@dataclass(frozen=True)
class Capture:
    """Records what is enqueued on the stream with handle `stream`."""

    cuda: Any
    stream: int

    def record(self, enqueue: Callable[[], bool]) -> CudaGraph:
        """What `enqueue` puts on the stream, recorded and not run. CaptureRefusedError if it returns False or the
        driver refuses.

        Only this thread's calls may break the recording: other threads go on allocating.
        """
        try:
            with _no_collection():
                return self._recorded(enqueue)
        except DriverError as error:
            raise CaptureRefusedError(str(error)) from None

    def _recorded(self, enqueue: Callable[[], bool]) -> CudaGraph:
        mode = self.cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call(self.cuda.cuStreamBeginCapture, self.stream, mode)
        try:
            enqueued = enqueue()
        except BaseException:
            # Whatever happened, the stream must not stay in capture: it would refuse all work.
            with suppress(DriverError):
                call(self.cuda.cuStreamEndCapture, self.stream)
            raise
        graph = call(self.cuda.cuStreamEndCapture, self.stream)
        try:
            if not enqueued:
                raise CaptureRefusedError("what was to be recorded could not be enqueued")
            return CudaGraph(self.cuda, call(self.cuda.cuGraphInstantiate, graph, 0))
        finally:
            with suppress(DriverError):
                call(self.cuda.cuGraphDestroy, graph)


def open_capture(stream: int) -> Capture:
    """Capture on the stream with handle `stream`; CaptureRefusedError if cuda-bindings or its driver is missing."""
    try:
        return Capture(driver_api(), stream)
    except DriverError as error:
        raise CaptureRefusedError(f"{error}; {install_hint('trt')}") from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps Python's garbage collector from running: to free GPU memory breaks a recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
