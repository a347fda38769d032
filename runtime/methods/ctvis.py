"""CTVIS between engine calls: candidates of a frame are matched with a memory bank of objects.

The steps are those of the released code: queries above a score and not covered by a better mask are candidates; each
is compared with what is remembered of the objects; what matches renews its object, what does not is a new one. The
settings choose how they are compared, matched and remembered, so the same steps with other settings are MinVIS with a
memory and the mask-overlap trackers it was compared with: see `visrt.runtime.methods.presets`.

What was shown is never taken back: noise is suppressed by showing an object only when it has proved steady.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.arrays import Array, Floats, Tensors, positive, softmax
from visrt.runtime.bundles.contract import GraphNeed
from visrt.runtime.methods.assign import NOBODY, bisoftmax, cosine_similarity, greedy_pairs, hungarian_pairs
from visrt.runtime.methods.mask_bits import packed
from visrt.runtime.methods.memory import NO_ID, Detections, Memory, Renewal, born, empty_memory, kept, resized, seen
from visrt.runtime.methods.method import MasksOf, PerFrameMethod, Track
from visrt.runtime.methods.minvis import GRAPHS
from visrt.runtime.methods.nms import bits_iou, nms, smoothed_iou
from visrt.runtime.methods.queries import Queries

__all__ = ["Candidates", "CtVis", "CtVisSettings", "CtVisState", "Followed"]

Indices = NDArray[np.intp]
Similarity = NDArray[np.floating]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class CtVisSettings:
    """Settings for matching and remembering objects; by default as CTVIS released. Scores, IoU and similarities are
    0..1.

    keep_score: queries above this score of the frame are candidates. without_candidates: if there are none, "take_best"
    takes the best query after all, as the released code does. max_objects: at most so many are candidates, the best
    ones. nms_iou: of two candidates whose masks overlap by more the better stays; 1 is off. similarity: "bisoftmax" or
    "cosine" of embeddings, "mask_iou" with the object's last mask, or the mean of the last two, "mask_iou_and_cosine".
    assignment: "hungarian" finds the most similarity in all; "greedy" gives each candidate, best score first, the best
    object left; "greedy_by_age" prefers objects seen in more frames. similarity_floor: a pair must be more similar.
    revive_similarity: an object unseen in the last frame must also be so similar by cosine; -1 is off. birth_score: a
    candidate that matches no object becomes a new one above this score. memory: the "previous" embedding; a running
    average with "momentum"; or one "similarity_guided", which takes from an embedding the more, the more it is like the
    last `memory_frames`. memory_momentum: share of the current frame under "momentum". lost_s: an object unseen for
    longer, in seconds, is forgotten. Released: 21 frames, at YouTube-VIS's 6 a second. max_remembered: of more objects,
    those unseen for longest are forgotten. steady_frames: an object is shown from the n-th frame in which it was seen;
    counted from zero again, while it was never shown, when it was unseen for `noise_gap_frames` in a row. 1 shows all.
    show_score: an object is shown while its running score is at least this. score_window_frames: the public score
    averages the class logits of about so many frames.
    """

    keep_score: Fraction = 0.01
    without_candidates: Literal["take_best", "take_none"] = "take_best"
    max_objects: Count = 300
    nms_iou: Fraction = 0.6
    similarity: Literal["bisoftmax", "cosine", "mask_iou", "mask_iou_and_cosine"] = "bisoftmax"
    assignment: Literal["hungarian", "greedy", "greedy_by_age"] = "greedy_by_age"
    similarity_floor: Fraction = 0.3
    revive_similarity: Annotated[float, Field(ge=-1, le=1)] = -1.0
    birth_score: Fraction = 0.01
    memory: Literal["previous", "momentum", "similarity_guided"] = "similarity_guided"
    memory_momentum: Annotated[float, Field(gt=0, le=1)] = 0.2
    memory_frames: Count = 10
    lost_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 3.6
    max_remembered: Count = 500
    steady_frames: Count = 3
    noise_gap_frames: Count = 2
    show_score: Fraction = 0.3
    score_window_frames: Count = 30

    @property
    def compares_masks(self) -> bool:
        """Whether masks are needed to decide, and not only to be shown."""
        return self.nms_iou < 1 or self.similarity in ("mask_iou", "mask_iou_and_cosine")


@dataclass(frozen=True)
class CtVisState:
    """memory: None before the first frame; its masks have `cells` (h, w). next_id: what the next one shown gets."""

    memory: Memory | None = None
    cells: tuple[int, int] = (0, 0)
    next_id: int = 0


@dataclass(frozen=True)
class Candidates:
    """Candidates of one frame, best score first: queries [n], scores [n], mask_logits, n of `cells` [h, w]; seen: the
    same as detections."""

    queries: Queries
    scores: Floats
    mask_logits: Sequence[Array]
    cells: tuple[int, int]
    seen: Detections

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class Followed:
    """One frame's candidates that belong to an object: which [n], the rows [n] of their objects in the memory after the
    frame, and the probabilities [n, K] of the objects' classes by their running average."""

    candidates: Candidates
    chosen: Indices
    rows: Indices
    memory: Memory
    probabilities: Floats


@dataclass(frozen=True)
class CtVis(PerFrameMethod[CtVisState]):
    """CTVIS: the graphs of MinVIS, a memory bank for a state."""

    settings: CtVisSettings = CtVisSettings()

    def required_graphs(self) -> Mapping[str, GraphNeed]:
        return GRAPHS

    def start(self, initial: Tensors = MappingProxyType({})) -> CtVisState:
        return CtVisState()

    def restart(self, state: CtVisState, initial: Tensors = MappingProxyType({})) -> CtVisState:
        return CtVisState(next_id=state.next_id)

    def associate(
        self, queries: Queries, masks_of: MasksOf, now_s: float, state: CtVisState
    ) -> tuple[list[Track], CtVisState]:
        """The objects shown at `now_s` seconds, by id, and the state after this frame."""
        followed, state = self.follow(queries, masks_of, now_s, state)
        return tracks_of(followed, self.settings), state

    def follow(
        self, queries: Queries, masks_of: MasksOf, now_s: float, state: CtVisState
    ) -> tuple[Followed, CtVisState]:
        """Every candidate of the frame that belongs to an object, shown or not, and the state after this frame."""
        found = candidates_of(queries, masks_of, now_s, self.settings)
        memory, cells = remembered(state, found, self.settings)
        partners = matched(found, memory, self.settings)
        known = np.flatnonzero(partners != NOBODY)
        new = np.flatnonzero((partners == NOBODY) & (found.scores > self.settings.birth_score))
        partners[new] = len(memory) + np.arange(len(new))
        chosen = np.flatnonzero(partners != NOBODY)
        memory = seen(memory, partners[known], found.seen.take(known), renewal_of(self.settings))
        memory = born(memory, found.seen.take(new))
        probabilities = softmax(memory.mean_logits[partners[chosen]])[:, :-1]
        followed = Followed(found, chosen, partners[chosen], memory, probabilities)
        followed, next_id = with_ids(followed, state.next_id, self.settings)
        return followed, CtVisState(followed.memory, cells, next_id)


def candidates_of(queries: Queries, masks_of: MasksOf, now_s: float, settings: CtVisSettings) -> Candidates:
    """The candidates among `queries`, less those whose mask a better one covers. Unusable queries take no part."""
    found, scores = best_queries(queries, settings)
    logits = masks_of(found.mask_embeddings) if len(found) else np.zeros((0, 1, 1), dtype=np.float32)
    bits = packed(positive(logits)) if settings.compares_masks else np.zeros((len(found), 0), dtype=np.uint64)
    masks = list(logits)
    if settings.nms_iou < 1:
        places = np.array(nms(bits, settings.nms_iou, smoothed_iou), dtype=np.intp)
        found, scores, bits, masks = found.take(places), scores[places], bits[places], [masks[at] for at in places]
    detections = Detections(now_s, found.embeddings, found.class_logits, bits)
    return Candidates(found, scores, masks, (logits.shape[1], logits.shape[2]), detections)


def best_queries(queries: Queries, settings: CtVisSettings) -> tuple[Queries, Floats]:
    """The queries above the score to be candidates, best first, and their scores."""
    scores = queries.scores()
    order = queries.canonical_order(scores)
    rows = order[scores[order] > settings.keep_score]
    rows = rows[queries.take(rows).usable()]
    if not len(rows) and settings.without_candidates == "take_best":
        rows = order[queries.take(order).usable()][:1]
    rows = rows[: settings.max_objects]
    return queries.take(rows), scores[rows]


def remembered(state: CtVisState, found: Candidates, settings: CtVisSettings) -> tuple[Memory, tuple[int, int]]:
    """The memory that this frame's candidates meet, and the size (h, w) of its masks, which is theirs."""
    words = found.seen.masks.shape[1]
    if state.memory is None:
        channels, logits = found.queries.embeddings.shape[1], found.queries.class_logits.shape[1]
        return empty_memory(channels, logits, settings.memory_frames, words), found.cells
    memory = kept(state.memory, found.seen.now_s, settings.lost_s, settings.max_remembered)
    if not len(found):
        return memory, state.cells
    if settings.compares_masks and found.cells != state.cells:
        memory = resized(memory, state.cells, found.cells)
    return memory, found.cells


def matched(found: Candidates, memory: Memory, settings: CtVisSettings) -> Indices:
    """For each candidate [n] the row of its object, or NOBODY."""
    if not len(found) or not len(memory):
        return np.full(len(found), NOBODY, dtype=np.intp)
    similarity = SIMILARITIES[settings.similarity](found.seen, memory)
    if settings.revive_similarity > -1:
        stranger = cosine_similarity(found.seen.embeddings, memory.embeddings) < settings.revive_similarity
        similarity = np.where(stranger & (memory.unseen_frames > 0), 0, similarity)
    return ASSIGNMENTS[settings.assignment](similarity, settings.similarity_floor, memory)


def mask_iou_and_cosine(found: Detections, memory: Memory) -> Similarity:
    overlap, cosine = SIMILARITIES["mask_iou"](found, memory), SIMILARITIES["cosine"](found, memory)
    return (overlap + cosine) / 2


SIMILARITIES: dict[str, Callable[[Detections, Memory], Similarity]] = {
    "bisoftmax": lambda found, memory: bisoftmax(found.embeddings, memory.embeddings),
    "cosine": lambda found, memory: cosine_similarity(found.embeddings, memory.embeddings),
    "mask_iou": lambda found, memory: bits_iou(found.masks, memory.masks),
    "mask_iou_and_cosine": mask_iou_and_cosine,
}
"""By name, the similarity [n, N] of detections with remembered objects, at most 1."""

ASSIGNMENTS: dict[str, Callable[[Similarity, float, Memory], Indices]] = {
    "hungarian": lambda similarity, floor, memory: hungarian_pairs(similarity, floor),
    "greedy": lambda similarity, floor, memory: greedy_pairs(similarity, floor, np.ones(len(memory))),
    "greedy_by_age": lambda similarity, floor, memory: greedy_pairs(similarity, floor, memory.seen_frames),
}
"""By name, the object [n] of each candidate, or NOBODY, from their similarity [n, N] above a floor."""


def renewal_of(settings: CtVisSettings) -> Renewal:
    return Renewal(
        memory=settings.memory,
        momentum=settings.memory_momentum,
        window_frames=settings.score_window_frames,
        noise_gap_frames=settings.noise_gap_frames,
        noise_frames=settings.steady_frames,
    )


def with_ids(followed: Followed, next_id: int, settings: CtVisSettings) -> tuple[Followed, int]:
    """Ids for the objects that are shown for the first time, by their scores of the frame, and the next id."""
    memory, rows = followed.memory, followed.rows
    first = (memory.ids[rows] == NO_ID) & (memory.steady_frames[rows] >= settings.steady_frames)
    first &= followed.probabilities.max(axis=1, initial=0) >= settings.show_score
    if not first.any():
        return followed, next_id
    scores = followed.candidates.scores[followed.chosen]
    newcomers = rows[first][np.argsort(-scores[first], kind="stable")]
    ids = memory.ids.copy()
    ids[newcomers] = next_id + np.arange(len(newcomers))
    return replace(followed, memory=replace(memory, ids=ids)), next_id + len(newcomers)


def tracks_of(followed: Followed, settings: CtVisSettings) -> list[Track]:
    """The tracks that the user sees, by id: one label and one score each, from the running average."""
    ids = followed.memory.ids[followed.rows]
    scores = followed.probabilities.max(axis=1, initial=0)
    shown = np.flatnonzero((ids != NO_ID) & (scores >= settings.show_score))
    shown = shown[np.argsort(ids[shown])]
    masks = [followed.candidates.mask_logits[at] for at in followed.chosen[shown]]
    labels = followed.probabilities[shown].argmax(axis=1)
    return [
        Track(*parts) for parts in zip(ids[shown].tolist(), labels.tolist(), scores[shown].tolist(), masks, strict=True)
    ]
