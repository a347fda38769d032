"""GenVIS between engine calls: slots are objects, prototypes pass from clip to clip, each slot reads its own past.

Nothing is matched (GenVIS, Heo et al., CVPR 2023): what slot j of the object decoder gives is the same object from the
first clip to the last. What the next clip starts from is made here, from the slot's last prototype and what it reads
from its memory. The published code has no births, as it judges whole videos; here a slot gets a public id when it is
first sure of an object, and shows nothing in clips where it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.arrays import Array, Floats, Tensors, softmax
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import NumericalError
from visrt.runtime.methods.assign import assign, cosine_similarity
from visrt.runtime.methods.genvis_memory import (
    Memory,
    MemoryEntry,
    empty_memory,
    forget_slots_before,
    read,
    read_across_slots,
    update_memory,
)
from visrt.runtime.methods.genvis_outputs import genvis_outputs
from visrt.runtime.methods.method import (
    FrameOutputs,
    FrameTracks,
    Graphs,
    RunGraph,
    Steps,
    TrackingMethod,
    tracks_with_masks,
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
"""The state that lies in the bundle: what the slots of the first clip start from, made of the learned queries."""

# L = K + 1 class logits, images of I x J, h x w = stride 4 of the network input; F frame queries, S slots.
GRAPHS = {
    "frame": GraphNeed(
        inputs={"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))},
        outputs={"frame_queries": TensorNeed("B F C"), "mask_features": TensorNeed("B D h w")},
    ),
    "clip": GraphNeed(
        inputs={
            "frame_queries": TensorNeed("T F C", ("float32",)),
            "instance_queries": TensorNeed("S C", ("float32",)),
        },
        outputs={
            "class_logits": TensorNeed("S L"),
            "mask_embeddings": TensorNeed("S D"),
            "prototypes": TensorNeed("S C"),
            "base": TensorNeed("S C"),
            "key": TensorNeed("S C"),
            "memory_key": TensorNeed("S C"),
            "memory_value": TensorNeed("S C"),
        },
    ),
    "masks": GraphNeed(
        inputs={"mask_embeddings": TensorNeed("M D"), "mask_features": TensorNeed("D h w")},
        outputs={"mask_logits": TensorNeed("M h w")},
    ),
}


def _reads_nothing(memory: Memory, key: Floats) -> Floats:
    return np.zeros_like(key)


MemoryRead = Literal["own_slot", "all_slots", "nothing"]
READS: dict[MemoryRead, Callable[[Memory, Floats], Floats]] = {
    "own_slot": read,
    "all_slots": read_across_slots,
    "nothing": _reads_nothing,
}


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
    """The model's state between clips, without the public tracks.

    clip: number of the next clip. first, base [S, C]: what the slots of the first and of the next clip start from,
    before they read. key [S, C]: what they read with. prototypes [S, C]: what the next clip's slots are matched with,
    None before the first clip and where slots are carried.
    """

    clip: int
    first: Floats
    base: Floats
    key: Floats
    memory: Memory
    prototypes: Floats | None = None


@dataclass(frozen=True)
class GenVisState:
    step: ClipStep
    tracks: SlotTracks


def first_step(base: Floats) -> ClipStep:
    return ClipStep(0, base, base, np.zeros_like(base), empty_memory(len(base)))


@dataclass(frozen=True)
class GenVis(TrackingMethod[GenVisState]):
    """GenVIS: three graphs, one state, one update per clip.

    INT8 leaves the clip graph alone: it is small, and what it passes on to the next clip must not be rounded.
    """

    settings: GenVisSettings = GenVisSettings()

    @property
    def clip_frames(self) -> int:
        return self.settings.clip_frames

    def required_graphs(self) -> Mapping[str, GraphNeed]:
        return GRAPHS

    def required_states(self) -> Mapping[str, TensorNeed]:
        return {BASE: TensorNeed("S C", ("float32",))}

    def start(self, initial: Tensors) -> GenVisState:
        base = initial[BASE]
        return GenVisState(first_step(base), new_slot_tracks(len(base), next_id=0))

    def restart(self, state: GenVisState, initial: Tensors) -> GenVisState:
        base = initial[BASE]
        return GenVisState(first_step(base), new_slot_tracks(len(base), state.tracks.next_id))

    def update(
        self, frames: Sequence[FrameOutputs], graphs: Graphs, state: GenVisState
    ) -> Steps[tuple[list[FrameTracks], GenVisState]]:
        """The same slots are shown in each frame of the clip, each with the mask it has there."""
        yield from ()
        settings = self.settings
        outputs, step, invalid = clip_step([frame.tensors for frame in frames], graphs.run, state.step, settings)
        probabilities = np.where(invalid[:, None], np.float32(0), softmax(outputs["class_logits"])[:, :-1])
        tracks = without_lost(forget_slots(state.tracks, invalid), frames[0].now_s, settings.lost_s)
        tracks, objects, slots = update_tracks(tracks, probabilities, frames[-1].now_s, settings)
        embeddings, dropped = outputs["mask_embeddings"][slots], [int(invalid.sum())] + [0] * (len(frames) - 1)
        counts = zip(frames, dropped, strict=True)
        shown = [tracks_with_masks(frame, graphs, objects, embeddings, count) for frame, count in counts]
        return shown, GenVisState(step, tracks)

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        return genvis_outputs(engines, images, valid_sizes, initial[BASE], self.settings.clip_lengths)

    def graph_of(self, role: str) -> str:
        return {"mask_logits": "masks", "frame_queries": "frame", "mask_features": "frame"}.get(role, "clip")


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
    frames: Sequence[Tensors], run: RunGraph, step: ClipStep, settings: GenVisSettings
) -> tuple[Tensors, ClipStep, NDArray[np.bool_]]:
    """The clip graph's outputs for `frames`, the step after it, and which slots are `invalid` [S].

    For these the network gave NaN or infinity: their outputs are zeros, and the next clip starts from the first one's
    base. Raises NumericalError if all are.
    """
    return LINKINGS[settings.linking](frames, run, step, settings)


def _carried(
    frames: Sequence[Tensors], run: RunGraph, step: ClipStep, settings: GenVisSettings
) -> tuple[Tensors, ClipStep, NDArray[np.bool_]]:
    start = step.base + READS[settings.memory_read](step.memory, step.key)
    outputs, invalid = _clip_outputs(frames, run, start)
    entry = MemoryEntry(step.clip, outputs["memory_key"], outputs["memory_value"])
    memory = update_memory(step.memory, entry, settings.memory_clips)
    if invalid.any():
        memory = forget_slots_before(memory, invalid, step.clip + 1)
    base = np.where(invalid[:, None], step.first, outputs["base"])
    return outputs, ClipStep(step.clip + 1, step.first, base, outputs["key"], memory), invalid


def _matched(
    frames: Sequence[Tensors], run: RunGraph, step: ClipStep, settings: GenVisSettings
) -> tuple[Tensors, ClipStep, NDArray[np.bool_]]:
    """Each clip by itself; its slots take the places of those that they continue. Invalid ones are compared by what
    they were before."""
    outputs, invalid = _clip_outputs(frames, run, step.first)
    prototypes = outputs["prototypes"]
    if step.prototypes is not None:
        order = assign(1 - cosine_similarity(step.prototypes, prototypes))
        outputs, invalid = {role: values[order] for role, values in outputs.items()}, invalid[order]
        prototypes = np.where(invalid[:, None], step.prototypes, outputs["prototypes"])
    return outputs, replace(step, clip=step.clip + 1, prototypes=prototypes), invalid


LINKINGS = {"carried": _carried, "matched": _matched}


def _clip_outputs(frames: Sequence[Tensors], run: RunGraph, start: Floats) -> tuple[Tensors, NDArray[np.bool_]]:
    """The clip graph's outputs for `frames` from the queries `start` [S, C], with zeros where slots are invalid [S]."""
    queries = np.stack([frame["frame_queries"] for frame in frames])
    outputs = run("clip", {"frame_queries": queries, "instance_queries": start})
    invalid = ~np.all([np.isfinite(values).all(axis=1) for values in outputs.values()], axis=0)
    if invalid.all():
        raise NumericalError(
            "the network gave NaN or infinity in every slot of the clip graph; check the bundle with its reference "
            "frames, and an FP16 engine against FP32"
        )
    return {role: np.where(invalid[:, None], np.float32(0), values) for role, values in outputs.items()}, invalid
