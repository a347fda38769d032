from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.image import RESIZERS, best_size, fit_in, letterbox, network_input, published_size

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


@pytest.mark.parametrize(
    ("source", "size"),
    [
        ((720, 1280), (360, 640)),
        ((1280, 720), (640, 360)),
        ((960, 1280), (360, 480)),
        ((480, 853), (360, 640)),
        ((719, 1280), (360, 641)),
        ((360, 360), (360, 360)),
    ],
)
def test_the_published_resize_sets_the_short_side(source: tuple[int, int], size: tuple[int, int]) -> None:
    assert published_size(source, 360) == size


def test_a_long_side_has_its_cap() -> None:
    assert published_size((200, 1000), 360, 640) == (128, 640)


@pytest.mark.parametrize(
    ("source", "network", "valid"),
    [
        ((720, 1280), (384, 640), (360, 640)),
        ((1280, 720), (640, 384), (640, 360)),
        ((960, 1280), (384, 480), (360, 480)),
        ((1280, 720), (384, 640), (384, 216)),  # does not fit as published
        ((1000, 1000), (384, 640), (360, 360)),
    ],
)
def test_a_frame_is_seen_as_published_where_that_fits(
    source: tuple[int, int], network: tuple[int, int], valid: tuple[int, int]
) -> None:
    assert fit_in(source, spec_of(network, 360)).valid == valid


@pytest.mark.parametrize(
    ("source", "best"), [((720, 1280), 0), ((1280, 720), 1), ((960, 1280), 2), ((1280, 960), 3), ((700, 800), 2)]
)
def test_of_several_sizes_the_one_of_the_published_scale_and_the_least_padding_is_taken(
    source: tuple[int, int], best: int
) -> None:
    sizes = [(384, 640), (640, 384), (384, 480), (480, 384)]

    assert best_size(source, [spec_of(size, 360) for size in sizes]) == best


def test_without_a_published_resize_the_largest_picture_is_best() -> None:
    assert best_size((960, 1280), [spec_of((384, 640)), spec_of((384, 480)), spec_of((640, 384))]) == 0
    assert best_size((1280, 720), [spec_of((384, 640)), spec_of((640, 384))]) == 1


def spec_of(network: tuple[int, int], short_side: int | None = None) -> InputSpec:
    return InputSpec(height=network[0], width=network[1], short_side=short_side)


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
