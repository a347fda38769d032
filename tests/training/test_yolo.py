"""Claims about YOLO sets: what they hold, which folders mean which split, and the first fault by file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from visrt.runtime.errors import DataError
from visrt.runtime.masks import decode
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.formats.yolo import yolo_splits
from visrt.training.data.set_formats import SetPlaces, read_set
from visrt.training.data.sources import PoolSettings, SourceSettings, load_pool

HEIGHT, WIDTH = 40, 80
BOX = "0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75"
"""Columns 20 to 40 and rows 10 to 30."""


def split(folder: Path, *labels: str | None) -> None:
    """images/0.png, labels/0.txt and so on; None: a picture without a txt."""
    for i, text in enumerate(labels):
        for inner in ("images", "labels"):
            (folder / inner).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / "images" / f"{i}.png")
        if text is not None:
            (folder / "labels" / f"{i}.txt").write_text(text)


def roboflow(folder: Path, *labels: str | None, names: str = "[dog, car]") -> Path:
    """The export of Roboflow, whose paths lead one folder too high, with two splits."""
    split(folder / "train", *labels)
    split(folder / "valid", f"1 {BOX}")
    (folder / "data.yaml").write_text(
        f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: {names}\n"
    )
    return folder


def train_split(folder: Path) -> AnnotatedSet:
    read = read_set(SetPlaces(folder / "train"))
    assert read.format == "yolo"
    return read.annotated


def test_a_polygon_is_the_mask_of_a_photo(tmp_path: Path) -> None:
    annotated = train_split(roboflow(tmp_path, f"0 {BOX}\n1 {BOX}\n", ""))
    photo, bare = annotated.videos
    assert (annotated.classes, photo.size, photo.name) == (("dog", "car"), (HEIGHT, WIDTH), "0")
    assert [track.label for track in photo.tracks] == [0, 1]
    assert photo.tracks[0].masks[0] is not None
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[10:30, 20:40] = True
    assert np.array_equal(decode(photo.tracks[0].masks[0]), inside)
    assert bare.tracks == ()


def test_pictures_without_a_txt_show_no_object_and_are_counted(tmp_path: Path) -> None:
    annotated = train_split(roboflow(tmp_path, f"0 {BOX}", None, None))
    assert [len(video.tracks) for video in annotated.videos] == [1, 0, 0]
    assert annotated.remarks == (f"{tmp_path / 'train/images'}: 2 of 3 pictures have no txt and so no object",)


def test_training_and_scoring_read_the_same_objects(tmp_path: Path) -> None:
    roboflow(tmp_path, f"0 {BOX}\n1 {BOX}\n", f"1 {BOX}")
    source = SourceSettings("yolo", str(tmp_path), annotations="data.yaml", images="train/images")
    pool = load_pool([source], PoolSettings(part="all"))
    assert pool.classes == ("dog", "car")
    assert [[one.label for one in base.frames[0].objects] for base in pool.bases] == [[0, 1], [1]]


@pytest.mark.parametrize("names", ["[dog, car]", "{0: dog, 1: car}"])
def test_names_may_be_a_list_or_numbered(names: str, tmp_path: Path) -> None:
    assert train_split(roboflow(tmp_path, f"1 {BOX}", names=names)).classes == ("dog", "car")


def test_folders_that_are_not_there_are_no_splits(tmp_path: Path) -> None:
    splits = yolo_splits(roboflow(tmp_path, f"0 {BOX}") / "data.yaml")
    assert splits == {"train": tmp_path / "train/images", "val": tmp_path / "valid/images"}


def test_labels_of_the_other_common_layout_lie_in_a_tree_of_their_own(tmp_path: Path) -> None:
    """images/train next to labels/train, below a `path`."""
    split(tmp_path / "set" / "flat", f"1 {BOX}")
    for inner in ("images", "labels"):
        (tmp_path / "set" / inner).mkdir()
        (tmp_path / "set" / "flat" / inner).rename(tmp_path / "set" / inner / "train")
    (tmp_path / "cells.yaml").write_text("path: set\ntrain: images/train\nval: images/train\nnames: {0: dog, 1: car}\n")
    for given in (tmp_path, tmp_path / "cells.yaml"):
        [video] = read_set(SetPlaces(given)).annotated.videos
        assert [track.label for track in video.tracks] == [1]


FAULTS: dict[str, tuple[str, str]] = {
    "a box": ("0 0.5 0.5 0.2 0.2", r"0\.txt: line 1: five numbers are a box.*export the set for segmentation"),
    "two corners": (f"0 {BOX}\n0 0.1 0.1 0.2 0.2 0.3", r"line 2: 6 numbers; expected a class and x and y of at least"),
    "pixels": ("0 20 10 40 10 40 30", r"line 1: a corner at 20; expected parts of the picture's width and height"),
    "no number": ("0 nan 0.1 0.2 0.1 0.2 0.2", r"line 1: a corner at nan"),
    "a word": ("dog 0.1 0.1 0.2 0.1 0.2 0.2", r"line 1: expected numbers; found 'dog'"),
    "an unknown class": (f"7 {BOX}", r"line 1: class 7 is none of those that .*data\.yaml names: 0, 1"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_first_faulty_line_is_named(name: str, tmp_path: Path) -> None:
    text, message = FAULTS[name]
    with pytest.raises(DataError, match=message):
        train_split(roboflow(tmp_path, text))


DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "no yaml": ("names: [dog", r"data\.yaml: cannot be read as yaml"),
    "no names": ("train: train/images", r"data\.yaml: expected names: a list of different class names.*found None"),
    "a name twice": ("train: train/images\nnames: [dog, dog]", r"one is there twice"),
    "a name that yaml takes for no": ("train: train/images\nnames: [dog, no]", r"1: False; .*names in quotes"),
    "no folder": ("train: nowhere\nnames: [dog]", r"none of the folders of train, val and test is there: nowhere"),
    "a list of files": (
        "train: train.txt\nnames: [dog]",
        r"train: expected one folder of pictures; found 'train\.txt'",
    ),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_that_cannot_be_used_is_refused_in_words(name: str, tmp_path: Path) -> None:
    text, message = DESCRIPTIONS[name]
    roboflow(tmp_path, f"0 {BOX}")
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_set(SetPlaces(tmp_path))


def test_labels_that_are_nowhere_are_no_set_of_empty_pictures(tmp_path: Path) -> None:
    roboflow(tmp_path, None, None)
    source: Any = SetPlaces(tmp_path, tmp_path / "data.yaml", tmp_path / "train" / "images")
    with pytest.raises(DataError, match=r"no picture has a txt; expected .*train/labels/0\.txt"):
        read_set(source)
