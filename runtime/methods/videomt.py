"""VidEoMT between engine calls: query i is one object, and the engine carries the queries from frame to frame.

Nothing is matched (VidEoMT, CVPR 2026). The published rule judges whole videos; for streams without end this file
decides when a slot is an object that a user sees. The network keeps the class of an object that is gone and empties its
mask, so both must speak for it. A slot that comes back as something else, or after too long, gets a new id.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.arrays import Array, Floats, Tensor, Tensors, softmax
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.methods.assign import row_cosines
from visrt.runtime.methods.method import FrameOutputs, FrameTracks, Graphs, Track, TrackingMethod, refuse_nonfinite
from visrt.runtime.methods.outputs import Outputs
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

# L = K + 1 class logits, images of I x J, h x w = stride 4 of the network input; S tokens, Q slots, D channels.
GRAPHS = {
    "frame": GraphNeed(
        inputs={"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))},
        outputs={"tokens": TensorNeed("B S D")},
    ),
    "decoder": GraphNeed(
        inputs={"tokens": TensorNeed("S D"), "queries": TensorNeed("Q D", ("float32",))},
        outputs={
            "class_logits": TensorNeed("Q L", ("float32",)),
            "embeddings": TensorNeed("Q D", ("float32",)),
            "mask_embeddings": TensorNeed("Q D", ("float32",)),
            "mask_features": TensorNeed("D h w"),
            "next_queries": TensorNeed("Q D", ("float32",)),
        },
    ),
    "masks": GraphNeed(
        inputs={"mask_embeddings": TensorNeed("M D"), "mask_features": TensorNeed("D h w")},
        outputs={"mask_logits": TensorNeed("M h w")},
    ),
}


@dataclass(frozen=True)
class VideoMtSettings:
    """Settings for showing objects. Scores and similarities are 0..1.

    birth_score: a slot gets an id in the first frame with this score. keep_score: then it is shown in frames with at
    least this one. mask_cells_min: and in frames where its mask has at least so many cells at stride 4.
    score_window_frames: the public score averages the class scores of about so many frames in which it was shown.
    revive_similarity: a slot that is shown again must be so similar (cosine of embeddings) to when it was last shown,
    or it is another object. lost_s: a slot that was not shown for longer, in seconds, forgets id and scores; None is
    the published rule, by which a slot is one object for ever. max_objects: at most so many are shown in a frame.
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
    """The identity of the slots. visible [Q]: shown in the last frame. embeddings [Q, D]: when each was last shown."""

    tracks: SlotTracks
    visible: NDArray[np.bool_]
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
    ) -> tuple[list[FrameTracks], VideoMtState]:
        """The slots shown in a frame. The score averages those of the frames in which the object was shown."""
        [frame], settings = frames, self.settings
        outputs = decoded(graphs)
        probabilities: Floats = softmax(outputs["class_logits"])[:, :-1]
        tracks = without_lost(state.tracks, frame.now_s, settings.lost_s)
        masks = self._masks(frame, graphs, tracks, probabilities.max(axis=1), outputs["mask_embeddings"])
        present = np.zeros(len(probabilities), dtype=bool)
        present[list(masks)] = True
        similar = row_cosines(state.embeddings, outputs["embeddings"]) >= settings.revive_similarity
        tracks = forget_slots(tracks, present & ~state.visible & (tracks.ids != NO_OBJECT) & ~similar)
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
        shown = tuple(Track(*one, masks[slot]) for one, slot in zip(objects, slots.tolist(), strict=True))
        return [FrameTracks(shown)], _next_state(state, tracks, visible, outputs["embeddings"])

    def _masks(
        self, frame: FrameOutputs, graphs: Graphs, tracks: SlotTracks, scores: Floats, mask_embeddings: Floats
    ) -> dict[int, Floats]:
        """Mask logits by slot, of those that score high enough and are not empty."""
        settings = self.settings
        enough = scores >= np.where(tracks.ids == NO_OBJECT, settings.birth_score, settings.keep_score)
        slots = np.argsort(-scores, kind="stable")
        slots = slots[enough[slots]][: settings.max_objects]
        if not len(slots):
            return {}
        logits = graphs.masks(frame, mask_embeddings[slots])
        cells = np.count_nonzero(logits > 0, axis=(1, 2))
        shown = cells >= settings.mask_cells_min
        return {int(slot): one for slot, one in zip(slots[shown], logits[shown], strict=True)}

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        tokens = engines["frame"]({"images": images, "valid_sizes": valid_sizes})["tokens"]
        frames = [_answer(engines, tokens.row(i), initial[QUERIES]) for i in range(len(images))]
        return {role: np.stack([frame[role] for frame in frames]) for role in frames[0]}

    def stream_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Iterator[Outputs]:
        queries = initial[QUERIES]
        for t in range(len(images)):
            feeds = {"images": images[t : t + 1], "valid_sizes": valid_sizes[t : t + 1]}
            outputs = _answer(engines, engines["frame"](feeds)["tokens"].row(0), queries)
            queries = outputs["next_queries"]
            yield {role: values[None] for role, values in outputs.items()}

    def graph_of(self, role: str) -> str:
        return "masks" if role == "mask_logits" else "decoder"


def decoded(graphs: Graphs) -> Tensors:
    """The decoder's outputs on the host for the next frame of a stream. Raises NumericalError for NaN or infinity."""
    outputs = graphs.run("decoder", {})
    for role, values in outputs.items():
        refuse_nonfinite(role, values)
    return outputs


def _answer(engines: Mapping[str, Engine], tokens: Tensor, queries: Floats) -> Outputs:
    """The decoder's outputs for one frame's `tokens`, and the masks of all slots."""
    made = engines["decoder"]({"tokens": tokens, "queries": queries})
    outputs = {role: tensor.numpy() for role, tensor in made.items()}
    features = made["mask_features"]
    embeddings = outputs["mask_embeddings"].astype(features.dtype, copy=False)
    masks = engines["masks"]({"mask_embeddings": embeddings, "mask_features": features})
    return {**outputs, "mask_logits": masks["mask_logits"].numpy()}


def _first_state(shape: Sequence[int], next_id: int) -> VideoMtState:
    slots = shape[0]
    nothing = np.zeros(tuple(shape), dtype=np.float32)
    return VideoMtState(new_slot_tracks(slots, next_id), np.zeros(slots, dtype=bool), nothing)


def _next_state(state: VideoMtState, tracks: SlotTracks, visible: NDArray[np.intp], embeddings: Floats) -> VideoMtState:
    shown = np.zeros(len(embeddings), dtype=bool)
    shown[visible] = True
    return replace(
        state, tracks=tracks, visible=shown, embeddings=np.where(shown[:, None], embeddings, state.embeddings)
    )
