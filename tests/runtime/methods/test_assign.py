from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from visrt.runtime.errors import NumericalError
from visrt.runtime.methods.assign import (
    NOBODY,
    assign,
    bisoftmax,
    cosine_similarity,
    greedy_pairs,
    hungarian_pairs,
    row_cosines,
)


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


similarities = arrays(
    np.float32,
    st.tuples(st.integers(0, 6), st.integers(1, 5)),
    elements=st.floats(0, 1, width=32, allow_subnormal=False),
)


def greedy_as_released(similarity: NDArray[np.float32], floor: float, ages: NDArray[np.int64]) -> list[int]:
    """The rule of CTVIS's code word by word: columns below the floor compete with the mean age of those above."""
    left = similarity.copy()
    columns = []
    for row in range(len(left)):
        valid = left[row] > floor
        weights = np.where(valid, ages, ages[valid].mean() if valid.any() else 1)
        weighted = left[row] * (weights if valid.sum() > 1 else 1)
        best = int(weighted.argmax())
        columns.append(best if weighted[best] > floor else NOBODY)
        if columns[-1] != NOBODY:
            left[:, best] = 0
    return columns


@given(similarities, st.lists(st.integers(1, 30), min_size=5, max_size=5))
def test_greedy_pairs_by_age_are_those_of_the_released_loop(similarity: NDArray[np.float32], ages: list[int]) -> None:
    weights = np.array(ages[: similarity.shape[1]])

    assert greedy_pairs(similarity, 0.3, weights).tolist() == greedy_as_released(similarity, 0.3, weights)


@given(similarities, st.floats(0, 1))
def test_pairs_are_above_the_floor_and_nobody_has_two_partners(similarity: NDArray[np.float32], floor: float) -> None:
    for columns in (
        hungarian_pairs(similarity, floor),
        greedy_pairs(similarity, floor, np.ones(similarity.shape[1])),
    ):
        rows = np.flatnonzero(columns != NOBODY)
        assert (similarity[rows, columns[rows]] > np.float32(floor) - 1e-6).all()
        assert len(set(columns[rows])) == len(rows)
        left = np.delete(np.delete(similarity, rows, axis=0), columns[rows], axis=1)
        assert (left <= np.float32(floor) + 1e-6).all(), "a pair that was allowed was left apart"


def test_hungarian_pairs_gain_the_most_in_all_and_greedy_ones_the_first_row_first() -> None:
    similarity = np.array([[0.9, 0.8], [0.85, 0.1]], dtype=np.float32)

    assert hungarian_pairs(similarity, 0.2).tolist() == [1, 0]
    assert greedy_pairs(similarity, 0.2, np.ones(2)).tolist() == [0, NOBODY]


def test_pairs_that_are_not_allowed_pull_nobody_away() -> None:
    similarity = np.array([[0.9, 0.59], [0.59, 0.1]], dtype=np.float32)

    assert hungarian_pairs(similarity, 0.6).tolist() == [0, NOBODY]


def test_bisoftmax_is_the_mean_of_both_softmaxes_of_raw_products() -> None:
    a, b = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    powers = np.exp(a @ b.T)
    expected = (powers / powers.sum(axis=1, keepdims=True) + powers / powers.sum(axis=0, keepdims=True)) / 2

    np.testing.assert_allclose(bisoftmax(a, b), expected)
    assert (bisoftmax(a[:1], b) >= 0.5).all()
    assert (bisoftmax(a, b[:1]) >= 0.5).all()
    with pytest.raises(NumericalError):
        bisoftmax(np.full((1, 2), 1e200), np.full((1, 2), 1e200))
