from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sets import video_values, write_video

from visrt.runtime.errors import SettingsError
from visrt.training.data.clips import ClipDataset, ClipSettings
from visrt.training.data.frames import frames_of_videos, labelled_frames
from visrt.training.data.looks import LookSettings
from visrt.training.data.motion import CameraSettings
from visrt.training.data.pasting import PasteSettings
from visrt.training.data.set_columns import columns_of
from visrt.training.data.set_formats import load_annotations
from visrt.training.data.sources import SourceSettings, load_pool


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
    write_video(tmp_path, video_values(10))
    columns = columns_of(load_annotations(tmp_path), tmp_path / "JPEGImages")
    assert frames_of_videos(columns, np.array([0]), 0.2).frames.tolist() == [0, 5]


def test_a_tenth_of_the_frames_can_be_filmed_as_photos(tmp_path: Path) -> None:
    write_video(tmp_path, video_values(20))
    videos = SourceSettings("youtube_vis", str(tmp_path), label_fraction=0.1)
    as_video = load_pool([videos], ClipSettings())
    as_photos = load_pool([replace(videos, scene="frame")], ClipSettings())
    assert [[frame.path.stem for frame in base.frames] for base in as_video.bases] == [["00000", "00010"]]
    assert [[frame.path.stem for frame in base.frames] for base in as_photos.bases] == [["00000"], ["00010"]]


def test_a_pseudo_video_of_a_labelled_frame_shows_that_frame_only(tmp_path: Path) -> None:
    """Every frame of a clip under a still camera is the same; of the video itself they differ."""
    write_video(tmp_path, video_values(20))
    still = CameraSettings(whole=1, zoom_change=0, slide=0, rotate=0, tremble_deg=0, stretch=0, letterbox=0, flip=0)
    plain = LookSettings(0, 0, 0, 0, 0, 0, 0, grey=0, blurred=0, motion_blur=0, coarse=0, noisy=0, jpeg=0)
    settings = ClipSettings(
        frames=4, min_area_px=1, camera=still, looks=plain, paste=PasteSettings(counts=(1.0,), bare_counts=(1.0,))
    )
    videos = SourceSettings("youtube_vis", str(tmp_path), cutout_weight=0, label_fraction=0.2)
    for scene, changes in (("video", True), ("frame", False)):
        dataset = ClipDataset([replace(videos, scene=scene)], settings, 4, 0)  # type: ignore[arg-type]
        clips = [dataset[i] for i in range(4)]
        assert any(bool((np.ptp(clip.frames.astype(int), axis=0) > 1).any()) for clip in clips) == changes
        assert all(len(clip.labels) == 1 for clip in clips)
