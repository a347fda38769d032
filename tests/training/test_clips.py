from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_sets import (
    BLUE,
    HEIGHT,
    RED,
    WIDTH,
    box_mask,
    coco_values,
    picture,
    rle,
    video_values,
    write_coco,
    write_cutouts,
    write_png,
    write_video,
)
from torch.utils.data import DataLoader

from visrt.runtime.errors import DataError, SettingsError
from visrt.training.data.annotations import NO_TARGET
from visrt.training.data.clips import Clip, ClipDataset, ClipSettings
from visrt.training.data.looks import LookSettings
from visrt.training.data.motion import CameraSettings
from visrt.training.data.pasting import PasteSettings
from visrt.training.data.sources import SourceSettings, load_pool

STILL = CameraSettings(
    whole=1, zoom_change=0, slide=0, rotate=0, tremble_deg=0, stretch=0, letterbox=0, flip=0
)  # the camera shows the whole picture and does not move
PLAIN = LookSettings(0, 0, 0, 0, 0, 0, 0, grey=0, blurred=0, motion_blur=0, coarse=0, noisy=0, jpeg=0)
NOTHING = PasteSettings(counts=(1.0,), bare_counts=(1.0,))
ONE = PasteSettings(
    counts=(0.0, 1.0), bare_counts=(0.0, 1.0), distractor=0, scene_twin=0, meet=0, eroded=0, feather_px=(0.3, 0.3)
)
BASE = ClipSettings(
    height_px=HEIGHT, width_px=WIDTH, frames=2, min_area_px=1, min_visible=0.0, looks=PLAIN, paste=NOTHING
)


def red_car(folder: Path, pictures: int = 1) -> SourceSettings:
    """Photos of a red car that is never cut out."""
    write_coco(folder, coco_values(pictures))
    return SourceSettings("coco", str(folder), cutout_weight=0)


def background(folder: Path) -> SourceSettings:
    write_png(folder / "photos" / "grey.png", picture({}))
    return SourceSettings("backgrounds", str(folder / "photos"))


def discs(folder: Path, **classes: str) -> SourceSettings:
    return SourceSettings("cutouts", str(folder / "cutouts"), class_map=str(write_cutouts(folder, **classes)))


def near(frame: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(frame.astype(int) - colour).max(-1) < 90)


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def same(a: Clip, b: Clip) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("frames", "masks", "labels"))


def test_a_still_camera_shows_the_picture_and_its_mask_unchanged(tmp_path: Path) -> None:
    clip = ClipDataset([red_car(tmp_path)], replace(BASE, camera=STILL), 1, 0)[0]
    assert np.abs(clip.frames[0].astype(int) - picture({(20, 30, 60, 40): RED})).max() <= 1
    assert np.array_equal(clip.masks[0], np.stack([box_mask(20, 30, 60, 40)] * 2))
    assert clip.labels.tolist() == [0]


def test_masks_follow_the_picture_under_every_camera(tmp_path: Path) -> None:
    dataset = ClipDataset([red_car(tmp_path)], replace(BASE, camera=CameraSettings(focus=1)), 40, 0)
    seen = 0
    for clip in (dataset[i] for i in range(40)):
        for frame, mask in zip(clip.frames, clip.masks[0] if len(clip.masks) else (), strict=False):
            if mask.sum() > 400:
                seen += 1
                assert overlap(near(frame, RED), mask) > 0.9
    assert seen > 40


@pytest.mark.parametrize("sway", [0.0, 1.0])
def test_masks_follow_pasted_objects(tmp_path: Path, sway: float) -> None:
    sources = [background(tmp_path), discs(tmp_path, dog="dog")]
    dataset = ClipDataset(sources, replace(BASE, paste=replace(ONE, sway=sway)), 40, 0)
    seen = 0
    for clip in (dataset[i] for i in range(40)):
        for frame, mask in zip(clip.frames, clip.masks[0] if len(clip.masks) else (), strict=False):
            if mask.sum() > 400:
                seen += 1
                assert overlap(near(frame, BLUE), mask) > 0.85
    assert seen > 40


def test_colours_under_the_transparent_part_of_a_cut_out_are_never_seen(tmp_path: Path) -> None:
    dataset = ClipDataset([background(tmp_path), discs(tmp_path, dog="dog")], replace(BASE, paste=ONE), 20, 0)
    for i in range(20):
        green = dataset[i].frames[..., 1].astype(int) - dataset[i].frames[..., [0, 2]].max(-1)
        assert green.max() < 10


def test_a_pasted_object_hides_what_lies_behind_it(tmp_path: Path) -> None:
    paste = replace(ONE, meet=1, meet_distance=0.3, long_side=(0.5, 0.6))
    sources = [red_car(tmp_path), discs(tmp_path, dog="dog")]
    dataset = ClipDataset(sources, replace(BASE, camera=STILL, paste=paste), 30, 0)
    shrunk = 0
    for clip in (dataset[i] for i in range(30)):
        assert clip.masks.sum(0).max() <= 1  # a pixel shows one object
        car = clip.masks[clip.labels == 0][0]
        shrunk += bool(car.sum() < 2 * 60 * 40)
        assert not (car & near(clip.frames, BLUE)).any()
    assert shrunk > 20


def test_distractors_hide_objects_but_are_none(tmp_path: Path) -> None:
    sources = [red_car(tmp_path), discs(tmp_path, mug="distractor")]
    paste = replace(ONE, meet=1, meet_distance=0.3, long_side=(0.5, 0.6), distractor=1)
    dataset = ClipDataset(sources, replace(BASE, camera=STILL, paste=paste), 20, 0)
    clips = [dataset[i] for i in range(20)]
    assert {tuple(clip.labels.tolist()) for clip in clips} == {(0,)}
    assert min(clip.masks.sum() for clip in clips) < 2 * 60 * 40


def test_twins_are_two_objects_of_one_look(tmp_path: Path) -> None:
    paste = replace(ONE, bare_counts=(0, 0, 1.0), twin=1, long_side=(0.4, 0.5), speed=(0.01, 0.02))
    sources = [background(tmp_path), discs(tmp_path, dog="dog", car="car")]
    dataset = ClipDataset(sources, replace(BASE, paste=paste), 20, 0)
    pairs = [clip.labels.tolist() for clip in (dataset[i] for i in range(20)) if len(clip.labels) == 2]
    assert len(pairs) > 5
    assert all(a == b for a, b in pairs)


def test_a_clip_depends_on_seed_and_index_only(tmp_path: Path) -> None:
    sources = [red_car(tmp_path, 3), discs(tmp_path, dog="dog")]
    settings = ClipSettings(height_px=HEIGHT, width_px=WIDTH, frames=2)
    first, second = ClipDataset(sources, settings, 8, 5), ClipDataset(sources, settings, 80, 5)
    backwards = {i: second[i] for i in reversed(range(8))}
    assert all(same(first[i], backwards[i]) for i in range(8))
    assert not same(first[0], first[1])
    assert not same(first[0], ClipDataset(sources, settings, 8, 6)[0])


def test_workers_make_the_same_clips(tmp_path: Path) -> None:
    dataset = ClipDataset([red_car(tmp_path, 3), discs(tmp_path, dog="dog")], ClipSettings(frames=2), 4, 0)
    loader: DataLoader[Any] = DataLoader(dataset, batch_size=2, collate_fn=list, num_workers=1)  # type: ignore[arg-type]
    clips = [clip for batch in loader for clip in batch]
    assert all(same(clip, dataset[i]) for i, clip in enumerate(clips))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_shapes_and_types(tmp_path: Path, frames: int) -> None:
    settings = ClipSettings(height_px=64, width_px=128, frames=frames)
    dataset = ClipDataset([red_car(tmp_path), discs(tmp_path, dog="dog")], settings, 10, 0)
    for clip in (dataset[i] for i in range(10)):
        assert clip.frames.shape == (frames, 64, 128, 3)
        assert clip.frames.dtype == np.uint8
        assert clip.masks.shape == (len(clip.labels), frames, 64, 128)
        assert clip.masks.dtype == np.bool_
        assert clip.labels.dtype == np.int64
        assert clip.masks.any((1, 2, 3)).all()  # an object that is never visible is no target
        assert NO_TARGET not in clip.labels


def test_objects_under_the_least_area_are_no_targets(tmp_path: Path) -> None:
    source = red_car(tmp_path)
    assert len(ClipDataset([source], replace(BASE, camera=STILL, min_area_px=2400), 1, 0)[0].labels) == 1
    assert len(ClipDataset([source], replace(BASE, camera=STILL, min_area_px=2401), 1, 0)[0].labels) == 0


def test_an_object_that_is_almost_hidden_counts_as_absent(tmp_path: Path) -> None:
    paste = replace(ONE, meet=1, meet_distance=0.5, long_side=(0.7, 1.0))
    sources = [red_car(tmp_path), discs(tmp_path, mug="distractor")]
    strict = ClipDataset(
        sources, replace(BASE, camera=STILL, paste=replace(paste, distractor=1), min_visible=0.5), 40, 0
    )
    areas = np.concatenate([strict[i].masks.sum((2, 3)).ravel() for i in range(40)])
    assert (areas == 0).any()
    assert areas[areas > 0].min() >= 0.5 * 60 * 40


def test_frames_of_a_video_keep_their_order_and_tracks(tmp_path: Path) -> None:
    write_video(tmp_path, video_values(6))
    settings = replace(BASE, camera=STILL, frames=4, video_span_frames=6)
    dataset = ClipDataset([SourceSettings("youtube_vis", str(tmp_path))], settings, 10, 0)
    for clip in (dataset[i] for i in range(10)):
        assert len(clip.labels) == 1
        lefts = [int(np.nonzero(m)[1].min()) for m in clip.masks[0] if m.any()]
        assert lefts == sorted(lefts)
        for frame, mask in zip(clip.frames, clip.masks[0], strict=True):
            assert np.array_equal(near(frame, RED), mask)


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    source = replace(red_car(tmp_path, 40), held_out=0.25)
    names = {
        part: {base.frames[0].path.name for base in load_pool([source], ClipSettings(part=part)).bases}
        for part in ("train", "held_out", "all")
    }
    assert names["train"] | names["held_out"] == names["all"]
    assert not names["train"] & names["held_out"]
    assert 3 <= len(names["held_out"]) <= 20


def test_photos_full_of_crowds_are_no_scenes(tmp_path: Path) -> None:
    values = coco_values(2)
    crowd = {"id": 9, "image_id": 1, "category_id": 3, "segmentation": rle(box_mask(0, 0, 80, 80)), "iscrowd": 1}
    values["annotations"].append(crowd)
    write_coco(tmp_path, values)
    pool = load_pool([SourceSettings("coco", str(tmp_path))], ClipSettings())
    assert [base.frames[0].path.name for base in pool.bases] == ["0.png"]


def test_what_a_class_map_leaves_out_is_an_occluder_and_counted(tmp_path: Path) -> None:
    values = coco_values(3)
    values["annotations"][2]["category_id"] = 7
    write_coco(tmp_path, values)
    (tmp_path / "map.json").write_text('{"car": "vehicle", "dog": null}')
    source = SourceSettings("coco", str(tmp_path), class_map=str(tmp_path / "map.json"))
    pool = load_pool([source], ClipSettings())
    assert [[o.label for o in base.frames[0].objects] for base in pool.bases] == [[0], [0], [NO_TARGET]]
    assert pool.remarks == [f"{tmp_path / 'instances.json'}: the class map leaves out 1 annotated objects: 1 dog"]


def test_sources_share_one_list_of_classes(tmp_path: Path) -> None:
    sources = [red_car(tmp_path), discs(tmp_path, dog="dog", cat="cat")]
    assert ClipDataset(sources, ClipSettings(), 1, 0).classes == ("car", "dog", "chair", "cat")
    with pytest.raises(SettingsError, match="'chair' is none of car, dog"):
        ClipDataset(sources, ClipSettings(classes=("car", "dog")), 1, 0)


def test_a_picture_of_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    values = coco_values()
    write_coco(tmp_path, values)
    write_png(tmp_path / "images" / "0.png", picture({})[:50])
    with pytest.raises(DataError, match=r"50 x 160; its annotation says 96 x 160"):
        ClipDataset([SourceSettings("coco", str(tmp_path))], ClipSettings(), 1, 0)[0]


def test_a_picture_that_cannot_be_decoded_is_refused(tmp_path: Path) -> None:
    source = red_car(tmp_path)
    (tmp_path / "images" / "0.png").write_text("no picture")
    with pytest.raises(DataError, match="cannot be decoded"):
        ClipDataset([source], ClipSettings(), 1, 0)[0]


def test_sources_without_a_scene_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has no scene"):
        ClipDataset([replace(red_car(tmp_path), base_weight=0)], ClipSettings(), 1, 0)
    with pytest.raises(SettingsError, match="held_out"):
        ClipDataset([red_car(tmp_path)], ClipSettings(part="held_out"), 1, 0)


def test_objects_of_one_photo_are_pasted_over_another(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_values(1))
    grain = np.random.default_rng(0).integers(0, 85, (HEIGHT, WIDTH, 1)) * np.array([0, 1, 1])
    textured = (picture({(20, 30, 60, 40): RED}) + grain).astype(np.uint8)  # a flat car is not cut out
    write_png(tmp_path / "images" / "0.png", textured)
    sources = [SourceSettings("coco", str(tmp_path), base_weight=0), background(tmp_path)]
    dataset = ClipDataset(sources, replace(BASE, paste=replace(ONE, sway=0)), 20, 0)
    clips = [clip for clip in (dataset[i] for i in range(20)) if clip.masks.sum() > 400]
    assert len(clips) > 10
    for clip in clips:
        assert overlap(near(clip.frames, RED), clip.masks[0]) > 0.8


def test_a_set_without_recognisable_objects_pastes_nothing(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_values(1))  # its car is one flat colour
    sources = [SourceSettings("coco", str(tmp_path), base_weight=0), background(tmp_path)]
    assert len(ClipDataset(sources, replace(BASE, paste=ONE), 1, 0)[0].labels) == 0


def test_a_twin_of_the_scene_repeats_one_of_its_objects(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_values(1))
    grain = np.random.default_rng(0).integers(0, 85, (HEIGHT, WIDTH, 1)) * np.array([0, 1, 1])
    write_png(tmp_path / "images" / "0.png", (picture({(20, 30, 60, 40): RED}) + grain).astype(np.uint8))
    sources = [SourceSettings("coco", str(tmp_path)), discs(tmp_path, dog="dog")]
    paste = replace(ONE, scene_twin=1, long_side=(0.4, 0.5), colour=0)
    dataset = ClipDataset(sources, replace(BASE, camera=STILL, paste=paste), 20, 0)
    pairs = [clip.labels.tolist() for clip in (dataset[i] for i in range(20)) if len(clip.labels) > 1]
    assert len(pairs) > 5
    assert {tuple(pair) for pair in pairs} == {(0, 0)}


def test_padding_has_the_colour_asked_for_and_no_objects(tmp_path: Path) -> None:
    camera = replace(STILL, letterbox=1)
    settings = replace(BASE, camera=camera, pad_rgb=(1, 2, 3), width_px=2 * WIDTH)
    dataset = ClipDataset([red_car(tmp_path)], settings, 20, 0)
    padded = 0
    for clip in (dataset[i] for i in range(20)):
        pad = (clip.frames == (1, 2, 3)).all(-1)
        padded += bool(pad.any())
        assert not (clip.masks & pad).any()
        assert len(clip.masks)
    assert padded > 15
