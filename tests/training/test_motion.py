from __future__ import annotations

import numpy as np
import pytest

from visrt.training.data.looks import LookSettings, colour_change, wear
from visrt.training.data.motion import CameraSettings, camera_path, clip_times
from visrt.training.data.pictures import halvings
from visrt.training.data.warp import warp_cutout, warp_picture


@pytest.mark.parametrize("seed", range(20))
def test_the_camera_moves_one_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    path = camera_path((200, 300), (96, 160), (150.0, 100.0), CameraSettings(rotate=1), rng)
    times = clip_times(8, rng)
    assert (np.diff(times) >= 0).all()
    seen = np.stack([path.at(time, (96, 160)) for time in times])
    angles = np.unwrap(np.arctan2(seen[:, 1, 0] * path.mirrored, seen[:, 1, 1]))
    steps = np.diff(angles)
    assert (steps >= -1e-9).all() or (steps <= 1e-9).all()
    assert np.abs(path.angles_deg).max() <= 15


@pytest.mark.parametrize("seed", range(20))
def test_the_window_stays_inside_the_picture(seed: int) -> None:
    path = camera_path((200, 300), (96, 160), None, CameraSettings(), np.random.default_rng(seed))
    assert (path.centres - path.sizes / 2 >= -1e-6).all()
    assert (path.centres + path.sizes / 2 <= np.array([300, 200]) + 1e-6).all()


def test_a_fine_pattern_shrinks_to_its_mean() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    to_frame = np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]])
    small = warp_picture(halvings(stripes), to_frame, (64, 64))
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_every_half_size_copy_lies_at_the_same_place() -> None:
    """A ramp keeps its values where it is, whichever copy it is warped from."""
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, 0).repeat(3, 2)
    for scale in (1.0, 0.55, 0.3, 0.14):
        to_frame = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])
        side = int(256 * scale)
        found = warp_picture(halvings(ramp), to_frame, (side, side))[side // 2, :, 0].astype(float)
        wanted = (np.arange(side) + 0.5) / scale - 0.5
        assert np.abs(found - wanted)[2:-2].max() < 1.6


def test_a_cut_out_beyond_the_frame_is_nothing() -> None:
    rgba = np.full((32, 32, 4), 255, np.uint8)
    assert warp_cutout((rgba,), np.array([[1.0, 0, 500], [0, 1.0, 0]]), None, 0.0, (96, 160)) is None


def test_no_range_is_no_change() -> None:
    still = LookSettings(0, 0, 0, 0, 0, 0, 0, grey=0, blurred=0, motion_blur=0, coarse=0, noisy=0, jpeg=0)
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    changed = colour_change(still, 1.0, np.random.default_rng(1))(rgb)
    assert np.abs(changed.astype(int) - rgb).max() <= 1
    assert np.array_equal(wear(2, still, np.random.default_rng(1))(changed, 0), changed)


@pytest.mark.parametrize("name", ["grey", "blurred", "motion_blur", "coarse", "noisy", "jpeg"])
def test_every_kind_of_wear_shows(name: str) -> None:
    still = dict.fromkeys(("grey", "blurred", "motion_blur", "coarse", "noisy", "jpeg"), 0.0)
    rgb = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    worn = wear(1, LookSettings(flicker=0, **{**still, name: 1.0}), np.random.default_rng(1))(rgb, 0)
    assert worn.shape == rgb.shape
    assert np.abs(worn.astype(int) - rgb).mean() > 0.5
