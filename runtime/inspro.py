"""InsPro between engine calls: query-proposal pairs travel from frame to frame, each the same object throughout.

Nothing is matched (InsPro, He et al., NeurIPS 2022). A frame starts from the queries and boxes of the frame before; all
pairs always go on. The lite variant looks at most frames with one stage, which moves the boxes only. As the published
rule judges whole videos, here a slot gets a public id when it is first sure of an object, and shows nothing in frames
where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.clip_family import ClipAnswer, RunGraph, Tensors
from visrt.runtime.contract import GraphNeed, TensorNeed
from visrt.runtime.errors import NumericalError
from visrt.runtime.family import Floats
from visrt.runtime.inspro_pairs import (
    Pairs,
    first_pairs,
    handed_over,
    remembered,
    started_over,
    too_small,
    unsound_slots,
)
from visrt.runtime.inspro_shown import Shown, nothing_shown, shown_after, sightings_of, without_lost, without_slots

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
"""The states that lie in the bundle: the learned pairs, and the empty bank."""

# K classes without "no object", images of I x J, maps of h x w = stride 4 and u x v = stride 8 of the network input;
# N slots, S pixels of all levels of the pyramid, E = T - 1 entries of the bank.
FRAME = GraphNeed(
    inputs={"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))},
    outputs={
        "pyramid": TensorNeed("B S C"),
        "mask_features": TensorNeed("B F u v", ("float32",)),
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
    "mask_embeddings": TensorNeed("N P", ("float32",)),
    "object_features": TensorNeed("N C", ("float32",)),
    "next_proposals": TensorNeed("N 4", ("float32",)),
}
HEAD = GraphNeed(
    inputs={**LOOKING, "bank": TensorNeed("E N C", ("float32",)), "fill": TensorNeed("N", ("float32",))},
    outputs={**SEEN, "next_queries": TensorNeed("N C", ("float32",))},
)
LITE_HEAD = GraphNeed(inputs=LOOKING, outputs=SEEN)
MASKS = GraphNeed(
    inputs={
        "mask_embeddings": TensorNeed("M P", ("float32",)),
        "mask_features": TensorNeed("F u v", ("float32",)),
    },
    outputs={"mask_logits": TensorNeed("M h w", ("float32",))},
)


@dataclass(frozen=True)
class InsProSettings:
    """How pairs travel and objects are shown. Scores are 0..1.

    key_every_frames: every so many frames all stages look, between them the lite head; 1 is InsPro, the published lite
    has 10. key_score_drop: also where the mean score of what was shown fell below this part of what it was at the last
    key frame; None is the published rule. bank_takes: the bank of intra-query attention takes what was seen in "key"
    frames, or in "all"; the paper does not say.
    birth_score: a slot gets an id in the first frame with this score. keep_score: then it is shown in frames with at
    least this one. score_window_frames: the public score averages the class scores of about so many frames in which it
    was shown. lost_s: a slot that was not shown for longer, in seconds, forgets id and scores, and what it shows next
    is another object; None is the published rule, by which a slot is one object for ever.
    box_side_min: a box with a side of less than this part of the picture, as one that left it, cannot grow again: its
    slot begins anew with its learned pair. max_objects: at most so many are shown in a frame.
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
    """What passes from frame to frame inside the model, apart from what is shown.

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
    """The head's outputs by role, zeros for the slots [N] that are `unsound`; `anew` [N]: those that begin anew with
    the next frame."""

    outputs: Tensors
    step: FrameStep
    unsound: NDArray[np.bool_]
    anew: NDArray[np.bool_]


@dataclass(frozen=True)
class InsProState:
    step: FrameStep
    shown: Shown


@dataclass(frozen=True)
class InsPro:
    """The InsPro family: three graphs, or four for the lite variant, one state, one update a frame."""

    settings: InsProSettings = InsProSettings()

    @property
    def clip_frames(self) -> int:
        return 1

    def needs(self) -> Mapping[str, GraphNeed]:
        graphs = {"frame": FRAME, "head": HEAD, "masks": MASKS}
        return graphs if self.settings.key_every_frames == 1 else {**graphs, "head_lite": LITE_HEAD}

    def states(self) -> Mapping[str, TensorNeed]:
        return {
            QUERIES: TensorNeed("N C", ("float32",)),
            PROPOSALS: TensorNeed("N 4", ("float32",)),
            BANK: TensorNeed("E N C", ("float32",)),
        }

    def start(self, initial: Tensors) -> InsProState:
        step = first_step(initial)
        return InsProState(step, nothing_shown(len(step.pairs.queries), next_id=0))

    def restart(self, state: InsProState) -> InsProState:
        pairs, slots = state.step.pairs, len(state.step.pairs.queries)
        step = FrameStep(started_over(pairs, np.ones(slots, dtype=bool)))
        return InsProState(step, nothing_shown(slots, state.shown.next_id))

    def follow(
        self, frames: Sequence[Tensors], times_s: Sequence[float], run: RunGraph, state: InsProState
    ) -> ClipAnswer[InsProState]:
        """What is seen in a frame, and the state after it. Slots that begin anew are counted as dropped."""
        [frame], [now_s], settings = frames, times_s, self.settings
        answer = frame_step(frame, run, state.step, settings)
        shown = without_lost(without_slots(state.shown, answer.unsound), now_s, settings.lost_s)
        chances = np.where(answer.unsound[:, None], np.float32(0), sigmoid(answer.outputs["class_logits"]))
        shown, visible = shown_after(
            shown,
            chances,
            now_s,
            birth_score=settings.birth_score,
            keep_score=settings.keep_score,
            window_frames=settings.score_window_frames,
            most=settings.max_objects,
        )
        sightings = sightings_of(shown, visible, answer.outputs["mask_embeddings"])
        step = with_key_on_drop(answer.step, chances[visible], state.step.is_key, settings.key_score_drop)
        state = InsProState(step, without_slots(shown, answer.anew))
        return ClipAnswer([sightings], state, int(answer.anew.sum()))


def first_step(initial: Tensors) -> FrameStep:
    return FrameStep(first_pairs(initial[QUERIES], initial[PROPOSALS], initial[BANK]))


def frame_step(frame: Tensors, run: RunGraph, step: FrameStep, settings: InsProSettings) -> FrameAnswer:
    """One frame through the head, or between key frames through the lite head.

    Raises NumericalError if the network gave NaN or infinity for all slots.
    """
    outputs = _looked(frame, run, step)
    unsound = unsound_slots(outputs)
    if unsound.all():
        raise NumericalError(
            "the network gave NaN or infinity in every slot of its head; check the bundle with its reference frames, "
            "and an FP16 engine against FP32"
        )
    outputs = {role: np.where(unsound[:, None], np.float32(0), values) for role, values in outputs.items()}
    pairs = handed_over(step.pairs, outputs)
    if step.is_key or settings.bank_takes == "all":
        pairs = remembered(pairs, outputs["object_features"])
    anew = unsound | too_small(pairs, settings.box_side_min)
    until_key = (settings.key_every_frames if step.is_key else step.until_key) - 1
    return FrameAnswer(outputs, replace(step, pairs=started_over(pairs, anew), until_key=until_key), unsound, anew)


def _looked(frame: Tensors, run: RunGraph, step: FrameStep) -> Tensors:
    """What a head says; `run` adds the frame's pyramid, which stays on the device."""
    pairs = step.pairs
    feeds = {
        "picture_size": frame["picture_sizes"],
        "queries": pairs.queries,
        "proposals": pairs.proposals,
    }
    if step.is_key:
        return run("head", {**feeds, "bank": pairs.bank, "fill": pairs.fill})
    return run("head_lite", feeds)


def with_key_on_drop(step: FrameStep, chances: Floats, was_key: bool, drop: float | None) -> FrameStep:
    """The step, which asks for a key frame now if what is shown, with `chances` [M, K] of the classes, fell in mean
    score below the part `drop` of what it was at the last key frame."""
    score = float(chances.max(axis=1).mean()) if len(chances) else 0.0
    if was_key:
        return replace(step, key_score=score)
    return replace(step, until_key=0) if drop is not None and score < drop * step.key_score else step


def sigmoid(logits: Floats) -> Floats:
    return (1 / (1 + np.exp(-np.clip(logits, -80, 80)))).astype(np.float32)
