"""Errors of engines against the reference, tensor by tensor and query by query, and how large they may be.

Masked attention is discontinuous where a mask logit is 0. There the last bit of a float can open or close a pixel to a
query and move that query visibly, in torch itself as much as in another engine, while its neighbours move by next to
nothing. So the mask features, which come before, must agree everywhere, while of the queries a few may not: two in a
hundred, or twice as many as torch itself moved under noise when that is more, as on untrained networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Array
from visrt.runtime.parity.reference import ROLES, Reference

__all__ = [
    "REPORTED",
    "TOLERANCE",
    "TOLERANCES",
    "Errors",
    "TensorParity",
    "errors_of_items",
    "is_by_query",
    "kind_of",
    "scale_of",
    "tensor_parity",
    "worst_of",
]

TOLERANCE = 2e-4
TOLERANCES = {**dict.fromkeys(ROLES, TOLERANCE), "mask_logits": 1e-3}
"""Largest error of a float32 engine, relative to the larger of 1 and the largest expected value of the tensor; of roles
that are not listed, TOLERANCE."""

REPORTED = float("inf")
"""The tolerance of a tensor whose errors are reported and never a failure; NaN and infinity fail all the same."""

BEYOND_SHARE = 0.02
"""Queries that may lie beyond the tolerance, of all queries of all frames, rounded down."""

BEYOND_SHARE_MAX = 0.1
"""The same where torch itself is unsteady."""

Errors = NDArray[np.float64]


@dataclass(frozen=True)
class TensorParity:
    """One output of one graph against what was expected, over all frames.

    batch: frames a call of the frame graph. max_abs: largest absolute error. max_rel: the same over the larger of 1
    and the largest expected value. items: what was compared, queries or frames of mask features. beyond: how many of
    them lie beyond `tolerance`, and `allowed` how many may.
    """

    graph: str
    role: str
    batch: int
    max_abs: float
    max_rel: float
    tolerance: float
    items: int
    beyond: int
    allowed: int

    @property
    def passed(self) -> bool:
        """NaN, infinity and another shape never pass."""
        return bool(np.isfinite(self.max_abs)) and self.beyond <= self.allowed


def tensor_parity(
    graph: str, role: str, batch: int, errors: Errors, reference: Reference, tolerance: float
) -> TensorParity:
    """The row of `role` of `graph`, whose items are off by `errors`."""
    relative = errors / scale_of(reference.expected[role])
    return TensorParity(
        graph=graph,
        role=role,
        batch=batch,
        max_abs=float(errors.max()),
        max_rel=float(relative.max()),
        tolerance=tolerance,
        items=len(errors),
        beyond=int((relative > tolerance).sum()),
        allowed=int(_beyond_share(reference) * len(errors)) if is_by_query(role) else 0,
    )


def is_by_query(role: str) -> bool:
    """Whether the second axis of a role is the queries: so are all but maps of the whole frame."""
    return kind_of(role) != "mask_features"


def errors_of_items(role: str, given: Array, expected: Array) -> Errors:
    """The largest absolute error of each item: of each query, or frame of mask features. NaN counts as infinite.

    `given` and `expected` [T, ...]; where the shapes differ, every item is infinitely wrong.
    """
    axes = 2 if is_by_query(role) else 1
    if given.shape != expected.shape:
        return np.full(int(np.prod(expected.shape[:axes])), np.inf)
    errors = np.abs(given.astype(np.float64) - expected).reshape(*expected.shape[:axes], -1).max(axis=-1).ravel()
    return np.where(np.isfinite(errors), errors, np.inf)


def kind_of(role: str) -> str:
    """The kind of a role, without the suffix for clip length or frame: "class_logits" of "class_logits@3"."""
    return role.partition("@")[0]


def scale_of(expected: Array) -> float:
    """The scale to which errors are relative."""
    return max(1.0, float(np.abs(expected).max()))


def worst_of(rows: Sequence[TensorParity]) -> TensorParity:
    """The row that is furthest beyond its tolerance; of rows that are only reported, the one with the largest error."""
    return max(rows, key=lambda row: (not row.passed, _excess(row), row.max_rel))


def _excess(row: TensorParity) -> float:
    return row.max_rel if not np.isfinite(row.max_rel) else row.max_rel / row.tolerance


def _beyond_share(reference: Reference) -> float:
    return min(max(BEYOND_SHARE, 2 * reference.moved_share), BEYOND_SHARE_MAX)
