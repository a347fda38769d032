from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from visrt.runtime.methods.mask_bits import areas, counts_by_table, packed, shared_areas, unpacked
from visrt.runtime.methods.nms import FEW, iou, mask_iou, nms, smoothed_iou

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
    kept = nms(packed(masks), limit, iou)
    ratio = mask_iou(masks)

    if limit < 1:
        assert all(ratio[i, j] <= limit for i in kept for j in kept if i != j)
    for gone in set(range(len(masks))) - set(kept):
        assert any(ratio[gone, better] > limit for better in kept if better < gone)


def test_a_limit_of_one_is_off() -> None:
    assert nms(packed(np.ones((3, 2, 2), dtype=bool)), 1.0, iou) == [0, 1, 2]


def test_few_masks_are_judged_as_many_are() -> None:
    """Those that come after few enough are empty and put nothing out."""
    random = np.random.default_rng(0)
    for ratio in (iou, smoothed_iou):
        for limit in random.random(40):
            masks = random.random((FEW, 6, 7)) < random.random((FEW, 1, 1)) + 0.02
            masks[:, 0, 0] = True
            many = np.concatenate([masks, np.zeros((1, 6, 7), dtype=bool)])
            assert nms(packed(masks), limit, ratio) == [at for at in nms(packed(many), limit, ratio) if at < FEW]


def test_two_empty_masks_are_apart_but_for_the_released_rule_where_the_first_stays() -> None:
    masks = np.zeros((3, 4, 5), dtype=bool)
    masks[1, 0, 0] = True

    assert nms(packed(masks), 0.5, iou) == [0, 1, 2]
    assert nms(packed(masks), 0.5, smoothed_iou) == [0, 1]


@given(some_masks)
def test_packing_loses_nothing_and_bits_are_counted_alike_by_table(masks: NDArray[np.bool_]) -> None:
    bits = packed(masks)

    assert np.array_equal(unpacked(bits, (3, 4)), masks)
    assert np.array_equal(areas(bits), masks.sum(axis=(1, 2)))
    assert np.array_equal(counts_by_table(bits).sum(axis=1), masks.sum(axis=(1, 2)))
    assert np.array_equal(shared_areas(bits, bits), (masks[:, None] & masks[None]).sum(axis=(2, 3)))
