from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sets import video_values, write_video

from visrt.runtime.errors import SettingsError
from visrt.training.annotations import youtube_vis
from visrt.training.subsample import labelled_frames, subsampled


def test_the_published_fractions_choose_the_published_frames() -> None:
    # MinVIS: linspace(0, T, n, endpoint=False) with n = round(T * fraction), the middle frame if n is 1.
    assert labelled_frames(36, 0.01) == [18]
    assert labelled_frames(36, 0.05) == [0, 18]
    assert labelled_frames(36, 0.10) == [0, 9, 18, 27]
    assert labelled_frames(20, 0.10) == [0, 10]


@given(length=st.integers(1, 300), fraction=st.floats(0.001, 1))
def test_chosen_frames_exist_and_never_repeat(length: int, fraction: float) -> None:
    frames = labelled_frames(length, fraction)
    assert 1 <= len(frames) <= length
    assert frames == sorted(set(frames))
    assert frames[-1] < length


def test_all_frames_are_all_frames() -> None:
    assert labelled_frames(7, 1.0) == list(range(7))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(SettingsError, match="label_fraction"):
        labelled_frames(10, fraction)


def test_a_subsampled_video_keeps_only_labelled_frames(tmp_path: Path) -> None:
    annotated = youtube_vis(write_video(tmp_path, video_values(10)), tmp_path / "JPEGImages")
    (video,) = subsampled(annotated, 0.2).videos
    assert video.frames == tuple(annotated.videos[0].frames[t] for t in (0, 5))
