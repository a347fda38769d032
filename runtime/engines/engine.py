"""The Engine protocol: named arrays in, named arrays out.

An engine is called with roles ("images", "class_logits"), which the manifest maps to the tensor names inside the
graph, so that no tensor name is repeated in the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from visrt.runtime.arrays import Buffer, Feed, HostBuffer, Tensor

__all__ = ["AsyncEngine", "Engine", "HostEngine"]


class Engine(Protocol):
    """One graph of a bundle on one backend.

    Threads: any number of threads may call an engine at the same time, unless it is an AsyncEngine. ONNX Runtime's
    sessions are thread-safe, and each call on CUDA has an I/O binding of its own. An AsyncEngine (TensorRT) belongs to
    the thread that opened it, which alone may call it, read its tensors and close it: others get an EngineError. Close
    an engine when all its calls have returned.
    """

    @property
    def provider(self) -> str:
        """What executes the graph, as the backend itself reports it: "CPUExecutionProvider", "TensorRT 10.13.3"."""
        ...

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        """Outputs by role. `feeds` holds exactly the graph's input roles, in its dtypes and shapes.

        Raises EngineError naming the tensor, what was given and what the manifest expects.
        """
        ...

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Buffer:
        """Memory where this engine runs, for state that its calls read and renew."""
        ...

    def close(self) -> None: ...


class HostEngine:
    """The part that engines share whose tensors lie in host memory."""

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> HostBuffer:
        return HostBuffer(shape, dtype)


@runtime_checkable
class AsyncEngine(Protocol):
    """An engine whose calls return before the outputs are computed: reading a tensor waits for it."""

    @property
    def is_async(self) -> Literal[True]: ...
