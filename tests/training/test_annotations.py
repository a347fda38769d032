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
from tiny_sets import HEIGHT, WIDTH, box_mask, coco_values, rle, video_values, write_coco, write_png, write_video

from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.runtime.errors import DataError
from visrt.runtime.masks import decode
from visrt.training.data.annotations import NO_TARGET, AnnotatedSet, load_class_map, require_annotations, with_classes
from visrt.training.data.frames import LabelledSet
from visrt.training.data.set_columns import columns_of
from visrt.training.data.set_formats import MissingPictures, SetPlaces, load_annotations, read_set
from visrt.training.data.sources import SourceSettings, load_material


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


def test_of_a_large_vocabulary_a_hundred_categories_are_named(tmp_path: Path) -> None:
    values = coco_values()
    values["categories"] = values["categories"] + [{"id": 100 + i, "name": f"thing {i:03d}"} for i in range(480)]
    path = write_coco(tmp_path, values)
    with pytest.raises(DataError, match=r"leaves out every category; .*: car, chair, dog, thing 000.* and 383 more$"):
        coco(path, tmp_path / "images", {"lorry": "vehicle"})


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
    (["images", 0, "file_name"], "none.png", r"1 of 1 photos are not below .*: none\.png"),
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


def videos_on_disk(folder: Path, count: int, **gone: int) -> SetPlaces:
    """So many videos of two frames, video1 and so on; the first frames of those named are not on disk."""
    template = video_values(2)
    names = [[f"video{i}/{t}.png" for t in range(2)] for i in range(1, count + 1)]
    videos = [{**template["videos"][0], "id": i, "file_names": files} for i, files in enumerate(names, start=1)]
    annotations = [{**template["annotations"][0], "id": video["id"], "video_id": video["id"]} for video in videos]
    path = folder / "instances.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**template, "videos": videos, "annotations": annotations}))
    for files in names:
        for name in files[gone.get(Path(files[0]).parent.name, 0) :]:
            write_png(folder / "JPEGImages" / name, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return SetPlaces(folder)


def test_all_videos_that_are_not_on_disk_are_counted_and_ten_of_them_named(tmp_path: Path) -> None:
    places = videos_on_disk(tmp_path, 14, video2=2, video3=1, **{f"video{i}": 2 for i in range(4, 14)})
    with pytest.raises(DataError) as refusal:
        read_set(places)
    message = str(refusal.value)
    assert "12 of 14 videos are not, or not whole, below" in message
    assert "video2, video3 (1 of 2 frames, the first 0.png), video4" in message
    assert "video11 and 2 more" in message
    assert "video12" not in message


def test_videos_that_are_not_on_disk_are_left_out_where_the_caller_says_so(tmp_path: Path) -> None:
    places = videos_on_disk(tmp_path, 4, video2=2, video3=1)
    annotated = read_set(places, missing=MissingPictures.leave_out).annotated
    assert [(video.id, video.name) for video in annotated.videos] == [(1, "video1"), (4, "video4")]
    assert annotated.missing == ("video2", "video3")
    assert "2 of 4 videos" in annotated.remarks[0]

    none = videos_on_disk(tmp_path / "none", 2, video1=1, video2=1)
    with pytest.raises(DataError, match=r"2 of 2 videos .* and none is left; give the folder of pictures"):
        read_set(none, missing=MissingPictures.leave_out)


def test_sizes_of_videos_are_known_without_a_picture(tmp_path: Path) -> None:
    places = videos_on_disk(tmp_path, 2, video1=2, video2=2)
    annotated = load_annotations(places, missing=MissingPictures.keep)
    assert [video.size for video in annotated.videos] == [(HEIGHT, WIDTH)] * 2
    assert annotated.missing == ()


@pytest.mark.parametrize("annotations", ["absent", None, []])
def test_a_file_for_an_evaluation_server_is_a_set_without_annotations(tmp_path: Path, annotations: object) -> None:
    places = videos_on_disk(tmp_path, 2)
    values = json.loads(places.json_file.read_text()) | {"annotations": annotations}
    if annotations == "absent":
        del values["annotations"]
    places.json_file.write_text(json.dumps(values))

    annotated = read_set(places).annotated

    assert not annotated.annotated
    assert [video.tracks for video in annotated.videos] == [(), ()]
    with pytest.raises(DataError, match=r"lists 2 videos without annotations, .*; training needs annotations"):
        require_annotations(annotated, tmp_path, "training")
    with pytest.raises(DataError, match="training needs annotations"):
        load_material([SourceSettings("youtube_vis", str(tmp_path))])


def test_photos_without_objects_are_annotated_and_photos_without_annotations_are_not(tmp_path: Path) -> None:
    path = write_coco(tmp_path, {**coco_values(), "annotations": []})
    assert coco(path, tmp_path / "images").annotated
    values = coco_values()
    del values["annotations"]
    assert not coco(write_coco(tmp_path, values), tmp_path / "images").annotated


def test_public_sets_are_known_by_their_categories_and_their_year_by_its_folder(tmp_path: Path) -> None:
    for folder, classes, expected in (
        ("any", "ytvis2019", ("ytvis19", 6.0)),
        ("ytvis_2021", "ytvis2021", ("ytvis21", 6.0)),
        ("ytvis_2022", "ytvis2021", ("ytvis22", 6.0)),
        ("mine", "ovis", ("ovis", 6.0)),
    ):
        places = videos_on_disk(tmp_path / folder, 1)
        names = enumerate(DATASET_CLASSES[classes], start=1)
        values = json.loads(places.json_file.read_text())
        values["categories"] = [{"id": i, "name": name.replace("_", " ")} for i, name in names]
        places.json_file.write_text(json.dumps(values))
        annotated = read_set(places).annotated
        assert (annotated.official, annotated.fps) == expected
    assert read_set(videos_on_disk(tmp_path / "own", 1)).annotated.official is None


def test_the_reader_loads_no_torch() -> None:
    """`visrt data` and `visrt eval` run where it is not installed."""
    code = "import sys; import visrt.training.data.set_formats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
