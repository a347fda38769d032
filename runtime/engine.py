"""The Engine protocol: named arrays in, named arrays out.

An engine is called with roles ("images", "class_logits"), which the manifest maps to the tensor names inside the
graph, so that no tensor name is repeated in the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Tensor(Protocol):
    """One output of an engine. Valid until the engine reuses the slot it lies in; `.numpy()` copies to the host."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def device(self) -> str: ...

    def row(self, index: int) -> Tensor:
        """Item `index` of the first (batch) axis, on the same device, without that axis."""
        ...

    def numpy(self) -> Array: ...


@dataclass(frozen=True)
class HostTensor:
    """A tensor in host memory."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    @property
    def device(self) -> str:
        return "cpu"

    def row(self, index: int) -> HostTensor:
        return HostTensor(self.array[index])

    def numpy(self) -> Array:
        return self.array


class Engine(Protocol):
    """One graph of a bundle on one backend."""

    @property
    def provider(self) -> str:
        """What really executes the graph, as the backend reports it: "CPUExecutionProvider", "TensorRT"."""
        ...

    def __call__(self, feeds: Mapping[str, Array | Tensor]) -> dict[str, Tensor]:
        """Outputs by role. `feeds` holds exactly the graph's input roles, in its dtypes and shapes.

        Raises EngineError naming the tensor, what was given and what the manifest expects.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class AnswersLater(Protocol):
    """An engine whose calls return before it has computed: its tensors wait when they are read."""

    @property
    def answers_later(self) -> Literal[True]: ...
