"""Claims about sets of labelling tools and runs of `visrt track`: what goes to a tool comes back, and what it loses."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from annotated_sets import SIZE, box_rle, set_values, write_set
from numpy.typing import NDArray
from typer.testing import CliRunner, Result
from written_clips import write_clip

from visrt.cli import app
from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, decode
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.sinks.journal import Journal
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.brush import brush_of_mask, mask_of_brush
from visrt.training.data.segmentations import box_px, rle_of_mask
from visrt.training.data.set_formats import Pictures, SetPlaces, load_annotations, read_set
from visrt.training.data.set_formats import write_set as write_format
from visrt.training.data.sources import PoolSettings, load_pool
from visrt.training.own_data import own_run
from visrt.training.own_recipe import OwnRecipe


def data(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def contents(annotated: AnnotatedSet) -> dict[str, set[Any]]:
    """What a set holds, whatever its numbers and the order of its objects."""
    return {
        video.name: {
            (annotated.classes[t.label], tuple(mask and mask["counts"] for mask in t.masks)) for t in video.tracks
        }
        for video in annotated.videos
    }


def drawn(*boxes: tuple[int, int, int, int], but: tuple[int, int, int, int] | None = None) -> Rle:
    """The union of `boxes` x, y, width, height, without the box `but`."""
    mask = np.zeros(SIZE, bool)
    for x, y, w, h in boxes:
        mask[y : y + h, x : x + w] = True
    if but is not None:
        x, y, w, h = but
        mask[y : y + h, x : x + w] = False
    return rle_of_mask(mask)


def grey(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)
    return path


def hard_set(folder: Path) -> AnnotatedSet:
    """A video of four frames: an object in two parts of which one goes, one that is gone in between, two that overlap;
    and a class without an object."""
    pictures = tuple(grey(folder / "street" / f"{t:03d}.png") for t in range(4))
    both, left = drawn((2, 2, 9, 9), (30, 2, 12, 20)), drawn((2, 2, 9, 9), (32, 2, 12, 20))
    parts: list[Rle | None] = [both, left, drawn((34, 2, 12, 20)), None]
    gone: list[Rle | None] = [drawn((4, 30, 11, 12)), None, None, drawn((10, 30, 11, 12))]
    over: list[Rle | None] = [
        drawn((28, 10, 20, 20), but=(33, 15, 5, 6)),
        None,
        drawn((28, 10, 20, 20)),
        drawn((28, 10, 20, 20)),
    ]
    stairs: list[Rle | None] = [drawn((5, 5, 9, 3), (8, 6, 3, 9), (11, 9, 9, 3))] * 4
    tracks = tuple(Track(k % 2, tuple(masks)) for k, masks in enumerate((parts, gone, over, stairs)))
    video = AnnotatedVideo(1, "street", pictures, SIZE, tracks)
    return AnnotatedSet((video,), ("dog", "car & van", "bird"), {1: 0, 2: 1, 3: 2})


@pytest.mark.parametrize("name", ["coco", "youtube-vis", "cvat", "label-studio"])
def test_a_video_comes_back_from_a_tool_as_it_went(name: str, tmp_path: Path) -> None:
    annotated = hard_set(tmp_path / "set")
    assert write_format(annotated, tmp_path / "out", name, Pictures.copy) == []
    read = read_set(SetPlaces(tmp_path / "out"))
    assert read.format == name
    assert contents(read.annotated) == contents(annotated)
    assert read.annotated.classes == annotated.classes
    assert read.annotated.remarks == ()


@pytest.mark.parametrize("name", ["coco", "cvat", "label-studio"])
def test_photos_with_holes_come_back_whole_and_as_photos(name: str, tmp_path: Path) -> None:
    pictures = [grey(tmp_path / "set" / f"{i}.png") for i in range(2)]
    holed = drawn((4, 4, 30, 30), but=(10, 10, 6, 6))
    videos = tuple(
        AnnotatedVideo(i, path.stem, (path,), SIZE, (Track(0, (holed,)), Track(1, (drawn((0, 0, 64, 48)),))))
        for i, path in enumerate(pictures, start=1)
    )
    annotated = AnnotatedSet(videos, ("dog", "car"), {1: 0, 2: 1})
    assert write_format(annotated, tmp_path / "out", name, Pictures.link) == []
    assert contents(read_set(SetPlaces(tmp_path / "out")).annotated) == contents(annotated)


def test_what_cvat_cannot_hold_is_said_in_a_line_each(tmp_path: Path) -> None:
    pictures = tuple(grey(tmp_path / f"{t}.png") for t in range(2))
    holed = drawn((4, 4, 30, 30), but=(10, 10, 6, 6))
    tracks = (Track(0, (holed, None), score=0.5), Track(0, (drawn((0, 0, 0, 0)), holed), crowd=True))
    annotated = AnnotatedSet((AnnotatedVideo(1, "v", pictures, SIZE, tracks),), ("dog",), {1: 0})
    assert write_format(annotated, tmp_path / "out", "cvat", Pictures.copy) == [
        "1 masks without a pixel are left out",
        "1 crowds became objects, as CVAT knows none",
        "the scores of 1 objects are left out, as CVAT has none",
    ]
    first = read_set(SetPlaces(tmp_path / "out")).annotated.videos[0].tracks[0].masks[0]
    assert first == holed


@pytest.mark.parametrize("name", ["mots", "davis"])
def test_scores_that_a_format_has_no_place_for_are_said(name: str, tmp_path: Path) -> None:
    annotated = load_annotations(write_set(tmp_path / "set", set_values()))
    [video] = annotated.videos
    scored = replace(video, tracks=tuple(replace(track, score=0.25) for track in video.tracks))
    said = write_format(replace(annotated, videos=(scored,)), tmp_path / "out", name, Pictures.copy)
    assert said == [f"the scores of 2 objects are left out, as {name.upper()} has none"]


def test_several_videos_and_photos_become_tasks_of_their_own_in_cvat(tmp_path: Path) -> None:
    values = set_values(videos=2)
    annotated = load_annotations(write_set(tmp_path / "set", values))
    photo = AnnotatedVideo(9, "photo", (grey(tmp_path / "photo.png"),), SIZE, (Track(0, (drawn((1, 1, 9, 9)),)),))
    annotated = replace(annotated, videos=(*annotated.videos, photo))
    write_format(annotated, tmp_path / "out", "cvat", Pictures.copy)
    assert sorted(p.parent.name for p in (tmp_path / "out").rglob("annotations.xml")) == ["photos", "video1", "video2"]
    assert contents(read_set(SetPlaces(tmp_path / "out")).annotated) == contents(annotated)
    # One of the tasks alone is a set too.
    assert len(read_set(SetPlaces(tmp_path / "out" / "video2")).annotated.videos) == 1


RUN_CLASSES = ("dog", "car")


def run_of_track(folder: Path, frames: tuple[int, ...] = (0, 1, 2, 3), boxes: bool = False) -> Path:
    """results.jsonl as `visrt track` writes it: a dog, and a car that comes in the third of `frames`."""
    folder.mkdir(parents=True)
    journal = Journal(folder / "results.jsonl", RUN_CLASSES)
    for k, index in enumerate(frames):
        dog = (2 * k, 4, 10, 10)
        objects = [TrackedObject(3, 0, 0.5 + k / 10, dog, None if boxes else drawn(dog))]
        if k >= 2:
            objects.append(TrackedObject(7, 1, 0.9, (30, 20, 8, 8), None if boxes else drawn((30, 20, 8, 8))))
        journal.write(FrameResult(index, index / 10, SIZE, tuple(objects)), np.zeros((*SIZE, 3), np.uint8))
    journal.close()
    summary = {"source": "clip.mp4", "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "car"}]}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


RUN_HOLDS = {
    "clip": {
        ("dog", tuple(drawn((2 * k, 4, 10, 10))["counts"] for k in range(4))),
        ("car", (None, None, *[drawn((30, 20, 8, 8))["counts"]] * 2)),
    }
}


@pytest.mark.parametrize("to", ["coco", "youtube-vis", "cvat", "label-studio", "mots"])
def test_a_run_of_track_becomes_annotations_and_comes_back_from_each_tool(to: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 6)
    run = run_of_track(tmp_path / "out")
    ended = data("convert", run, "--to", to, "--images", tmp_path / "clip.mp4", "--out", tmp_path / to)
    assert ended.exit_code == 0, ended.stderr
    assert f"{to}, 1 videos, 2 objects, read again without a fault" in ended.stdout
    corrected = data("convert", tmp_path / to, "--out", tmp_path / "back")
    assert corrected.exit_code == 0, corrected.stderr
    assert contents(load_annotations(tmp_path / "back")) == RUN_HOLDS
    assert len(load_annotations(tmp_path / "back").videos[0].pictures) == 4, "frames that the run did not see are none"


def test_coco_from_a_run_names_tracks_scores_boxes_and_areas(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 6)
    run = run_of_track(tmp_path / "out")
    assert data("convert", run, "--to", "coco", "--out", tmp_path / "coco").exit_code == 0, "the clip lies next to it"
    values = json.loads((tmp_path / "coco" / "instances.json").read_text())
    assert [one["track_id"] for one in values["annotations"]] == [3, 3, 3, 3, 7, 7], "the ids of the run"
    assert values["annotations"][0]["bbox"] == [0, 4, 10, 10]
    assert values["annotations"][0]["area"] == 100
    assert {one["score"] for one in values["annotations"]} == {0.8, 0.9}
    assert [image["frame_index"] for image in values["images"]] == [0, 1, 2, 3]
    assert data("convert", run, "--out", tmp_path / "vis").exit_code == 0
    [dog, car] = json.loads((tmp_path / "vis" / "instances.json").read_text())["annotations"]
    assert (car["bboxes"], car["areas"], car["score"]) == (
        [None, None, [30, 20, 8, 8], [30, 20, 8, 8]],
        [None] * 2 + [64] * 2,
        0.9,
    )
    assert (dog["height"], dog["width"], dog["length"]) == (*SIZE, 4)


@pytest.mark.parametrize("name", ["coco", "youtube-vis", "label-studio"])
def test_tracks_keep_their_ids_through_a_tool(name: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 6)
    annotated = read_set(SetPlaces(run_of_track(tmp_path / "out"))).annotated
    assert write_format(annotated, tmp_path / name, name, Pictures.copy) == []
    assert [track.id for track in read_set(SetPlaces(tmp_path / name)).annotated.videos[0].tracks] == [3, 7]


@pytest.mark.parametrize("name", ["coco", "youtube-vis", "label-studio"])
def test_ids_that_several_objects_have_are_counted_anew_and_it_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_clip(tmp_path / "videos" / "clip.mp4", 6)
    for run in ("a", "b"):
        run_of_track(tmp_path / "out" / run)
    annotated = read_set(SetPlaces(tmp_path / "out", images=tmp_path / "videos")).annotated
    assert write_format(annotated, tmp_path / name, name, Pictures.copy) == [
        "ids of tracks are counted anew from 1, as not each object has one of its own"
    ]
    again = read_set(SetPlaces(tmp_path / name)).annotated
    assert [track.id for video in again.videos for track in video.tracks] == [1, 2, 3, 4]


def test_frames_of_a_run_are_found_by_their_numbers_in_a_folder_too(tmp_path: Path) -> None:
    for t in range(9):
        grey(tmp_path / "frames" / f"{t}.png")
    run = run_of_track(tmp_path / "out", frames=(1, 3, 5, 7))
    [video] = read_set(SetPlaces(run, images=tmp_path / "frames")).annotated.videos
    assert [path.stem for path in video.pictures] == ["1", "3", "5", "7"]
    write_clip(tmp_path / "short.mp4", 2)
    with pytest.raises(DataError, match="has no frame 3, counted from 0; is it another video"):
        read_set(SetPlaces(run, images=tmp_path / "short.mp4"))


def test_frames_of_a_video_are_copied_where_pictures_are_to_be_linked(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 6)
    ended = data("convert", run_of_track(tmp_path / "out"), "--pictures", "link", "--out", tmp_path / "set")
    assert ended.exit_code == 0, ended.stderr
    pictures = load_annotations(tmp_path / "set").videos[0].pictures
    assert [path.is_symlink() for path in pictures] == [False] * 4


def test_training_on_a_run_says_to_convert_it(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 6)
    with pytest.raises(DataError, match=r"training reads no set of the format run; .* `visrt data convert`"):
        own_run(OwnRecipe(str(run_of_track(tmp_path / "out")), start="imagenet"))


def test_the_video_of_a_run_is_asked_for_where_it_is_not_found(tmp_path: Path) -> None:
    run = run_of_track(tmp_path / "out")
    ended = data("convert", run, "--to", "coco", "--out", tmp_path / "coco")
    assert (ended.exit_code, len(ended.stderr.splitlines())) == (2, 1)
    assert "its frames are those of clip.mp4, which is not in" in ended.stderr
    assert "give the video, or the folder of its pictures, with --images" in ended.stderr
    assert not (tmp_path / "coco").exists()
    # A path in the summary leads there.
    summary = json.loads((run / "summary.json").read_text())
    (tmp_path / "elsewhere").mkdir()
    write_clip(tmp_path / "elsewhere" / "clip.mp4", 4)
    (run / "summary.json").write_text(json.dumps({**summary, "path": str(tmp_path / "elsewhere" / "clip.mp4")}))
    assert data("check", run).exit_code == 0


def test_a_run_of_boxes_alone_is_a_set_of_boxes(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 4)
    annotated = read_set(SetPlaces(run_of_track(tmp_path / "out", boxes=True))).annotated
    assert annotated.boxes_only
    assert contents(annotated) == RUN_HOLDS


def test_runs_of_several_sources_are_one_set(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    write_clip(tmp_path / "videos" / "clip.mp4", 6)
    for name in ("a", "b"):
        run_of_track(tmp_path / "out" / name)
    annotated = read_set(SetPlaces(tmp_path / "out", images=tmp_path / "videos")).annotated
    assert [(video.name, len(video.tracks)) for video in annotated.videos] == [("clip", 2), ("clip", 2)]


def test_a_damaged_line_of_a_run_is_named_and_one_that_was_cut_is_left_out(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 6)
    run = run_of_track(tmp_path / "out")
    journal = run / "results.jsonl"
    whole = journal.read_text()
    journal.write_text(whole + '{"frame": 4, "size": [48')
    assert len(read_set(SetPlaces(run)).annotated.videos[0].pictures) == 4
    journal.write_text(whole + '{"frame": 4}\n')
    with pytest.raises(DataError, match=r"results\.jsonl: line 5: expected a line of visrt track"):
        read_set(SetPlaces(run))


def test_results_json_alone_is_no_set_and_says_what_is(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps([{"video_id": 1, "category_id": 1, "segmentations": []}]))
    with pytest.raises(DataError, match=r"holds results, .* `visrt eval --results`; .* folder of the run with its res"):
        read_set(SetPlaces(tmp_path / "results.json"))


CVAT_HEAD = """<?xml version="1.0"?><annotations><version>1.1</version><meta><task><name>street</name>
<start_frame>{start}</start_frame><stop_frame>{stop}</stop_frame><frame_filter>{filter}</frame_filter>
<labels><label><name>dog</name></label><label><name>car</name></label></labels></task></meta>"""


def cvat(folder: Path, body: str, start: int = 0, stop: int = 3, step: str = "", frames: int = 4) -> Path:
    for t in range(frames):
        grey(folder / "images" / f"frame_{t:06d}.png")
    folder.mkdir(parents=True, exist_ok=True)
    head = CVAT_HEAD.format(start=start, stop=stop, filter=step)
    (folder / "annotations.xml").write_text(f"{head}{body}</annotations>")
    return folder


def polygon(frame: int, x: int, outside: int = 0, key: int = 1) -> str:
    points = f"{x},4;{x + 10},4;{x + 10},14;{x},14"
    return f'<polygon frame="{frame}" outside="{outside}" occluded="0" keyframe="{key}" points="{points}"/>'


def test_a_track_of_cvat_is_outside_where_it_says_so(tmp_path: Path) -> None:
    shapes = polygon(0, 0) + polygon(1, 2, key=0) + polygon(2, 4, outside=1)
    read = read_set(SetPlaces(cvat(tmp_path, f'<track id="5" label="dog" source="manual">{shapes}</track>')))
    [video] = read.annotated.videos
    assert (read.format, video.name, len(video.pictures)) == ("cvat", "street", 4)
    assert video.tracks[0].masks == (drawn((0, 4, 10, 10)), drawn((2, 4, 10, 10)), None, None)
    assert read.annotated.classes == ("dog", "car")


def test_shapes_of_one_group_are_one_object(tmp_path: Path) -> None:
    tracks = "".join(f'<track id="{i}" label="dog" group_id="3">{polygon(0, 20 * i)}</track>' for i in range(2))
    [track] = read_set(SetPlaces(cvat(tmp_path, tracks))).annotated.videos[0].tracks
    assert track.masks[0] == drawn((0, 4, 10, 10), (20, 4, 10, 10))


def test_frames_of_a_task_that_takes_every_second_are_those(tmp_path: Path) -> None:
    shapes = polygon(2, 0) + polygon(4, 2)
    body = f'<track id="0" label="dog">{shapes}</track>'
    folder = cvat(tmp_path, body, start=0, stop=5, step="step=2", frames=6)
    [video] = read_set(SetPlaces(folder)).annotated.videos
    assert [path.stem[-1] for path in video.pictures] == ["0", "2", "4"]
    assert [mask is not None for mask in video.tracks[0].masks] == [False, True, True]


def test_the_frames_of_cvat_may_come_from_the_video(tmp_path: Path) -> None:
    folder = cvat(tmp_path / "task", f'<track id="0" label="dog">{polygon(1, 0)}</track>', frames=0)
    with pytest.raises(DataError, match=r"its frames were looked for at .*; give them, or the video, with --images"):
        read_set(SetPlaces(folder))
    write_clip(tmp_path / "clip.mp4", 4)
    [video] = read_set(SetPlaces(folder, images=tmp_path / "clip.mp4")).annotated.videos
    assert [mask is not None for mask in video.tracks[0].masks] == [False, True, False, False]
    ended = data("convert", folder, "--images", tmp_path / "clip.mp4", "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr


def test_stretches_that_cvat_fills_by_interpolation_are_told(tmp_path: Path) -> None:
    body = f'<track id="0" label="dog">{polygon(0, 0)}{polygon(3, 6)}</track>'
    annotated = read_set(SetPlaces(cvat(tmp_path, body))).annotated
    assert "1 stretches between key frames have no shape" in annotated.remarks[0]
    assert [mask is not None for mask in annotated.videos[0].tracks[0].masks] == [True, False, False, True]


BOX = '<box label="dog" xtl="2" ytl="4" xbr="12" ybr="14"/>'
LINE = '<polyline label="dog" points="1,1;5,5"/>'
IMAGE = '<image id="0" name="frame_000001.png" width="64" height="48">{}</image>'


def test_boxes_of_cvat_are_read_where_there_is_nothing_else_and_other_shapes_counted(tmp_path: Path) -> None:
    annotated = read_set(SetPlaces(cvat(tmp_path / "a", IMAGE.format(BOX + LINE)))).annotated
    assert annotated.boxes_only
    assert annotated.videos[0].tracks[0].masks[0] == drawn((2, 4, 10, 10))
    outline = '<polygon label="car" points="2,4;12,4;12,14;2,14"/>'
    mixed = read_set(SetPlaces(cvat(tmp_path / "b", IMAGE.format(BOX + LINE + outline)))).annotated
    assert [mixed.classes[track.label] for track in mixed.videos[0].tracks] == ["car"]
    assert "left out, as only masks and polygons are read where there are any: 1 polyline, 1 box" in mixed.remarks[0]


BAD_CVAT: dict[str, tuple[str, str]] = {
    "no instances": (IMAGE.format(LINE + '<tag label="dog"/>'), "holds no instances, only 1 polyline, 1 tag"),
    "neither images nor tracks": ("", "holds neither an image nor a track"),
    "an unknown label": (
        IMAGE.format(BOX.replace("dog", "dg")),
        r"image\[0\]\.box\[0\]: label: expected one of dog, c",
    ),
    "two corners": (
        IMAGE.format('<polygon label="dog" points="2,4;12,4"/>'),
        r"polygon\[0\]\.points\[0\]: a polygon of 4 numbers",
    ),
    "corners in words": (IMAGE.format('<polygon label="dog" points="a,b"/>'), "points: expected a number; found 'a'"),
    "runs of another size": (
        IMAGE.format('<mask label="dog" rle="1, 2" left="0" top="0" width="3" height="3"/>'),
        r"mask\[0\]\.rle: expected runs that add up to 3 x 3; found '1, 2'",
    ),
    "a mask outside": (
        IMAGE.format('<mask label="dog" rle="9" left="63" top="0" width="3" height="3"/>'),
        "outside the picture of 64 x 48",
    ),
    "a picture that is gone": (IMAGE.format(BOX).replace("001.png", "009.png"), r"1 of 1 photos are not below"),
    "a frame too many": (f'<track id="0" label="dog">{polygon(7, 0)}</track>', "frame 7 has no picture in"),
}


@pytest.mark.parametrize("name", BAD_CVAT)
def test_a_bad_file_of_cvat_is_one_line(name: str, tmp_path: Path) -> None:
    body, told = BAD_CVAT[name]
    with pytest.raises(DataError, match=told) as raised:
        read_set(SetPlaces(cvat(tmp_path, body)))
    assert "\n" not in str(raised.value)


def test_all_faults_of_cvat_are_told_and_may_be_left_out(tmp_path: Path) -> None:
    bad = BOX.replace('xtl="2"', 'xtl="x"') + BOX.replace("dog", "cat")
    folder = cvat(tmp_path, IMAGE.format(BOX + bad))
    with pytest.raises(
        DataError, match=r"2 faults: 1 x image\[0\]\.box\[1\]\.xtl: .*; 1 x image\[0\]\.box\[2\]: label"
    ):
        read_set(SetPlaces(folder))
    assert len(read_set(SetPlaces(folder), skip_faulty=True).annotated.videos[0].tracks) == 1


@pytest.mark.parametrize("text", ["<annotations>", '<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "<other/>", "text"])
def test_xml_that_is_no_export_of_cvat_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "annotations.xml").write_text(text)
    with pytest.raises(DataError, match=r"annotations\.xml: .* CVAT"):
        read_set(SetPlaces(tmp_path))


@pytest.mark.parametrize("seed", range(4))
def test_brush_masks_of_label_studio_keep_every_pixel(seed: int) -> None:
    mask = np.random.default_rng(seed).random((37, 53)) < (0.5, 0.02, 0.98, 0.0)[seed]
    assert np.array_equal(mask_of_brush(brush_of_mask(mask), "brush", (37, 53)), mask)
    large = np.zeros((300, 400), bool)
    large[20:280, 30:390] = True
    assert np.array_equal(mask_of_brush(brush_of_mask(large), "brush", (300, 400)), large)


def test_brush_masks_are_read_as_label_studio_documents_them() -> None:
    """Bits by hand: 8 values of 8 bits; lengths of 3, 4, 8 and 16 bits; one run of 4 zeros, then four single values."""
    bits = f"{8:032b}" + "00111" + "0010" + "0011" + "0111" + "1111"
    bits += "1" + "00" + "011" + "00000000"  # repeated, a length of 3 bits, 4 times, zero
    bits += "0" + "00" + "011" + "11111111" * 4  # four values one by one
    bits += "0" * (-len(bits) % 8)
    coded = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert mask_of_brush(coded, "brush", (1, 2)).tolist() == [[False, True]]


def task(folder: Path, *results: dict[str, Any], image: str = "/data/upload/1/0123abcd-0.png") -> Path:
    grey(folder / "images" / "0.png")
    whole = [{"original_width": 64, "original_height": 48, **one} for one in results]
    (folder / "tasks.json").write_text(
        json.dumps([{"id": 4, "data": {"image": image}, "annotations": [{"result": whole}]}])
    )
    return folder


OUTLINE = {"points": [[10, 25], [50, 25], [50, 75], [10, 75]]}
"""In percent: columns 6.4 to 32, rows 12 to 36."""


def test_polygons_of_label_studio_are_percent_of_the_picture(tmp_path: Path) -> None:
    value = {**OUTLINE, "polygonlabels": ["dog"]}
    read = read_set(SetPlaces(task(tmp_path, {"id": "a", "type": "polygonlabels", "value": value})))
    [video] = read.annotated.videos
    mask = video.tracks[0].masks[0]
    assert (read.format, read.annotated.classes, video.name) == ("label-studio", ("dog",), "0")
    assert mask is not None
    assert box_px(mask) == (6, 12, 26, 24)


def test_labels_and_shape_may_be_results_of_their_own(tmp_path: Path) -> None:
    brush = {"format": "rle", "rle": brush_of_mask(decode(drawn((3, 4, 9, 9))))}
    results = (
        {"id": "a", "type": "brush", "value": brush},
        {"id": "a", "type": "labels", "value": {**brush, "labels": ["car"]}},
        {"id": "b", "type": "choices", "value": {"choices": ["night"]}},
    )
    annotated = read_set(SetPlaces(task(tmp_path, *results))).annotated
    [track] = annotated.videos[0].tracks
    assert (annotated.classes, track.masks) == (("car",), (drawn((3, 4, 9, 9)),))
    assert "1 choices" in annotated.remarks[0]


@pytest.mark.parametrize(
    "image",
    [
        "/data/local-files/?d=somewhere/images/0.png",
        "s3://bucket/a/0.png",
        "https://host/media/0.png?token=1",
        "0.png",
        "/data/upload/7/89abcdef-0.png",
    ],
)
def test_the_picture_of_a_task_is_found_by_its_name(image: str, tmp_path: Path) -> None:
    value = {**OUTLINE, "polygonlabels": ["dog"]}
    folder = task(tmp_path, {"type": "polygonlabels", "value": value}, image=image)
    assert read_set(SetPlaces(folder)).annotated.videos[0].pictures == (folder / "images" / "0.png",)


def test_the_last_annotation_that_stands_counts_and_else_the_prediction(tmp_path: Path) -> None:
    def result(name: str) -> dict[str, Any]:
        value = {**OUTLINE, "polygonlabels": [name]}
        return {"result": [{"type": "polygonlabels", "value": value, "original_width": 64, "original_height": 48}]}

    grey(tmp_path / "images" / "0.png")
    one: dict[str, Any] = {"data": {"image": "0.png"}, "predictions": [result("guess")]}
    for given, expected in (
        ([result("first"), result("second"), {**result("third"), "was_cancelled": True}], "second"),
        ([], "guess"),
    ):
        (tmp_path / "tasks.json").write_text(json.dumps([{**one, "annotations": given}]))
        assert read_set(SetPlaces(tmp_path)).annotated.classes == (expected,)


BAD_TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "no instances": ({"type": "keypointlabels", "value": {"x": 1}}, "holds no instances, only 1 keypointlabels"),
    "no label": ({"type": "polygonlabels", "value": OUTLINE}, "label: expected the name of a class; found None"),
    "runs cut short": (
        {"type": "brushlabels", "value": {"rle": [0, 0, 48, 0, 57, 27, 255, 255], "brushlabels": ["dog"]}},
        r"\.rle: the runs are cut short",
    ),
    "runs of another size": (
        {"type": "brushlabels", "value": {"rle": brush_of_mask(np.ones((4, 4), bool)), "brushlabels": ["dog"]}},
        "runs cover 16 pixels; expected 48 x 64",
    ),
    "runs in words": ({"type": "brushlabels", "value": {"rle": "zz", "brushlabels": ["dog"]}}, "expected a list of by"),
    "corners in words": (
        {"type": "polygonlabels", "value": {"points": "here", "polygonlabels": ["dog"]}},
        r"points: expected corners \[x, y\] in percent",
    ),
    "no size": (
        {"type": "polygonlabels", "value": {**OUTLINE, "polygonlabels": ["dog"]}, "original_width": None},
        r"original\.width: expected a whole number",
    ),
}


@pytest.mark.parametrize("name", BAD_TASKS)
def test_a_bad_task_of_label_studio_is_one_line(name: str, tmp_path: Path) -> None:
    result, told = BAD_TASKS[name]
    with pytest.raises(DataError, match=told) as raised:
        read_set(SetPlaces(task(tmp_path, {"id": "a", **result})))
    assert "\n" not in str(raised.value)


def labelme(folder: Path, *shapes: dict[str, Any], name: str = "0", **changed: Any) -> Path:
    grey(folder / f"{name}.png")
    values: dict[str, Any] = {"version": "5.4", "imagePath": f"{name}.png"}
    values |= {"shapes": [{"group_id": None, **one} for one in shapes]}
    values |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1], "imageData": None, **changed}
    (folder / f"{name}.json").write_text(json.dumps(values))
    return folder


def area(label: str, x: int, **more: Any) -> dict[str, Any]:
    points = [[x, 4], [x + 10, 4], [x + 10, 14], [x, 14]]
    return {"label": label, "points": points, "shape_type": "polygon", **more}


def in_png(mask: NDArray[np.bool_]) -> str:
    file = io.BytesIO()
    PIL.Image.fromarray(mask).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def test_polygons_masks_circles_and_groups_of_labelme_are_objects(tmp_path: Path) -> None:
    inside = np.ones((6, 8), bool)
    inside[2:4, 3:5] = False
    mask = {"label": "car", "points": [[30, 20], [37, 25]], "shape_type": "mask", "mask": in_png(inside)}
    circle = {"label": "sun", "points": [[50, 30], [56, 30]], "shape_type": "circle"}
    parts = area("dog", 0, group_id=1), area("dog", 20, group_id=1)
    read = read_set(SetPlaces(labelme(tmp_path, *parts, mask, circle)))
    dog, car, sun = read.annotated.videos[0].tracks
    assert (read.format, read.annotated.classes) == ("labelme", ("dog", "car", "sun"))
    assert dog.masks[0] == drawn((0, 4, 10, 10), (20, 4, 10, 10))
    assert car.masks[0] == drawn((30, 20, 8, 6), but=(33, 22, 2, 2))
    assert sun.masks[0] is not None
    assert abs(decode(sun.masks[0]).sum() - np.pi * 36) < 10


def test_labelme_s_paths_from_windows_and_numbers_that_go_on_are_understood(tmp_path: Path) -> None:
    for i in range(3):
        labelme(tmp_path, area("dog", 2 * i, group_id=7), name=str(i), imagePath=f"..\\photos\\{i}.png")
    annotated = read_set(SetPlaces(tmp_path)).annotated
    assert [video.pictures[0].name for video in annotated.videos] == ["0.png", "1.png", "2.png"]
    assert "1 group_ids go on from picture to picture" in annotated.remarks[0]


def test_rectangles_and_lines_of_labelme_beside_polygons_are_counted(tmp_path: Path) -> None:
    box = {"label": "dog", "points": [[12, 14], [2, 4]], "shape_type": "rectangle"}
    line = {"label": "dog", "points": [[1, 1], [2, 2]], "shape_type": "line"}
    annotated = read_set(SetPlaces(labelme(tmp_path / "a", area("dog", 0), box, line))).annotated
    assert len(annotated.videos[0].tracks) == 1
    assert "1 line, 1 box" in annotated.remarks[0]
    alone = read_set(SetPlaces(labelme(tmp_path / "b", box))).annotated
    assert alone.boxes_only
    assert alone.videos[0].tracks[0].masks[0] == drawn((2, 4, 10, 10))


BAD_LABELME: dict[str, tuple[dict[str, Any], str]] = {
    "no instances": (
        {"shapes": [{"label": "a", "shape_type": "point", "points": [[1, 1]]}]},
        "no instances, only 1 poi",
    ),
    "two corners": (
        {"shapes": [area("dog", 0, points=[[1, 2], [3, 4]])]},
        r"0\.json: shapes\[0\]\.points\[0\]: a poly",
    ),
    "no label": ({"shapes": [area("", 0)]}, r"shapes\[0\]: label: expected the name"),
    "no png": (
        {"shapes": [{"label": "a", "shape_type": "mask", "points": [[0, 0], [1, 1]], "mask": "?"}]},
        r"shapes\[0\]\.mask: expected a png in base64",
    ),
    "a lost picture": ({"imagePath": "no.png"}, "1 of 1 photos are not below"),
    "a path that is none": ({"imagePath": 5}, "imagePath: expected the name of a picture; found 5"),
}


@pytest.mark.parametrize("name", BAD_LABELME)
def test_a_bad_file_of_labelme_is_one_line(name: str, tmp_path: Path) -> None:
    changed, told = BAD_LABELME[name]
    with pytest.raises(DataError, match=told) as raised:
        read_set(SetPlaces(labelme(tmp_path, **changed)))
    assert "\n" not in str(raised.value)


def panoptic(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> Path:
    """Two dogs, grass and a crowd of dogs in one picture."""
    grey(folder / "images" / "0.jpg")
    numbers = np.zeros((*SIZE, 3), np.uint8)
    numbers[0:10, 0:10] = (5, 0, 0)
    numbers[0:10, 20:30] = (5, 1, 0)
    numbers[30:, :] = (7, 0, 0)
    numbers[12:20, 0:40] = (8, 0, 0)
    (folder / "panoptic").mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(numbers).save(folder / "panoptic" / "0.png")
    segments = [
        {"id": 5, "category_id": 18, "iscrowd": 0},
        {"id": 5 + 256, "category_id": 18, "iscrowd": 0},
        {"id": 7, "category_id": 125, "iscrowd": 0},
        {"id": 8, "category_id": 18, "iscrowd": 1},
    ]
    values = {
        "images": [{"id": 3, "file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "annotations": [{"image_id": 3, "file_name": "0.png", "segments_info": segments}],
        "categories": [{"id": 18, "name": "dog", "isthing": 1}, {"id": 125, "name": "grass", "isthing": 0}],
    }
    change(values)
    (folder / "panoptic.json").write_text(json.dumps(values))
    return folder / "panoptic.json"


def test_things_of_a_panoptic_file_are_instances_and_stuff_is_counted(tmp_path: Path) -> None:
    read = read_set(SetPlaces(panoptic(tmp_path)))
    assert (read.format, read.annotated.classes, read.annotated.label_of) == ("panoptic", ("dog",), {18: 0})
    first, second, crowd = read.annotated.videos[0].tracks
    assert (first.masks, second.masks) == ((drawn((0, 0, 10, 10)),), (drawn((20, 0, 10, 10)),))
    assert (first.crowd, crowd.crowd) == (False, True)
    assert "1 segments of stuff, which has no instances, are left out: grass" in read.annotated.remarks[0]
    ended = data("convert", panoptic(tmp_path), "--to", "coco", "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr
    assert contents(load_annotations(tmp_path / "out")) == contents(read.annotated)


def test_panoptic_files_lie_where_coco_has_them_and_do_not_count_twice_in_its_folder(tmp_path: Path) -> None:
    made = panoptic(tmp_path / "made")
    coco = tmp_path / "coco"
    (coco / "annotations").mkdir(parents=True)
    made.rename(coco / "annotations" / "panoptic_val2017.json")
    (made.parent / "panoptic").rename(coco / "annotations" / "panoptic_val2017")
    (made.parent / "images").rename(coco / "val2017")
    read = read_set(SetPlaces(coco / "annotations" / "panoptic_val2017.json"))
    assert (read.format, len(read.annotated.videos[0].tracks)) == ("panoptic", 3)
    assert read_set(SetPlaces(coco)).format == "panoptic", "where there is nothing else"
    box = {"id": 1, "image_id": 3, "category_id": 18, "segmentation": drawn((1, 1, 9, 9))}
    values = json.loads((coco / "annotations" / "panoptic_val2017.json").read_text())
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps({**values, "annotations": [box]}))
    assert read_set(SetPlaces(coco)).format == "coco"


@pytest.mark.parametrize("name", ["cvat", "label-studio", "labelme", "panoptic"])
def test_sets_of_tools_are_trained_on_as_they_are(name: str, tmp_path: Path) -> None:
    if name == "labelme":
        for i in range(2):
            labelme(tmp_path / "set", area("dog", i), name=str(i))
    elif name == "panoptic":
        panoptic(tmp_path / "set")
    else:
        write_format(hard_set(tmp_path / "made"), tmp_path / "set", name, Pictures.copy)
    place = tmp_path / "set" / "panoptic.json" if name == "panoptic" else tmp_path / "set"
    run = own_run(OwnRecipe(str(place), start="imagenet"))
    pool = load_pool(run.settings.data.sources, PoolSettings(part="all", max_crowd=1.0))
    assert "dog" in pool.classes
    assert sum(len(frame.objects) for base in pool.bases for frame in base.frames) >= 2


BAD_PANOPTIC: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "stuff alone": (
        lambda v: [one.update(isthing=0) for one in v["categories"]],
        r"holds no instances: none of its 2 categories is a thing",
    ),
    "a number that no pixel has": (
        lambda v: v["annotations"][0]["segments_info"][0].update(id=99),
        r"segments_info\[0\]\.id: no pixel of 0\.png has the number 99",
    ),
    "an unknown category": (
        lambda v: v["annotations"][0]["segments_info"][2].update(category_id=4),
        r"segments_info\[2\]\.category_id: 4 is none of the file's: 18, 125",
    ),
    "no png": (lambda v: v["annotations"][0].update(file_name="no.png"), r"no\.png: not a readable image"),
    "another size": (lambda v: v["images"][0].update(width=70), r"file_name: 48 x 64 pixels, its image 48 x 70"),
}


@pytest.mark.parametrize("name", BAD_PANOPTIC)
def test_a_bad_panoptic_file_is_one_line(name: str, tmp_path: Path) -> None:
    change, told = BAD_PANOPTIC[name]
    with pytest.raises(DataError, match=told) as raised:
        read_set(SetPlaces(panoptic(tmp_path, change)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("contents", "told"),
    [
        ({"foo": 1, "bar": 2}, "holds the keys foo, bar, which is no format that is known; expected one object with"),
        ({}, "holds an empty object, which is no format"),
        ([1, 2], "holds a list; expected one object with videos, images or sequences"),
        ("text", "holds a str; expected one object"),
    ],
)
def test_a_file_of_no_known_format_says_what_it_holds_and_what_is_known(
    contents: object, told: str, tmp_path: Path
) -> None:
    (tmp_path / "what.json").write_text(json.dumps(contents))
    ended = data("convert", tmp_path / "what.json", "--to", "coco", "--out", tmp_path / "out")
    assert (ended.exit_code, len(ended.stderr.splitlines())) == (2, 1)
    assert told in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_format_that_is_not_written_is_refused_before_anything_is(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", set_values())
    ended = data("convert", folder, "--to", "labelme", "--out", tmp_path / "out")
    assert ended.exit_code == 2
    assert "cvat" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_masks_of_a_video_keep_their_frames_in_every_written_format(tmp_path: Path) -> None:
    values = set_values(videos=2)
    values["annotations"][1]["segmentations"][0] = None
    values["annotations"][2]["segmentations"] = [box_rle(0, 0, 64, 48), None, box_rle(63, 47, 1, 1)]
    annotated = load_annotations(write_set(tmp_path / "set", values))
    for name in ("coco", "youtube-vis", "cvat", "label-studio"):
        write_format(annotated, tmp_path / name, name, Pictures.link)
        assert contents(read_set(SetPlaces(tmp_path / name)).annotated) == contents(annotated)
