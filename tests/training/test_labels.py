from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sets import box_mask, coco_values, video_values, write_coco, write_video

from visrt.runtime.errors import DataError, SettingsError
from visrt.runtime.masks import decode
from visrt.training.batches import refuse_boxes
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.clips import ClipDataset, ClipSettings
from visrt.training.data.frames import frames_of_videos, labelled_frames
from visrt.training.data.looks import LookSettings
from visrt.training.data.motion import CameraSettings
from visrt.training.data.pasting import PasteSettings
from visrt.training.data.set_columns import columns_of
from visrt.training.data.set_formats import SetPlaces, load_annotations, read_set
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


def read(folder: Path) -> AnnotatedSet:
    return read_set(SetPlaces(folder)).annotated


def boxes(count: int = 2) -> dict[str, Any]:
    """Each photo: a box at 20, 30 of 60 x 40."""
    values = coco_values(count)
    for one in values["annotations"]:
        del one["segmentation"]
        one["bbox"] = [20, 30, 60, 40]
    return values


def test_a_box_is_read_as_its_rectangle_and_the_set_is_one_of_boxes(tmp_path: Path) -> None:
    write_coco(tmp_path, boxes())
    annotated = read(tmp_path)
    assert annotated.boxes_only
    for video in annotated.videos:
        [track] = video.tracks
        assert track.masks[0] is not None
        assert np.array_equal(decode(track.masks[0]), box_mask(20, 30, 60, 40))


def test_masks_are_read_where_each_object_has_one_whatever_its_box(tmp_path: Path) -> None:
    values = coco_values(2)
    values["annotations"][0]["bbox"] = [0, 0, 5, 5]
    write_coco(tmp_path, values)
    assert not read(tmp_path).boxes_only


def test_imagenet_vid_as_it_is_converted_becomes_videos(tmp_path: Path) -> None:
    values = boxes(3)
    for t, (image, one) in enumerate(zip(values["images"], values["annotations"], strict=True)):
        image |= {"video_id": 5, "frame_id": 2 - t}
        one |= {"instance_id": 7, "bbox": [10 * t, 30, 60, 40]}
    write_coco(tmp_path, values)
    [video] = read(tmp_path).videos
    assert [path.stem for path in video.pictures] == ["2", "1", "0"]
    [track] = video.tracks
    assert [decode(rle).any(0).argmax() for rle in track.masks if rle] == [20, 10, 0]


def test_a_video_of_boxes_is_read(tmp_path: Path) -> None:
    values = video_values(3)
    del values["annotations"][0]["segmentations"]
    values["annotations"][0]["bboxes"] = [[0, 30, 60, 40], [10, 30, 60, 40], None]
    write_video(tmp_path, values)
    annotated = read(tmp_path)
    [track] = annotated.videos[0].tracks
    assert annotated.boxes_only
    assert [rle is not None for rle in track.masks] == [True, True, False]
    assert track.masks[1] is not None
    assert np.array_equal(decode(track.masks[1]), box_mask(10, 30, 60, 40))


def test_an_object_without_mask_or_box_is_refused_among_others(tmp_path: Path) -> None:
    for values, other in ((boxes(), "bbox"), (coco_values(2), "segmentation")):
        del values["annotations"][1][other]
        folder = tmp_path / other
        write_coco(folder, values)
        with pytest.raises(DataError, match=r"annotations\[\d\]\.segmentation"):
            read(folder)


def test_an_object_with_a_box_alone_among_masks_is_refused(tmp_path: Path) -> None:
    values = coco_values(2)
    del values["annotations"][1]["segmentation"]
    values["annotations"][1]["bbox"] = [20, 30, 60, 40]
    write_coco(tmp_path, values)
    with pytest.raises(DataError, match=r"annotations\[1\]\.segmentation"):
        read(tmp_path)


def test_where_each_object_has_a_box_and_some_a_mask_boxes_are_read_and_it_is_said(tmp_path: Path) -> None:
    values = boxes(3)
    values["annotations"][0]["segmentation"] = coco_values(1)["annotations"][0]["segmentation"]
    write_coco(tmp_path, values)
    annotated = read(tmp_path)
    assert annotated.boxes_only
    assert "the masks of 1 are not" in annotated.remarks[0]


@pytest.mark.parametrize("box", [[20, 30, 60], [20, 30, -1, 40], "box", [20, 30, 1e9, 40], [20, float("nan"), 6, 4]])
def test_a_wrong_box_is_named_by_its_json_path(tmp_path: Path, box: object) -> None:
    values = boxes()
    values["annotations"][1]["bbox"] = box
    (tmp_path / "images").mkdir()
    write_coco(tmp_path, values)
    (tmp_path / "instances.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match=r"annotations\[1\]\.bbox"):
        read(tmp_path)


def test_boxes_are_no_masks_to_train_on(tmp_path: Path) -> None:
    write_coco(tmp_path, boxes())
    pool = load_pool([SourceSettings("coco", str(tmp_path))], ClipSettings())
    with pytest.raises(SettingsError, match="has boxes and no masks"):
        refuse_boxes(pool.material)
    write_coco(tmp_path, coco_values(2))
    refuse_boxes(load_pool([SourceSettings("coco", str(tmp_path))], ClipSettings()).material)


def names(pool: Any) -> list[list[str]]:
    return [[frame.path.name for frame in base.frames] for base in pool.bases]


def test_photos_without_a_target_are_left_out_and_counted(tmp_path: Path) -> None:
    """The second shows a crowd, the third an object that the class map leaves out, the fourth nothing."""
    values = coco_values(4)
    values["annotations"][1]["iscrowd"] = 1
    values["annotations"][2]["category_id"] = 7
    values["annotations"].pop()
    write_coco(tmp_path, values)
    source = SourceSettings("coco", str(tmp_path), class_map={"car": "car"})
    assert len(load_pool([source], ClipSettings(max_crowd=1.0)).bases) == 4
    pool = load_pool([replace(source, needs_target=True)], ClipSettings(max_crowd=1.0))
    assert names(pool) == [["0.png"]]
    assert any("3 photos without an object of a class are left out" in remark for remark in pool.remarks)


def test_a_video_keeps_its_bare_frames_but_not_in_clips_of_one(tmp_path: Path) -> None:
    """The last of its frames shows nothing."""
    write_video(tmp_path, video_values(4))
    source = SourceSettings("youtube_vis", str(tmp_path), needs_target=True)
    assert [len(base) for base in names(load_pool([source], ClipSettings(frames=2)))] == [4]
    alone = load_pool([source], ClipSettings(frames=1))
    assert [len(base) for base in names(alone)] == [3]
    assert any("1 frames without" in remark for remark in alone.remarks)


def test_a_video_without_a_track_is_left_out(tmp_path: Path) -> None:
    values = video_values(4)
    values["videos"].append({**values["videos"][0], "id": 2})
    write_video(tmp_path, values)
    source = SourceSettings("youtube_vis", str(tmp_path), needs_target=True)
    pool = load_pool([source], ClipSettings(frames=2))
    assert len(pool.bases) == 1
    assert any("1 videos without" in remark for remark in pool.remarks)
