"""The queries of one frame: what per-frame networks of the Mask2Former kind give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Floats

__all__ = ["Queries"]


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
        probabilities: Floats = np.exp(best - top) / np.exp(self.class_logits - top[:, None]).sum(axis=1)
        return probabilities

    def take(self, order: NDArray[np.intp]) -> Queries:
        return Queries(self.class_logits[order], self.embeddings[order], self.mask_embeddings[order])

    def in_canonical_order(self) -> Queries:
        return self.take(self.canonical_order(self.scores()))

    def canonical_order(self, scores: Floats) -> NDArray[np.intp]:
        """By `scores` [Q], best first, ties by content: results never depend on the order in which queries came."""
        order: NDArray[np.intp] = np.argsort(-scores, kind="stable")
        sorted_scores = scores[order]
        if (sorted_scores[1:] == sorted_scores[:-1]).any():
            content = np.concatenate([self.class_logits, self.embeddings, self.mask_embeddings], axis=1)
            order = np.array(sorted(order, key=lambda q: (-scores[q], content[q].tobytes())), dtype=np.intp)
        return order

    def usable(self) -> NDArray[np.bool_]:
        """Rows [Q] that can be matched: all numbers finite, the embedding not zero."""
        rows: NDArray[np.bool_] = np.any(self.embeddings != 0, axis=1)
        for array in (self.class_logits, self.embeddings, self.mask_embeddings):
            finite = np.isfinite(array)
            if not finite.all():
                rows = rows & finite.all(axis=1)
        return rows
