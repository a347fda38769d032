"""The Engine protocol: named arrays in, named arrays out.

An engine is called with roles ("images", "class_logits"), which the manifest maps to the tensor names inside the
graph, so that no tensor name is repeated in the runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

from visrt.runtime.arrays import Array, HostTensor, Tensor

__all__ = ["AnswersLater", "Array", "Engine", "HostTensor", "Tensor"]


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
