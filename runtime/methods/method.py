"""The protocol of tracking methods. A method turns the network's outputs into tracks, clip by clip. A frame is a clip
of one.

A method sees the outputs of the frame graph, calls further graphs of the bundle if it has any, decides which queries
are which objects, and gives the objects of each frame. Its state is a value: `update` takes it and returns the next.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Array, Floats, Tensor, Tensors, all_finite
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import NumericalError
from visrt.runtime.image import Letterbox
from visrt.runtime.mask_resize import MaskResize
from visrt.runtime.methods.int8 import FRAME_ALONE, Int8Plan
from visrt.runtime.methods.outputs import PER_FRAME, Outputs, outputs_of
from visrt.runtime.methods.queries import Queries

__all__ = [
    "Answer",
    "BoxTrack",
    "Call",
    "FrameOutputs",
    "FrameTracks",
    "Graphs",
    "MasksOf",
    "PerFrameMethod",
    "Steps",
    "Track",
    "TrackingMethod",
    "masks_of_slots",
    "nonfinite",
    "refuse_nonfinite",
    "tracks_with_masks",
    "valid_outputs",
]

MasksOf = Callable[[Floats], Array]
"""Mask logits [M, h, w] of mask embeddings [M, D], at stride 4 and only where the frame is, not its padding. In float32
or, of an FP16 bundle, float16, which `arrays.positive` compares and `arrays.in_float32` converts.

Each call is one of the masks engine."""


class Track(NamedTuple):
    """One visible object of one frame: mask_logits [h, w] at stride 4, where the frame is, in float32 or float16."""

    id: int
    label: int
    score: float
    mask_logits: Array


class BoxTrack(NamedTuple):
    """As `Track`, of a network that gives boxes alone: x1, y1, x2, y2 [4] in pixels of the network input."""

    id: int
    label: int
    score: float
    corners: Floats


@dataclass(frozen=True)
class FrameTracks:
    """The tracks of one frame, by id; `error` where the network gave NaN or infinity, so that there are none.

    zero_queries, dropped_slots: as counted in SessionEvents.
    """

    tracks: tuple[Track | BoxTrack, ...] = ()
    error: NumericalError | None = None
    zero_queries: int = 0
    dropped_slots: int = 0


@dataclass(frozen=True)
class FrameOutputs:
    """The frame graph's outputs for one frame.

    fit: how the frame lies in the network input. tensors: by role, float32 on the host, without the batch axis. device:
    by role, those that stay on the engine's device (mask features); graphs that run later add theirs. time_s: when the
    frame is shown, None until the tracker has set its clock. resize: of its masks, set by the tracker too.
    """

    fit: Letterbox
    tensors: Tensors
    device: dict[str, Tensor]
    time_s: float | None = None
    resize: MaskResize | None = None

    @property
    def queries(self) -> Queries:
        """The queries, where the frame graph gives them with class, embedding and mask."""
        return Queries(self.tensors["class_logits"], self.tensors["embeddings"], self.tensors["mask_embeddings"])

    @property
    def now_s(self) -> float:
        """Seconds of the stream at which the frame is shown."""
        assert self.time_s is not None, "the tracker sets the time before it updates the method"
        return self.time_s

    def check_finite(self) -> None:
        """Raises NumericalError if the network gave NaN or infinity."""
        for role, values in self.tensors.items():
            refuse_nonfinite(role, values)


def refuse_nonfinite(role: str, values: Array) -> None:
    """Raises NumericalError if `values` hold NaN or infinity."""
    if not all_finite(values):
        raise nonfinite(role)


def nonfinite(role: str) -> NumericalError:
    """The error of NaN or infinity in an output."""
    return NumericalError(
        f"the network gave NaN or infinity in {role!r}; check the bundle with its reference frames, "
        "and an FP16 engine against FP32"
    )


class Renew(Protocol):
    def __call__(self, entry: int | None = None) -> None: ...


@dataclass(frozen=True)
class Call:
    """A call of `graph` that a method needs for one stream.

    frames: of the clip; inputs on the device are theirs. feeds: inputs from the host by role, without a stream axis.
    States are added by name. What stays on the device is added to the frames, for later calls.
    """

    graph: str
    frames: Sequence[FrameOutputs]
    feeds: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A call's outputs for its stream, by role: on the host, in float32, and on the device.

    renew: lets the states of the stream take this call's outputs, and rings its entry as number `entry`. Where it is
    not called they stay as they were.
    """

    host: Tensors
    device: Mapping[str, Tensor]
    renew: Renew


T = TypeVar("T")
Steps = Generator[Call, Answer, T]
"""Work that gives a T in the end and calls graphs on the way: it yields a call and is sent the answer. Calls of many
streams that wait at a time share one call of the engine."""


class Graphs(Protocol):
    """What a method may ask of its stream at once, without a `Call` that other streams could share."""

    def masks(self, frame: FrameOutputs, mask_embeddings: Floats) -> Array:
        """Mask logits in `frame` of `mask_embeddings` [M, D], see `MasksOf`. NumericalError for NaN or infinity."""
        ...

    def state(self, name: str) -> Array:
        """A copy of the stream's state `name` on the host."""
        ...


S = TypeVar("S")


class TrackingMethod(Protocol[S]):
    """The work of one family of models between engine calls. Its state is a value, renewed by each clip.

    int8: what calibration may quantise.
    """

    int8: ClassVar[Int8Plan] = FRAME_ALONE

    @property
    def settings(self) -> Any:
        """Its association settings, a frozen dataclass."""
        ...

    @property
    def clip_frames(self) -> int:
        """Frames of a clip; the last of a stream and the last before another aspect may be shorter."""
        ...

    def required_graphs(self) -> Mapping[str, GraphNeed]:
        """The graphs it needs and their tensors."""
        ...

    def required_states(self) -> Mapping[str, TensorNeed]:
        """The state tensors that the bundle must hold, by name; axes as in `required_graphs`."""
        ...

    def start(self, initial: Tensors) -> S:
        """The state before the first frame, from the `initial` state tensors of the bundle."""
        ...

    def restart(self, state: S, initial: Tensors) -> S:
        """A state without objects, from the `initial` state tensors, whose ids go on after those of `state`."""
        ...

    def update(self, frames: Sequence[FrameOutputs], graphs: Graphs, state: S) -> Steps[tuple[list[FrameTracks], S]]:
        """The tracks of each frame of a clip, all numbers of which are finite, and the state after it.

        Raises NumericalError if a later graph gave NaN or infinity for all; the state then stays as it was.
        """
        ...

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        """All that `engines` give for `images` [B, H, W, 3] of `valid_sizes` [B, 2], each frame as a stream of its own.

        By role, [B, ...]: at least class_logits [B, Q, K + 1], embeddings, mask_embeddings and mask_logits [B, Q, h,
        w]. Parity compares these with what torch computed.
        """
        ...

    def stream_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Iterator[Outputs]:
        """`full_outputs`, [1, ...], for each of `images` [T, H, W, 3], successive frames of a stream. INT8 is judged by
        these. A method whose state the network sees lets it go on from frame to frame."""
        for t in range(len(images)):
            yield self.full_outputs(engines, manifest, initial, images[t : t + 1], valid_sizes[t : t + 1])

    def graph_of(self, role: str) -> str:
        """The graph that gives a role of `full_outputs`, for messages."""
        ...


class PerFrameMethod(TrackingMethod[S]):
    """A method that decides frame by frame, from the queries that the frame graph gives."""

    clip_frames = 1

    @abstractmethod
    def associate(self, queries: Queries, masks_of: MasksOf, now_s: float, state: S) -> tuple[list[Track], S]:
        """The objects visible in a frame at `now_s` seconds, by id, and the state after it."""

    @abstractmethod
    def start(self, initial: Tensors = MappingProxyType({})) -> S:
        """The state before the first frame."""

    @abstractmethod
    def restart(self, state: S, initial: Tensors = MappingProxyType({})) -> S:
        """A state without objects whose ids go on after those of `state`."""

    def required_states(self) -> Mapping[str, TensorNeed]:
        return {}

    def update(self, frames: Sequence[FrameOutputs], graphs: Graphs, state: S) -> Steps[tuple[list[FrameTracks], S]]:
        yield from ()
        [frame] = frames
        queries = frame.queries
        tracks, state = self.associate(queries, lambda rows: graphs.masks(frame, rows), frame.now_s, state)
        zero = int(np.count_nonzero(~queries.embeddings.any(axis=1)))
        return [FrameTracks(tuple(tracks), zero_queries=zero)], state

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        carried = manifest.read_by("frame").items()
        rows = {state.input: np.repeat(initial[name][None], len(images), axis=0) for name, state in carried}
        return outputs_of(engines, images, valid_sizes, rows)

    def graph_of(self, role: str) -> str:
        return PER_FRAME.graph_of(role)


def tracks_with_masks(
    frame: FrameOutputs,
    graphs: Graphs,
    objects: Sequence[tuple[int, int, float]],
    mask_embeddings: Floats,
    dropped_slots: int = 0,
) -> FrameTracks:
    """The tracks of `objects`, (id, label, score) each, whose masks are made of `mask_embeddings` [M, D].

    NaN or infinity in the masks costs this frame its tracks and nothing else.
    """
    if not objects:
        return FrameTracks(dropped_slots=dropped_slots)
    try:
        logits = graphs.masks(frame, mask_embeddings)
    except NumericalError as error:
        return FrameTracks(error=error, dropped_slots=dropped_slots)
    tracks = tuple(Track(*one, mask) for one, mask in zip(objects, logits, strict=True))
    return FrameTracks(tracks, dropped_slots=dropped_slots)


def valid_outputs(answer: Answer, graph: str) -> tuple[Tensors, NDArray[np.bool_]]:
    """The outputs of `graph` that came to the host, by role, zeros for slots that are invalid, and which are [Q].

    Where the network gave NaN or infinity anywhere in a slot, its class logits say so. Raises NumericalError if it did
    in all.
    """
    finite = np.isfinite(answer.host["class_logits"])
    if finite.all():
        return answer.host, np.zeros(len(finite), dtype=np.bool_)
    invalid: NDArray[np.bool_] = np.any(~finite, axis=1)
    if invalid.all():
        raise NumericalError(
            f"the network gave NaN or infinity in every slot of its {graph} graph; check the bundle with its reference "
            "frames, and an FP16 engine against FP32"
        )
    rows = {role: invalid.reshape(-1, *[1] * (values.ndim - 1)) for role, values in answer.host.items()}
    return {role: np.where(rows[role], np.float32(0), values) for role, values in answer.host.items()}, invalid


def masks_of_slots(frame: FrameOutputs, slots: Array) -> Steps[tuple[Floats, Floats]]:
    """Mask logits [M, h, w] of `slots` [M] in `frame`, only where the frame is, and their mask embeddings [M, D].

    Raises NumericalError for NaN or infinity.
    """
    answer = yield Call("masks", [frame], {"slots": slots.astype(np.int32)})
    refuse_nonfinite("mask_logits", answer.host["mask_logits"])
    assert frame.resize is not None, "the tracker sets the resize before it updates the method"
    return frame.resize.crop(answer.host["mask_logits"]), answer.host["kept_embeddings"]


def tracks_of_slots(
    frame: FrameOutputs, objects: Sequence[tuple[int, int, float]], slots: Array, dropped_slots: int = 0
) -> Steps[FrameTracks]:
    """The tracks of `objects`, (id, label, score) each, with the masks of their `slots` [M].

    NaN or infinity in the masks costs this frame its tracks and nothing else.
    """
    if not objects:
        return FrameTracks(dropped_slots=dropped_slots)
    try:
        logits, _ = yield from masks_of_slots(frame, slots)
    except NumericalError as error:
        return FrameTracks(error=error, dropped_slots=dropped_slots)
    tracks = tuple(Track(*one, mask) for one, mask in zip(objects, logits, strict=True))
    return FrameTracks(tracks, dropped_slots=dropped_slots)
