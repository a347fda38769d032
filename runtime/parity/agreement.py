"""Agreement of two engines on what a user sees: masks, classes, and which query continues which object.

The measure for FP16 and INT8, where embeddings move by hundredths because masked attention is discontinuous, while
the objects stay what they are.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Array, Floats
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import UsageError
from visrt.runtime.methods.assign import assign, cosine_similarity
from visrt.runtime.methods.outputs import Outputs, outputs_of
from visrt.runtime.methods.queries import Queries

__all__ = [
    "OBJECT_SCORE",
    "Agreement",
    "Floors",
    "FrameAnswer",
    "agreement",
    "answers",
    "answers_of",
    "packed_masks",
    "queries_of",
    "shape_role",
]

OBJECT_SCORE = 0.5
"""A query more likely of a class than not is an object. Where a network is sure of nothing, all queries are judged."""

Bits = NDArray[np.uint8]


@dataclass(frozen=True)
class FrameAnswer:
    """One frame: its queries, and their masks at stride 4, uint8 [Q, ceil(h * w / 8)]: bits of `logits > 0`."""

    queries: Queries
    masks: Bits


@dataclass(frozen=True)
class Agreement:
    """The agreement of one engine with another over `frames` frames.

    objects: how many queries of all frames were compared as objects. iou_mean, iou_min: of the objects' masks; two
    empty masks agree. top_class: share of all queries whose best class, "no object" included, is the same. assignment:
    share of the successive frame pairs in which every object is continued by the same query; NaN of a single frame.
    """

    frames: int
    objects: int
    iou_mean: float
    iou_min: float
    top_class: float
    assignment: float


@dataclass(frozen=True)
class Floors:
    """The least values an agreement must reach, each 0..1."""

    iou_mean: float = 0.995
    iou_min: float = 0.0
    top_class: float = 0.99
    assignment: float = 0.99

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise UsageError(f"floor {field.name} is {getattr(self, field.name)}; expected 0 to 1")

    def missed(self, reached: Agreement) -> list[str]:
        """In words what of `reached` lies below its floor; NaN lies below, but for the assignment of single frames."""
        judged = [field.name for field in fields(self) if field.name != "assignment" or reached.frames > 1]
        return [
            f"{name} {getattr(reached, name):.4f} below {getattr(self, name):.4f}"
            for name in judged
            if not getattr(reached, name) >= getattr(self, name)
        ]


def answers(engines: Mapping[str, Engine], images: Array, valid_sizes: Array) -> list[FrameAnswer]:
    """The answers of `engines` for `images`, uint8 RGB [T, H, W, 3], of `valid_sizes` int32 [T, 2]; one at a time."""
    calls = (outputs_of(engines, images[t : t + 1], valid_sizes[t : t + 1]) for t in range(len(images)))
    return [answer for outputs in calls for answer in answers_of(outputs)]


def answers_of(outputs: Outputs) -> list[FrameAnswer]:
    """The answers of the frames of one call."""
    masks = packed_masks(outputs[shape_role(outputs)])
    return [FrameAnswer(queries, masks[i]) for i, queries in enumerate(queries_of(outputs))]


def queries_of(outputs: Mapping[str, Array]) -> list[Queries]:
    """The queries of each frame of `outputs` [B, Q, ...] by role; of a network of boxes alone without mask
    embeddings."""
    logits, embeddings = (outputs[role].astype(np.float32, copy=False) for role in ("class_logits", "embeddings"))
    none = np.empty((*logits.shape[:2], 0), np.float32)
    masks = outputs.get("mask_embeddings", none).astype(np.float32, copy=False)
    return [Queries(*of_frame) for of_frame in zip(logits, embeddings, masks, strict=True)]


def shape_role(roles: Container[str]) -> str:
    """The role that shows where an object is: its mask, or of a network of boxes alone its box."""
    return "mask_logits" if "mask_logits" in roles else "box_logits"


def packed_masks(logits: Array) -> Bits:
    """Bits of `logits` [..., Q, h, w] > 0, uint8 [..., Q, ceil(h * w / 8)]. NaN is outside."""
    return np.packbits((logits > 0).reshape(*logits.shape[:-2], -1), axis=-1)


def agreement(expected: Sequence[FrameAnswer], given: Sequence[FrameAnswer], score: float = OBJECT_SCORE) -> Agreement:
    """The agreement of `given` with `expected`, frame by frame of one clip; NaN anywhere in it agrees with nothing."""
    if len(expected) != len(given) or not expected:
        raise UsageError(f"{len(given)} frames are compared with {len(expected)}; expected equal numbers, 1 or more")
    objects = _objects(expected, score)
    ious = np.concatenate(
        [_ious(one.masks[at], other.masks[at]) for one, other, at in zip(expected, given, objects, strict=True)]
    )
    same = [
        np.where(_finite(other), one.queries.class_logits.argmax(1) == other.queries.class_logits.argmax(1), False)
        for one, other in zip(expected, given, strict=True)
    ]
    return Agreement(
        frames=len(expected),
        objects=len(ious),
        iou_mean=float(ious.mean()),
        iou_min=float(ious.min()),
        top_class=float(np.concatenate(same).mean()),
        assignment=_assignment(expected, given, objects),
    )


def _objects(expected: Sequence[FrameAnswer], score: float) -> list[NDArray[np.intp]]:
    """The queries of each frame that are compared as objects."""
    sure = [np.flatnonzero(frame.queries.scores() >= score) for frame in expected]
    if any(len(found) for found in sure):
        return sure
    return [np.arange(len(frame.queries)) for frame in expected]


def _ious(one: Bits, other: Bits) -> NDArray[np.float64]:
    """Overlap over union of each pair of rows of packed masks."""
    overlap, union = _count(one & other), _count(one | other)
    return np.where(union > 0, overlap / np.maximum(union, 1), 1.0)


def _count(bits: Bits) -> NDArray[np.int64]:
    return np.asarray(np.unpackbits(bits, axis=-1).sum(axis=-1, dtype=np.int64))


def _finite(answer: FrameAnswer) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(answer.queries.class_logits).all(axis=1))


def _assignment(
    expected: Sequence[FrameAnswer], given: Sequence[FrameAnswer], objects: Sequence[NDArray[np.intp]]
) -> float:
    """Share of successive frame pairs in which the objects of the first are continued by the same queries."""
    if len(expected) < 2:
        return float("nan")
    pairs = zip(_continued(expected), _continued(given), objects[:-1], strict=True)
    kept = [bool((one[at] == other[at]).all()) for one, other, at in pairs]
    return float(np.mean(kept))


def _continued(frames: Sequence[FrameAnswer]) -> list[NDArray[np.intp]]:
    """For each successive pair the query of the second frame that continues each query of the first; -1 for NaN."""
    return [_matched(before.queries.embeddings, after.queries.embeddings) for before, after in pairwise(frames)]


def _matched(before: Floats, after: Floats) -> NDArray[np.intp]:
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return np.full(len(before), -1, dtype=np.intp)
    return assign(1 - cosine_similarity(before, after))
