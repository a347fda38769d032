from __future__ import annotations

import numpy as np
import pytest

from visrt.runtime.assign import assign, cosine_similarity, row_cosines
from visrt.runtime.errors import NumericalError


def test_similarity_is_the_cosine_whatever_the_lengths() -> None:
    similarity = cosine_similarity(np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([[0.5, 0.0], [0.0, 9.0]]))

    np.testing.assert_allclose(similarity, [[1, 0], [0.5**0.5, 0.5**0.5]])


def test_zero_rows_score_zero_and_never_nan() -> None:
    assert np.array_equal(cosine_similarity(np.zeros((2, 3)), np.ones((2, 3))), np.zeros((2, 2)))
    assert np.array_equal(row_cosines(np.zeros((2, 3)), np.ones((2, 3))), np.zeros(2))


def test_row_cosines_are_the_diagonal_of_the_similarity() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5, 4))

    np.testing.assert_allclose(row_cosines(a, b), np.diagonal(cosine_similarity(a, b)))


def test_the_sum_of_costs_is_least_and_not_each_row_by_itself() -> None:
    assert list(assign(np.array([[1.0, 2.0], [1.0, 9.0]]))) == [1, 0]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_reach_the_solver(poison: float) -> None:
    with pytest.raises(NumericalError, match="NaN or infinity"):
        assign(np.array([[1.0, poison], [1.0, 1.0]]))
