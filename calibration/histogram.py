"""The magnitudes of one tensor, counted so that any number of frames adds up and no range must be known before.

A float32 without its sign is, read as an integer, its exponent followed by its mantissa. The first bits of that are a
bin: 32 bins an octave, from the smallest subnormal to infinity, each about 3 % wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INT8_MAX", "Magnitudes", "magnitudes_of"]

MANTISSA_BITS = 5
SHIFT = 23 - MANTISSA_BITS
BINS = 255 << MANTISSA_BITS
"""Bins of finite values."""

INT8_MAX = 127
"""Symmetric: -128 is never used."""

OCTAVES_TRIED = 4
STEPS_TRIED = 128

Counts = NDArray[np.int64]
Floats64 = NDArray[np.float64]


@dataclass(frozen=True)
class Magnitudes:
    """counts [BINS]: finite values by magnitude. largest: exact. not_finite: how many were NaN or infinite."""

    counts: Counts
    largest: float
    not_finite: int

    def plus(self, other: Magnitudes) -> Magnitudes:
        return Magnitudes(
            self.counts + other.counts, max(self.largest, other.largest), self.not_finite + other.not_finite
        )

    @property
    def finite(self) -> int:
        return int(self.counts.sum())

    @property
    def count(self) -> int:
        return self.finite + self.not_finite

    def percentile(self, percent: float) -> float:
        """The magnitude below which `percent` of the finite values lie, to a bin's width; 0 of no values."""
        if not self.finite:
            return 0.0
        at = int(np.searchsorted(np.cumsum(self.counts), self.finite * percent / 100))
        return min(self.largest, float(_edges()[min(at, BINS - 1) + 1]))

    def int8_limit(self) -> float:
        """The limit at which to clip, so that int8 (symmetric, 127 steps a side) has the least mean squared error.

        Few values far out cost less clipped than all others rounded on a grid that spans them.
        """
        used = np.flatnonzero(self.counts)
        if self.largest == 0 or not len(used):
            return 0.0
        limits = self.largest * 2.0 ** -np.linspace(0, OCTAVES_TRIED, STEPS_TRIED)
        errors = [_squared_error(_centres()[used], self.counts[used], limit) for limit in limits]
        return float(limits[int(np.argmin(errors))])


def magnitudes_of(values: NDArray[Any]) -> Magnitudes:
    """The magnitudes of `values`, float16 or float32 of any shape."""
    positive = np.abs(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    counts = np.bincount(positive.view(np.uint32) >> SHIFT, minlength=256 << MANTISSA_BITS).astype(np.int64)
    not_finite = int(counts[BINS:].sum())
    largest = positive.max(initial=0.0, where=np.isfinite(positive)) if not_finite else positive.max(initial=0.0)
    return Magnitudes(counts[:BINS], float(largest), not_finite)


def _squared_error(values: Floats64, counts: Counts, limit: float) -> float:
    """Of values rounded to the grid, zeroed below half a step, or clipped."""
    step = limit / INT8_MAX
    errors = np.where(values < step / 2, values**2, step**2 / 12)
    errors = np.where(values > limit, (values - limit) ** 2, errors)
    return float((errors * counts).sum())


@cache
def _edges() -> Floats64:
    """The lower edge of each bin, and the upper of the last, which is infinity."""
    return (np.arange(BINS + 1, dtype=np.uint32) << SHIFT).view(np.float32).astype(np.float64)


@cache
def _centres() -> Floats64:
    edges = _edges()
    centres = (edges[:-1] + edges[1:]) / 2
    centres[0], centres[-1] = 0.0, edges[-2]
    return centres
