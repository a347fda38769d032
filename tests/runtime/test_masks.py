from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, box_of_region, checked_rle, decode, encode_region

masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def coco(mask: NDArray[np.bool_]) -> Rle:
    """What pycocotools makes of the whole mask."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


@given(masks)
def test_encoding_gives_the_bytes_of_pycocotools(mask: NDArray[np.bool_]) -> None:
    assert encode_region(mask.T, (0, 0), mask.shape) == coco(mask)


@given(masks, st.tuples(*[st.integers(0, 5)] * 4))
def test_encoding_a_region_gives_the_bytes_of_the_whole(
    mask: NDArray[np.bool_], margins: tuple[int, int, int, int]
) -> None:
    top, bottom, left, right = margins
    whole = np.pad(mask, ((top, bottom), (left, right)))

    assert encode_region(mask.T, (top, left), whole.shape) == coco(whole)


def test_encoding_a_large_smooth_mask_gives_the_bytes_of_pycocotools() -> None:
    y, x = np.ogrid[:720, :1280]
    mask = (y - 400) ** 2 + (x - 640) ** 2 + 40 * x % 977 < 300**2

    assert encode_region(mask.T, (0, 0), mask.shape) == coco(mask)


@given(masks)
def test_decoding_is_the_inverse_of_encoding(mask: NDArray[np.bool_]) -> None:
    rle = coco(mask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools with numpy 2
        theirs = coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode()}).astype(bool)

    assert np.array_equal(decode(rle), mask)
    assert np.array_equal(theirs, mask)


@given(masks)
def test_the_box_is_tight_and_there_is_none_around_nothing(mask: NDArray[np.bool_]) -> None:
    box = box_of_region(mask.T, (3, 5))

    if box is None:
        assert not mask.any()
    else:
        x, y, width, height = box[0] - 5, box[1] - 3, box[2], box[3]
        inside = mask[y : y + height, x : x + width]
        assert inside.sum() == mask.sum()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


@given(masks)
def test_a_sound_foreign_rle_passes_as_text_and_as_counts(mask: NDArray[np.bool_]) -> None:
    rle = coco(mask)
    flat = mask.T.reshape(-1)
    counts = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    counts = [0, *counts] if flat[0] else counts

    assert checked_rle(dict(rle), "a", mask.shape) == rle
    assert checked_rle({"size": rle["size"], "counts": counts}, "a") == rle


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "expected an RLE"),
        ({"size": [2, 2]}, "expected an RLE"),
        ({"size": [2, -2], "counts": [4]}, r"size: expected \[height, width\]"),
        ({"size": [2, True], "counts": [4]}, r"size: expected \[height, width\]"),
        ({"size": [2**20, 2**20], "counts": [2**40]}, "beyond the limit"),
        ({"size": [3, 3], "counts": [9]}, "mask of 3 x 3; expected 2 x 2"),
        ({"size": [2, 2], "counts": [5]}, "cover 5 pixels; expected 2 x 2"),
        ({"size": [2, 2], "counts": [5, -1]}, "zero or more"),
        ({"size": [2, 2], "counts": [2.0, 2.0]}, "zero or more"),
        ({"size": [2, 2], "counts": 4}, "expected text"),
        ({"size": [2, 2], "counts": "4\x7f"}, "not of an RLE"),
        ({"size": [2, 2], "counts": "é"}, "ascii"),
        ({"size": [2, 2], "counts": "S"}, "cut short"),
        ({"size": [2, 2], "counts": "PPPPPPPPP4"}, "not of an RLE"),
        ({"size": [2, 2], "counts": ""}, "cover 0 pixels"),
    ],
)
def test_a_broken_foreign_rle_is_refused_by_its_path(value: object, told: str) -> None:
    with pytest.raises(DataError, match=rf"^annotations\[3\].*{told}"):
        checked_rle(value, "annotations[3]", (2, 2))


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=20))
def test_any_text_is_either_refused_or_safe_to_decode(counts: str) -> None:
    try:
        rle = checked_rle({"size": [4, 5], "counts": counts}, "here")
    except DataError:
        return
    assert decode(rle).shape == (4, 5)
