"""Claims about intervals over videos."""

from __future__ import annotations

import numpy as np
import pytest

from visrt.benchmarks.experiments.bootstrap import difference_of_rates, mean_difference, rate


def test_a_rate_is_hits_over_trials_and_lies_in_its_interval() -> None:
    found = rate([1, 0, 2, 3], [5, 5, 5, 5])
    assert found.value == pytest.approx(0.3)
    assert found.low < found.value < found.high


def test_videos_in_which_nothing_could_happen_change_nothing() -> None:
    assert rate([1, 0, 0, 2], [5, 0, 4, 5]) == rate([1, 0, 2], [5, 4, 5])


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        trials = rng.integers(5, 20, 60)
        found = rate(rng.binomial(trials, 0.2), trials)
        covered += found.low <= 0.2 <= found.high
    assert 51 <= covered <= 60


def test_rules_are_compared_on_the_same_videos() -> None:
    """Videos differ a lot, the two rules a little: only the pairing shows it."""
    rng = np.random.default_rng(1)
    hard = rng.integers(0, 60, 100)
    trials = np.full(100, 100)
    found = difference_of_rates(hard, trials, hard + 2, trials)
    assert found.value == pytest.approx(-0.02)
    assert found.verdict == "less"
    assert mean_difference(hard, hard + 2).verdict == "less"
    assert mean_difference(hard + 2, hard).verdict == "more"
    apart = rate(hard, trials)
    assert apart.high - apart.low > 0.03


def test_equal_rules_are_not_told_apart() -> None:
    rng = np.random.default_rng(2)
    trials = rng.integers(5, 20, 100)
    found = difference_of_rates(rng.binomial(trials, 0.1), trials, rng.binomial(trials, 0.1), trials)
    assert found.verdict == "undecided"
    assert mean_difference([3, 1, 4], [3, 1, 4]).verdict == "undecided"


def test_nothing_to_count_is_nan_and_one_video_has_no_interval() -> None:
    assert np.isnan(rate([], []).value)
    assert np.isnan(rate([0], [0]).value)
    alone = rate([1], [2])
    assert alone.value == 0.5
    assert np.isnan(alone.low)
    assert alone.verdict == "undecided"
