"""Resources that the engines of a bundle share: GPU, TensorRT's runtime, and two lanes of work.

The frame graph has a lane of its own. While it computes the next frame, the graphs that the tracking of this frame
needs run in the other lane, whose stream has the higher priority: the host waits for them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from visrt.runtime.engines.trt.buffer import Staging
from visrt.runtime.engines.trt.cuda import DeviceMemory, Gpu, Stream
from visrt.runtime.engines.trt.cuda_graph import Capture, CaptureRefusedError, open_capture
from visrt.runtime.engines.trt.device_tensor import ALIGNMENT
from visrt.runtime.engines.trt.library import TensorRt, target_absence
from visrt.runtime.engines.trt.log import log_of, log_text
from visrt.runtime.errors import EngineError, one_line

__all__ = ["Lane", "TrtContext"]

LOGGER = logging.getLogger("visrt.tensorrt")


class Lane:
    """A stream, and what its engines share because they run one after the other: a workspace and page-locked memory.

    capture: records CUDA graphs on the stream, None where that cannot be done.
    """

    def __init__(self, gpu: Gpu, stream: Stream) -> None:
        self.stream, self.staging = stream, Staging(gpu, stream)
        self.capture: Capture | None = None
        self._gpu = gpu
        self._workspace: DeviceMemory | None = None

    @property
    def workspace(self) -> DeviceMemory:
        assert self._workspace is not None
        return self._workspace

    def reserve(self, size: int) -> None:
        """Allocates the workspace, `size` bytes; the context must be current."""
        self._workspace = self._gpu.allocate(max(size, ALIGNMENT), "the workspace of the engines")

    def ends(self) -> list[Callable[[], None]]:
        """Steps that free it."""
        held, self._workspace = self._workspace, None
        return [*self.staging.ends(), *([] if held is None else [held.free])]


class TrtContext:
    """Shared by the engines of a bundle, and closed by the last one that leaves.

    frames: the lane of the frame graph. side: that of all other graphs. notices: what makes the engines slower than
    they could be, in words, each logged once.
    """

    def __init__(self, gpu: Gpu, library: TensorRt) -> None:
        """Takes ownership of `gpu`."""
        self.gpu, self.library = gpu, library
        self.log = log_of(library)
        self.frames, self.side = Lane(gpu, gpu.stream), Lane(gpu, gpu.side)
        self.notices: list[str] = []
        self._users = 0
        try:
            self._runtime = self._started()
        except BaseException:
            gpu.close()
            raise
        for text in gpu.notices:
            self.notice(text)
        try:
            for lane in (self.frames, self.side):
                lane.capture = open_capture(lane.stream.handle)
        except CaptureRefusedError as error:
            self.notice(f"TensorRT runs without CUDA graphs, which costs some speed: {error}")

    def _started(self) -> Any:
        name, version = self.library.flavour, self.library.version
        if absence := target_absence(self.library, [self.gpu.capability]):
            raise EngineError(absence)
        with self.log.listening() as lines, self.gpu.current(f"starting {name}"):
            try:
                return self.library.module.Runtime(self.log.logger)
            except (TypeError, RuntimeError) as error:
                reason = log_text(lines) if lines else one_line(error)
                raise EngineError(
                    f"{name} {version} does not start: {reason}; check that it fits the driver, which serves CUDA "
                    f"{self.gpu.cuda}"
                ) from None

    def lane(self, graph: str) -> Lane:
        """Where the graph of this name runs."""
        return self.frames if graph == "frame" else self.side

    def deserialize(self, data: bytes) -> Any:
        """TensorRT's own engine from `data`, or None if it refuses it; the context must be current."""
        return self._runtime.deserialize_cuda_engine(data)

    def notice(self, text: str) -> None:
        self.notices.append(text)
        LOGGER.warning(text)

    def join(self) -> None:
        self._users += 1

    def leave(self) -> None:
        """The last user that leaves closes the context."""
        self._users -= 1
        if self._users == 0:
            self.close()

    def close(self) -> None:
        self.gpu.release([*self.frames.ends(), *self.side.ends(), self._drop_runtime])
        self.gpu.close()

    def _drop_runtime(self) -> None:
        """TensorRT frees its objects with their last references."""
        self._runtime = None
