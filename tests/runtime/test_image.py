from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrt.runtime.image import RESIZERS, letterbox, network_input

sides = st.integers(1, 5000)


@given(st.tuples(sides, sides), st.tuples(st.integers(4, 900), st.integers(4, 900)))
def test_any_frame_fits_into_any_network_and_fills_one_side(source: tuple[int, int], network: tuple[int, int]) -> None:
    valid = letterbox(source, network).valid

    assert 1 <= valid[0] <= network[0]
    assert 1 <= valid[1] <= network[1]
    assert valid[0] == network[0] or valid[1] == network[1]


@pytest.mark.parametrize(
    ("source", "valid"),
    [
        ((360, 640), (180, 320)),
        ((90, 160), (180, 320)),
        ((639, 359), (192, 108)),
        ((1, 1), (192, 192)),
        ((1, 5000), (1, 320)),
    ],
)
def test_the_aspect_is_kept_small_frames_are_enlarged(source: tuple[int, int], valid: tuple[int, int]) -> None:
    assert letterbox(source, (192, 320)).valid == valid


@pytest.mark.parametrize("name", sorted(RESIZERS))
@pytest.mark.parametrize("source", [(90, 40), (17, 31), (64, 96), (1, 1)])
def test_the_frame_lies_at_the_top_left_and_the_rest_is_zero(name: str, source: tuple[int, int]) -> None:
    fit = letterbox(source, (64, 96))
    image = np.full((64, 96, 3), 77, dtype=np.uint8)

    network_input(np.full((*source, 3), 200, dtype=np.uint8), fit, RESIZERS[name], out=image)

    assert (image[: fit.valid[0], : fit.valid[1]] == 200).all()
    assert image.sum() == 200 * 3 * fit.valid[0] * fit.valid[1]


def test_the_fast_resize_stays_close_to_the_exact_one() -> None:
    y, x = np.mgrid[:360, :640]
    frame = np.stack([(y * 3 + x) % 256 // 8 * 8, (x * 5) % 256, (y * y // 90 + x) % 256], axis=2).astype(np.uint8)

    exact, fast = (RESIZERS[name](frame, (180, 320)).astype(int) for name in ("pillow_bilinear", "cv2_area"))

    assert np.abs(exact - fast).mean() < 8


def test_frames_of_one_aspect_look_alike_to_the_network_and_others_do_not() -> None:
    assert letterbox((360, 640), (192, 320)).like(letterbox((719, 1280), (192, 320)))
    assert not letterbox((360, 640), (192, 320)).like(letterbox((640, 360), (192, 320)))


def test_a_box_of_the_input_lies_on_the_same_object_of_the_frame() -> None:
    """A frame of 180 x 320 pixels at half its size, with padding below."""
    fit = letterbox((180, 320), (96, 160))
    assert fit.source_box(np.array([10, 20, 40, 60], np.float32)) == (20, 40, 60, 80)
    assert fit.source_box(np.array([-5, 80, 400, 95], np.float32)) == (0, 160, 320, 20)


@pytest.mark.parametrize("corners", [(10, 91, 40, 96), (-9, 0, -1, 20), (30, 20, 30.1, 40), (40, 20, 10, 60)])
def test_of_a_box_in_the_padding_outside_or_without_area_nothing_is_left(corners: tuple[float, ...]) -> None:
    assert letterbox((180, 320), (96, 160)).source_box(np.array(corners, np.float32)) is None


@given(st.lists(st.floats(-50, 250, width=32), min_size=4, max_size=4), st.tuples(sides, sides))
def test_what_is_left_of_a_box_lies_inside_the_frame(corners: list[float], source: tuple[int, int]) -> None:
    box = letterbox(source, (96, 160)).source_box(np.array(corners, np.float32))
    if box is not None:
        x, y, width, height = box
        assert 0 <= x < x + width <= source[1]
        assert 0 <= y < y + height <= source[0]
