from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_sets import HEIGHT, WIDTH, box_mask, coco_values, rle, video_values, write_coco, write_video

from visrt.runtime.errors import DataError
from visrt.runtime.masks import decode
from visrt.training.data.annotations import NO_TARGET, AnnotatedSet, load_class_map, with_classes
from visrt.training.data.frames import LabelledSet
from visrt.training.data.set_columns import columns_of
from visrt.training.data.set_formats import SetPlaces, read_set


def coco(path: Path, images: Path, mapped: Mapping[str, str | None] | None = None) -> AnnotatedSet:
    return with_classes(read_set(SetPlaces(path.parent, path, images), "coco").annotated, mapped, path)


def youtube_vis(path: Path, images: Path) -> AnnotatedSet:
    return read_set(SetPlaces(path.parent, path, images), "youtube-vis").annotated


def only_object(path: Path, mapped: dict[str, str] | None = None) -> Any:
    (video,) = coco(path, path.parent / "images", mapped).videos
    (one,) = (*video.tracks, *video.left_out)
    return one


def runs(mask: np.ndarray[Any, Any]) -> list[int]:
    flat = mask.flatten(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


@pytest.mark.parametrize(
    "segmentation",
    [
        rle(box_mask(20, 30, 60, 40)),
        {"size": [HEIGHT, WIDTH], "counts": runs(box_mask(20, 30, 60, 40))},
        [[20.0, 30.0, 80.0, 30.0, 80.0, 70.0, 20.0, 70.0]],
        [[20.0, 30.0, 50.0, 30.0, 50.0, 70.0, 20.0, 70.0], [50.0, 30.0, 80.0, 30.0, 80.0, 70.0, 50.0, 70.0]],
    ],
    ids=["compressed", "uncompressed", "polygon", "two polygons"],
)
def test_every_form_of_a_mask_means_the_same_pixels(tmp_path: Path, segmentation: Any) -> None:
    values = coco_values()
    values["annotations"][0]["segmentation"] = segmentation
    assert np.array_equal(decode(only_object(write_coco(tmp_path, values)).masks[0]), box_mask(20, 30, 60, 40))


def test_classes_come_from_the_file(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_values())
    assert coco(path, tmp_path / "images").classes == ("car", "dog", "chair")
    assert only_object(path).label == 0


def test_a_class_map_merges_classes_and_untrains_the_rest(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_values())
    assert coco(path, tmp_path / "images", {"dog": "animal", "car": "vehicle"}).classes == ("animal", "vehicle")
    assert only_object(path, {"dog": "animal", "car": "vehicle"}).label == 1
    assert only_object(path, {"dog": "animal"}).label == NO_TARGET


def test_a_class_map_that_keeps_nothing_is_refused_with_the_categories_there_are(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_values())
    with pytest.raises(DataError, match=r"leaves out every category; .*: car, chair, dog"):
        coco(path, tmp_path / "images", {"lorry": "vehicle"})


def test_a_class_map_with_a_misspelt_name_is_refused_with_the_name_that_was_meant(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_values())
    with pytest.raises(DataError, match=r"lacks the category 'Chairs'; did you mean 'chair'\? It has: car, chair, dog"):
        coco(path, tmp_path / "images", {"car": "vehicle", "Chairs": "seat"})


def test_a_crowd_is_no_object(tmp_path: Path) -> None:
    values = coco_values()
    values["annotations"][0]["iscrowd"] = 1
    annotated = coco(write_coco(tmp_path, values), tmp_path / "images")
    columns = columns_of(annotated, tmp_path / "images")
    (frame,) = LabelledSet(columns, np.arange(3), tmp_path / "images").frames_of_video(0)
    assert frame.objects == ()
    assert len(frame.crowds) == 1


FAULTS: list[tuple[list[Any], Any, str]] = [
    (["annotations", 0, "image_id"], 99, r"annotations\[0\]\.image_id"),
    (["annotations", 0, "category_id"], 4, r"annotations\[0\]\.category_id"),
    (["annotations", 0, "category_id"], "car", r"annotations\[0\]\.category_id"),
    (["annotations", 0, "segmentation"], [[1, 2, 3, 4]], r"annotations\[0\]\.segmentation\[0\]"),
    (["annotations", 0, "segmentation"], [], r"annotations\[0\]\.segmentation"),
    (["annotations", 0, "segmentation"], 5, r"annotations\[0\]\.segmentation"),
    (["annotations", 0, "segmentation", "size"], [96, 161], r"annotations\[0\]\.segmentation\.size"),
    (["annotations", 0, "segmentation", "counts"], "0", r"annotations\[0\]\.segmentation\.counts"),
    (["annotations", 0, "segmentation", "counts"], [5, -5, 96 * 160], r"annotations\[0\]\.segmentation\.counts"),
    (["images", 0, "width"], 0, r"images\[0\]\.width"),
    (["images", 0, "file_name"], "none.png", r"images\[0\]\.file_name"),
    (["images", 0, "file_name"], "../images/0.png", r"images\[0\]\.file_name"),
    (["categories"], [{"id": 3, "name": "car"}, {"id": 3, "name": "dog"}], "categories"),
    (["images"], None, "images"),
]


@pytest.mark.parametrize(("keys", "value", "told"), FAULTS)
def test_the_first_fault_of_a_coco_file_is_named_by_its_json_path(
    tmp_path: Path, keys: list[Any], value: Any, told: str
) -> None:
    path = write_coco(tmp_path, coco_values())
    values = copy.deepcopy(coco_values())
    place: Any = values
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=told):
        coco(path, tmp_path / "images")


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "text.json").write_text("not json")
    with pytest.raises(DataError, match="not json"):
        coco(tmp_path / "text.json", tmp_path)


def test_an_object_may_be_absent_from_frames_of_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path, video_values(4))
    (video,) = youtube_vis(path, tmp_path / "JPEGImages").videos
    (track,) = video.tracks
    assert [mask is not None for mask in track.masks] == [True, True, True, False]


def test_a_video_annotation_of_another_length_is_refused(tmp_path: Path) -> None:
    values = video_values(4)
    values["annotations"][0]["segmentations"].pop()
    with pytest.raises(
        DataError, match=r"annotations\[0\]\.segmentations: expected one entry for each of 4 frames; found 3"
    ):
        youtube_vis(write_video(tmp_path, values), tmp_path / "JPEGImages")


def test_a_fault_in_one_frame_of_a_video_names_the_frame(tmp_path: Path) -> None:
    values = video_values(4)
    values["annotations"][0]["segmentations"][2]["counts"] = "zzz"
    with pytest.raises(DataError, match=r"annotations\[0\]\.segmentations\[2\]"):
        youtube_vis(write_video(tmp_path, values), tmp_path / "JPEGImages")


def test_a_class_map_must_map_names_to_names(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"car": 3}')
    with pytest.raises(DataError, match="names to names"):
        load_class_map(tmp_path / "map.json")


def test_a_class_map_may_leave_out_by_null_or_by_silence_and_both_are_counted(tmp_path: Path) -> None:
    values = coco_values(3)
    values["annotations"][1]["category_id"] = values["annotations"][2]["category_id"] = 7
    path = write_coco(tmp_path, values)
    for mapped in ({"car": "vehicle"}, {"car": "vehicle", "dog": None, "chair": None}):
        annotated = coco(path, tmp_path / "images", mapped)
        assert annotated.classes == ("vehicle",)
        assert [(len(video.tracks), len(video.left_out)) for video in annotated.videos] == [(1, 0), (0, 1), (0, 1)]
        assert annotated.remarks == (f"{path}: the class map leaves out 2 annotated objects: 2 dog",)


def test_a_class_map_of_several_sets_may_name_what_one_of_them_lacks(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco_values())
    for mapped in (
        {"car": "vehicle", "dog": None, "chair": None, "lorry": "vehicle"},
        {"car": "vehicle", "lorry": "vehicle"},
    ):
        assert coco(path, tmp_path / "images", mapped).classes == ("vehicle",)


def test_the_reader_loads_no_torch() -> None:
    """`visrt data` and `visrt eval` run where it is not installed."""
    code = "import sys; import visrt.training.data.set_formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
