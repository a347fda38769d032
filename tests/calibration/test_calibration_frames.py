"""Frames are chosen from what the user gives: spread, without duplicates, the same each time."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from written_clips import write_clip

from visrt.calibration.frames import FrameChoice, choose_frames, farthest_first, read_frames
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.methods.int8 import Int8Plan

INPUT = InputSpec(height=64, width=96)
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))


def scene(colour: int) -> NDArray[np.uint8]:
    """A picture [48, 72, 3] whose background tells scenes apart."""
    picture = np.full((48, 72, 3), COLOURS[colour], np.uint8)
    picture[10:30, 10:40] = 240
    return picture


def images(folder: Path, pictures: list[NDArray[np.uint8]]) -> str:
    folder.mkdir()
    for index, picture in enumerate(pictures):
        cv2.imwrite(str(folder / f"{index:03d}.png"), picture[..., ::-1])
    return str(folder)


def all_of(choice: FrameChoice) -> set[tuple[int, int]]:
    return {*choice.ranges, *choice.judging}


class TestChoice:
    def test_every_scene_is_chosen_before_any_is_chosen_twice(self, tmp_path: Path) -> None:
        source = images(tmp_path / "scenes", [scene(0)] * 5 + [scene(1)] * 5 + [scene(2)] * 5)
        choice = choose_frames([source], 8)
        assert {index // 5 for _, index in all_of(choice)} == {0, 1, 2}

    def test_the_same_picture_is_never_chosen_twice_even_from_two_sources(self, tmp_path: Path) -> None:
        one = images(tmp_path / "one", [scene(0), scene(1)])
        other = images(tmp_path / "other", [scene(1), scene(0)])
        assert len(all_of(choose_frames([one, other], 8))) == 2

    def test_the_choice_is_the_same_each_time(self, tmp_path: Path) -> None:
        write_clip(tmp_path / "clip.mp4", frames=20)
        source = str(tmp_path / "clip.mp4")
        assert choose_frames([source], 6) == choose_frames([source], 6)

    def test_frames_for_ranges_are_not_those_for_judging(self, tmp_path: Path) -> None:
        write_clip(tmp_path / "clip.mp4", frames=20)
        choice = choose_frames([str(tmp_path / "clip.mp4")], 6)
        assert len(choice.ranges) == len(choice.judging) == 3
        assert not {*choice.ranges} & {*choice.judging}

    def test_a_long_source_is_looked_at_evenly(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("visrt.calibration.frames.LOOKS_MAX", 8)
        write_clip(tmp_path / "clip.mp4", frames=30)
        choice = choose_frames([str(tmp_path / "clip.mp4")], 8)
        assert choice.read == 8
        assert all(index % 4 == 0 for _, index in all_of(choice))

    def test_each_row_is_the_farthest_from_those_before(self) -> None:
        line = np.array([[0.0], [1.0], [5.0], [10.0]], np.float32)
        assert farthest_first(line, 3) == [2, 0, 3]


class TestPixels:
    def test_a_judging_frame_comes_with_its_successor_and_the_last_with_its_predecessor(self, tmp_path: Path) -> None:
        source = images(tmp_path / "scenes", [scene(0), scene(1), scene(2)])
        choice = FrameChoice(choose_frames([source], 2).sources, ((0, 0),), ((0, 1), (0, 2)), 3, 0, ())
        frames = read_frames(choice, INPUT)
        shown = [[int(image[2, 2].argmax()) for image in clip.images] for clip in frames.judging]
        assert shown == [[1, 2], [1, 2]]

    def test_frames_lie_in_the_input_as_the_runtime_puts_them(self, tmp_path: Path) -> None:
        write_clip(tmp_path / "clip.mp4", frames=4)
        frames = read_frames(choose_frames([str(tmp_path / "clip.mp4")], 2), INPUT)
        [clip] = frames.ranges
        assert clip.images.shape == (1, 64, 96, 3)
        assert clip.valid_sizes.tolist() == [[64, 85]]
        assert not clip.images[:, :, 85:].any()

    def test_clips_are_as_long_as_the_plan_says_and_end_with_their_source(self, tmp_path: Path) -> None:
        source = images(tmp_path / "scenes", [scene(at % 3) for at in range(5)])
        choice = FrameChoice(choose_frames([source], 2).sources, ((0, 0), (0, 4)), ((0, 1), (0, 3)), 5, 0, ())
        frames = read_frames(choice, INPUT, Int8Plan(("frame",), range_frames=2, judged_frames=3))
        shown = [
            [[int(image[2, 2].argmax()) for image in clip.images] for clip in part] for part in vars(frames).values()
        ]
        assert shown == [[[0, 1], [0, 1]], [[1, 2, 0], [2, 0, 1]]]


class TestNothingToCalibrateOn:
    def test_no_source_is_refused(self) -> None:
        with pytest.raises(UsageError, match="--source"):
            choose_frames([], 4)

    def test_a_folder_without_images_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no images"):
            choose_frames([str(tmp_path)], 4)

    def test_a_camera_is_refused(self) -> None:
        with pytest.raises(UsageError, match="record it"):
            choose_frames(["0"], 4)

    def test_black_frames_are_refused_and_counted(self, tmp_path: Path) -> None:
        source = images(tmp_path / "black", [np.zeros((48, 72, 3), np.uint8)] * 3)
        with pytest.raises(DataError, match="all 3 frames are of one colour"):
            choose_frames([source], 4)

    @pytest.mark.parametrize("copies", [1, 4])
    def test_a_single_picture_is_refused_however_often_it_comes(self, copies: int, tmp_path: Path) -> None:
        source = images(tmp_path / "still", [scene(0)] * copies)
        with pytest.raises(DataError, match="the same picture"):
            choose_frames([source], 4)

    def test_single_images_say_nothing_of_the_assignment(self, tmp_path: Path) -> None:
        sources = [images(tmp_path / str(colour), [scene(colour)]) for colour in range(3)]
        choice = choose_frames(sources, 3)
        with pytest.raises(DataError, match="single image"):
            read_frames(choice, INPUT)
