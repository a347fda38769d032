"""Claims about sets as tools write them: all faults at once, what may be left out, tracks by any name, turned masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from annotated_sets import SIZE, box_rle, set_values, write_set
from typer.testing import CliRunner, Result

from visrt.cli import app
from visrt.runtime.errors import DataError
from visrt.runtime.masks import decode
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.segmentations import outlines_of, rle_of, rle_of_mask
from visrt.training.data.set_formats import SetPlaces, load_annotations, read_set
from visrt.training.data.sources import PoolSettings, SourceSettings, load_pool
from visrt.training.own_data import own_run
from visrt.training.own_recipe import OwnRecipe


def visrt(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def photos(folder: Path, count: int = 6, name: str = "{t}.png") -> dict[str, Any]:
    """COCO with a dog in each of `count` grey pictures below images/, which moves right by two pixels."""
    images, annotations = [], []
    for t in range(count):
        file = folder / "images" / name.format(t=t)
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(file)
        images.append({"id": t + 1, "file_name": name.format(t=t), "height": SIZE[0], "width": SIZE[1]})
        box = (2 + 2 * t, 4, 20, 16)
        shape = {"segmentation": box_rle(*box), "bbox": list(box), "area": 320}
        annotations.append({"id": t + 1, "image_id": t + 1, "category_id": 18, **shape})
    return {"images": images, "annotations": annotations, "categories": [{"id": 18, "name": "dog"}]}


def saved(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "instances.json").write_text(json.dumps(values))
    return folder


def read(folder: Path, skip_faulty: bool = False) -> AnnotatedSet:
    return read_set(SetPlaces(folder), skip_faulty=skip_faulty).annotated


BOX = [2.0, 4.0, 22.0, 4.0, 22.0, 20.0, 2.0, 20.0]
"""The dog of the first photo as a polygon."""
FAULTY: dict[str, Any] = {
    "box only": [],
    "no mask": None,
    "a stray click": [[10.0, 12.0]],
    "two corners": [[10.0, 12.0, 60.0, 40.0]],
    "corners in words": [["left", "top", 3, 4, 5, 6]],
}


def faulty(folder: Path) -> Path:
    """Two photos of each kind of fault, and one without."""
    values = photos(folder, 2 * len(FAULTY) + 1)
    for k, bad in enumerate([*FAULTY.values()] * 2):
        values["annotations"][k]["segmentation"] = bad
    for one in values["annotations"]:
        del one["bbox"]
    return saved(folder, values)


def test_all_faults_are_told_at_once_by_kind_with_their_places(tmp_path: Path) -> None:
    ended = visrt("data", "check", faulty(tmp_path))
    assert ended.exit_code == 2
    [line] = ended.stderr.splitlines()
    assert "instances.json: 10 faults: 2 x annotations[0].segmentation: an empty list; expected" in line
    assert "2 x annotations[2].segmentation[0]: a polygon of 2 numbers, one point;" in line
    assert "2 x annotations[3].segmentation[0]: a polygon of 4 numbers, two corners as of a box;" in line
    assert "(also annotations[6].segmentation)" in line
    assert "leave it out: `visrt data`, `eval` and `train --data` take --skip-faulty" in line


def test_of_many_faults_of_one_kind_ten_places_are_named(tmp_path: Path) -> None:
    values = photos(tmp_path, 14)
    for one in values["annotations"]:
        one["category_id"] = 7 + one["id"]
    with pytest.raises(DataError) as refusal:
        read(saved(tmp_path, values))
    message = str(refusal.value)
    assert "annotations[0].category_id: 8 is none of the file's: 18" in message
    assert "annotations[9].category_id and 3 more)" in message
    assert "annotations[10]" not in message.replace("annotations[10].category_id: 18", "")


def test_what_is_faulty_is_left_out_in_check_and_convert_and_counted(tmp_path: Path) -> None:
    checked = visrt("data", "check", faulty(tmp_path / "set"), "--skip-faulty")
    assert checked.exit_code == 0, checked.stderr
    assert "10 faults: " in checked.stderr
    assert "what is faulty is left out" in checked.stderr
    ended = visrt("data", "convert", tmp_path / "set", "--skip-faulty", "--out", tmp_path / "out")
    assert ended.exit_code == 0, ended.stderr
    assert sum(len(video.tracks) for video in load_annotations(tmp_path / "out").videos) == 1
    assert len(load_annotations(tmp_path / "out").videos) == 11, "the pictures stay"


def test_training_leaves_out_the_same_and_says_so(tmp_path: Path) -> None:
    faulty(tmp_path)
    strict = SourceSettings("coco", str(tmp_path))
    with pytest.raises(DataError, match="10 faults"):
        load_pool([strict], PoolSettings(part="all"))
    pool = load_pool([SourceSettings("coco", str(tmp_path), skip_faulty=True)], PoolSettings(part="all"))
    assert len(pool.bases) == 11
    assert any("10 faults" in remark for remark in pool.remarks)
    with pytest.raises(DataError, match="10 faults"):
        own_run(OwnRecipe(str(tmp_path), start="imagenet"))
    run = own_run(OwnRecipe(str(tmp_path), start="imagenet", skip_faulty=True))
    assert run.settings.data.sources[0].skip_faulty


def test_an_image_that_is_left_out_takes_its_annotations_along(tmp_path: Path) -> None:
    values = photos(tmp_path, 3)
    values["images"][1]["width"] = "wide"
    values["images"][2]["file_name"] = "../2.png"
    with pytest.raises(DataError, match=r"2 faults: 1 x images\[1\]\.width: .*; 1 x images\[2\]\.file_name: "):
        read(saved(tmp_path, values))
    [video] = read(tmp_path, skip_faulty=True).videos
    assert len(video.tracks) == 1


def test_a_set_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    values = photos(tmp_path, 2)
    for image in values["images"]:
        image["width"] = "wide"
    with pytest.raises(DataError, match="images: none is left without a fault"):
        read(saved(tmp_path, values), skip_faulty=True)


def test_a_video_loses_the_mask_that_is_faulty_and_keeps_the_others(tmp_path: Path) -> None:
    values = set_values(videos=2)
    values["annotations"][0]["segmentations"][1] = [[1.0, 2.0]]
    values["annotations"][3]["segmentations"].pop()
    write_set(tmp_path, values)
    with pytest.raises(DataError, match=r"2 faults: 1 x annotations\[0\]\.segmentations\[1\].*annotations\[3\]"):
        read(tmp_path)
    first, second = read(tmp_path, skip_faulty=True).videos
    assert [mask is not None for mask in first.tracks[0].masks] == [True, False, True]
    assert len(second.tracks) == 1


def test_a_video_of_faulty_names_is_left_out(tmp_path: Path) -> None:
    values = set_values(videos=2)
    write_set(tmp_path, values)
    values["videos"][0]["length"] = 5
    saved(tmp_path, values)
    [video] = read(tmp_path, skip_faulty=True).videos
    assert video.name == "video2"


def test_faulty_lines_of_yolo_and_mots_are_told_at_once_and_left_out(tmp_path: Path) -> None:
    yolo = tmp_path / "yolo"
    for i, line in enumerate(("0 0.1 0.1 0.5 0.1 0.5 0.5", "0 0.5 0.5 0.2 0.2", "7 0.1 0.1 0.5 0.1 0.5 0.5")):
        (yolo / "images").mkdir(parents=True, exist_ok=True)
        (yolo / "labels").mkdir(exist_ok=True)
        PIL.Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(yolo / "images" / f"{i}.png")
        (yolo / "labels" / f"{i}.txt").write_text(line)
    (yolo / "data.yaml").write_text("names: [dog]\ntrain: images\n")
    with pytest.raises(
        DataError, match=r"data\.yaml: 2 faults: .*1\.txt: line 1: five numbers.*2\.txt: line 1: class 7"
    ):
        read(yolo)
    assert sum(len(video.tracks) for video in read(yolo, skip_faulty=True).videos) == 1

    mots = tmp_path / "mots"
    (mots / "clip" / "gt").mkdir(parents=True)
    (mots / "clip" / "img1").mkdir()
    PIL.Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(mots / "clip" / "img1" / "000001.png")
    good = f"1 1000 1 48 64 {box_rle(2, 4, 8, 8)['counts']}"
    (mots / "clip" / "gt" / "gt.txt").write_text(f"{good}\n1 1001 1 48\n1 1002 1 40 64 zz\n")
    with pytest.raises(DataError, match=r"gt\.txt: 2 faults: .*line 2: .*line 3"):
        read(mots)
    assert len(read(mots, skip_faulty=True).videos[0].tracks) == 1


def test_a_bare_polygon_and_an_empty_list_for_an_absent_object_are_read_as_meant(tmp_path: Path) -> None:
    values = photos(tmp_path / "photos", 1)
    values["annotations"][0]["segmentation"] = BOX
    [video] = read(saved(tmp_path / "photos", values)).videos
    assert video.tracks[0].masks[0] == box_rle(2, 4, 20, 16)

    values = set_values()
    values["annotations"][0]["segmentations"][1] = []
    values["annotations"][1]["segmentations"][0] = [30.0, 24.0, 46.0, 24.0, 46.0, 44.0, 30.0, 44.0]
    dog, car = read(write_set(tmp_path / "videos", values)).videos[0].tracks
    assert [mask is not None for mask in dog.masks] == [True, False, True]
    assert car.masks[0] == box_rle(30, 24, 16, 20)


@pytest.mark.parametrize(
    "segmentation",
    [[[2, 4], [22, 4], [22, 20], [2, 20]], [[[2, 4], [22, 4], [22, 20], [2, 20]]]],
    ids=["one", "several"],
)
def test_corners_in_pairs_are_read_as_a_polygon(segmentation: object, tmp_path: Path) -> None:
    values = photos(tmp_path, 1)
    values["annotations"][0]["segmentation"] = segmentation
    assert read(saved(tmp_path, values)).videos[0].tracks[0].masks[0] == box_rle(2, 4, 20, 16)


def test_names_from_windows_addresses_of_lvis_and_crowds_left_open_are_read_as_meant(tmp_path: Path) -> None:
    values = photos(tmp_path, 2, "val2017/{t}.png")
    values["images"][0]["file_name"] = "val2017\\0.png"
    del values["images"][1]["file_name"]
    values["images"][1]["coco_url"] = "http://images.example.org/val2017/1.png"
    values["annotations"][0]["iscrowd"] = None
    annotated = read(saved(tmp_path, values))
    assert [video.pictures[0].is_file() for video in annotated.videos] == [True, True]
    assert not annotated.videos[0].tracks[0].crowd


def test_a_polygon_with_a_hole_as_kwcoco_has_it_is_read_with_the_hole(tmp_path: Path) -> None:
    outside = [[2, 4], [22, 4], [22, 20], [2, 20]]
    hole = [[6, 8], [10, 8], [10, 12], [6, 12]]
    for segmentation in ({"exterior": outside, "interiors": [hole]}, [{"exterior": outside, "interiors": [hole]}]):
        values = photos(tmp_path, 1)
        values["annotations"][0]["segmentation"] = segmentation
        mask = read(saved(tmp_path, values)).videos[0].tracks[0].masks[0]
        assert mask is not None
        assert decode(mask).sum() == 20 * 16 - 4 * 4
        assert not decode(mask)[8:12, 6:10].any()


@pytest.mark.parametrize("unknown", [{"width": -1, "height": -1}, {"width": None, "height": None}])
def test_a_size_that_the_file_leaves_open_is_that_of_the_picture(unknown: dict[str, Any], tmp_path: Path) -> None:
    values = photos(tmp_path, 2)
    values["images"][1] |= unknown
    annotated = read(saved(tmp_path, values))
    assert [video.size for video in annotated.videos] == [SIZE, SIZE]
    assert annotated.remarks == (
        f"{tmp_path}/instances.json: 1 entries give no width and height; those of the pictures count",
    )


def in_video(key: str, frame: str) -> Callable[[dict[str, Any]], None]:
    def spell(values: dict[str, Any]) -> None:
        for t, image in enumerate(values["images"]):
            image |= {key: 4, frame: 10 * t}

    return spell


def in_attributes(values: dict[str, Any], key: str, track: object) -> None:
    for one in values["annotations"]:
        one["attributes"] = {key: track, "occluded": False}


def as_keys(values: dict[str, Any], key: str, track: object) -> None:
    for one in values["annotations"]:
        one[key] = track


def named_videos(values: dict[str, Any]) -> None:
    for image in values["images"]:
        image["video_id"] = "clip"


TRACKS: dict[str, tuple[Callable[[dict[str, Any]], None], Callable[[dict[str, Any]], None]]] = {
    "CocoVID": (in_video("video_id", "frame_id"), lambda v: as_keys(v, "instance_id", 7)),
    "kwcoco": (in_video("video_id", "frame_index"), lambda v: as_keys(v, "track_id", "the dog")),
    "camel case": (in_video("videoId", "frameIndex"), lambda v: as_keys(v, "trackId", 0)),
    "sequences": (in_video("seq_id", "frame_num"), lambda v: as_keys(v, "object_id", 3)),
    "Datumaro": (in_video("video_id", "frame_index"), lambda v: in_attributes(v, "track_id", 2)),
    "no numbers of frames": (
        named_videos,
        lambda v: as_keys(v, "track_id", 1),
    ),
    "CVAT": (lambda _: None, lambda v: in_attributes(v, "track_id", 0)),
    "tracks alone": (lambda _: None, lambda v: as_keys(v, "track_id", 0)),
}


@pytest.mark.parametrize("name", TRACKS)
def test_tracks_of_coco_files_are_read_in_the_usual_spellings(name: str, tmp_path: Path) -> None:
    frames, tracks = TRACKS[name]
    values = photos(tmp_path, 12)
    frames(values)
    tracks(values)
    annotated = read(saved(tmp_path, values))
    [video] = annotated.videos
    [track] = video.tracks
    assert [path.stem for path in video.pictures] == [str(t) for t in range(12)], "10 after 9"
    assert all(track.masks)
    guessed = name in ("no numbers of frames", "CVAT", "tracks alone")
    assert any("in the order of their names" in remark for remark in annotated.remarks) is guessed


def test_the_videos_of_a_file_have_its_names(tmp_path: Path) -> None:
    values = photos(tmp_path, 2)
    in_video("video_id", "frame_id")(values)
    values["videos"] = [{"id": 4, "name": "street at noon"}]
    assert [video.name for video in read(saved(tmp_path, values)).videos] == ["street at noon"]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("0.jpg", "images/0.png"),
        ("frame_1.png", None),
        ("street/00000.jpg", "images/streets"),
        ("0001.png", "images/1.png"),
        ("7.png", None),
    ],
    ids=["another suffix", "nothing like it", "a folder", "zeros", "another number"],
)
def test_a_picture_that_is_not_there_is_told_with_the_file_of_the_nearest_name(
    name: str, nearest: str | None, tmp_path: Path
) -> None:
    values = photos(tmp_path, 2)
    (tmp_path / "images" / "streets").mkdir()
    values["images"][0]["file_name"] = name
    with pytest.raises(DataError, match="1 of 2 photos are not below") as raised:
        read(saved(tmp_path, values))
    assert ("(nearest to" in str(raised.value)) is (nearest is not None)
    assert nearest is None or f" is {tmp_path / nearest})" in str(raised.value)


def test_names_of_pictures_may_begin_at_the_json_file_as_those_of_kwcoco_do(tmp_path: Path) -> None:
    values = photos(tmp_path, 3)
    in_video("video_id", "frame_index")(values)
    as_keys(values, "track_id", 1)
    for image in values["images"]:
        image["file_name"] = "images/" + image["file_name"]
    (tmp_path / "data.kwcoco.json").write_text(json.dumps(values))
    [video] = read_set(SetPlaces(tmp_path / "data.kwcoco.json")).annotated.videos
    assert [path.name for path in video.pictures] == ["0.png", "1.png", "2.png"]


def test_a_video_of_more_masks_than_a_byte_counts_is_compared_and_trained_on(tmp_path: Path) -> None:
    values = photos(tmp_path, 2)
    in_video("video_id", "frame_index")(values)
    one = values["annotations"][0]
    values["annotations"] = [{**one, "id": i, "image_id": 1, "bbox": [40, 30, 9, 9]} for i in range(300)]
    saved(tmp_path, values)
    assert "300 masks lie outside the box given for them" in read(tmp_path).remarks[-1]
    assert len(load_pool([SourceSettings("coco", str(tmp_path))], PoolSettings(part="all")).bases) == 1


def test_each_folder_is_a_video_where_tracks_alone_tell_of_videos(tmp_path: Path) -> None:
    first = photos(tmp_path, 3, "a/{t}.png")
    other = photos(tmp_path, 3, "b/{t}.png")
    for values in (first, other):
        as_keys(values, "track_id", 5)
    for one in (*other["images"], *other["annotations"]):
        one["id"] += 3
    for one in other["annotations"]:
        one["image_id"] += 3
    values = {**first, **{key: first[key] + other[key] for key in ("images", "annotations")}}
    assert [(v.name, len(v.pictures), len(v.tracks)) for v in read(saved(tmp_path, values)).videos] == [
        ("a", 3, 1),
        ("b", 3, 1),
    ]


UNREAD: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "numbers that may be of one picture": (
        lambda v: as_keys(v, "instance_id", 1),
        r"annotations have instance_id, which looks like tracks and is not read; for videos give images video_id",
    ),
    "a spelling of its own": (
        lambda v: as_keys(v, "my_tracklet_nr", 1),
        r"annotations have my_tracklet_nr, which looks like tracks and is not read",
    ),
    "videos without tracks": (
        in_video("video_id", "frame_id"),
        r"images are frames of videos, but annotations have no track_id: each mask is an object of its own",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_tracks_that_are_not_read_are_told(name: str, tmp_path: Path) -> None:
    spell, remark = UNREAD[name]
    values = photos(tmp_path, 3)
    spell(values)
    annotated = read(saved(tmp_path, values))
    assert sum(len(video.tracks) for video in annotated.videos) == 3
    assert any(remark in one for one in annotated.remarks), annotated.remarks


def test_numbers_that_begin_anew_in_each_picture_are_no_tracks(tmp_path: Path) -> None:
    values = photos(tmp_path, 3)
    as_keys(values, "track_id", 1)
    values["annotations"].append({**values["annotations"][0], "id": 99})
    annotated = read(saved(tmp_path, values))
    assert (len(annotated.videos), annotated.remarks) == (3, ())


def by_rows(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Runs that were counted along the rows, a usual mistake."""
    flat = mask.reshape(-1).astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()}


def shifted(values: dict[str, Any]) -> None:
    for one in values["annotations"]:
        one["bbox"] = [40, 30, 20, 16]


def along_rows(values: dict[str, Any]) -> None:
    for one in values["annotations"]:
        one["segmentation"] = by_rows(decode(one["segmentation"]))


def upside_down(values: dict[str, Any]) -> None:
    for one in values["annotations"]:
        one["segmentation"] = rle_of_mask(decode(one["segmentation"])[::-1])


def of_another_area(values: dict[str, Any]) -> None:
    for one in values["annotations"]:
        one["area"] = 4000


ASTRAY = {
    "boxes elsewhere": (shifted, "3 masks lie outside the box given for them, the first: annotations[0].segmentation"),
    "runs along rows": (along_rows, "3 masks lie outside the box given for them"),
    "upside down": (upside_down, "3 masks lie outside the box given for them"),
    "another area": (of_another_area, "3 masks are of another area than is given for them"),
}


@pytest.mark.parametrize("name", ASTRAY)
def test_masks_that_do_not_fit_their_boxes_or_areas_are_told(name: str, tmp_path: Path) -> None:
    spoil, told = ASTRAY[name]
    values = photos(tmp_path, 3)
    spoil(values)
    ended = visrt("data", "check", saved(tmp_path, values))
    assert ended.exit_code == 0, ended.stderr
    assert told in ended.stderr


def test_masks_of_a_video_are_compared_frame_by_frame(tmp_path: Path) -> None:
    values = set_values()
    values["annotations"][0] |= {"bboxes": [[2, 4, 20, 16], [50, 40, 5, 5], [6, 4, 20, 16]], "areas": [320, 320, 9]}
    annotated = read(write_set(tmp_path, values))
    outside, area = annotated.remarks
    assert "1 masks lie outside the box given for them, the first: annotations[0].segmentations[1];" in outside
    assert "1 masks are of another area than is given for them, the first: annotations[0].segmentations[2];" in area


def test_boxes_and_areas_as_tools_round_them_are_no_remark(tmp_path: Path) -> None:
    values = photos(tmp_path, 3)
    boxes: list[list[float]] = [[1.2, 3.1, 21.9, 17.8], [0, 0, 64, 48], [6, 4, 19, 15]]
    for one, box in zip(values["annotations"], boxes, strict=True):
        one["bbox"] = box
        one["area"] = box[2] * box[3]
    assert read(saved(tmp_path, values)).remarks == ()


def test_pictures_that_are_shown_turned_are_counted(tmp_path: Path) -> None:
    values = photos(tmp_path, 3)
    for name, orientation in (("0.png", 3), ("2.png", 2)):
        path = tmp_path / "images" / name
        picture = PIL.Image.open(path)
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(path, exif=exif)
    ended = visrt("data", "check", saved(tmp_path, values))
    assert ended.exit_code == 0
    assert "2 pictures with an EXIF orientation, which are read as shown" in ended.stderr
    assert f"the first: {tmp_path}/images/0.png" in ended.stderr.replace("\n", "")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_the_outlines_of_a_mask_give_the_mask_again_holes_and_single_pixels_too(share: float) -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        mask = rng.random(SIZE) < share
        outlines = outlines_of(rle_of_mask(mask))
        again = decode(rle_of([outline.reshape(-1).tolist() for outline in outlines], "mask", SIZE))
        assert np.array_equal(again, mask)
