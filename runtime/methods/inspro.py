"""InsPro between engine calls: query-proposal pairs travel from frame to frame, each the same object throughout.

Nothing is matched (InsPro, He et al., NeurIPS 2022). A frame starts from the queries and boxes of the frame before; all
pairs always go on. The lite variant looks at most frames with one stage, which moves the boxes only. As the published
rule judges whole videos, here a slot gets a public id when it is first sure of an object, and shows nothing in frames
where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.arrays import Array, Floats, Tensors
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import NumericalError
from visrt.runtime.methods.inspro_outputs import inspro_outputs, outputs_of_frame, running
from visrt.runtime.methods.inspro_pairs import (
    Pairs,
    feeds_of,
    first_pairs,
    invalid_slots,
    reset_slots,
    too_small,
    update_bank,
    update_pairs,
)
from visrt.runtime.methods.int8 import Int8Plan
from visrt.runtime.methods.method import (
    BoxTrack,
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
"""The states that lie in the bundle: the learned pairs, and the empty bank of a network that attends to the past."""

# K classes without "no object", images of I x J, maps of h x w = stride 4 and u x v = stride 8 of the network input;
# N slots, S pixels of all levels of the pyramid, E = T - 1 entries of the bank. A network of T = 1 has no bank, one of
# boxes alone nothing of masks.
FRAME = GraphNeed(
    inputs={"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))},
    outputs={
        "pyramid": TensorNeed("B S C"),
        "mask_features": TensorNeed("B F u v", ("float32",), optional=True),
        "picture_sizes": TensorNeed("B 2", ("float32",)),
    },
)
LOOKING: Mapping[str, TensorNeed] = {
    "pyramid": TensorNeed("S C"),
    "picture_size": TensorNeed("2", ("float32",)),
    "queries": TensorNeed("N C", ("float32",)),
    "proposals": TensorNeed("N 4", ("float32",)),
}
SEEN: Mapping[str, TensorNeed] = {
    "class_logits": TensorNeed("N K", ("float32",)),
    "boxes": TensorNeed("N 4", ("float32",)),
    "mask_embeddings": TensorNeed("N P", ("float32",), optional=True),
    "object_features": TensorNeed("N C", ("float32",)),
    "next_proposals": TensorNeed("N 4", ("float32",)),
}
HEAD = GraphNeed(
    inputs={
        **LOOKING,
        "bank": TensorNeed("E N C", ("float32",), optional=True),
        "fill": TensorNeed("N", ("float32",), optional=True),
    },
    outputs={**SEEN, "next_queries": TensorNeed("N C", ("float32",))},
)
LITE_HEAD = GraphNeed(inputs=LOOKING, outputs=SEEN)
INT8 = Int8Plan(
    ("frame", "head", "head_lite"),
    range_frames=3,
    judged_frames=4,
    ranked_frames=4,
    compared=("embeddings", "class_logits", "boxes"),
)
"""In the third frame the bank is not empty, of the lite variant too, and the fourth shows what was read from it."""
MASKS = GraphNeed(
    inputs={
        "mask_embeddings": TensorNeed("M P", ("float32",)),
        "mask_features": TensorNeed("F u v", ("float32",)),
    },
    outputs={"mask_logits": TensorNeed("M h w", ("float32",))},
    optional=True,
)


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
    """The model's state between frames, without the public tracks.

    until_key: frames until the next key frame; 0 asks for one now. key_score: mean score of what was shown at the last.
    """

    pairs: Pairs
    until_key: int = 0
    key_score: float = 0.0

    @property
    def is_key(self) -> bool:
        return self.until_key == 0


@dataclass(frozen=True)
class FrameAnswer:
    """The head's outputs by role, zeros for the slots [N] that are `invalid`; `reset` [N]: those that restart
    from their learned pair in the next frame."""

    outputs: Tensors
    step: FrameStep
    invalid: NDArray[np.bool_]
    reset: NDArray[np.bool_]


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
            QUERIES: TensorNeed("N C", ("float32",)),
            PROPOSALS: TensorNeed("N 4", ("float32",)),
            BANK: TensorNeed("E N C", ("float32",), optional=True),
        }

    def start(self, initial: Tensors) -> InsProState:
        step = first_step(initial)
        return InsProState(step, new_slot_tracks(len(step.pairs.queries), next_id=0))

    def restart(self, state: InsProState, initial: Tensors) -> InsProState:
        step = first_step(initial)
        return InsProState(step, new_slot_tracks(len(step.pairs.queries), state.tracks.next_id))

    def update(
        self, frames: Sequence[FrameOutputs], graphs: Graphs, state: InsProState
    ) -> Steps[tuple[list[FrameTracks], InsProState]]:
        """The slots shown in a frame. The score averages those of the frames in which the object was shown.

        Slots that restart from their learned pair are counted as dropped.
        """
        yield from ()
        [frame], settings = frames, self.settings
        answer = frame_step(frame.tensors, graphs.run, state.step, settings)
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
        shown = _shown(frame, graphs, objects, {role: rows[slots] for role, rows in answer.outputs.items()})
        shown = replace(shown, dropped_slots=int(answer.reset.sum()))
        step = with_key_on_drop(answer.step, probabilities[visible], state.step.is_key, settings.key_score_drop)
        return [shown], InsProState(step, forget_slots(tracks, answer.reset))

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        size = (manifest.input.height, manifest.input.width)
        return inspro_outputs(engines, images, valid_sizes, first_step(initial).pairs, size)

    def stream_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Iterator[Outputs]:
        """Of the lite variant every second frame is a key frame, so that a few frames show both heads and the bank."""
        settings = replace(self.settings, key_every_frames=min(self.settings.key_every_frames, 2))
        step, size = first_step(initial), (manifest.input.height, manifest.input.width)
        for t in range(len(images)):
            made = engines["frame"]({"images": images[t : t + 1], "valid_sizes": valid_sizes[t : t + 1]})
            frame = {"picture_sizes": made["picture_sizes"].numpy()[0]}
            answer = _answer(frame, running(engines, made["pyramid"].row(0)), step, settings)
            step = answer.step
            yield outputs_of_frame(_with_nan(answer), engines, made, size)

    def graph_of(self, role: str) -> str:
        kind, _, which = role.partition("@")
        return {"mask_logits": "masks", "mask_features": "frame"}.get(kind, "head_lite" if which == "lite" else "head")


def _shown(
    frame: FrameOutputs, graphs: Graphs, objects: Sequence[tuple[int, int, float]], outputs: Tensors
) -> FrameTracks:
    """The tracks of `objects`, (id, label, score) each, with the mask or box that the head's `outputs` give them."""
    if "mask_embeddings" in outputs:
        return tracks_with_masks(frame, graphs, objects, outputs["mask_embeddings"])
    return FrameTracks(tuple(BoxTrack(*one, box) for one, box in zip(objects, outputs["boxes"], strict=True)))


def first_step(initial: Tensors) -> FrameStep:
    return FrameStep(first_pairs(initial[QUERIES], initial[PROPOSALS], initial.get(BANK)))


def frame_step(frame: Tensors, run: RunGraph, step: FrameStep, settings: InsProSettings) -> FrameAnswer:
    """One frame through the head, or between key frames through the lite head.

    Raises NumericalError if the network gave NaN or infinity for all slots.
    """
    answer = _answer(frame, run, step, settings)
    if answer.invalid.all():
        raise NumericalError(
            "the network gave NaN or infinity in every slot of its head; check the bundle with its reference frames, "
            "and an FP16 engine against FP32"
        )
    return answer


def _answer(frame: Tensors, run: RunGraph, step: FrameStep, settings: InsProSettings) -> FrameAnswer:
    outputs = _looked(frame, run, step)
    invalid = invalid_slots(outputs)
    outputs = {role: np.where(invalid[:, None], np.float32(0), values) for role, values in outputs.items()}
    pairs = update_pairs(step.pairs, outputs)
    if step.is_key or settings.bank_takes == "all":
        pairs = update_bank(pairs, outputs["object_features"])
    reset = invalid | too_small(pairs, settings.box_side_min)
    until_key = (settings.key_every_frames if step.is_key else step.until_key) - 1
    return FrameAnswer(outputs, replace(step, pairs=reset_slots(pairs, reset), until_key=until_key), invalid, reset)


def _with_nan(answer: FrameAnswer) -> Tensors:
    """The outputs of an answer, NaN in place of zeros for the slots that are invalid."""
    return {role: np.where(answer.invalid[:, None], np.nan, rows) for role, rows in answer.outputs.items()}


def _looked(frame: Tensors, run: RunGraph, step: FrameStep) -> Tensors:
    """The outputs of a head; `run` adds the frame's pyramid, which stays on the device."""
    graph = "head" if step.is_key else "head_lite"
    return run(graph, {"picture_size": frame["picture_sizes"], **feeds_of(step.pairs, graph)})


def with_key_on_drop(step: FrameStep, probabilities: Floats, was_key: bool, drop: float | None) -> FrameStep:
    """The step, which asks for a key frame now if what is shown, with `probabilities` [M, K] of the classes, fell in
    mean score below the part `drop` of what it was at the last key frame."""
    score = float(probabilities.max(axis=1).mean()) if len(probabilities) else 0.0
    if was_key:
        return replace(step, key_score=score)
    return replace(step, until_key=0) if drop is not None and score < drop * step.key_score else step


def sigmoid(logits: Floats) -> Floats:
    return (1 / (1 + np.exp(-np.clip(logits, -80, 80)))).astype(np.float32)
