"""MinVIS between engine calls: queries follow their slots from frame to frame, objects are born and die in slots.

The published rule (MinVIS, section 3.2) matches all queries of a frame to those of the frame before by the cosine of
their embeddings; a query's slot is then its track. That alone has neither birth nor death nor a causal score. Here a
slot gets an object, with a public id, when it is sure of one, and loses it when it has not seen it for too long.
Slots and the order of queries never show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.arrays import Array, Floats, Tensors, in_float32, positive, softmax
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed
from visrt.runtime.methods.assign import assign, cosine_similarity, nonzero_rows, row_cosines
from visrt.runtime.methods.mask_bits import packed
from visrt.runtime.methods.matching_cost import Predictions, matching_cost
from visrt.runtime.methods.method import MasksOf, PerFrameMethod, Track
from visrt.runtime.methods.nms import iou, nms
from visrt.runtime.methods.queries import Queries

__all__ = ["FAMILY", "GRAPHS", "MinVis", "MinVisSettings", "MinVisState", "continued_by", "match_to_slots"]

Indices = NDArray[np.intp]
Fraction = Annotated[float, Field(ge=0, le=1)]
FAMILY = "minvis"
NO_OBJECT = -1

# L = K + 1 class logits, images of I x J, h x w = stride 4 of the network input.
GRAPHS = {
    "frame": GraphNeed(
        inputs={"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))},
        outputs={
            "class_logits": TensorNeed("B Q L"),
            "embeddings": TensorNeed("B Q C"),
            "mask_embeddings": TensorNeed("B Q D"),
            "mask_features": TensorNeed("B D h w"),
        },
    ),
    "masks": GraphNeed(
        inputs={"mask_embeddings": TensorNeed("M D"), "mask_features": TensorNeed("D h w")},
        outputs={"mask_logits": TensorNeed("M h w")},
    ),
}


@dataclass(frozen=True)
class MinVisSettings:
    """Settings for tracking objects. Scores, IoU and similarities are 0..1.

    similarity: how queries find their slots: by "cosine" of embeddings as published, or for the paper's ablations
    (table 4) by the "matching_cost" of training against the last frame, or by both with equal weights,
    "matching_cost_and_cosine". Those need the masks of all queries in each frame.
    birth_score: a slot without an object gets one from this score of the frame on.
    keep_score: an object is visible while its score of the frame is at least this.
    score_window_frames: the public score averages the class logits of about so many visible frames.
    memory_momentum: share of the current frame in the embedding that the next is compared with; 1 is the published
        rule.
    unseen_memory: while an object is not visible its slot's memory goes on to "follow" whatever query it is given, as
        the published rule does, or will "hold" the object's last visible embedding, so that it is found again.
    lost_s: an object unseen for longer, in seconds, is gone; its slot is free for a new id.
    revive_similarity: an object seen again must be so similar (cosine) to when it was last seen, or it is a new one.
    nms_iou: of two visible masks that overlap by more, one is dropped; 1 is off.
    max_objects: at most so many are visible in a frame.
    """

    similarity: Literal["cosine", "matching_cost", "matching_cost_and_cosine"] = "cosine"
    birth_score: Fraction = 0.5
    keep_score: Fraction = 0.4
    score_window_frames: Annotated[int, Field(ge=1)] = 30
    memory_momentum: Annotated[float, Field(gt=0, le=1)] = 1.0
    unseen_memory: Literal["follow", "hold"] = "follow"
    lost_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    revive_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.5
    nms_iou: Fraction = 0.6
    max_objects: Annotated[int, Field(ge=1)] = 100

    @property
    def compares_masks(self) -> bool:
        """Whether masks of all queries are needed to find their slots."""
        return self.similarity != "cosine"


@dataclass(frozen=True)
class Slots:
    """The memory of each of Q slots. Without an object (id -1), only the memory means anything.

    memory [Q, C]: what the next frame's embeddings are compared with. predictions: what its classes and masks are
    compared with, None where they are not.
    ids [Q]; visible [Q]: seen in the last frame; seen_frames [Q]: number of frames it was visible in.
    seen_s [Q]: when it was last visible; seen_embeddings [Q, C]: its embedding then.
    mean_logits [Q, K + 1]: running average of the class logits over the frames it was visible in.
    """

    memory: Floats
    ids: NDArray[np.int64]
    visible: NDArray[np.bool_]
    seen_frames: NDArray[np.int64]
    seen_s: NDArray[np.float64]
    seen_embeddings: Floats
    mean_logits: Floats
    predictions: Predictions | None = None


@dataclass(frozen=True)
class MinVisState:
    """The slots, None before the first frame, and the id the next newborn gets."""

    slots: Slots | None = None
    next_id: int = 0


@dataclass(frozen=True)
class MinVis(PerFrameMethod[MinVisState]):
    """MinVIS: two graphs, one state, one update per frame."""

    settings: MinVisSettings = MinVisSettings()

    def required_graphs(self) -> Mapping[str, GraphNeed]:
        return GRAPHS

    def start(self, initial: Tensors = MappingProxyType({})) -> MinVisState:
        return MinVisState()

    def restart(self, state: MinVisState, initial: Tensors = MappingProxyType({})) -> MinVisState:
        return MinVisState(next_id=state.next_id)

    def associate(
        self, queries: Queries, masks_of: MasksOf, now_s: float, state: MinVisState
    ) -> tuple[list[Track], MinVisState]:
        """The objects visible at `now_s` seconds, by id, and the state after this frame."""
        scores = queries.scores()
        canonical = queries.canonical_order(scores)
        queries, scores = queries.take(canonical), scores[canonical]
        now = None
        if self.settings.compares_masks:
            now = Predictions(queries.class_logits, in_float32(masks_of(queries.mask_embeddings)))
        if state.slots is None:
            slots, order = empty_slots(queries), np.arange(len(queries))
        else:
            slots = state.slots
            order = continued_by(slots.memory, slots.predictions, queries.embeddings, now, self.settings.similarity)
        queries, scores, now = queries.take(order), scores[order], None if now is None else now.take(order)
        slots = without_lost(slots, queries, scores, now_s, self.settings)
        rows, logits = visible_rows(slots, queries, scores, order, masks_of, self.settings)
        slots, next_id = with_newborns(slots, rows, scores, order, state.next_id)
        slots = seen(slots, rows, queries, now_s, self.settings.score_window_frames)
        slots = remembered(slots, queries.embeddings, now, self.settings)
        return tracks_of(slots, rows, logits), MinVisState(slots, next_id)


def match_to_slots(memory: Floats, embeddings: Floats) -> Indices:
    """For each slot the query that continues it: least 1 - cosine over all Q (MinVIS, section 3.2).

    memory [Q, C] and embeddings [Q, C], a row a slot and a row a query.
    """
    return assign(1 - cosine_similarity(memory, embeddings))


def continued_by(
    memory: Floats, last: Predictions | None, embeddings: Floats, now: Predictions | None, similarity: str
) -> Indices:
    """For each slot the query that continues it by `similarity`: `memory` and `last` of the slots against `embeddings`
    and `now` of the queries. The predictions are None where only embeddings are compared."""
    if last is None or now is None:
        return match_to_slots(memory, embeddings)
    cost = matching_cost(last, now)
    return assign(cost if similarity == "matching_cost" else cost + 1 - cosine_similarity(memory, embeddings))


def empty_slots(queries: Queries) -> Slots:
    """Slots without objects, one a query."""
    count = len(queries)
    return Slots(
        memory=queries.embeddings,
        ids=np.full(count, NO_OBJECT, dtype=np.int64),
        visible=np.zeros(count, dtype=bool),
        seen_frames=np.zeros(count, dtype=np.int64),
        seen_s=np.full(count, -np.inf),
        seen_embeddings=np.zeros_like(queries.embeddings),
        mean_logits=np.zeros_like(queries.class_logits),
    )


def without_lost(slots: Slots, queries: Queries, scores: Floats, now_s: float, settings: MinVisSettings) -> Slots:
    """The slots, less the objects unseen for too long and those in whose place now something else turns up."""
    unseen = ~slots.visible & (slots.ids != NO_OBJECT)
    if not unseen.any():
        return slots
    gone = unseen & (now_s - slots.seen_s > settings.lost_s)
    back = np.flatnonzero(unseen & (scores >= settings.keep_score))
    similarity = row_cosines(queries.embeddings[back], slots.seen_embeddings[back])
    gone[back] |= similarity < settings.revive_similarity
    return replace(slots, ids=np.where(gone, NO_OBJECT, slots.ids))


def visible_rows(
    slots: Slots, queries: Queries, scores: Floats, order: Indices, masks_of: MasksOf, settings: MinVisSettings
) -> tuple[Indices, list[Array]]:
    """The slots [N] whose objects, old or newborn, are visible in this frame, and their mask logits, N of [h, w].

    A query whose embedding is zero cannot be identified, and is not visible.

    Of masks that cover each other the steadier stays: one visible in the last frame before one that comes back,
    that before a newborn; among equals the higher score, and at last the canonical place `order` of the query.
    """
    has_object = slots.ids != NO_OBJECT
    sure = scores >= np.where(has_object, settings.keep_score, settings.birth_score)
    rows = np.flatnonzero(sure)
    rows = rows[nonzero_rows(queries.embeddings[rows])]
    if not len(rows):
        return rows, []
    logits = masks_of(queries.mask_embeddings[rows])
    known_scores = np.where(has_object[rows], softmax(slots.mean_logits[rows])[:, :-1].max(axis=1), scores[rows])
    importance = np.lexsort((order[rows], -known_scores, ~has_object[rows], ~slots.visible[rows]))
    bits = packed(positive(logits))[importance]
    shown = bits.any(axis=1)
    importance, bits = importance[shown], bits[shown]
    if settings.nms_iou < 1:
        importance = importance[nms(bits, settings.nms_iou, iou)]
    kept = importance[: settings.max_objects]
    return rows[kept], [logits[at] for at in kept]


def with_newborns(slots: Slots, rows: Indices, scores: Floats, order: Indices, next_id: int) -> tuple[Slots, int]:
    """Ids for the visible slots without one, in order of score, and the id that comes after."""
    newborn = rows[slots.ids[rows] == NO_OBJECT]
    newborn = newborn[np.lexsort((order[newborn], -scores[newborn]))]
    ids, seen_frames = slots.ids.copy(), slots.seen_frames.copy()
    ids[newborn] = next_id + np.arange(len(newborn))
    seen_frames[newborn] = 0
    return replace(slots, ids=ids, seen_frames=seen_frames), next_id + len(newborn)


def seen(slots: Slots, rows: Indices, queries: Queries, now_s: float, window_frames: int) -> Slots:
    """The slots after the objects in `rows` were seen: an average up to `window_frames`, then an exponential one."""
    visible = np.zeros(len(slots.ids), dtype=bool)
    seen_frames, seen_s = slots.seen_frames.copy(), slots.seen_s.copy()
    seen_embeddings, mean_logits = slots.seen_embeddings.copy(), slots.mean_logits.copy()
    visible[rows], seen_s[rows] = True, now_s
    seen_frames[rows] += 1
    seen_embeddings[rows] = queries.embeddings[rows]
    weight = np.maximum(1 / seen_frames[rows], 1 / window_frames)[:, None].astype(np.float32)
    mean_logits[rows] += weight * (queries.class_logits[rows] - mean_logits[rows])
    return replace(
        slots,
        visible=visible,
        seen_frames=seen_frames,
        seen_s=seen_s,
        seen_embeddings=seen_embeddings,
        mean_logits=mean_logits,
    )


def remembered(slots: Slots, embeddings: Floats, now: Predictions | None, settings: MinVisSettings) -> Slots:
    """The slots, their memory moved towards the current embeddings [Q, C], but for those that are zero, and with the
    predictions of this frame."""
    share = np.float32(settings.memory_momentum)
    memory = embeddings if share == 1 else (1 - share) * slots.memory + share * embeddings
    held = ~nonzero_rows(embeddings)
    if settings.unseen_memory == "hold":
        held |= (slots.ids != NO_OBJECT) & ~slots.visible
    if held.any():
        memory = np.where(held[:, None], slots.memory, memory)
        now = held_predictions(slots.predictions, now, held)
    return replace(slots, memory=memory, predictions=now)


def held_predictions(last: Predictions | None, now: Predictions | None, held: NDArray[np.bool_]) -> Predictions | None:
    """Those of this frame, but for the slots `held` [Q], which keep the `last` ones."""
    if last is None or now is None:
        return now
    return Predictions(
        np.where(held[:, None], last.class_logits, now.class_logits),
        np.where(held[:, None, None], last.mask_logits, now.mask_logits),
    )


def tracks_of(slots: Slots, rows: Indices, logits: Sequence[Array]) -> list[Track]:
    """The tracks of the objects in `rows`, by id: one label and one score each, from the running average."""
    probabilities = softmax(slots.mean_logits[rows])[:, :-1]
    labels, scores = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
    tracks = [Track(*parts) for parts in zip(slots.ids[rows].tolist(), labels, scores, logits, strict=True)]
    return sorted(tracks, key=lambda track: track.id)
