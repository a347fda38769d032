"""Magnitudes are counted in bins of a float's own bits, and say where INT8 should clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from visrt.calibration.histogram import INT8_MAX, magnitudes_of

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(floats, min_size=1, max_size=30), st.lists(floats, min_size=1, max_size=30))
def test_magnitudes_of_two_frames_add_up_to_those_of_both(one: list[float], other: list[float]) -> None:
    a, b = np.array(one, np.float32), np.array(other, np.float32)
    together, added = magnitudes_of(np.concatenate([a, b])), magnitudes_of(a).plus(magnitudes_of(b))
    assert (together.counts == added.counts).all()
    assert together.largest == added.largest == np.abs(np.concatenate([a, b])).max()


def test_nan_and_infinity_are_counted_apart() -> None:
    found = magnitudes_of(np.array([1, -3, np.nan, np.inf, -np.inf], np.float32))
    assert found.not_finite == 3
    assert found.finite == 2
    assert found.largest == 3


def test_half_precision_is_counted_by_its_value() -> None:
    values = np.array([0.1, -60000, 0], np.float16)
    assert (magnitudes_of(values).counts == magnitudes_of(values.astype(np.float32)).counts).all()


@pytest.mark.parametrize("percent", [50, 90, 99])
def test_percentiles_are_right_to_the_width_of_a_bin(percent: float) -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    exact = float(np.percentile(np.abs(values), percent))
    assert magnitudes_of(values).percentile(percent) == pytest.approx(exact, rel=0.05)


class TestInt8Limit:
    def test_nothing_is_clipped_of_values_spread_evenly(self) -> None:
        assert magnitudes_of(np.linspace(-6, 6, 10_001, dtype=np.float32)).int8_limit() == pytest.approx(6, rel=0.03)

    def test_one_value_far_out_is_clipped_for_the_sake_of_all_others(self) -> None:
        values = np.append(np.random.default_rng(0).normal(size=100_000), 30).astype(np.float32)
        limit = magnitudes_of(values).int8_limit()
        assert limit < 25
        assert error(values, limit) < 0.7 * error(values, 30)

    def test_no_other_limit_has_a_clearly_smaller_error(self) -> None:
        values = np.random.default_rng(1).laplace(size=50_000).astype(np.float32)
        best = min(error(values, limit) for limit in np.linspace(1, np.abs(values).max(), 200))
        assert error(values, magnitudes_of(values).int8_limit()) <= 1.05 * best

    def test_zeros_have_no_limit(self) -> None:
        assert magnitudes_of(np.zeros(4, np.float32)).int8_limit() == 0


def error(values: NDArray[np.float32], limit: float) -> float:
    """The squared error of INT8 itself."""
    step = limit / INT8_MAX
    return float((((np.clip(np.rint(values / step), -INT8_MAX, INT8_MAX) * step) - values) ** 2).sum())
