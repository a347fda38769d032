"""What the session and a family that looks at clips say to each other: frames of a clip in, objects of each out.

A clip is a few successive frames. It is closed early at the end of the stream, and where the picture changes its
aspect, so that clips may be shorter than usual.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from visrt.runtime.contract import GraphNeed, TensorNeed
from visrt.runtime.family import Family, Floats

__all__ = ["AnyFamily", "ClipAnswer", "ClipFamily", "RunGraph", "Sighting", "Tensors", "clip_frames_of"]

Tensors = Mapping[str, Floats]
"""Small tensors on the host, float32, by role."""

RunGraph = Callable[[str, Tensors], Tensors]
"""What a graph of the bundle, by name, says of its inputs: one call of its engine."""

S = TypeVar("S")


@dataclass(frozen=True)
class Sighting:
    """An object that is there in a frame; mask_embedding [D] goes to the masks graph. Its mask may turn out empty."""

    id: int
    label: int
    score: float
    mask_embedding: Floats


@dataclass(frozen=True)
class ClipAnswer(Generic[S]):
    """What a family says of a clip: sightings, by id, of each of its frames, and the state after it.

    dropped_slots: slots whose state was dropped as the network gave NaN or infinity for them.
    """

    sightings: Sequence[Sequence[Sighting]]
    state: S
    dropped_slots: int = 0


@runtime_checkable
class ClipFamily(Protocol[S]):
    """What one family of models does between engine calls. Its state is a value, renewed by each clip."""

    @property
    def settings(self) -> Any:
        """Its association settings, a frozen dataclass."""
        ...

    @property
    def clip_frames(self) -> int:
        """Frames of a clip that nothing cuts short."""
        ...

    def needs(self) -> Mapping[str, GraphNeed]:
        """The graphs it calls and their tensors."""
        ...

    def states(self) -> Mapping[str, TensorNeed]:
        """The state tensors that the bundle must hold, by name; axes as in `needs`."""
        ...

    def start(self, initial: Tensors) -> S:
        """The state before the first frame, from the `initial` state tensors of the bundle."""
        ...

    def restart(self, state: S) -> S:
        """A state without objects whose ids go on after those of `state`."""
        ...

    def follow(self, frames: Sequence[Tensors], times_s: Sequence[float], run: RunGraph, state: S) -> ClipAnswer[S]:
        """What is seen in a clip, from what the frame graph says of each of its `frames`, shown at `times_s`.

        Raises NumericalError if the network gave nothing but NaN or infinity; the state then stays as it was.
        """
        ...


AnyFamily = Family[Any] | ClipFamily[Any]


def clip_frames_of(family: AnyFamily) -> int:
    """Frames that a family looks at together."""
    return family.clip_frames if isinstance(family, ClipFamily) else 1
