"""Claims about the layouts of sets: which sets a folder holds, by split, and what is refused as ambiguous."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_sets import coco_values, write_coco

from visrt.runtime.errors import DataError
from visrt.training.data.layouts import found_sets
from visrt.training.data.set_formats import SetPlaces, read_set


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
        found_sets(tmp_path)
