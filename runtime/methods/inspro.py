"""InsPro between engine calls: query-proposal pairs travel from frame to frame, each the same object throughout.

Nothing is matched (InsPro, He et al., NeurIPS 2022). A frame starts from the queries and boxes of the frame before; all
pairs always go on. The lite variant looks at most frames with one stage, which moves the boxes only. Pairs and bank
stay in the engine's memory, and the graphs restart a slot that cannot go on; the host knows which frames count in the
bank. As the published rule judges whole videos, here a slot gets a public id when it is first sure of an object, and
shows nothing in frames where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.arrays import Array, Floats, Tensors
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed, slot_masks
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.methods.inspro_outputs import frame_of_stream, inspro_outputs, running
from visrt.runtime.methods.inspro_pairs import (
    HostPairs,
    Past,
    first_pairs,
    forget_past,
    no_past,
    past_feeds,
    update_pairs,
    with_entry,
)
from visrt.runtime.methods.int8 import Int8Plan
from visrt.runtime.methods.method import (
    BoxTrack,
    Call,
    FrameOutputs,
    FrameTracks,
    Graphs,
    Steps,
    TrackingMethod,
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
    with_mean_scores,
    without_lost,
)

__all__ = [
    "BANK",
    "LITE_KEY_EVERY_FRAMES",
    "PROPOSALS",
    "QUERIES",
    "FrameAnswer",
    "FrameStep",
    "InsPro",
    "InsProSettings",
    "InsProState",
    "first_step",
    "frame_step",
    "sigmoid",
    "with_key_on_drop",
]

Fraction = Annotated[float, Field(ge=0, le=1)]

LITE_KEY_EVERY_FRAMES = 10
"""Of the published lite variant."""

QUERIES, PROPOSALS, BANK = "queries", "proposals", "bank"
"""The states: pairs, learned ones first, and the bank of a network that attends to the past, a ring."""

# K classes without "no object", images of I x J, maps of h x w = stride 4 and u x v = stride 8 of the network input; N
# streams, Q slots, S pixels of all levels of the pyramid, E = T - 1 entries of the bank. With T = 1 there is no bank,
# in a network of boxes alone nothing of masks.
FRAME = GraphNeed(
    inputs={"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))},
    outputs={
        "pyramid": TensorNeed("B S C"),
        "mask_features": TensorNeed("B F u v", ("float32",), optional=True),
        "picture_sizes": TensorNeed("B 2", ("float32",)),
    },
)
LITE_HEAD = GraphNeed(
    inputs={
        "pyramid": TensorNeed("N S C"),
        "picture_sizes": TensorNeed("N 2", ("float32",)),
        "queries": TensorNeed("N Q C", ("float32",)),
        "proposals": TensorNeed("N Q 4", ("float32",)),
        "box_side_min": TensorNeed("N", ("float32",)),
    },
    outputs={
        "class_logits": TensorNeed("N Q K", ("float32",)),
        "boxes": TensorNeed("N Q 4", ("float32",)),
        "mask_embeddings": TensorNeed("N Q P", ("float32",), optional=True),
        "object_features": TensorNeed("N Q C", ("float32",)),
        "next_queries": TensorNeed("N Q C", ("float32",)),
        "next_proposals": TensorNeed("N Q 4", ("float32",)),
        "restarted": TensorNeed("N Q", ("float32",)),
    },
)
HEAD = GraphNeed(
    inputs={
        **LITE_HEAD.inputs,
        "bank": TensorNeed("N Q E C", ("float32",), optional=True),
        "ages": TensorNeed("N E", ("int32",), optional=True),
        "fill": TensorNeed("N Q", ("int32",), optional=True),
    },
    outputs=LITE_HEAD.outputs,
)
INT8 = Int8Plan(
    ("frame", "head", "head_lite"),
    range_frames=3,
    judged_frames=4,
    ranked_frames=4,
    compared=("embeddings", "class_logits", "boxes"),
)
"""In the third frame the bank is not empty, of the lite variant too, and the fourth shows what was read from it."""
MASKS = replace(slot_masks("P", features="F u v", dtypes=("float32",)), optional=True)


@dataclass(frozen=True)
class InsProSettings:
    """Settings for carrying pairs and showing objects. Scores are 0..1.

    key_every_frames: every so many frames all stages look, between them the lite head; 1 is InsPro, the published lite
    has 10. key_score_drop: also where the mean score of what was shown fell below this part of what it was at the last
    key frame; None is the published rule. bank_takes: the bank of intra-query attention takes what was seen in "key"
    frames, or in "all"; the paper does not say.
    birth_score: a slot gets an id in the first frame with this score. keep_score: then it is shown in frames with at
    least this one. score_window_frames: the public score averages the class scores of about so many frames in which it
    was shown. lost_s: a slot that was not shown for longer, in seconds, forgets id and scores, and what it shows next
    is another object; None is the published rule, by which a slot is one object for ever.
    box_side_min: a box with a side of less than this part of the picture, as one that left it, cannot grow again: its
    slot restarts from its learned pair. max_objects: at most so many are shown in a frame.
    """

    key_every_frames: Annotated[int, Field(ge=1)] = 1
    key_score_drop: Fraction | None = None
    bank_takes: Literal["key", "all"] = "key"
    birth_score: Fraction = 0.5
    keep_score: Fraction = 0.4
    score_window_frames: Annotated[int, Field(ge=1)] = 30
    lost_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    box_side_min: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    max_objects: Annotated[int, Field(ge=1)] = 100


@dataclass(frozen=True)
class FrameStep:
    """What the host knows of the model between frames, without the public tracks.

    past: what counts in the bank. until_key: frames until the next key frame; 0 asks for one now. key_score: mean score
    of what was shown at the last.
    """

    past: Past
    until_key: int = 0
    key_score: float = 0.0

    @property
    def is_key(self) -> bool:
        return self.until_key == 0


@dataclass(frozen=True)
class FrameAnswer:
    """The head's outputs that came to the host, by role, zeros for the slots [Q] that are `invalid`; `restarted` [Q]:
    those that start from their learned pair in the next frame."""

    outputs: Tensors
    step: FrameStep
    invalid: NDArray[np.bool_]
    restarted: NDArray[np.bool_]


@dataclass(frozen=True)
class InsProState:
    step: FrameStep
    tracks: SlotTracks


@dataclass(frozen=True)
class InsPro(TrackingMethod[InsProState]):
    """InsPro: three graphs, or four for the lite variant, one state, one update per frame.

    A network of boxes alone has no `masks` graph, and its tracks have boxes.
    """

    settings: InsProSettings = InsProSettings()
    clip_frames = 1
    int8: ClassVar[Int8Plan] = INT8

    def required_graphs(self) -> Mapping[str, GraphNeed]:
        graphs = {"frame": FRAME, "head": HEAD, "masks": MASKS}
        return graphs if self.settings.key_every_frames == 1 else {**graphs, "head_lite": LITE_HEAD}

    def required_states(self) -> Mapping[str, TensorNeed]:
        return {
            QUERIES: TensorNeed("Q C", ("float32",)),
            PROPOSALS: TensorNeed("Q 4", ("float32",)),
            BANK: TensorNeed("Q C", ("float32",), optional=True),
        }

    def start(self, initial: Tensors) -> InsProState:
        return InsProState(first_step(initial), new_slot_tracks(len(initial[QUERIES]), next_id=0))

    def restart(self, state: InsProState, initial: Tensors) -> InsProState:
        return InsProState(first_step(initial), new_slot_tracks(len(initial[QUERIES]), state.tracks.next_id))

    def update(
        self, frames: Sequence[FrameOutputs], graphs: Graphs, state: InsProState
    ) -> Steps[tuple[list[FrameTracks], InsProState]]:
        """The slots shown in a frame. The score averages those of the frames in which the object was shown.

        Slots that restart from their learned pair are counted as dropped.
        """
        [frame], settings = frames, self.settings
        answer = yield from frame_step(frame, state.step, settings)
        probabilities = np.where(answer.invalid[:, None], np.float32(0), sigmoid(answer.outputs["class_logits"]))
        tracks = without_lost(forget_slots(state.tracks, answer.invalid), frame.now_s, settings.lost_s)
        tracks, visible = mark_seen(
            tracks,
            probabilities,
            frame.now_s,
            birth_score=settings.birth_score,
            keep_score=settings.keep_score,
            max_objects=settings.max_objects,
        )
        tracks = with_mean_scores(tracks, visible, probabilities, settings.score_window_frames)
        objects, slots = shown_objects(tracks, visible)
        dropped = int(answer.restarted.sum())
        if "mask_features" in frame.device:
            shown = yield from tracks_of_slots(frame, objects, slots, dropped)
        else:
            boxes = answer.outputs["boxes"][slots]
            tracked = tuple(BoxTrack(*one, box) for one, box in zip(objects, boxes, strict=True))
            shown = FrameTracks(tracked, dropped_slots=dropped)
        step = with_key_on_drop(answer.step, probabilities[visible], state.step.is_key, settings.key_score_drop)
        return [shown], InsProState(step, forget_slots(tracks, answer.restarted))

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        size = (manifest.input.height, manifest.input.width)
        return inspro_outputs(engines, images, valid_sizes, _host_pairs(initial, len(images)), size)

    def stream_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Iterator[Outputs]:
        """Of the lite variant every second frame is a key frame, so that a few frames show both heads and the bank."""
        settings, size = self.settings, (manifest.input.height, manifest.input.width)
        key_every_frames, pairs = min(settings.key_every_frames, 2), _host_pairs(initial, streams=1)
        for t in range(len(images)):
            graph = "head_lite" if t % key_every_frames else "head"
            made = engines["frame"]({"images": images[t : t + 1], "valid_sizes": valid_sizes[t : t + 1]})
            run = running(engines, made["pyramid"], made["picture_sizes"])
            outputs = run(graph, pairs.feeds(graph, settings.box_side_min))
            pairs = update_pairs(pairs, outputs, graph == "head" or settings.bank_takes == "all")
            yield frame_of_stream(outputs, engines, made, size)

    def graph_of(self, role: str) -> str:
        kind, _, which = role.partition("@")
        return {"mask_logits": "masks", "mask_features": "frame"}.get(kind, "head_lite" if which == "lite" else "head")


def first_step(initial: Tensors) -> FrameStep:
    return FrameStep(no_past(len(initial[QUERIES]), _entries(initial)))


def frame_step(frame: FrameOutputs, step: FrameStep, settings: InsProSettings) -> Steps[FrameAnswer]:
    """One frame through the head, or between key frames through the lite head.

    Raises NumericalError if the network gave NaN or infinity for all slots; the states then stay as they were.
    """
    graph, past = "head" if step.is_key else "head_lite", step.past
    side_min = np.array(settings.box_side_min, dtype=np.float32)
    answer = yield Call(graph, [frame], {"box_side_min": side_min, **past_feeds(past, graph)})
    outputs, invalid = valid_outputs(answer, graph)
    if past.entries and (step.is_key or settings.bank_takes == "all"):
        answer.renew(entry=past.next_entry)
        past = with_entry(past)
    else:
        answer.renew()
    restarted = answer.host["restarted"] > 0
    until_key = (settings.key_every_frames if step.is_key else step.until_key) - 1
    return FrameAnswer(
        outputs, replace(step, past=forget_past(past, restarted), until_key=until_key), invalid, restarted
    )


def _host_pairs(initial: Tensors, streams: int) -> HostPairs:
    return first_pairs(initial[QUERIES], initial[PROPOSALS], _entries(initial), streams)


def _entries(initial: Tensors) -> int:
    """Of the bank [Q, E, C]; none where the network does not attend to the past."""
    return initial[BANK].shape[1] if BANK in initial else 0


def with_key_on_drop(step: FrameStep, probabilities: Floats, was_key: bool, drop: float | None) -> FrameStep:
    """The step, which asks for a key frame now if what is shown, with `probabilities` [M, K] of the classes, fell in
    mean score below the part `drop` of what it was at the last key frame."""
    score = float(probabilities.max(axis=1).mean()) if len(probabilities) else 0.0
    if was_key:
        return replace(step, key_score=score)
    return replace(step, until_key=0) if drop is not None and score < drop * step.key_score else step


def sigmoid(logits: Floats) -> Floats:
    return (1 / (1 + np.exp(-np.clip(logits, -80, 80)))).astype(np.float32)
