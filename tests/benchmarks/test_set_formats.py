"""Claims about reading and writing annotated sets: what goes out comes back, and the first fault is named."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from annotated_sets import SIZE, box_rle, moving_box, set_values, write_set
from hypothesis import given, settings
from hypothesis import strategies as st

from visrt.runtime.errors import DataError, UsageError, VisrtError
from visrt.runtime.masks import decode
from visrt.training.data import set_formats
from visrt.training.data.annotations import AnnotatedSet, Track
from visrt.training.data.set_formats import Pictures, SetPlaces, load_annotations, read_set
from visrt.training.data.sources import PoolSettings, SourceSettings, load_pool

Edit = Callable[[Path], object]


def apart(folder: Path) -> AnnotatedSet:
    """A dog and a car in each of two videos, which never overlap; the dog is gone from a frame of the second."""
    values = set_values(videos=2)
    values["annotations"][2]["segmentations"][1] = None
    return load_annotations(write_set(folder, values))


def contents(annotated: AnnotatedSet) -> dict[str, set[Any]]:
    """What a set holds, whatever its numbers and the order of its objects."""
    return {
        video.name: {
            (annotated.classes[t.label], t.crowd, tuple(mask and mask["counts"] for mask in t.masks))
            for t in video.tracks
        }
        for video in annotated.videos
    }


@pytest.mark.parametrize("pictures", Pictures)
@pytest.mark.parametrize("name", set_formats.WRITTEN)
def test_a_set_comes_back_from_each_format_as_it_went(name: str, pictures: Pictures, tmp_path: Path) -> None:
    annotated = apart(tmp_path / "set")
    assert set_formats.write_set(annotated, tmp_path / "out", name, pictures) == []
    read = read_set(SetPlaces(tmp_path / "out"))
    again = read.annotated
    assert read.format == name
    assert contents(again) == contents(annotated)
    assert [video.size for video in again.videos] == [SIZE, SIZE]
    assert [len(video.pictures) for video in again.videos] == [3, 3]
    linked = {picture.is_symlink() for video in again.videos for picture in video.pictures}
    assert linked == {pictures is Pictures.link}


@pytest.mark.parametrize("name", ["davis", "mots"])
def test_where_objects_overlap_the_smaller_is_kept_and_that_is_contents(name: str, tmp_path: Path) -> None:
    values = set_values()
    values["annotations"][0]["segmentations"] = [box_rle(0, 0, 20, 20)] * 3
    values["annotations"][1]["segmentations"] = [box_rle(10, 10, 4, 4)] * 3
    annotated = load_annotations(write_set(tmp_path / "set", values))
    remarks = set_formats.write_set(annotated, tmp_path / "out", name, Pictures.copy)
    assert remarks == ["48 pixels where objects overlap went to the smaller one"]
    again = read_set(SetPlaces(tmp_path / "out")).annotated
    areas = {again.classes[t.label]: decode(t.masks[0]).sum() for t in again.videos[0].tracks if t.masks[0]}
    assert areas == {"dog": 400 - 16, "car": 16}


@pytest.mark.parametrize("name", ["davis", "mots"])
def test_crowds_become_regions_to_ignore_and_come_back_as_crowds_of_each_class(name: str, tmp_path: Path) -> None:
    values = set_values()
    values["annotations"][1]["iscrowd"] = 1
    values["annotations"].append(
        {"id": 9, "video_id": 1, "category_id": 5, "segmentations": moving_box(2, 30, 9, 9, 3), "iscrowd": 0}
    )
    annotated = load_annotations(write_set(tmp_path / "set", values))
    remarks = set_formats.write_set(annotated, tmp_path / "out", name, Pictures.copy)
    assert remarks == ["1 crowds became regions to ignore for every class"]
    tracks = read_set(SetPlaces(tmp_path / "out")).annotated.videos[0].tracks
    crowds = [track for track in tracks if track.crowd]
    assert [track.label for track in crowds] == [0, 1]
    assert all(track.masks == annotated.videos[0].tracks[1].masks for track in crowds)
    assert len(tracks) == 4


def test_crowds_come_back_from_coco_as_they_went(tmp_path: Path) -> None:
    values = set_values()
    values["annotations"][1]["iscrowd"] = 1
    annotated = load_annotations(write_set(tmp_path / "set", values))
    set_formats.write_set(annotated, tmp_path / "out", "coco", Pictures.copy)
    assert contents(read_set(SetPlaces(tmp_path / "out")).annotated) == contents(annotated)


@pytest.mark.parametrize("name", set_formats.WRITTEN)
def test_training_reads_what_is_written(name: str, tmp_path: Path) -> None:
    """Each format, in each as the same videos with the same objects in every frame."""
    set_formats.write_set(apart(tmp_path / "set"), tmp_path / "out", name, Pictures.link)
    kind: Any = name.replace("-", "_")
    pool = load_pool([SourceSettings(kind, str(tmp_path / "out"))], PoolSettings(part="all"))
    assert set(pool.classes) == {"dog", "car"}
    shown = [[sorted(pool.classes[o.label] for o in frame.objects) for frame in base.frames] for base in pool.bases]
    both = ["car", "dog"]
    assert shown == [[both, both, both], [both, ["car"], both]]


def as_polygon(values: Any) -> None:
    values["annotations"][0]["segmentations"][0] = [[2.0, 4.0, 22.0, 4.0, 22.0, 20.0, 2.0, 20.0]]


def as_floats(values: Any) -> None:
    values["videos"][0].update(id=1.0, height=float(SIZE[0]), width=float(SIZE[1]))


SPELLINGS: dict[str, tuple[Callable[[Any], object], str | None]] = {
    "polygons": (as_polygon, None),
    "whole floats": (as_floats, None),
    "text ids": (lambda v: v["videos"][0].update(id="1"), r"videos\[0\]\.id: expected a whole number"),
    "one name twice": (lambda v: v["categories"][1].update(name="dog"), r"categories\[1\]\.name: expected a text no"),
    "one id twice": (lambda v: v["annotations"][1].update(id=1), r"annotations\[1\]\.id: 1 is the id of annotations"),
    "an empty mask": (
        lambda v: v["annotations"][0]["segmentations"].__setitem__(0, [[]]),
        r"s\[0\]\[0\]: a polygon of 0 numbers",
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_training_evaluation_and_check_take_the_same_files(name: str, tmp_path: Path) -> None:
    spell, refusal = SPELLINGS[name]
    values = set_values()
    write_set(tmp_path, values)
    spell(values)
    (tmp_path / "instances.json").write_text(json.dumps(values))
    readers: tuple[Callable[[], object], ...] = (
        lambda: load_pool([SourceSettings("youtube_vis", str(tmp_path))], PoolSettings(part="all")),
        lambda: load_annotations(tmp_path),
        lambda: read_set(SetPlaces(tmp_path)),
    )
    if refusal is not None:
        for read in readers:
            with pytest.raises(DataError, match=rf"instances\.json: .*{refusal}"):
                read()
        return
    for read in readers:
        read()
    plain = write_set(tmp_path / "plain", set_values())
    assert contents(load_annotations(tmp_path)) == contents(load_annotations(plain))


def test_videos_of_one_name_get_folders_of_their_own(tmp_path: Path) -> None:
    values = set_values(videos=2)
    for video, part in zip(values["videos"], ("a", "b"), strict=True):
        video["file_names"] = [f"{part}/same/{t}.png" for t in range(3)]
    annotated = load_annotations(write_set(tmp_path / "set", values))
    set_formats.write_set(annotated, tmp_path / "out", "youtube-vis", Pictures.copy)
    again = read_set(SetPlaces(tmp_path / "out")).annotated
    assert [video.name for video in again.videos] == ["same", "same_2"]


def picture(path: Path, values: Any, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PIL.Image.fromarray(np.asarray(values, np.uint8))
    (image.convert(mode) if mode else image).save(path)


def numbers(*boxes: tuple[int, int]) -> Any:
    """A mask png [H, W]: for each (number, x) a box of 8 x 8."""
    values = np.zeros(SIZE, np.uint8)
    for number, x in boxes:
        values[4:12, x : x + 8] = number
    return values


def davis(folder: Path, *frames: Any, size: str = "") -> Path:
    """One video `dogs` whose frames have these mask pngs; None for a picture without."""
    for t, values in enumerate(frames):
        picture(folder / "JPEGImages" / size / "dogs" / f"{t:05d}.jpg", np.full((*SIZE, 3), 90))
        if values is not None:
            picture(folder / "Annotations" / size / "dogs" / f"{t:05d}.png", values)
    return folder


def test_objects_of_davis_keep_their_numbers_over_the_frames(tmp_path: Path) -> None:
    davis(tmp_path, numbers((1, 0), (2, 20)), numbers((2, 22)), size="480p")
    read = read_set(SetPlaces(tmp_path))
    assert (read.format, read.annotated.classes, read.annotated.remarks) == ("davis", ("object",), ())
    first, second = read.annotated.videos[0].tracks
    assert [mask is not None for mask in first.masks] == [True, False]
    assert [mask is not None for mask in second.masks] == [True, True]


def test_white_is_the_object_of_davis_2016_and_void_elsewhere(tmp_path: Path) -> None:
    alone = read_set(SetPlaces(davis(tmp_path / "a", numbers((255, 0)))))
    assert [track.crowd for track in alone.annotated.videos[0].tracks] == [False]
    beside = read_set(SetPlaces(davis(tmp_path / "b", numbers((1, 0), (255, 20)))))
    assert [track.crowd for track in beside.annotated.videos[0].tracks] == [False, True]


def test_masks_in_colour_are_told_apart_by_colour(tmp_path: Path) -> None:
    values = np.zeros((*SIZE, 3), np.uint8)
    values[:8, :8], values[20:28, :8] = (0, 0, 200), (200, 0, 0)
    tracks = read_set(SetPlaces(davis(tmp_path, values))).annotated.videos[0].tracks
    assert [decode(track.masks[0]).any(axis=1).argmax() for track in tracks if track.masks[0]] == [0, 20]


def test_pictures_without_masks_are_left_out_and_counted(tmp_path: Path) -> None:
    read = read_set(SetPlaces(davis(tmp_path, numbers((1, 0)), None, numbers((1, 4)), None)))
    assert [path.name for path in read.annotated.videos[0].pictures] == ["00000.jpg", "00002.jpg"]
    assert read.annotated.remarks == ("2 pictures without a png of masks are left out",)


def test_classes_of_davis_come_from_a_file(tmp_path: Path) -> None:
    davis(tmp_path, numbers((1, 0), (2, 20)))
    (tmp_path / "n.json").write_text('{"dogs": {"1": "dog", "2": "person"}}')
    annotated = read_set(SetPlaces(tmp_path, names=tmp_path / "n.json")).annotated
    assert [annotated.classes[track.label] for track in annotated.videos[0].tracks] == ["dog", "person"]


def emptied(folder: Path) -> Path:
    for path in folder.iterdir():
        path.unlink()
    return folder


def test_all_faults_of_davis_are_told_at_once_and_their_frames_may_be_left_out(tmp_path: Path) -> None:
    davis(tmp_path, *[numbers((1, t)) for t in range(5)])
    picture(tmp_path / "Annotations/dogs/00001.png", np.ones((4, 4)))
    (tmp_path / "Annotations/dogs/00002.png").write_text("<html>")
    (tmp_path / "JPEGImages/dogs/00004.jpg").unlink()
    with pytest.raises(DataError, match=r"3 faults: 1 x .*00004\.png: there is no pict.*00001\.png: 4 x 4.*00002\.png"):
        read_set(SetPlaces(tmp_path))
    read = read_set(SetPlaces(tmp_path), skip_faulty=True)
    [video] = read.annotated.videos
    assert [path.stem for path in video.pictures] == ["00000", "00003"]
    assert len(video.tracks[0].masks) == 2


BAD_DAVIS: dict[str, tuple[Edit, str]] = {
    "a mask without its picture": (
        lambda f: (f / "JPEGImages/dogs/00001.jpg").unlink(),
        r"00001.png: there is no pict",
    ),
    "a mask of another size": (
        lambda f: picture(f / "Annotations/dogs/00001.png", np.ones((4, 4))),
        r"dogs/00001\.png: 4 x 4 pixels, its video's first picture 48 x 64",
    ),
    "a mask that is text": (
        lambda f: (f / "Annotations/dogs/00001.png").write_text("<html>"),
        r"dogs/00001\.png: not a readable image",
    ),
    "a torn mask": (
        lambda f: (f / "Annotations/dogs/00001.png").write_bytes((f / "Annotations/dogs/00001.png").read_bytes()[:-30]),
        r"dogs/00001\.png: not a readable image",
    ),
    "no masks": (
        lambda f: emptied(f / "Annotations/dogs"),
        r"Annotations/dogs: holds no png",
    ),
    "no video": (
        lambda f: emptied(f / "Annotations/dogs").rmdir(),
        r"Annotations: holds no folder",
    ),
    "an object without a class": (
        lambda f: (f / "names.json").write_text('{"dogs": {"2": "dog"}}'),
        r"Annotations/dogs: object 1 has no class",
    ),
    "names in a list": (
        lambda f: (f / "names.json").write_text("[]"),
        r"names\.json: holds a list; expected an object of",
    ),
    "a number in words": (
        lambda f: (f / "names.json").write_text('{"dogs": {"one": "dog"}}'),
        r"names\.json: dogs\.one: expected a class by a number; found 'dog'",
    ),
}


@pytest.mark.parametrize("name", BAD_DAVIS)
def test_the_first_fault_of_davis_is_named(name: str, tmp_path: Path) -> None:
    breaks, message = BAD_DAVIS[name]
    breaks(davis(tmp_path, numbers((1, 0)), numbers((1, 2))))
    with pytest.raises(DataError, match=message):
        read_set(SetPlaces(tmp_path))


RLE = box_rle(2, 4, 8, 8)["counts"]
GOOD_LINE = f"2 1000 1 48 64 {RLE}"


def mots(folder: Path, *lines: str) -> Path:
    """One video of the challenge's layout with three frames from number 1."""
    for t in (1, 2, 3):
        picture(folder / "clip" / "img1" / f"{t:06d}.jpg", np.full((*SIZE, 3), 90))
    (folder / "clip" / "gt").mkdir()
    (folder / "clip" / "gt" / "gt.txt").write_text("\n".join(lines))
    return folder


def test_a_line_of_mots_is_a_mask_of_the_frame_with_its_number(tmp_path: Path) -> None:
    read = read_set(SetPlaces(mots(tmp_path, GOOD_LINE, "", f"3 1000 1 48 64 {RLE}", f"3 2001 2 48 64 {RLE}")))
    assert (read.format, read.annotated.classes) == ("mots", ("car", "pedestrian"))
    shown = {t.label: [mask is not None for mask in t.masks] for t in read.annotated.videos[0].tracks}
    assert shown == {0: [False, True, True], 1: [False, False, True]}


def test_kitti_counts_frames_from_zero_and_keeps_pictures_elsewhere(tmp_path: Path) -> None:
    for t in (0, 1):
        picture(tmp_path / "image_02" / "0002" / f"{t:06d}.png", np.full((*SIZE, 3), 90))
    (tmp_path / "instances_txt").mkdir()
    (tmp_path / "instances_txt" / "0002.txt").write_text(f"0 1000 1 48 64 {RLE}\n1 10000 10 48 64 {RLE}\n")
    with pytest.raises(DataError, match="name their folder with --images"):
        read_set(SetPlaces(tmp_path))
    [video] = read_set(SetPlaces(tmp_path, images=tmp_path / "image_02")).annotated.videos
    shown = [(t.label, t.crowd, [mask is not None for mask in t.masks]) for t in video.tracks]
    assert shown == [(0, False, [True, False]), (0, True, [False, True]), (1, True, [False, True])]


BAD_LINES = {
    "too few fields": ("2 1000 1 48", r"gt\.txt: line 1: expected frame, id, class, height, width and rle; found"),
    "a frame in words": (f"two 1000 1 48 64 {RLE}", r"line 1: expected frame"),
    "another size": (f"2 1000 1 40 64 {RLE}", r"line 1\.size: mask of 40 x 64; expected 48 x 64"),
    "a class nobody named": (f"2 7000 7 48 64 {RLE}", r"line 1: class 7 is none of 1, 2, 10"),
    "a frame without a picture": (f"9 1000 1 48 64 {RLE}", r"line 1: frame 9 has no picture"),
    "malformed runs": ("2 1000 1 48 64 zz", r"line 1\.counts"),
    "two masks of an object": (f"{GOOD_LINE}\n{GOOD_LINE}", r"line 2: object 1000 has a mask in frame 2 already"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_the_first_faulty_line_of_mots_is_named(name: str, tmp_path: Path) -> None:
    line, message = BAD_LINES[name]
    with pytest.raises(DataError, match=message):
        read_set(SetPlaces(mots(tmp_path, line)))


def coco_set(folder: Path) -> dict[str, Any]:
    """Two photos in `folder`/images; the first holds a dog in polygons and a crowd of cars."""
    for i in (1, 2):
        picture(folder / "images" / f"photo{i}.jpg", np.full((*SIZE, 3), 90))
    sides = {"height": SIZE[0], "width": SIZE[1]}
    return {
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "images": [{"id": i, "file_name": f"photo{i}.jpg", **sides} for i in (1, 2)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 18, "segmentation": [[4, 4, 20, 4, 20, 12, 4, 12]]},
            {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 1, "segmentation": box_rle(30, 20, 9, 9)},
        ],
    }


def written(folder: Path, values: Any) -> SetPlaces:
    (folder / "instances.json").write_text(json.dumps(values))
    return SetPlaces(folder)


def test_a_photo_is_a_video_of_one_frame(tmp_path: Path) -> None:
    read = read_set(written(tmp_path, coco_set(tmp_path)))
    assert (read.format, [video.name for video in read.annotated.videos]) == ("coco", ["photo1", "photo2"])
    dog, cars = read.annotated.videos[0].tracks
    assert (dog.label, cars.label, dog.crowd, cars.crowd) == (0, 1, False, True)
    assert dog.masks[0] is not None
    assert decode(dog.masks[0]).sum() == 16 * 8
    assert read.annotated.videos[1].tracks == ()


def test_categories_keep_their_numbers_on_the_way_to_youtube_vis(tmp_path: Path) -> None:
    annotated = read_set(written(tmp_path, coco_set(tmp_path))).annotated
    set_formats.write_set(annotated, tmp_path / "out", "youtube-vis", Pictures.copy)
    values = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert values["categories"] == [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}]
    assert [(a["category_id"], a["iscrowd"]) for a in values["annotations"]] == [(18, 0), (3, 1)]


BAD_COCO: dict[str, tuple[Callable[[Any], object], str]] = {
    "an unknown image": (lambda v: v["annotations"][1].update(image_id=7), r"annotations\[1\]\.image_id: 7 is none"),
    "an open polygon": (
        lambda v: v["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        r"annotations\[0\]\.segmentation\[0\]: a polygon of 4 numbers",
    ),
    "no mask": (lambda v: v["annotations"][0].pop("segmentation"), r"annotations\[0\]\.segmentation: expected an RLE"),
    "a polygon in words": (
        lambda v: v["annotations"][0].update(segmentation=[["a"] * 6]),
        r"annotations\[0\]\.segmentation\[0\]\[0\]: expected a number",
    ),
    "a corner at the end of the world": (
        lambda v: v["annotations"][0].update(segmentation=[[0, 0, 1e30, 0, 5, 5]]),
        r"annotations\[0\]\.segmentation\[0\]\[2\]: expected a number of at most 640 pixels; found '1e\+30'",
    ),
    "a missing picture": (
        lambda v: v["images"][1].update(file_name="no.jpg"),
        r"1 of 2 photos are not below .*: no\.jpg",
    ),
    "an image id twice": (lambda v: v["images"][1].update(id=1), r"images\[1\]\.id: 1 is the id of images\[0\] too"),
    "two masks in a frame": (
        lambda v: (
            [a.update(track_id=4, category_id=3) for a in v["annotations"]],
            [image.update(video_id=1, frame_index=i) for i, image in enumerate(v["images"])],
        ),
        r"annotations\[1\]\.track_id: 4 has two masks in a frame",
    ),
    "a frame twice": (
        lambda v: [image.update(video_id=1, frame_index=0) for image in v["images"]],
        r"images\[1\]\.frame_index: 0 of video 1 is images\[0\] too",
    ),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_the_first_fault_of_coco_is_named_by_its_json_path(name: str, tmp_path: Path) -> None:
    breaks, message = BAD_COCO[name]
    values = coco_set(tmp_path)
    breaks(values)
    with pytest.raises(DataError, match=rf"instances\.json: {message}"):
        read_set(written(tmp_path, values))


JUNK = st.one_of(
    st.none(),
    st.integers(-3, 70),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.integers(-3, 9)),
    st.lists(st.lists(st.floats())),
)


@settings(max_examples=60)
@given(st.data())
def test_junk_in_coco_is_refused_in_words_or_read(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        values = coco_set(Path(name))
        entries = [entry for key in values for entry in values[key]]
        entry = data.draw(st.sampled_from(entries))
        entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JUNK)
        refusal = ""
        try:
            read_set(written(Path(name), values))
        except VisrtError as error:
            refusal = str(error)
        assert not refusal or "instances.json: " in refusal


def test_a_folder_that_holds_no_set_is_told_with_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"looks like no annotated set: it holds neither instances\.json"):
        read_set(SetPlaces(tmp_path))
    with pytest.raises(UsageError, match="there is no such folder"):
        read_set(SetPlaces(tmp_path / "no"))


def test_more_objects_than_a_png_tells_apart_are_refused(tmp_path: Path) -> None:
    annotated = apart(tmp_path / "set")
    video = annotated.videos[0]
    many = type(video)(1, "many", video.pictures, SIZE, (Track(0, (None,) * 3),) * 255)
    crowded = AnnotatedSet((many,), annotated.classes, annotated.label_of)
    with pytest.raises(DataError, match="255 objects; a png of masks tells 254 apart"):
        set_formats.write_set(crowded, tmp_path / "out", "davis", Pictures.copy)
