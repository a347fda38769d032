"""Matching of rows: similarity of embeddings, and the assignments the published trackers use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from visrt.runtime.errors import NumericalError

__all__ = [
    "NOBODY",
    "assign",
    "bisoftmax",
    "cosine_similarity",
    "greedy_pairs",
    "hungarian_pairs",
    "nonzero_rows",
    "row_cosines",
    "unit_rows",
]

Floats = NDArray[np.floating]
Indices = NDArray[np.intp]

NOBODY = -1
"""The partner of a row that has none."""


def cosine_similarity(a: Floats, b: Floats) -> Floats:
    """Similarity [T, Q] of rows a [T, C] and b [Q, C], -1..1; zero rows score zero."""
    similarity: Floats = unit_rows(a) @ unit_rows(b).T
    return similarity


def row_cosines(a: Floats, b: Floats) -> Floats:
    """Similarity [N] of each row of a [N, C] with the same row of b [N, C]; zero rows score zero."""
    similarity: Floats = np.einsum("nc,nc->n", unit_rows(a), unit_rows(b))
    return similarity


def bisoftmax(a: Floats, b: Floats) -> Floats:
    """Similarity [n, N] of rows a [n, C] and b [N, C], 0..1 (CTVIS, equation 3; as its code has it).

    The mean of the chance of each b among all for a row of a, and of each a among all for a row of b. It is relative:
    one row alone on its side is at least 0.5 like every row of the other.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        products = _finite(a @ b.T)
    similarity: Floats = (_softmax(products, 1) + _softmax(products, 0)) / 2
    return similarity


def assign(cost: Floats) -> Indices:
    """For each row of a square `cost` [T, T] its column, so that the sum of the chosen costs is least."""
    if cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost is {cost.shape}, expected a square")
    columns: Indices = linear_sum_assignment(_finite(cost))[1]
    return columns


def hungarian_pairs(similarity: Floats, floor: float) -> Indices:
    """For each row of `similarity` [n, N] its column [n], or NOBODY: the most similarity above `floor` in all.

    A pair counts by how far it is above the floor, so pairs that are not allowed pull nobody away.
    """
    gain = np.maximum(_finite(similarity) - floor, 0)
    columns = np.full(len(similarity), NOBODY, dtype=np.intp)
    rows, chosen = linear_sum_assignment(gain, maximize=True)
    columns[rows] = np.where(gain[rows, chosen] > 0, chosen, NOBODY)
    return columns


def greedy_pairs(similarity: Floats, floor: float, weights: NDArray[np.floating | np.integer]) -> Indices:
    """The column [n] of each row of `similarity` [n, N], or NOBODY: row by row, the best column that is left.

    Only pairs above `floor` are allowed. Among several, the one with the largest similarity times `weights` [N] wins.
    This equals CTVIS's released code, which lets columns below the floor compete too, with the mean weight of the
    allowed ones: they can never win, as the heaviest allowed column is above the floor and weighs at least the mean.
    """
    columns = np.full(len(similarity), NOBODY, dtype=np.intp)
    rows, allowed = np.nonzero(_finite(similarity) > floor)
    if len(set(rows.tolist())) == len(set(allowed.tolist())) == len(rows):  # no contest, as in most frames
        columns[rows] = allowed
        return columns
    best_first = np.lexsort((allowed, -similarity[rows, allowed] * weights[allowed], rows))
    partners: dict[int, int] = {}
    taken: set[int] = set()
    for row, column in zip(rows[best_first].tolist(), allowed[best_first].tolist(), strict=True):
        if row not in partners and column not in taken:
            partners[row] = column
            taken.add(column)
    columns[list(partners)] = list(partners.values())
    return columns


def unit_rows(rows: Floats) -> Floats:
    """`rows` [N, C] at length one; zero rows stay zero."""
    norms = np.sqrt(np.einsum("nc,nc->n", rows, rows))[:, None]
    return rows / np.where(norms > 0, norms, 1)


def nonzero_rows(rows: Floats) -> NDArray[np.bool_]:
    """Which of `rows` [N, C] have a direction at all: in [N], false for rows of zeros."""
    found: NDArray[np.bool_] = np.any(rows != 0, axis=1)
    return found


def _softmax(values: Floats, axis: int) -> Floats:
    powers = np.exp(values - values.max(axis=axis, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=axis, keepdims=True)
    return probabilities


def _finite(values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise NumericalError("the cost of an assignment holds NaN or infinity; check the embeddings of the network")
    return values
