from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from visrt.runtime.image import letterbox
from visrt.runtime.mask_resize import bilinear, mask_resize
from visrt.runtime.masks import decode

Floats = NDArray[np.float64]
sizes = st.tuples(st.integers(1, 90), st.integers(1, 90))


def two_steps(logits: Floats, source: tuple[int, int], valid: tuple[int, int], network: tuple[int, int]) -> Floats:
    """The official way in full: to the network input, crop, to the source."""
    padded = bilinear(logits.shape[0], network[0]) @ logits @ bilinear(logits.shape[1], network[1]).T
    cropped = padded[: valid[0], : valid[1]]
    resized: Floats = bilinear(valid[0], source[0]) @ cropped @ bilinear(valid[1], source[1]).T
    return resized


def test_bilinear_is_that_of_torch_interpolate() -> None:
    torch = pytest.importorskip("torch")
    for size, new_size in ((3, 12), (17, 5), (5, 5), (1, 7), (9, 1)):
        line = np.random.default_rng(size).normal(size=size)
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(line)[None, None, :, None], (new_size, 1), mode="bilinear", align_corners=False
        )
        np.testing.assert_allclose(bilinear(size, new_size) @ line, theirs.flatten().numpy(), atol=1e-6)


@given(sizes, st.integers(0, 2**32 - 1))
def test_inside_the_box_it_is_the_official_two_steps(source: tuple[int, int], seed: int) -> None:
    fit = letterbox(source, (32, 48))
    logits = np.random.default_rng(seed).normal(-0.5, 1, size=(8, 12)).astype(np.float32)
    resize = mask_resize(fit)

    made = resize.source_mask(resize.crop(logits[None])[0])

    exact = two_steps(logits.astype(np.float64), fit.source, fit.valid, fit.network)
    mask = np.zeros(source, dtype=bool) if made is None else decode(made.rle)
    assert (made is None) == (not mask.any())
    sure = np.abs(exact) > 1e-4
    assert np.array_equal(mask[sure], (exact > 0)[sure])


def test_what_lies_in_the_padding_is_no_mask() -> None:
    resize = mask_resize(letterbox((32, 16), (32, 48)))
    logits = np.full((1, 8, 12), -9, dtype=np.float32)
    logits[:, :, 6:] = 9

    assert resize.source_mask(resize.crop(logits)[0]) is None


def test_the_box_is_that_of_the_mask() -> None:
    logits = np.full((1, 16, 16), -1, dtype=np.float32)
    logits[:, 4:8, 2:5] = 1
    resize = mask_resize(letterbox((64, 64), (64, 64)))

    made = resize.source_mask(resize.crop(logits)[0])

    assert made is not None
    x, y, width, height = made.box
    mask = decode(made.rle)
    assert mask[y : y + height, x : x + width].sum() == mask.sum() > 0
    assert (x, y, width, height) == (8, 16, 12, 16)
