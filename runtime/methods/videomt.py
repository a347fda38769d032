"""VidEoMT between engine calls: query i is one object, and the engine carries the queries from frame to frame.

Nothing is matched (VidEoMT, CVPR 2026). The published rule judges whole videos; for streams without end this file
decides when a slot is an object that a user sees. The network keeps the class of an object that is gone and empties its
mask, so both must speak for it. A slot that comes back as something else, or after too long, gets a new id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.arrays import Array, Floats, Tensors, softmax
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed, slot_masks
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.methods.assign import row_cosines
from visrt.runtime.methods.method import (
    Call,
    FrameOutputs,
    FrameTracks,
    Graphs,
    Steps,
    Track,
    TrackingMethod,
    masks_of_slots,
    valid_outputs,
)
from visrt.runtime.methods.outputs import Outputs, slot_masks_of
from visrt.runtime.methods.slot_tracks import (
    NO_OBJECT,
    SlotTracks,
    forget_slots,
    mark_seen,
    new_slot_tracks,
    shown_objects,
    with_mean_scores,
    without_lost,
)

__all__ = ["QUERIES", "VideoMt", "VideoMtSettings", "VideoMtState", "decoded"]

Fraction = Annotated[float, Field(ge=0, le=1)]

QUERIES = "queries"
"""The state that lies in the bundle: the learned queries, from which a video starts."""

ABSENT = np.float32(-1)
"""Below every threshold of scores."""

# L = K + 1 class logits, images of I x J, h x w = stride 4 of the network input; N streams, S tokens, Q slots, D
# channels.
GRAPHS = {
    "frame": GraphNeed(
        inputs={"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))},
        outputs={"tokens": TensorNeed("B S D")},
    ),
    "decoder": GraphNeed(
        inputs={"tokens": TensorNeed("N S D"), "queries": TensorNeed("N Q D", ("float32",))},
        outputs={
            "class_logits": TensorNeed("N Q L", ("float32",)),
            "embeddings": TensorNeed("N Q D", ("float32",)),
            "mask_embeddings": TensorNeed("N Q D", ("float32",)),
            "mask_features": TensorNeed("N D h w"),
            "next_queries": TensorNeed("N Q D", ("float32",)),
        },
    ),
    "masks": slot_masks("D", features="D h w"),
}


@dataclass(frozen=True)
class VideoMtSettings:
    """Settings for showing objects. Scores and similarities are 0..1.

    birth_score: a slot gets an id in the first frame with this score. keep_score: then it is shown in frames with at
    least this one. mask_cells_min: and in frames where its mask has at least so many cells at stride 4.
    score_window_frames: the public score averages the class scores of about so many frames in which it was shown.
    revive_similarity: a slot that is shown again must be so similar (cosine of mask embeddings) to when it was last
    shown, or it is another object. lost_s: a slot that was not shown for longer, in seconds, forgets id and scores;
    None is the published rule, by which a slot is one object for ever. max_objects: at most so many are shown in a
    frame.
    """

    birth_score: Fraction = 0.5
    keep_score: Fraction = 0.4
    mask_cells_min: Annotated[int, Field(ge=1)] = 1
    score_window_frames: Annotated[int, Field(ge=1)] = 30
    revive_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.5
    lost_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 5.0
    max_objects: Annotated[int, Field(ge=1)] = 100


@dataclass(frozen=True)
class VideoMtState:
    """The identity of the slots. visible [Q]: shown in the last frame. embeddings [Q, D]: mask embedding of each when
    it was last shown."""

    tracks: SlotTracks
    visible: NDArray[np.bool_]
    embeddings: Floats


class SlotMasks(NamedTuple):
    """Slots [M] of a frame, their mask logits [M, h, w] and mask embeddings [M, D]."""

    slots: NDArray[np.intp]
    logits: Floats
    embeddings: Floats


@dataclass(frozen=True)
class VideoMt(TrackingMethod[VideoMtState]):
    """VidEoMT: three graphs, the state in the engine, one update per frame."""

    settings: VideoMtSettings = VideoMtSettings()
    clip_frames: ClassVar[int] = 1

    def required_graphs(self) -> Mapping[str, GraphNeed]:
        return GRAPHS

    def required_states(self) -> Mapping[str, TensorNeed]:
        return {QUERIES: TensorNeed("Q D", ("float32",))}

    def start(self, initial: Tensors) -> VideoMtState:
        return _first_state(initial[QUERIES].shape, next_id=0)

    def restart(self, state: VideoMtState, initial: Tensors) -> VideoMtState:
        return _first_state(initial[QUERIES].shape, state.tracks.next_id)

    def update(
        self, frames: Sequence[FrameOutputs], graphs: Graphs, state: VideoMtState
    ) -> Steps[tuple[list[FrameTracks], VideoMtState]]:
        """The slots shown in a frame. The score averages those of the frames in which the object was shown.

        Slots that restart from their learned query are counted as dropped.
        """
        [frame], settings = frames, self.settings
        logits, invalid = yield from decoded(frame)
        probabilities = np.where(invalid[:, None], np.float32(0), softmax(logits)[:, :-1])
        tracks = without_lost(forget_slots(state.tracks, invalid), frame.now_s, settings.lost_s)
        masks = yield from self._masks(frame, tracks, probabilities.max(axis=1))
        present = np.zeros(len(probabilities), dtype=bool)
        present[masks.slots] = True
        other = np.zeros_like(present)
        similarity = row_cosines(state.embeddings[masks.slots], masks.embeddings)
        other[masks.slots] = similarity < settings.revive_similarity
        tracks = forget_slots(tracks, other & ~state.visible & (tracks.ids != NO_OBJECT))
        tracks, visible = mark_seen(
            tracks,
            np.where(present[:, None], probabilities, ABSENT),
            frame.now_s,
            birth_score=settings.birth_score,
            keep_score=settings.keep_score,
            max_objects=settings.max_objects,
        )
        tracks = with_mean_scores(tracks, visible, probabilities, settings.score_window_frames)
        objects, slots = shown_objects(tracks, visible)
        of_slot = dict(zip(masks.slots.tolist(), masks.logits, strict=True))
        shown = tuple(Track(*one, of_slot[slot]) for one, slot in zip(objects, slots.tolist(), strict=True))
        return [FrameTracks(shown, dropped_slots=int(invalid.sum()))], _next_state(state, tracks, visible, masks)

    def _masks(self, frame: FrameOutputs, tracks: SlotTracks, scores: Floats) -> Steps[SlotMasks]:
        """The masks of slots that score high enough and are not empty, best first."""
        settings = self.settings
        enough = scores >= np.where(tracks.ids == NO_OBJECT, settings.birth_score, settings.keep_score)
        slots = np.argsort(-scores, kind="stable")
        slots = slots[enough[slots]][: settings.max_objects]
        if not len(slots):
            return SlotMasks(slots, np.zeros((0, 1, 1), np.float32), np.zeros((0, 1), np.float32))
        logits, embeddings = yield from masks_of_slots(frame, slots)
        shown = np.count_nonzero(logits > 0, axis=(1, 2)) >= settings.mask_cells_min
        return SlotMasks(slots[shown], logits[shown], embeddings[shown])

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        return _answer(engines, images, valid_sizes, np.repeat(initial[QUERIES][None], len(images), axis=0))

    def stream_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Iterator[Outputs]:
        queries = initial[QUERIES][None]
        for t in range(len(images)):
            outputs = _answer(engines, images[t : t + 1], valid_sizes[t : t + 1], queries)
            queries = outputs["next_queries"]
            yield outputs

    def graph_of(self, role: str) -> str:
        return "masks" if role == "mask_logits" else "decoder"


def decoded(frame: FrameOutputs) -> Steps[tuple[Floats, NDArray[np.bool_]]]:
    """Class logits [Q, K + 1] of the next frame of a stream, zeros for slots that are invalid, and which are [Q]."""
    answer = yield Call("decoder", [frame])
    outputs, invalid = valid_outputs(answer, "decoder")
    answer.renew()
    return outputs["class_logits"], invalid


def _answer(engines: Mapping[str, Engine], images: Array, valid_sizes: Array, queries: Floats) -> Outputs:
    """All outputs for a frame of each of B streams, from their `queries` [B, Q, D], with the masks of all slots."""
    tokens = engines["frame"]({"images": images, "valid_sizes": valid_sizes})["tokens"]
    made = engines["decoder"]({"tokens": tokens, "queries": queries})
    masks = slot_masks_of(engines["masks"], made["mask_embeddings"], made["mask_features"])
    return {**{role: tensor.numpy() for role, tensor in made.items()}, "mask_logits": masks}


def _first_state(shape: Sequence[int], next_id: int) -> VideoMtState:
    slots = shape[0]
    nothing = np.zeros(tuple(shape), dtype=np.float32)
    return VideoMtState(new_slot_tracks(slots, next_id), np.zeros(slots, dtype=bool), nothing)


def _next_state(state: VideoMtState, tracks: SlotTracks, visible: NDArray[np.intp], masks: SlotMasks) -> VideoMtState:
    shown = np.zeros(len(state.visible), dtype=bool)
    shown[visible] = True
    kept = shown[masks.slots]
    embeddings = state.embeddings.copy()
    embeddings[masks.slots[kept]] = masks.embeddings[kept]
    return VideoMtState(tracks, shown, embeddings)
