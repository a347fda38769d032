"""What the session and a family say to each other: queries of a frame in, tracks of a frame out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.contract import GraphNeed

__all__ = ["Family", "Floats", "MasksOf", "Queries", "Track", "softmax"]

Floats = NDArray[np.float32]

MasksOf = Callable[[Floats], Floats]
"""Mask logits [M, h, w] of mask embeddings [M, D], at stride 4 and only where the frame is, not its padding.

Each call is one of the masks engine."""


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


@dataclass(frozen=True)
class Queries:
    """The queries of one frame: class_logits [Q, K + 1], embeddings [Q, C], mask_embeddings [Q, D], float32."""

    class_logits: Floats
    embeddings: Floats
    mask_embeddings: Floats

    def __len__(self) -> int:
        return len(self.class_logits)

    def scores(self) -> Floats:
        """The probability [Q] of each query's best class."""
        best = self.class_logits[:, :-1].max(axis=1)
        top = np.maximum(best, self.class_logits[:, -1])
        chances: Floats = np.exp(best - top) / np.exp(self.class_logits - top[:, None]).sum(axis=1)
        return chances

    def take(self, order: NDArray[np.intp]) -> Queries:
        return Queries(self.class_logits[order], self.embeddings[order], self.mask_embeddings[order])

    def in_canonical_order(self) -> Queries:
        return self.take(self.canonical_order(self.scores()))

    def canonical_order(self, scores: Floats) -> NDArray[np.intp]:
        """By `scores` [Q], best first, equal ones by all that is in them: whatever follows cannot see how they came."""
        order: NDArray[np.intp] = np.argsort(-scores, kind="stable")
        sorted_scores = scores[order]
        if (sorted_scores[1:] == sorted_scores[:-1]).any():
            content = np.concatenate([self.class_logits, self.embeddings, self.mask_embeddings], axis=1)
            order = np.array(sorted(order, key=lambda q: (-scores[q], content[q].tobytes())), dtype=np.intp)
        return order

    def usable(self) -> NDArray[np.bool_]:
        """Which rows [Q] say who they are: all numbers finite, the embedding not zero."""
        rows: NDArray[np.bool_] = np.any(self.embeddings != 0, axis=1)
        for array in (self.class_logits, self.embeddings, self.mask_embeddings):
            finite = np.isfinite(array)
            if not finite.all():
                rows = rows & finite.all(axis=1)
        return rows


class Track(NamedTuple):
    """One visible object of one frame: mask_logits [h, w] at stride 4."""

    id: int
    label: int
    score: float
    mask_logits: Floats


S = TypeVar("S")


class Family(Protocol[S]):
    """What one family of models does between engine calls. Its state is a value, renewed by each frame."""

    @property
    def settings(self) -> Any:
        """Its association settings, a frozen dataclass."""
        ...

    def needs(self) -> Mapping[str, GraphNeed]:
        """The graphs it calls and their tensors."""
        ...

    def start(self) -> S:
        """The state before the first frame."""
        ...

    def restart(self, state: S) -> S:
        """A state without objects whose ids go on after those of `state`."""
        ...

    def associate(self, queries: Queries, masks_of: MasksOf, now_s: float, state: S) -> tuple[list[Track], S]:
        """The objects visible in a frame at `now_s` seconds, by id, and the state after it."""
        ...
