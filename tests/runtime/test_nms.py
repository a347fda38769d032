from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from visrt.runtime.nms import mask_iou, mask_nms

some_masks = arrays(bool, st.tuples(st.integers(0, 7), st.just(3), st.just(4)))


@given(some_masks)
def test_iou_is_shared_over_covered_pixels(masks: NDArray[np.bool_]) -> None:
    iou = mask_iou(masks)

    for i, a in enumerate(masks):
        for j, b in enumerate(masks):
            covered = (a | b).sum()
            assert np.isclose(iou[i, j], (a & b).sum() / covered if covered else 0)


@given(some_masks, st.floats(0, 1))
def test_what_stays_never_covers_another_too_far_and_what_goes_is_covered_by_a_better(
    masks: NDArray[np.bool_], limit: float
) -> None:
    kept = mask_nms(masks, limit)
    iou = mask_iou(masks)

    if limit < 1:
        assert all(iou[i, j] <= limit for i in kept for j in kept if i != j)
    for gone in set(range(len(masks))) - set(kept):
        assert any(iou[gone, better] > limit for better in kept if better < gone)


def test_a_limit_of_one_is_off() -> None:
    assert mask_nms(np.ones((3, 2, 2), dtype=bool), 1.0) == [0, 1, 2]
