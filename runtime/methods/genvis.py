"""GenVIS between engine calls: slots are objects, prototypes pass from clip to clip, each slot reads its own past.

Nothing is matched (GenVIS, Heo et al., CVPR 2023): what slot j of the object decoder gives is the same object from the
first clip to the last. What the next clip starts from, the slot's last prototype and what it reads from its memory,
stays where the engines run; the host knows which clips the memory holds and where. The published code has no births, as
it judges whole videos; here a slot gets a public id when it is first sure of an object, and shows nothing in clips
where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.arrays import Array, Floats, Tensors, softmax
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed, slot_masks
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.methods.assign import assign, cosine_similarity
from visrt.runtime.methods.genvis_memory import (
    NO_CLIP,
    Memory,
    empty_memory,
    forget_slots_before,
    place_of_next,
    read_across_slots,
    with_clip,
    with_room,
)
from visrt.runtime.methods.genvis_outputs import genvis_outputs
from visrt.runtime.methods.method import (
    Answer,
    Call,
    FrameOutputs,
    FrameTracks,
    Graphs,
    Steps,
    TrackingMethod,
    nonfinite,
    tracks_of_slots,
    valid_outputs,
)
from visrt.runtime.methods.outputs import Outputs
from visrt.runtime.methods.slot_tracks import (
    SlotTracks,
    forget_slots,
    mark_seen,
    new_slot_tracks,
    shown_objects,
    without_lost,
)

__all__ = [
    "BASE",
    "GRAPHS",
    "STATES",
    "Clip",
    "ClipStep",
    "GenVis",
    "GenVisSettings",
    "GenVisState",
    "MemoryRead",
    "clip_step",
    "first_step",
    "update_tracks",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Frames = Annotated[int, Field(ge=1)]

BASE = "base"
"""The state that the slots of a video's first clip start from, made of the learned queries."""

STATES = {name: TensorNeed("Q C", ("float32",)) for name in (BASE, "key", "memory_keys", "memory_values")}
"""memory_keys, memory_values: rings of what is remembered."""

# L = K + 1 class logits, images of I x J, h x w = stride 4 of the network input; N streams, T frames of a clip, F frame
# queries, Q slots, E entries of the memory.
GRAPHS = {
    "frame": GraphNeed(
        inputs={"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))},
        outputs={"frame_queries": TensorNeed("B F C", ("float32",)), "mask_features": TensorNeed("B D h w")},
    ),
    "memory": GraphNeed(
        inputs={
            "base": TensorNeed("Q C", ("float32",)),
            "key": TensorNeed("Q C", ("float32",)),
            "memory_keys": TensorNeed("Q E C", ("float32",)),
            "memory_values": TensorNeed("Q E C", ("float32",)),
            "clips": TensorNeed("E", ("int32",)),
            "since": TensorNeed("Q", ("int32",)),
        },
        outputs={"instance_queries": TensorNeed("Q C", ("float32",))},
    ),
    "clip": GraphNeed(
        inputs={
            "frame_queries": TensorNeed("N T F C", ("float32",)),
            "instance_queries": TensorNeed("N Q C", ("float32",)),
        },
        outputs={
            "class_logits": TensorNeed("N Q L", ("float32",)),
            "mask_embeddings": TensorNeed("N Q D", ("float32",)),
            "prototypes": TensorNeed("N Q C", ("float32",)),
            "base": TensorNeed("N Q C", ("float32",)),
            "key": TensorNeed("N Q C", ("float32",)),
            "memory_key": TensorNeed("N Q C", ("float32",)),
            "memory_value": TensorNeed("N Q C", ("float32",)),
        },
    ),
    "masks": slot_masks("D", features="D h w"),
}

MemoryRead = Literal["own_slot", "all_slots", "nothing"]


@dataclass(frozen=True)
class GenVisSettings:
    """Settings for taking clips and showing objects. Scores are 0..1.

    clip_frames: frames of a clip; 1 is online. Results come when the clip is full. clip_lengths: what the bundle was
    exported and checked for. linking: slots are "carried" from clip to clip, or for the paper's ablation (table 4)
    "matched": each clip starts from the learned queries, as in VITA, and its slots are linked to those of the clip
    before by MinVIS's rule, the cosine of their prototypes. memory_read: where they are carried, a slot reads its
    "own_slot", or for the paper's ablations (table 5) "all_slots" or "nothing"; as the network was trained.
    memory_clips: the most clips that are remembered; up to there the result is the published one. 100 slots of 256
    channels take 205 KB a clip.
    birth_score: a slot gets an id in the first clip with this score. keep_score: then it is shown in clips with at
    least this one. lost_s: a slot that was not shown for longer, in seconds, forgets id and scores, and what it shows
    next is another object; None is the published rule, by which a slot is one object for ever. max_objects: at most so
    many are shown in a frame.
    """

    clip_frames: Frames = 1
    clip_lengths: tuple[Frames, ...] = (1,)
    linking: Literal["carried", "matched"] = "carried"
    memory_read: MemoryRead = "own_slot"
    memory_clips: Annotated[int, Field(ge=1)] = 256
    birth_score: Fraction = 0.5
    keep_score: Fraction = 0.4
    lost_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_objects: Annotated[int, Field(ge=1)] = 100


@dataclass(frozen=True)
class ClipStep:
    """What the host knows of the model's state between clips; the rest lies where the engines run.

    clip: number of the next clip. memory: the clips that are remembered. prototypes [S, C]: what the next clip's slots
    are matched with, None before the first clip and where slots are carried.
    """

    clip: int
    memory: Memory
    prototypes: Floats | None = None


class Clip(NamedTuple):
    """What the network says of a clip.

    probabilities [S, K]: of each slot's classes, zero where it is invalid. invalid [S]: the network gave NaN or
    infinity for it. dropped: for how many. rows [S]: each slot's place in the clip graph's outputs. finite: of each
    frame, whether the frame graph gave numbers; frames without are no part of the clip.
    """

    probabilities: Floats
    invalid: NDArray[np.bool_]
    dropped: int
    rows: NDArray[np.intp]
    finite: Sequence[bool]


@dataclass(frozen=True)
class GenVisState:
    step: ClipStep
    tracks: SlotTracks


def first_step(slots: int) -> ClipStep:
    return ClipStep(0, empty_memory(slots))


@dataclass(frozen=True)
class GenVis(TrackingMethod[GenVisState]):
    """GenVIS: four graphs, the state in the engine, one update per clip.

    INT8 leaves the clip graph alone: it is small, and what it passes on to the next clip must not be rounded.
    """

    settings: GenVisSettings = GenVisSettings()

    @property
    def clip_frames(self) -> int:
        return self.settings.clip_frames

    def required_graphs(self) -> Mapping[str, GraphNeed]:
        return GRAPHS

    def required_states(self) -> Mapping[str, TensorNeed]:
        return STATES

    def start(self, initial: Tensors) -> GenVisState:
        slots = len(initial[BASE])
        return GenVisState(first_step(slots), new_slot_tracks(slots, next_id=0))

    def restart(self, state: GenVisState, initial: Tensors) -> GenVisState:
        slots = len(initial[BASE])
        return GenVisState(first_step(slots), new_slot_tracks(slots, state.tracks.next_id))

    def update(
        self, frames: Sequence[FrameOutputs], graphs: Graphs, state: GenVisState
    ) -> Steps[tuple[list[FrameTracks], GenVisState]]:
        """The same slots are shown in each frame of the clip, each with the mask it has there."""
        settings = self.settings
        clip, step = yield from clip_step(frames, graphs, state.step, settings)
        tracks = forget_slots(state.tracks, clip.invalid) if clip.dropped else state.tracks
        tracks = without_lost(tracks, frames[0].now_s, settings.lost_s)
        tracks, objects, slots = update_tracks(tracks, clip.probabilities, frames[-1].now_s, settings)
        shown, rows = list[FrameTracks](), clip.rows[slots]
        for frame, finite in zip(frames, clip.finite, strict=True):
            if finite:
                shown.append((yield from tracks_of_slots(frame, objects, rows)))
            else:
                shown.append(FrameTracks(error=nonfinite("frame_queries")))
        if clip.dropped:
            shown[0] = replace(shown[0], dropped_slots=clip.dropped)
        return shown, GenVisState(step, tracks)

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        return genvis_outputs(engines, images, valid_sizes, initial[BASE], self.settings.clip_lengths)

    def graph_of(self, role: str) -> str:
        others = {"frame_queries": "frame", "mask_features": "frame", "instance_queries": "memory"}
        return {"mask_logits": "masks", **others}.get(role, "clip")


def update_tracks(
    tracks: SlotTracks, probabilities: Floats, now_s: float, settings: GenVisSettings
) -> tuple[SlotTracks, list[tuple[int, int, float]], NDArray[np.intp]]:
    """The tracks after a clip with `probabilities` [S, K] of the classes; the objects shown in it, (id, label, score)
    by id, and their slots. The score is the highest that the object ever had."""
    tracks, visible = mark_seen(
        tracks,
        probabilities,
        now_s,
        birth_score=settings.birth_score,
        keep_score=settings.keep_score,
        max_objects=settings.max_objects,
    )
    best = probabilities if tracks.scores is None else np.maximum(tracks.scores, probabilities)
    tracks = replace(tracks, scores=best)
    return tracks, *shown_objects(tracks, visible)


def clip_step(
    frames: Sequence[FrameOutputs], graphs: Graphs, step: ClipStep, settings: GenVisSettings
) -> Steps[tuple[Clip, ClipStep]]:
    """What the network says of the clip that `frames` are, and the step after it.

    A slot for which it gave NaN or infinity starts the next clip from the learned queries, without a past. Raises
    NumericalError if it did for all; the state is then as before.
    """
    return LINKINGS[settings.linking](frames, graphs, step, settings)


def _carried(
    frames: Sequence[FrameOutputs], graphs: Graphs, step: ClipStep, settings: GenVisSettings
) -> Steps[tuple[Clip, ClipStep]]:
    memory = with_room(step.memory, settings.memory_clips)
    start = yield from READS[settings.memory_read](frames, graphs, memory)
    answer, clip = yield from _clip(frames, start)
    place = place_of_next(memory, settings.memory_clips)
    answer.renew(entry=place)
    memory = with_clip(memory, step.clip, place)
    if clip.dropped:
        memory = forget_slots_before(memory, clip.invalid, step.clip + 1)
    return clip, ClipStep(step.clip + 1, memory)


def _matched(
    frames: Sequence[FrameOutputs], graphs: Graphs, step: ClipStep, settings: GenVisSettings
) -> Steps[tuple[Clip, ClipStep]]:
    """Each clip by itself, from the state before the first one; its slots take the places of those that they continue.

    Invalid ones are compared by what they were before.
    """
    start = yield from _read_nothing(frames, graphs, step.memory)
    answer, clip = yield from _clip(frames, start)
    prototypes: Floats = answer.device["prototypes"].numpy()
    if step.prototypes is not None:
        order = assign(1 - cosine_similarity(step.prototypes, prototypes))
        clip = clip._replace(probabilities=clip.probabilities[order], invalid=clip.invalid[order], rows=order)
        prototypes = np.where(clip.invalid[:, None], step.prototypes, prototypes[order])
    return clip, replace(step, clip=step.clip + 1, prototypes=prototypes.copy())


LINKINGS = {"carried": _carried, "matched": _matched}

Start = Mapping[str, Array]
"""What the clip graph takes from the host: nothing where its slots start from what the memory graph gave."""


def _read_own_slot(frames: Sequence[FrameOutputs], graphs: Graphs, memory: Memory) -> Steps[Start]:
    yield Call("memory", frames, {"clips": memory.clips, "since": memory.since})
    return {}


def _read_nothing(frames: Sequence[FrameOutputs], graphs: Graphs, memory: Memory) -> Steps[Start]:
    yield Call("memory", frames, {"clips": np.full_like(memory.clips, NO_CLIP), "since": memory.since})
    return {}


def _read_all_slots(frames: Sequence[FrameOutputs], graphs: Graphs, memory: Memory) -> Steps[Start]:
    """On the host; the memory graph's call makes room in the rings."""
    yield from _read_nothing(frames, graphs, memory)
    key, keys, values = (graphs.state(name) for name in ("key", "memory_keys", "memory_values"))
    return {"instance_queries": graphs.state(BASE) + read_across_slots(memory, key, keys, values)}


READS: dict[MemoryRead, Callable[[Sequence[FrameOutputs], Graphs, Memory], Steps[Start]]] = {
    "own_slot": _read_own_slot,
    "all_slots": _read_all_slots,
    "nothing": _read_nothing,
}


def _clip(frames: Sequence[FrameOutputs], start: Start) -> Steps[tuple[Answer, Clip]]:
    """The clip graph's answer for `frames`, and what it says of the slots.

    NaN or infinity in one frame spoils all slots, as they see all frames. Such frames are then left out.
    """
    answer, finite = (yield Call("clip", frames, start)), [True] * len(frames)
    if len(frames) > 1 and not np.isfinite(answer.host["class_logits"]).any():
        finite = [bool(np.isfinite(frame.device["frame_queries"].numpy()).all()) for frame in frames]
        if any(finite) and not all(finite):
            kept = [frame for frame, good in zip(frames, finite, strict=True) if good]
            answer = yield Call("clip", kept, start)
    outputs, invalid = valid_outputs(answer, "clip")
    probabilities, dropped = softmax(outputs["class_logits"])[:, :-1], int(np.count_nonzero(invalid))
    if dropped:
        probabilities[invalid] = 0
    return answer, Clip(probabilities, invalid, dropped, np.arange(len(invalid)), finite)
