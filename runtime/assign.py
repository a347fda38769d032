"""Which row belongs to which: cosine similarity and the assignment of least cost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from visrt.runtime.errors import NumericalError

__all__ = ["assign", "cosine_similarity", "row_cosines"]

Floats = NDArray[np.floating]


def cosine_similarity(a: Floats, b: Floats) -> Floats:
    """Similarity [T, Q] of rows a [T, C] and b [Q, C], -1..1; zero rows score zero."""
    similarity: Floats = _unit_rows(a) @ _unit_rows(b).T
    return similarity


def row_cosines(a: Floats, b: Floats) -> Floats:
    """Similarity [N] of each row of a [N, C] with the same row of b [N, C]; zero rows score zero."""
    similarity: Floats = np.einsum("nc,nc->n", _unit_rows(a), _unit_rows(b))
    return similarity


def assign(cost: Floats) -> NDArray[np.intp]:
    """For each row of a square `cost` [T, T] its column, so that the sum of the chosen costs is least."""
    if cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost is {cost.shape}, expected a square")
    if not np.isfinite(cost).all():
        raise NumericalError("the cost of an assignment holds NaN or infinity; check the embeddings of the network")
    columns: NDArray[np.intp] = linear_sum_assignment(cost)[1]
    return columns


def _unit_rows(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)
