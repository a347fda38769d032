"""Claims about the layouts of sets: which sets a folder holds, by split, and what is refused as ambiguous."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from official_layouts import make_split
from tiny_sets import coco_values, write_coco

from visrt.runtime.errors import DataError, UsageError
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.layouts import found_sets
from visrt.training.data.official_sets import OFFICIAL_SETS
from visrt.training.data.set_formats import MissingPictures, SetPlaces, read_set


def own(folder: Path) -> Path:
    """instances.json next to images/."""
    folder.mkdir(parents=True, exist_ok=True)
    write_coco(folder, coco_values(2))
    return folder


def roboflow(folder: Path) -> Path:
    """_annotations.coco.json next to the pictures; the first category is the project's."""
    own(folder / "flat")
    for picture in (folder / "flat" / "images").iterdir():
        shutil.move(picture, folder / picture.name)
    values = coco_values(2)
    root = {"id": 0, "name": "street", "supercategory": "none"}
    values["categories"] = [root, *({**category, "supercategory": "street"} for category in values["categories"])]
    (folder / "_annotations.coco.json").write_text(json.dumps(values))
    shutil.rmtree(folder / "flat")
    return folder


def standard(folder: Path, *splits: str) -> Path:
    """annotations/instances_train2017.json and train2017/, and so on."""
    (folder / "annotations").mkdir(parents=True)
    for name in splits:
        own(folder / "flat")
        (folder / "flat" / "images").rename(folder / name)
        (folder / "flat" / "instances.json").rename(folder / "annotations" / f"instances_{name}.json")
    (folder / "annotations" / "captions_train2017.json").write_text("{}")
    return folder


def splits_of(place: Path) -> dict[str, int]:
    """The number of photos of each split."""
    return {split: len(read_set(found.places).annotated.videos) for split, found in found_sets(place).items()}


LAYOUTS: dict[str, tuple[Callable[[Path], object], dict[str, int]]] = {
    "one set": (own, {"all": 2}),
    "a set for each split": (lambda f: (own(f / "train"), own(f / "val")), {"train": 2, "val": 2}),
    "Roboflow, one folder": (roboflow, {"all": 2}),
    "Roboflow": (lambda f: [roboflow(f / n) for n in ("train", "valid", "test")], {"train": 2, "val": 2, "test": 2}),
    "standard COCO": (lambda f: standard(f, "train2017", "val2017"), {"train": 2, "val": 2}),
    "standard COCO, one file": (lambda f: standard(f, "all"), {"all": 2}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_with_its_splits(name: str, tmp_path: Path) -> None:
    make, expected = LAYOUTS[name]
    make(tmp_path / "set")
    assert splits_of(tmp_path / "set") == expected


def test_the_category_that_roboflow_names_after_the_project_is_left_out_and_said(tmp_path: Path) -> None:
    annotated = read_set(SetPlaces(roboflow(tmp_path))).annotated
    assert annotated.classes == ("car", "dog", "chair")
    assert "category 'street' is the name of the project" in annotated.remarks[0]


def test_of_a_folder_of_several_sets_one_must_be_given(tmp_path: Path) -> None:
    own(tmp_path / "train")
    own(tmp_path / "valid")
    with pytest.raises(DataError, match=rf"holds 2 sets; give one of: {tmp_path}/train \(train\), {tmp_path}/valid"):
        read_set(SetPlaces(tmp_path))
    assert len(read_set(SetPlaces(tmp_path / "valid")).annotated.videos) == 2


def test_an_annotation_file_chooses_among_several(tmp_path: Path) -> None:
    folder = standard(tmp_path, "train2017", "val2017")
    read = read_set(SetPlaces(folder / "annotations" / "instances_val2017.json"))
    assert {video.pictures[0].parent for video in read.annotated.videos} == {folder / "val2017"}


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "two layouts": (
        lambda f: (own(f), (f / "data.yaml").write_text("names: [a]\ntrain: images\n")),
        r"sets of several layouts: instances\.json, data\.yaml; give the annotation file of one",
    ),
    "two splits for validation": (
        lambda f: (own(f / "train"), own(f / "valid"), own(f / "val")),
        r"2 sets could be the split val: .*; remove all but one",
    ),
    "names that do not say": (
        lambda f: standard(f, "first", "second"),
        r"instances_first\.json, instances_second\.json: which is for training does not show",
    ),
    "no pictures": (
        lambda f: (standard(f, "train2017"), (f / "train2017").rename(f / "photos")),
        r"instances_train2017\.json: its folder of pictures was looked for in vain at",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_ambiguous_is_refused_with_what_was_found(name: str, tmp_path: Path) -> None:
    make, message = REFUSED[name]
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        splits_of(tmp_path)


def test_a_folder_of_which_no_file_has_a_known_name_is_told_with_its_files(tmp_path: Path) -> None:
    (own(tmp_path) / "instances.json").rename(tmp_path / "export-7.json")
    with pytest.raises(
        DataError, match=r"looks like no annotated set: .*; give its annotation file .*: export-7\.json$"
    ):
        found_sets(tmp_path)
    assert splits_of(tmp_path / "export-7.json") == {"all": 2}
    (tmp_path / "export.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match="unpack it, and give the folder"):
        found_sets(tmp_path / "export.zip")


FRAMES = 4
VIDEO_SETS = ("ytvis19", "ytvis21", "ytvis22", "ovis", "uvo")


def read_split(folder: Path, split: str | None = None) -> AnnotatedSet:
    return read_set(SetPlaces(folder, split=split)).annotated


@pytest.mark.parametrize("name", ["ytvis19", "ytvis21", "ytvis22", "ovis", "uvo", "burst", "imagenet_vid", "coco"])
def test_a_public_set_is_read_as_downloaded_and_known_by_its_files(name: str, tmp_path: Path) -> None:
    for split in OFFICIAL_SETS[name].annotations:
        places = make_split(tmp_path, name, split, frames=FRAMES)
        annotated = read_split(places.folder, split)
        assert annotated.official == name
        assert all(
            picture.is_relative_to(places.folder / places.images) for v in annotated.videos for picture in v.pictures
        )
        assert {len(video.tracks) for video in annotated.videos} == {2}
    if name in VIDEO_SETS:
        assert [video.size for video in annotated.videos] == [(72, 128), (128, 72)]
        assert annotated.fps == (30.0 if name == "uvo" else 6.0)
        with pytest.raises(DataError, match=r"holds 3 sets; give one of: .*train.*\(train\).*`visrt eval` .* --split"):
            read_split(places.folder)
        with pytest.raises(DataError, match=r"has no split night; it has: train, val, test"):
            read_split(places.folder, "night")


@pytest.mark.parametrize("name", ["ytvis19", "ovis", "coco", "burst"])
def test_the_folder_of_a_splits_pictures_and_the_file_alone_mean_the_split(name: str, tmp_path: Path) -> None:
    places = make_split(tmp_path, name, "train", frames=FRAMES)
    if name == "ytvis19":  # pngs for another task come with it
        (places.folder / "train" / "Annotations" / "video1").mkdir(parents=True)
    expected = make_split(tmp_path, name, "valid", frames=FRAMES)
    pictures = expected.folder / expected.images
    for given in (pictures, expected.folder / expected.annotations):
        annotated = read_split(given)
        assert annotated.official == name
        assert all(picture.is_relative_to(pictures) for video in annotated.videos for picture in video.pictures)
    if name == "ytvis19":
        assert read_split(expected.folder / "valid").official == name
        assert read_split(expected.folder, "train").videos[0].tracks


def test_the_file_of_a_split_may_lie_in_its_folder(tmp_path: Path) -> None:
    """As 2021 is downloaded."""
    for split in ("train", "valid"):
        places = make_split(tmp_path, "ytvis21", split, split == "train", FRAMES)
        (places.folder / places.annotations).rename(places.folder / split / "instances.json")
    root = tmp_path / "ytvis_2021"
    assert [read_split(root, split).annotated for split in ("train", "valid")] == [True, False]
    for given in (root / "valid", root / "valid" / "JPEGImages", root / "valid" / "instances.json"):
        annotated = read_split(given)
        assert (annotated.official, annotated.annotated) == ("ytvis21", False)


def test_a_recipe_finds_pictures_that_lie_a_folder_deeper(tmp_path: Path) -> None:
    places = make_split(tmp_path, "ovis", "train", frames=FRAMES)
    pictures = (places.folder / places.images).rename(tmp_path / "videos")
    (places.folder / "train").mkdir()
    pictures.rename(places.folder / "train" / "JPEGImages")
    assert OFFICIAL_SETS["ovis"].find(tmp_path, "train").images == "train/JPEGImages"
    assert len(read_split(places.folder).videos) == 2


def test_sets_of_one_folder_are_told_apart_by_their_files(tmp_path: Path) -> None:
    make_split(tmp_path, "imagenet_vid", "train", frames=FRAMES)
    places = make_split(tmp_path, "imagenet_det", "train")
    assert read_split(places.folder).official == "imagenet_vid"
    assert read_split(places.folder / places.annotations).official == "imagenet_det"


def test_a_folder_above_several_public_sets_names_them(tmp_path: Path) -> None:
    for name in ("ytvis19", "coco"):
        make_split(tmp_path, name, "valid", frames=FRAMES)
    with pytest.raises(DataError, match=rf"give one of the public sets in it: {tmp_path}/coco, {tmp_path}/ytvis_2019"):
        found_sets(tmp_path)


def test_any_other_arrangement_is_given_by_its_file_and_its_pictures(tmp_path: Path) -> None:
    places = make_split(tmp_path, "ytvis19", "valid", annotated=False, frames=FRAMES)
    file = (places.folder / places.annotations).rename(tmp_path / "list.json")
    pictures = (places.folder / places.images).rename(tmp_path / "frames")
    annotated = read_set(SetPlaces(tmp_path, file, pictures)).annotated
    assert (annotated.official, annotated.fps, annotated.annotated) == ("ytvis19", 6.0, False)
    with pytest.raises(DataError, match=r"list\.json: its folder of pictures was looked for in vain at"):
        read_set(SetPlaces(tmp_path, file))


def test_a_split_of_which_only_the_file_was_downloaded_has_sizes_and_names_its_folder(tmp_path: Path) -> None:
    places = make_split(tmp_path, "ovis", "valid", annotated=False, frames=FRAMES)
    (places.folder / places.images).rename(tmp_path / "elsewhere")
    given = SetPlaces(places.folder / places.annotations)
    annotated = read_set(given, missing=MissingPictures.keep).annotated
    assert [video.size for video in annotated.videos] == [(72, 128), (128, 72)]
    with pytest.raises(
        DataError, match=rf"looked for in vain at {tmp_path}/ovis/valid/JPEGImages|{tmp_path}/ovis/valid"
    ):
        read_set(given)


def test_the_file_of_a_split_may_lie_next_to_its_folder_without_its_name(tmp_path: Path) -> None:
    """As the validation split of 2022 is often unpacked: instances.json, val/JPEGImages."""
    places = make_split(tmp_path, "ytvis22", "valid", annotated=False, frames=FRAMES)
    (places.folder / places.annotations).rename(places.folder / "instances.json")
    (places.folder / "valid").rename(places.folder / "val")
    annotated = read_split(places.folder)
    assert annotated.official == "ytvis22"
    assert annotated.videos[0].pictures[0].is_relative_to(places.folder / "val" / "JPEGImages")


def test_burst_has_a_frame_a_second_and_says_what_is_not_exhaustive(tmp_path: Path) -> None:
    places = make_split(tmp_path, "burst", "valid", frames=FRAMES)
    annotated = read_split(places.folder)
    [first, _] = annotated.videos
    assert (first.name, len(first.pictures), annotated.fps) == ("LaSOT/clip-1", FRAMES // 2, 1.0)
    assert [(annotated.classes[t.label], [m is not None for m in t.masks]) for t in first.tracks] == [
        ("person", [True, True]),
        ("bird", [True, False]),
    ]
    assert "in 1 of 2 videos some classes are not annotated exhaustively" in annotated.remarks[0]


BAD_BURST: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an id twice": (lambda v: v["sequences"][1].update(id=1), r"sequences\[1\]\.id: 1 is the id of sequences\[0\] too"),
    "a track without a class": (
        lambda v: v["sequences"][0]["track_category_ids"].pop("11"),
        r"sequences\[0\]\.track_category_ids\.11: expected a whole number",
    ),
    "an unknown class": (
        lambda v: v["sequences"][0]["track_category_ids"].update({"11": 3}),
        r"track_category_ids\.11: 3 is none of the file's: 95, 805",
    ),
    "a frame too few": (
        lambda v: v["sequences"][1]["segmentations"].pop(),
        r"segmentations: expected one entry for each",
    ),
    "a torn mask": (
        lambda v: v["sequences"][0]["segmentations"][1]["10"].update(rle="zz"),
        r"sequences\[0\]\.segmentations\[1\]\.10\.rle\.counts",
    ),
    "no name": (lambda v: v["sequences"][0].pop("seq_name"), r"sequences\[0\]: dataset and seq_name: expected"),
    "a lost frame": (
        lambda v: v["sequences"][1]["annotated_image_paths"].__setitem__(0, "no.jpg"),
        r"1 of 2 videos are not, or not whole, below .*: LaSOT/clip-2 \(1 of 2 frames, the first no\.jpg\)",
    ),
}


@pytest.mark.parametrize("name", BAD_BURST)
def test_a_broken_burst_file_is_refused_with_the_json_path_of_the_fault(name: str, tmp_path: Path) -> None:
    places = make_split(tmp_path, "burst", "valid", frames=FRAMES)
    path = places.folder / places.annotations
    values = json.loads(path.read_text())
    breaks, message = BAD_BURST[name]
    breaks(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=message):
        read_split(places.folder)
