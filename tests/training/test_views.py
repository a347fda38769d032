"""Claims about views: sizes, crops, turns and slides are the released loaders', and masks stay on their objects."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from tiny_sets import BLUE, CATEGORIES, RED, rle, write_cutouts, write_png

from visrt.runtime.errors import SettingsError
from visrt.runtime.settings import load_settings
from visrt.training.data.clips import Clip, ClipDataset, ClipSettings, CropSettings, JitterView, ShortSideView
from visrt.training.data.looks import LookSettings
from visrt.training.data.pasting import PasteSettings
from visrt.training.data.pseudo_videos import write_pseudo_videos
from visrt.training.data.set_formats import load_annotations
from visrt.training.data.sources import SourceSettings, load_pool
from visrt.training.data.views import kept_size, short_side_shot, short_side_size

PLAIN = LookSettings(0, 0, 0, 0, 0, 0, 0, grey=0, blurred=0, motion_blur=0, coarse=0, noisy=0, jpeg=0)
NOTHING = PasteSettings(counts=(1.0,), bare_counts=(1.0,))
WHOLE = ShortSideView("short_side", (64,), flip=0.0)
CROP = CropSettings(chance=1.0, short_sides_px=(100,), window_px=(50, 70))
TURNING = replace(WHOLE, rotation_deg=15.0)
SLIDING = replace(WHOLE, crop=CROP, pseudo_crop=replace(CROP, slides=True))
GREEN = (30, 200, 30)


def clips_of(view: ShortSideView | JitterView, frames: int = 1, **changes: Any) -> ClipSettings:
    given: dict[str, Any] = {"min_area_px": 0, "min_visible": 0.0, "max_objects": 150, "looks": PLAIN, "paste": NOTHING}
    return ClipSettings(frames=frames, view=view, **{**given, **changes})


def scene(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A grey picture with a red rectangle in the middle and green corners, and the rectangle's mask."""
    image = np.full((height, width, 3), 120, np.uint8)
    mask = np.zeros((height, width), bool)
    mask[height // 3 : 2 * height // 3, width // 4 : 3 * width // 4] = True
    image[mask] = RED
    y, x = height // 10, width // 10
    for rows in (np.s_[:y], np.s_[-y:]):
        image[rows, :x] = image[rows, -x:] = GREEN
    return image, mask


def photo(folder: Path, height: int = 120, width: int = 200) -> SourceSettings:
    image, mask = scene(height, width)
    write_png(folder / "images" / "0.png", image)
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "segmentation": rle(mask), "iscrowd": 0}
    picture = {"id": 1, "file_name": "0.png", "width": width, "height": height}
    (folder / "instances.json").write_text(
        json.dumps({"images": [picture], "annotations": [annotation], "categories": CATEGORIES})
    )
    return SourceSettings("coco", str(folder), cutout_weight=0)


def video(folder: Path, height: int = 120, width: int = 200, frames: int = 4) -> SourceSettings:
    """A video in which nothing moves."""
    image, mask = scene(height, width)
    names = [f"one/{t:05d}.png" for t in range(frames)]
    for name in names:
        write_png(folder / "JPEGImages" / name, image)
    track = {"id": 1, "video_id": 1, "category_id": 3, "segmentations": [rle(mask)] * frames, "iscrowd": 0}
    entry = {"id": 1, "width": width, "height": height, "file_names": names}
    (folder / "instances.json").write_text(
        json.dumps({"videos": [entry], "annotations": [track], "categories": CATEGORIES})
    )
    return SourceSettings("youtube_vis", str(folder), cutout_weight=0)


def made(source: SourceSettings, settings: ClipSettings, count: int = 20) -> list[Clip]:
    dataset = ClipDataset([source], settings, count, 0)
    return [dataset[i] for i in range(count)]


def near(frames: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    return np.asarray(np.abs(frames.astype(int) - colour).max(-1) < 60)


def covers(mask: NDArray[np.bool_], frame: NDArray[np.uint8]) -> bool:
    """Whether `mask` is where `frame` is red, a pixel more or less."""
    kernel = np.ones((3, 3), np.uint8)
    red = near(frame, RED).astype(np.uint8)
    wide, narrow = (
        cv2.dilate(red, kernel) > 0,
        cv2.erode(red, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0,
    )
    return bool((mask <= wide).all() and (narrow <= mask).all())


def is_still(clip: Clip) -> bool:
    return all(np.array_equal(frame, clip.frames[0]) for frame in clip.frames)


@pytest.mark.parametrize(
    ("picture", "short", "longest", "size"),
    [
        ((720, 1280), 360, 1333, (360, 640)),
        ((1280, 720), 360, 1333, (640, 360)),
        ((480, 640), 480, 1333, (480, 640)),
        ((480, 640), 640, 768, (576, 768)),
        ((427, 640), 512, 768, (512, 767)),
        ((720, 1280), 640, 768, (432, 768)),
        ((100, 100), 33, 40, (33, 33)),
    ],
)
def test_sizes_are_rounded_as_released(picture: Any, short: int, longest: int, size: Any) -> None:
    assert short_side_size(picture, short, longest) == size


def test_every_short_side_of_the_list_is_drawn_and_the_long_side_is_capped(tmp_path: Path) -> None:
    view = replace(WHOLE, short_sides_px=(32, 48, 64, 96), longest_px=128)
    sizes = Counter(clip.frames.shape[1:3] for clip in made(video(tmp_path), clips_of(view), 200))
    assert set(sizes) == {(32, 53), (48, 80), (64, 107), (77, 128)}  # 96 x 160 is beyond the cap
    assert min(sizes.values()) > 25


@pytest.mark.parametrize(("height", "width"), [(200, 112), (120, 160), (90, 160)])
@pytest.mark.parametrize("kind", [photo, video])
def test_the_whole_picture_is_seen_whatever_its_aspect(kind: Any, height: int, width: int, tmp_path: Path) -> None:
    for clip in made(kind(tmp_path, height, width), clips_of(replace(WHOLE, flip=0.5), 3), 8):
        h, w = clip.frames.shape[1:3]
        assert abs(h / w - height / width) < 0.01
        for frame in clip.frames:
            assert near(frame[[0, 0, -1, -1], [0, -1, 0, -1]], GREEN).all()


def test_half_of_the_clips_are_mirrored_and_all_of_their_frames(tmp_path: Path) -> None:
    source = photo(tmp_path)
    image, _ = scene(120, 200)
    image[:, :20] = BLUE
    write_png(tmp_path / "images" / "0.png", image)
    clips = made(source, clips_of(replace(WHOLE, flip=0.5), 3), 60)
    mirrored = [near(clip.frames[:, :, -4:], BLUE).all() for clip in clips]
    assert all(near(c.frames[:, :, :4], BLUE).all() != m for c, m in zip(clips, mirrored, strict=True))
    assert 18 < sum(mirrored) < 42


@pytest.mark.parametrize("kind", [photo, video])
@pytest.mark.parametrize("view", [WHOLE, TURNING, SLIDING, replace(SLIDING, rotation_deg=15.0, flip=0.5)])
def test_masks_cover_their_objects_to_a_pixel(view: ShortSideView, kind: Any, tmp_path: Path) -> None:
    seen = 0
    for clip in made(kind(tmp_path), clips_of(replace(view, short_sides_px=(48, 64, 100)), 3)):
        for masks in clip.masks:
            for frame, mask in zip(clip.frames, masks, strict=True):
                seen += 1
                assert covers(mask, frame)
    assert seen >= 50


@pytest.mark.parametrize("view", [TURNING, SLIDING])
def test_pseudo_videos_move_and_real_ones_do_not(view: ShortSideView, tmp_path: Path) -> None:
    assert not any(is_still(clip) for clip in made(photo(tmp_path / "photo"), clips_of(view, 4)))
    assert all(is_still(clip) for clip in made(video(tmp_path / "video"), clips_of(view, 4)))


def test_one_labelled_frame_of_a_video_is_a_pseudo_video(tmp_path: Path) -> None:
    source = replace(video(tmp_path), scene="frame")
    assert not any(is_still(clip) for clip in made(source, clips_of(TURNING, 4)))


def test_a_photo_alone_does_not_turn(tmp_path: Path) -> None:
    frames = [clip.frames for clip in made(photo(tmp_path), clips_of(TURNING))]
    assert all(np.array_equal(one, frames[0]) for one in frames)


def test_pseudo_videos_turn_one_way_around_one_point_near_the_middle() -> None:
    directions = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        shot = short_side_shot((120, 200), (120, 200), np.linspace(0, 1, 5), "pseudo", TURNING, rng)
        turns = np.stack(shot.turns)
        angles = np.degrees(np.arctan2(turns[:, 1, 0], turns[:, 0, 0]))
        assert np.abs(angles).max() <= 15
        steps = np.sign(np.diff(angles))
        assert len(set(steps)) == 1
        directions.add(steps[0])
        centre = np.linalg.solve(turns[0][:, :2] - np.eye(2), -turns[0][:, 2]) + 0.5
        assert ((centre >= np.multiply(shot.shown[::-1], 0.4)) & (centre <= np.multiply(shot.shown[::-1], 0.6))).all()
        assert all(np.allclose(turn[:, :2] @ (centre - 0.5) + turn[:, 2], centre - 0.5) for turn in turns)
    assert directions == {-1, 1}


def test_what_a_turn_brings_in_is_black_and_belongs_to_no_object(tmp_path: Path) -> None:
    clips = made(photo(tmp_path), clips_of(replace(SLIDING, rotation_deg=15.0), 4))
    assert any((clip.frames == 0).all(-1).any() for clip in clips)
    assert not any((clip.masks & (clip.frames == 0).all(-1)).any() for clip in clips)


def windows(crop: CropSettings, scene: Any, stored: tuple[int, int], frames: int = 4) -> NDArray[np.float64]:
    """Of 200 shots, for each frame: left, top, width and height in pixels of the picture as stored."""
    found = []
    view = replace(WHOLE, crop=crop if scene == "real" else None, pseudo_crop=crop if scene == "pseudo" else None)
    for seed in range(200):
        shot = short_side_shot(
            stored, stored, np.sort(np.random.default_rng(seed).uniform(size=frames)), scene, view,
            np.random.default_rng(seed),
        )  # fmt: skip
        scales = np.array([[m[0, 0], m[1, 1]] for m in shot.to_frames])
        corners = [-(m[:, 2] + 0.5) / s + 0.5 for m, s in zip(shot.to_frames, scales, strict=True)]
        found.append([[*c, *np.array(shot.shown[::-1]) / s] for c, s in zip(corners, scales, strict=True)])
    return np.array(found)


def test_windows_have_the_released_sizes_inside_the_picture() -> None:
    seen = windows(CROP, "real", (100, 150))  # the resize before the crop changes nothing
    left, top, width, height = seen[..., 0], seen[..., 1], seen[..., 2], seen[..., 3]
    for sides in (width, height):
        assert set(np.round(sides.ravel(), 6)) == set(map(float, range(50, 71)))
    assert not np.allclose(width, height)
    assert (left > -1e-6).all()
    assert (top > -1e-6).all()
    assert (left + width).max() <= 150 + 1e-6
    assert (top + height).max() <= 100 + 1e-6
    assert (left + width).max() > 148


def test_a_window_is_no_larger_than_the_picture() -> None:
    seen = windows(replace(CROP, short_sides_px=(60,)), "real", (60, 90))
    assert seen[..., 3].max() <= 60 + 1e-6
    assert seen[..., 2].max() > 65


def test_windows_slide_monotonically_or_stay() -> None:
    assert np.ptp(windows(CROP, "real", (100, 150)), axis=1).max() < 1e-9
    assert np.ptp(windows(CROP, "pseudo", (100, 150)), axis=1).max() < 1e-9
    steps = np.diff(windows(replace(CROP, slides=True), "pseudo", (100, 150))[..., :2], axis=1)
    falls, rises = (steps < -1e-6).any(axis=1), (steps > 1e-6).any(axis=1)
    assert not (falls & rises).any()
    assert falls.mean() > 0.3
    assert rises.mean() > 0.3


def test_a_window_may_be_cut_from_the_picture_as_stored() -> None:
    """As CTVIS crops real videos."""
    assert windows(replace(CROP, short_sides_px=()), "real", (200, 300))[..., 2].max() <= 70 + 1e-6
    assert windows(CROP, "real", (200, 300))[..., 2].max() > 130


def test_crops_happen_with_their_chance(tmp_path: Path) -> None:
    view = replace(WHOLE, crop=replace(CROP, chance=0.5))
    whole = [
        bool(near(clip.frames[0, 0, 0], GREEN) and near(clip.frames[0, -1, -1], GREEN))
        for clip in made(video(tmp_path), clips_of(view), 100)
    ]
    assert 35 < sum(whole) < 65


def natural(height: int, width: int) -> NDArray[np.uint8]:
    """Noise with the spectrum of photographs: amplitudes fall as one over the frequency."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(np.random.default_rng(0).normal(size=(3, height, width))) / frequency
    image = np.moveaxis(np.fft.ifft2(spectrum).real, 0, -1)
    return np.asarray((128 + 30 * image / image.std()).clip(0, 255), np.uint8)


@pytest.mark.parametrize("short", [96, 144, 180, 200, 256, 320])
def test_a_resize_is_as_smooth_as_an_antialiased_one(short: int, tmp_path: Path) -> None:
    """Mean difference in grey levels from the resize of the released loaders."""
    source, image = photo(tmp_path, 360, 640), natural(360, 640)
    write_png(tmp_path / "images" / "0.png", image)
    clips = made(source, clips_of(replace(WHOLE, short_sides_px=(short, 320))), 12)  # kept for 320
    frame = next(clip.frames[0] for clip in clips if clip.frames.shape[1] == short)
    smooth = np.asarray(PIL.Image.fromarray(image).resize(frame.shape[1::-1], PIL.Image.Resampling.BILINEAR))
    coarse = cv2.resize(image, frame.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    assert np.abs(frame.astype(int) - smooth).mean() < 3
    assert np.abs(coarse.astype(int) - smooth).mean() > 3


def test_pictures_are_kept_as_large_as_any_frame_shows_them() -> None:
    plain = ShortSideView("short_side", (360, 480))
    assert kept_size(plain, (720, 1280)) == (480, 853)
    assert kept_size(plain, (300, 400)) == (300, 400)  # never enlarged
    assert kept_size(replace(plain, longest_px=640), (720, 1280)) == (360, 640)
    cropped = replace(plain, crop=CropSettings())
    assert kept_size(cropped, (720, 1280)) == (720, 1280)  # 480 of 384 pixels of 600: a short side of 750
    assert kept_size(cropped, (1080, 1920)) == (750, 1333)
    assert kept_size(replace(plain, pseudo_crop=CropSettings()), (1080, 1920)) == (750, 1333)
    assert kept_size(replace(plain, crop=CropSettings(short_sides_px=())), (1080, 1920)) == (1080, 1920)
    assert kept_size(JitterView("jitter"), (427, 640)) == (427, 640)
    assert kept_size(JitterView("jitter", side_px=64), (427, 640)) == (85, 128)


@pytest.mark.parametrize("scene", ["pseudo", "real"])
def test_no_frame_enlarges_a_shrunken_picture(scene: Any) -> None:
    """A pixel of the picture in memory is no larger than one of the frame."""
    crop = CropSettings(chance=0.7)
    view = ShortSideView("short_side", (288, 512), longest_px=768, crop=crop, pseudo_crop=replace(crop, slides=True))
    stored = (2160, 3840)
    kept = kept_size(view, stored)
    assert kept[0] < stored[0]
    for seed in range(100):
        shot = short_side_shot(stored, kept, np.array([0.2, 0.7]), scene, view, np.random.default_rng(seed))
        assert max(abs(np.linalg.det(one[:, :2])) for one in shot.to_frames) <= 1.01


def test_jitter_cuts_a_square_of_a_scaled_picture(tmp_path: Path) -> None:
    view = JitterView("jitter", side_px=64, scales=(0.1, 2.0))
    clips = made(photo(tmp_path), clips_of(view), 60)
    assert {clip.frames.shape[1:] for clip in clips} == {(64, 64, 3)}
    padded = [(clip.frames[0] == 128).all(-1) for clip in clips]
    for clip, pad in zip(clips, padded, strict=True):
        height, width = 64 - pad[:, 0].sum(), 64 - pad[0].sum()
        assert not pad[:height, :width].any()  # right and below, nowhere else
        assert pad[height:].all()
        assert pad[:, width:].all()
        assert not (clip.masks & pad).any()
        assert height < 24 or all(covers(mask[0], clip.frames[0]) for mask in clip.masks)
    assert min(pad.mean() for pad in padded) == 0
    assert max(pad.mean() for pad in padded) > 0.9


def test_no_object_is_too_small_to_be_one(tmp_path: Path) -> None:
    source = photo(tmp_path)
    values = json.loads((tmp_path / "instances.json").read_text())
    dot = np.zeros((120, 200), bool)
    dot[10:14, 10:14] = True
    values["annotations"].append({**values["annotations"][0], "id": 2, "segmentation": rle(dot)})
    (tmp_path / "instances.json").write_text(json.dumps(values))
    [clip] = made(source, clips_of(replace(WHOLE, short_sides_px=(60,))), 1)
    assert sorted(clip.masks.sum((1, 2, 3)).tolist()) == [4, 20 * 50]
    [clip] = made(source, clips_of(replace(WHOLE, short_sides_px=(60,)), min_area_px=5), 1)
    assert clip.masks.sum((1, 2, 3)).tolist() == [20 * 50]


def test_more_than_a_hundred_objects_of_a_picture_are_kept(tmp_path: Path) -> None:
    source = photo(tmp_path)
    values = json.loads((tmp_path / "instances.json").read_text())
    for k in range(140):
        spot = np.zeros((120, 200), bool)
        spot[8 * (k // 20) : 8 * (k // 20) + 6, 10 * (k % 20) : 10 * (k % 20) + 6] = True
        values["annotations"].append({**values["annotations"][0], "id": k + 2, "segmentation": rle(spot)})
    (tmp_path / "instances.json").write_text(json.dumps(values))
    [clip] = made(source, clips_of(replace(WHOLE, short_sides_px=(120,))), 1)
    assert len(clip.labels) == 141


def test_objects_are_pasted_over_what_a_view_shows(tmp_path: Path) -> None:
    discs = SourceSettings("cutouts", str(tmp_path / "cutouts"), class_map=str(write_cutouts(tmp_path, dog="dog")))
    paste = PasteSettings(counts=(0.0, 1.0), bare_counts=(0.0, 1.0), distractor=0, scene_twin=0, eroded=0, sway=0)
    settings = clips_of(replace(SLIDING, rotation_deg=15.0), 3, paste=paste)
    dataset = ClipDataset([photo(tmp_path), discs], settings, 20, 0)
    dogs = [mask for clip in (dataset[i] for i in range(20)) for mask in clip.masks[clip.labels == 1]]
    assert len(dogs) > 10


def frames_of_clips(folder: Path, reach: int, frames: int, length: int) -> list[list[int]]:
    """The numbers of the frames of 200 clips of a video of `length`, each frame of which has its number as grey."""
    source = video(folder, 40, 60, length)
    for t in range(length):
        write_png(folder / "JPEGImages" / f"one/{t:05d}.png", np.full((40, 60, 3), 10 * t, np.uint8))
    clips = made(source, clips_of(replace(WHOLE, short_sides_px=(40,)), frames, range_frames=reach), 200)
    return [(clip.frames[:, 0, 0, 0] // 10).tolist() for clip in clips]


def test_frames_lie_within_the_range_of_a_reference_frame(tmp_path: Path) -> None:
    clips = frames_of_clips(tmp_path, 3, 5, 20)
    assert all(clip == sorted(clip) for clip in clips)
    assert all(any(clip.count(r) == 1 and max(abs(t - r) for t in clip) <= 3 for r in clip) for clip in clips)
    assert any(len(set(clip)) < 5 for clip in clips)  # drawn with repetition
    assert {t for clip in clips for t in clip} == set(range(20))


def test_as_many_frames_as_lie_in_range_are_consecutive_ones(tmp_path: Path) -> None:
    clips = frames_of_clips(tmp_path / "long", 2, 5, 9)
    assert {tuple(clip) for clip in clips} == {tuple(range(first, first + 5)) for first in range(5)}
    assert {tuple(clip) for clip in frames_of_clips(tmp_path / "short", 2, 5, 3)} == {(0, 1, 2, 2, 2)}


@pytest.mark.parametrize(("reach", "length"), [(0, 6), (5, 1)])
def test_the_reference_repeats_where_nothing_else_is_in_range(reach: int, length: int, tmp_path: Path) -> None:
    assert all(len(set(clip)) == 1 for clip in frames_of_clips(tmp_path, reach, 3, length))


def test_a_clip_of_one_frame_is_any_frame(tmp_path: Path) -> None:
    assert {clip[0] for clip in frames_of_clips(tmp_path, 2, 1, 8)} == set(range(8))


def test_pseudo_videos_of_different_sizes_are_written_and_read_back(tmp_path: Path) -> None:
    settings = clips_of(replace(TURNING, short_sides_px=(48, 96)), 3)
    write_pseudo_videos([photo(tmp_path / "in")], settings, tmp_path / "out", 6, seed=0)
    assert {video.size for video in load_annotations(tmp_path / "out").videos} == {(48, 80), (96, 160)}


def test_pictures_in_memory_fit_the_view_of_the_settings(tmp_path: Path) -> None:
    pool = load_pool([photo(tmp_path)], clips_of(WHOLE))
    assert pool.picture(pool.bases[0].frames[0]).ids.shape == (64, 107)


@pytest.mark.parametrize(
    ("view", "fault"),
    [
        ({"kind": "short_side", "short_sides_px": []}, "short_sides_px"),
        ({"kind": "short_side", "short_sides_px": [0]}, "short_sides_px.0' is 0"),
        ({"kind": "short_side"}, "short_sides_px' is missing"),
        ({"kind": "short_side", "short_sides_px": [360], "flip": 2}, "flip' is 2"),
        ({"kind": "short_side", "short_sides_px": [360], "crop": {"chance": -1}}, "chance' is -1"),
        ({"kind": "short_side", "short_sides_px": [360], "zoom": 1}, "unknown setting 'view.ShortSideView.zoom'"),
    ],
)
def test_a_view_that_is_none_is_refused(view: Any, fault: str) -> None:
    with pytest.raises(SettingsError, match=fault):
        load_settings(ClipSettings, {"view": view}, "settings")


@pytest.mark.parametrize(
    ("view", "fault"),
    [
        (replace(WHOLE, crop=CropSettings(window_px=(600, 384))), r"crop\.window_px is 600 to 384"),
        (replace(WHOLE, pseudo_crop=CropSettings(window_px=(600, 384))), r"pseudo_crop\.window_px is 600 to 384"),
        (replace(WHOLE, crop=CropSettings(slides=True)), r"crop of a real video stays where it is"),
        (JitterView("jitter", scales=(2.0, 0.1)), r"scales is 2\.0 to 0\.1"),
    ],
)
def test_ranges_upside_down_are_refused(view: Any, fault: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=fault):
        ClipDataset([photo(tmp_path)], clips_of(view), 1, 0)


def overlapping(folder: Path) -> SourceSettings:
    """A photo whose red rectangle has a second object on it."""
    source = photo(folder)
    values = json.loads((folder / "instances.json").read_text())
    upon = np.zeros((120, 200), bool)
    upon[50:70, 80:120] = True
    values["annotations"].append({**values["annotations"][0], "id": 2, "category_id": 7, "segmentation": rle(upon)})
    (folder / "instances.json").write_text(json.dumps(values))
    return source


def test_masks_that_overlap_stay_whole_as_released(tmp_path: Path) -> None:
    [clip] = made(overlapping(tmp_path), clips_of(replace(WHOLE, short_sides_px=(60,))), 1)
    assert clip.masks.sum((1, 2, 3)).tolist() == [20 * 50, 10 * 20]
    assert (clip.masks[1] <= clip.masks[0]).all()


def test_what_is_pasted_hides_all_that_lies_behind(tmp_path: Path) -> None:
    discs = SourceSettings("cutouts", str(tmp_path / "cutouts"), class_map=str(write_cutouts(tmp_path, cat="cat")))
    paste = PasteSettings(
        counts=(0, 1.0), bare_counts=(0, 1.0), distractor=0, scene_twin=0, eroded=0, meet=1, meet_distance=0.2
    )
    dataset = ClipDataset([overlapping(tmp_path), discs], clips_of(WHOLE, 2, paste=paste), 20, 0)
    met = 0
    for clip in (dataset[i] for i in range(20)):
        cat, others = clip.masks[clip.labels == 3].any(0), clip.masks[clip.labels != 3]
        met += bool(cat.any() and (others.sum((1, 2, 3))[:2] < 2 * 21 * 54).any())
        assert not (others & cat).any()
    assert met > 10
