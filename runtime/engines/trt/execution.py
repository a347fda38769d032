"""One execution context of an engine with everything bound, and from its second call on one CUDA graph.

A CUDA graph holds shapes, addresses and kernels as they were when it was recorded, and TensorRT leaves undefined what
a graph does whose context was changed since. So a context is bound once: each combination of sizes and slot has a run
of its own, and all of a lane share one workspace, which is safe because they share one stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from visrt.runtime.engines.trt.cuda import DeviceMemory
from visrt.runtime.engines.trt.cuda_graph import Capture, CaptureRefusedError, CudaGraph
from visrt.runtime.engines.trt.plan import PROFILE
from visrt.runtime.errors import EngineError

__all__ = ["Execution", "ExecutionRefusedError"]


class ExecutionRefusedError(EngineError):
    """TensorRT refuses to make, bind or start an execution context."""


class Execution:
    """shapes: of the dynamic inputs by tensor name. addresses: of all tensors by name."""

    def __init__(
        self,
        context: Any,
        stream: int,
        workspace: DeviceMemory,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, int],
    ) -> None:
        if context is None:
            raise ExecutionRefusedError("TensorRT refuses an execution context")
        self._context, self._stream = context, stream
        self._graph: CudaGraph | None = None
        self.calls = 0
        try:
            self._bind(workspace, shapes, addresses)
        except ExecutionRefusedError:
            # The traceback keeps this frame: a context in it would outlive the GPU's.
            del context
            self.close()
            raise

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def start(self) -> None:
        """Enqueues the run: as its CUDA graph if it has one."""
        self.calls += 1
        if self._graph is not None:
            _accepted(self._graph.launch(self._stream), "a launch of its CUDA graph")
        else:
            _accepted(self._enqueue(), "the execution")

    def record(self, capture: Capture) -> None:
        """Makes the CUDA graph, after a first call without: that one brings the context up to date with its shapes."""
        assert self.calls
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream):
            raise CaptureRefusedError("the engine holds operations that cannot be captured")
        self._graph = capture.record(self._enqueue)

    def close(self) -> None:
        """Frees graph and context; the stream must have done with them."""
        if self._graph is not None:
            self._graph.destroy()
            self._graph = None
        self._context = None

    def _bind(
        self, workspace: DeviceMemory, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]
    ) -> None:
        if self._context.active_optimization_profile != PROFILE:
            # Of an engine's contexts, some versions select a profile for the first only.
            chosen = self._context.set_optimization_profile_async(PROFILE, self._stream)
            _accepted(chosen, f"optimisation profile {PROFILE}")
        self._context.set_device_memory(workspace.address, workspace.bytes)
        for name, shape in shapes.items():
            _accepted(self._context.set_input_shape(name, shape), f"input {name!r} as {list(shape)}")
        for name, address in addresses.items():
            _accepted(self._context.set_tensor_address(name, address), f"address {address:#x} for {name!r}")

    def _enqueue(self) -> bool:
        return bool(self._context.execute_async_v3(self._stream))


def _accepted(answer: bool, what: str) -> None:
    if not answer:
        raise ExecutionRefusedError(f"TensorRT refuses {what}")
