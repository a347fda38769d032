"""How sure a figure over videos is: the videos are drawn anew, with replacement, thousands of times.

Frames of one video hang together, videos do not; so whole videos are drawn. Two rules that ran on the same videos are
compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

__all__ = ["Interval", "difference_of_rates", "mean_difference", "rate"]

CONFIDENCE = 0.95
RESAMPLES = 4000
SEED = 0

Numbers = NDArray[np.float64]
Counts = Sequence[int] | NDArray[np.integer]


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with 95 % confidence. NaN throughout where there was nothing to count."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Of a difference: on which side of zero it is for sure."""
        if self.high < 0:
            return "less"
        return "more" if self.low > 0 else "undecided"


def rate(hits: Counts, trials: Counts) -> Interval:
    """Hits a trial over videos, each with its number of `hits` and `trials`."""
    return _interval(_rate, _with_trials([hits, trials], trials))


def difference_of_rates(hits: Counts, trials: Counts, other_hits: Counts, other_trials: Counts) -> Interval:
    """The rate of one rule less the rate of the other, both over the same videos."""
    both = np.asarray(trials) + np.asarray(other_trials)
    return _interval(_difference, _with_trials([hits, trials, other_hits, other_trials], both))


def mean_difference(counts: Counts, other: Counts) -> Interval:
    """The mean over videos of one rule's count less the other's."""
    differences = np.asarray(counts, float) - np.asarray(other, float)
    return _interval(_mean, [differences])


def _with_trials(columns: Sequence[Counts], trials: Any) -> list[Numbers]:
    """The videos in which anything could happen: the others change no rate."""
    rows = np.asarray(trials) > 0
    return [np.asarray(column, float)[rows] for column in columns]


def _mean(values: Numbers, axis: int = -1) -> Any:
    return values.mean(axis=axis)


def _rate(hits: Numbers, trials: Numbers, axis: int = -1) -> Any:
    total = np.asarray(trials.sum(axis=axis))
    return np.divide(hits.sum(axis=axis), total, out=np.full(total.shape, np.nan), where=total > 0)


def _difference(hits: Numbers, trials: Numbers, other_hits: Numbers, other_trials: Numbers, axis: int = -1) -> Any:
    return _rate(hits, trials, axis) - _rate(other_hits, other_trials, axis)


def _interval(statistic: Any, columns: Sequence[Numbers]) -> Interval:
    """The percentile interval; one video alone says nothing of how videos differ, so its interval is NaN."""
    videos = len(columns[0])
    value = float(statistic(*columns)) if videos else float("nan")
    if videos < 2 or np.isnan(value):
        return Interval(value, float("nan"), float("nan"))
    found = bootstrap(
        columns,
        statistic,
        n_resamples=RESAMPLES,
        batch=max(1, 2_000_000 // videos),
        vectorized=True,
        paired=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(SEED),
    )
    return Interval(value, float(found.confidence_interval.low), float(found.confidence_interval.high))
