"""CUDA graphs: what is enqueued on a stream, recorded once and replayed with a single launch.

pycuda has no stream capture. cuda-bindings wraps the same driver API, so it takes the handle of pycuda's stream; its
other half, the runtime API, would bring a CUDA runtime of its own that must fit the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
        return bool(self.cuda.cuGraphLaunch(self.handle, stream)[0] == self.cuda.CUresult.CUDA_SUCCESS)

    def destroy(self) -> None:
        """Frees it; of a launch that still runs, CUDA frees it afterwards."""
        self.cuda.cuGraphExecDestroy(self.handle)


@dataclass(frozen=True)
class Capture:
    """Records what is enqueued on the stream with handle `stream`."""

    cuda: Any
    stream: int

    def record(self, enqueue: Callable[[], bool]) -> CudaGraph:
        """What `enqueue` puts on the stream, recorded and not run. CaptureRefusedError if it returns False.

        Only this thread's calls may break the recording: other threads go on allocating.
        """
        mode = self.cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _done("cuStreamBeginCapture", self.cuda, self.cuda.cuStreamBeginCapture(self.stream, mode))
        enqueued = False
        try:
            enqueued = enqueue()
        finally:
            # Whatever happened, the stream must not stay in capture: it would refuse all work.
            ended = self.cuda.cuStreamEndCapture(self.stream)
        graph = _done("cuStreamEndCapture", self.cuda, ended)
        try:
            if not enqueued:
                raise CaptureRefusedError("what was to be recorded could not be enqueued")
            return CudaGraph(self.cuda, _done("cuGraphInstantiate", self.cuda, self.cuda.cuGraphInstantiate(graph, 0)))
        finally:
            self.cuda.cuGraphDestroy(graph)


def open_capture(stream: int) -> Capture:
    """Capture on the stream with handle `stream`; CaptureRefusedError if cuda-bindings is not installed."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise CaptureRefusedError(f"cuda-bindings cannot be imported ({error}); {install_hint('trt')}") from None
    return Capture(driver, stream)


def _done(what: str, cuda: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a driver call, which tells errors in the first place of its answer."""
    if answer[0] != cuda.CUresult.CUDA_SUCCESS:
        raise CaptureRefusedError(f"{what}: {answer[0].name}")
    return answer[1] if len(answer) > 1 else None
