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

from visrt.runtime.clip_family import ClipAnswer, RunGraph, Sighting, Tensors
from visrt.runtime.contract import GraphNeed, TensorNeed
from visrt.runtime.errors import NumericalError
from visrt.runtime.family import Floats, softmax
from visrt.runtime.genvis_memory import (
    Memory,
    MemoryEntry,
    empty_memory,
    forgotten,
    read,
    read_across_slots,
    remembered,
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
    "nothing_shown",
    "shown_after",
    "sightings_of",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Frames = Annotated[int, Field(ge=1)]
NO_OBJECT = -1

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
    """How clips are taken and objects shown. Scores are 0..1.

    clip_frames: frames of a clip; 1 is online. Results come when the clip is full. clip_lengths: what the bundle was
    exported and checked for. memory_read: a slot reads its "own_slot", or for the paper's ablations (table 5)
    "all_slots" or "nothing"; as the network was trained. memory_clips: the most clips that are remembered; up to
    there the result is the published one. 100 slots of 256 channels take 205 KB a clip.
    birth_score: a slot gets an id in the first clip with this score. keep_score: then it is shown in clips with at
    least this one. lost_s: a slot that was not shown for longer, in seconds, forgets id and scores, and what it shows
    next is another object; None is the published rule, by which a slot is one object for ever. max_objects: at most so
    many are shown in a frame.
    """

    clip_frames: Frames = 1
    clip_lengths: tuple[Frames, ...] = (1,)
    memory_read: MemoryRead = "own_slot"
    memory_clips: Annotated[int, Field(ge=1)] = 256
    birth_score: Fraction = 0.5
    keep_score: Fraction = 0.4
    lost_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_objects: Annotated[int, Field(ge=1)] = 100


@dataclass(frozen=True)
class ClipStep:
    """What passes from clip to clip inside the model, apart from what is shown.

    clip: number of the next clip. first, base [S, C]: what the slots of the first and of the next clip start from,
    before they read. key [S, C]: what they read with.
    """

    clip: int
    first: Floats
    base: Floats
    key: Floats
    memory: Memory


@dataclass(frozen=True)
class Shown:
    """What is known of each of S slots as an object. ids [S], -1 for none; seen_s [S]: when it was last shown.

    best [S, K]: the highest chance of each class in any clip; None before the first clip.
    """

    ids: NDArray[np.int64]
    seen_s: NDArray[np.float64]
    best: Floats | None
    next_id: int


@dataclass(frozen=True)
class GenVisState:
    step: ClipStep
    shown: Shown


def first_step(base: Floats) -> ClipStep:
    return ClipStep(0, base, base, np.zeros_like(base), empty_memory(len(base)))


def nothing_shown(slots: int, next_id: int) -> Shown:
    return Shown(np.full(slots, NO_OBJECT, dtype=np.int64), np.full(slots, -np.inf), None, next_id)


@dataclass(frozen=True)
class GenVis:
    """The GenVIS family: three graphs, one state, one update a clip."""

    settings: GenVisSettings = GenVisSettings()

    @property
    def clip_frames(self) -> int:
        return self.settings.clip_frames

    def needs(self) -> Mapping[str, GraphNeed]:
        return GRAPHS

    def states(self) -> Mapping[str, TensorNeed]:
        return {BASE: TensorNeed("S C", ("float32",))}

    def start(self, initial: Tensors) -> GenVisState:
        base = initial[BASE]
        return GenVisState(first_step(base), nothing_shown(len(base), next_id=0))

    def restart(self, state: GenVisState) -> GenVisState:
        return GenVisState(first_step(state.step.first), nothing_shown(len(state.step.first), state.shown.next_id))

    def follow(
        self, frames: Sequence[Tensors], times_s: Sequence[float], run: RunGraph, state: GenVisState
    ) -> ClipAnswer[GenVisState]:
        """What is seen in a clip, the same slots in each of its frames, and the state after it."""
        outputs, step, broken = clip_step(frames, run, state.step, self.settings)
        shown = without_lost(without_slots(state.shown, broken), times_s[0], self.settings)
        chances = np.where(broken[:, None], np.float32(0), softmax(outputs["class_logits"])[:, :-1])
        shown, visible = shown_after(shown, chances, times_s[-1], self.settings)
        sightings = sightings_of(shown, visible, outputs["mask_embeddings"])
        return ClipAnswer([sightings] * len(frames), GenVisState(step, shown), int(broken.sum()))


def clip_step(
    frames: Sequence[Tensors], run: RunGraph, step: ClipStep, settings: GenVisSettings
) -> tuple[Tensors, ClipStep, NDArray[np.bool_]]:
    """The clip graph's outputs for `frames`, the step after it, and which slots are `broken` [S].

    These have zeros for outputs and start the next clip anew. Raises NumericalError if all are broken.
    """
    start = step.base + READS[settings.memory_read](step.memory, step.key)
    queries = np.stack([frame["frame_queries"] for frame in frames])
    outputs = run("clip", {"frame_queries": queries, "instance_queries": start})
    broken = ~np.all([np.isfinite(values).all(axis=1) for values in outputs.values()], axis=0)
    if broken.all():
        raise NumericalError(
            "the network gave NaN or infinity in every slot of the clip graph; check the bundle with its reference "
            "frames, and an FP16 engine against FP32"
        )
    outputs = {role: np.where(broken[:, None], np.float32(0), values) for role, values in outputs.items()}
    entry = MemoryEntry(step.clip, outputs["memory_key"], outputs["memory_value"])
    memory = remembered(step.memory, entry, settings.memory_clips)
    if broken.any():
        memory = forgotten(memory, broken, step.clip + 1)
    base = np.where(broken[:, None], step.first, outputs["base"])
    return outputs, ClipStep(step.clip + 1, step.first, base, outputs["key"], memory), broken


def without_slots(shown: Shown, gone: NDArray[np.bool_]) -> Shown:
    """Without ids and scores of the slots that are `gone` [S]."""
    best = None if shown.best is None else np.where(gone[:, None], np.float32(0), shown.best)
    return replace(shown, ids=np.where(gone, NO_OBJECT, shown.ids), best=best)


def without_lost(shown: Shown, now_s: float, settings: GenVisSettings) -> Shown:
    """Without the objects that were not shown for too long."""
    if settings.lost_s is None:
        return shown
    return without_slots(shown, (shown.ids != NO_OBJECT) & (now_s - shown.seen_s > settings.lost_s))


def shown_after(
    shown: Shown, chances: Floats, now_s: float, settings: GenVisSettings
) -> tuple[Shown, NDArray[np.intp]]:
    """What is known after a clip with `chances` [S, K] of the classes, and the slots that are shown in it.

    Ids are given in order of score.
    """
    scores = chances.max(axis=1)
    floor = np.where(shown.ids == NO_OBJECT, settings.birth_score, settings.keep_score)
    by_score = np.argsort(-scores, kind="stable")
    visible = by_score[(scores >= floor)[by_score]][: settings.max_objects]
    newborn = visible[shown.ids[visible] == NO_OBJECT]
    ids, seen_s = shown.ids.copy(), shown.seen_s.copy()
    ids[newborn] = shown.next_id + np.arange(len(newborn))
    seen_s[visible] = now_s
    best = chances if shown.best is None else np.maximum(shown.best, chances)
    return Shown(ids, seen_s, best, shown.next_id + len(newborn)), visible


def sightings_of(shown: Shown, visible: NDArray[np.intp], mask_embeddings: Floats) -> list[Sighting]:
    """What is shown of the `visible` slots, by id: the class that was ever surest, and how sure it was (causal)."""
    assert shown.best is not None
    best = shown.best
    slots = sorted(visible.tolist(), key=lambda slot: int(shown.ids[slot]))
    return [Sighting(int(shown.ids[s]), int(best[s].argmax()), float(best[s].max()), mask_embeddings[s]) for s in slots]
