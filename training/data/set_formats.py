"""The formats of annotated sets that are read, YouTube-VIS, COCO, DAVIS's pngs, MOTS's txt; which a folder holds.

Training, `visrt data` and `visrt eval` read sets through here and so take the same files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.sources.image_folder import images_in
from visrt.training.data.annotation_files import coco_set, youtube_vis_set
from visrt.training.data.annotations import AnnotatedSet, ClassMap, refuse_unnamed, with_classes
from visrt.training.data.davis import MASKS, PICTURES, load_object_names, read_davis
from visrt.training.data.json_faults import short
from visrt.training.data.mots import CLASSES, find_mots, read_mots

__all__ = [
    "ANNOTATIONS",
    "IMAGES",
    "NAMES",
    "PICTURES",
    "READERS",
    "ReadSet",
    "SetPlaces",
    "load_annotations",
    "read_set",
    "scored",
]

ANNOTATIONS = "instances.json"
IMAGES = "images"
"""Folder of pictures of COCO."""
NAMES = "names.json"
"""Classes of sets whose format knows none; written by visrt, and read where it lies next to the annotations."""


@dataclass(frozen=True)
class SetPlaces:
    """The place of a set: its folder and, where they are not at the usual place in it, its annotations (a json file, or
    DAVIS's folder of masks), its pictures, and its names.json."""

    folder: Path
    annotations: Path | None = None
    images: Path | None = None
    names: Path | None = None

    @property
    def json_file(self) -> Path:
        return self.annotations or self.folder / ANNOTATIONS

    @property
    def names_file(self) -> Path | None:
        names_file = self.folder / NAMES
        return self.names or (names_file if names_file.is_file() else None)


@dataclass(frozen=True)
class ReadSet:
    """A set, its format, and the file or folder of its annotations."""

    annotated: AnnotatedSet
    format: str
    path: Path


def read_set(places: SetPlaces, name: str | None = None) -> ReadSet:
    """The set at `places` in the format `name`, or in the one it looks like. Raises DataError."""
    if not places.folder.is_dir():
        raise UsageError(f"{places.folder}: there is no such folder; give the one that holds the set")
    if name is not None:
        return READERS[name](places)
    if places.json_file.is_file():
        values = _values(places)
        # COCO files of video frames hold both lists.
        return _coco(places, values) if "images" in values else _youtube_vis(places, values)
    if places.json_file.is_dir() or (places.folder / MASKS).is_dir():
        return _davis(places)
    if next(places.folder.glob("*/gt/gt.txt"), None) or (places.folder / "instances_txt").is_dir():
        return _mots(places)
    raise DataError(
        f"{places.folder}: looks like no annotated set: it holds neither {ANNOTATIONS} with videos or images, nor "
        f"{MASKS}/, NAME/gt/gt.txt or instances_txt/; give the folder that does (`visrt data` takes a file elsewhere "
        "with --annotations)"
    )


def load_annotations(
    folder: Path, classes: Sequence[str] | None = None, class_map: ClassMap | None = None
) -> AnnotatedSet:
    """The set in `folder` for scoring, see `scored`."""
    return scored(read_set(SetPlaces(folder)), classes, class_map)


def scored(read: ReadSet, classes: Sequence[str] | None = None, class_map: ClassMap | None = None) -> AnnotatedSet:
    """The set for scoring: labels index `classes` (default: those of the map or, without, the file's own).

    A `class_map` must name each category of the set: a name both happen to share is no promise that they mean the
    same. Raises DataError.
    """
    if class_map is not None:
        targets = tuple(dict.fromkeys(filter(None, class_map.values())))
        refuse_unnamed(read.annotated, class_map, read.path, targets if classes is None else classes)
    return with_classes(read.annotated, class_map, read.path, classes)


def _values(places: SetPlaces) -> dict[str, Any]:
    return read_json_object(places.json_file, "one object with videos or images, annotations and categories")


def _youtube_vis(places: SetPlaces, values: dict[str, Any] | None = None) -> ReadSet:
    path, pictures = places.json_file, places.images or places.folder / PICTURES
    return ReadSet(youtube_vis_set(path, _values(places) if values is None else values, pictures), "youtube-vis", path)


def _coco(places: SetPlaces, values: dict[str, Any] | None = None) -> ReadSet:
    path, pictures = places.json_file, places.images or places.folder / IMAGES
    return ReadSet(coco_set(path, _values(places) if values is None else values, pictures), "coco", path)


def _davis(places: SetPlaces) -> ReadSet:
    pictures = places.images or places.folder / PICTURES
    named = places.names_file
    classes = None if named is None else load_object_names(named)
    masks = places.annotations or places.folder / MASKS
    annotated = read_davis(pictures, masks, classes)
    bare = sum(len(images_in(v.pictures[0].parent)) - len(v.pictures) for v in annotated.videos)
    remarks = (f"{bare} pictures without a png of masks are left out",) if bare else ()
    return ReadSet(replace(annotated, remarks=remarks), "davis", masks)


def _mots(places: SetPlaces) -> ReadSet:
    named = places.names_file
    classes = CLASSES if named is None else _class_numbers(named)
    return ReadSet(read_mots(find_mots(places.folder, places.images), classes), "mots", places.folder)


def _class_numbers(path: Path) -> dict[int, str]:
    """{"1": "car", "2": "pedestrian"}: names of MOTS's class numbers."""
    expected = 'an object of class numbers and names: {"1": "car"}'
    values = read_json_object(path, expected)
    if not values:
        raise DataError(f"{path}: is empty; expected {expected}")
    for number, kind in values.items():
        if not (number.isdecimal() and isinstance(kind, str)):
            raise DataError(f"{path}: {number}: expected a number and the name of a class; found {short(kind)}")
    return {int(number): kind for number, kind in values.items()}


READERS: dict[str, Callable[[SetPlaces], ReadSet]] = {
    "youtube-vis": _youtube_vis,
    "coco": _coco,
    "davis": _davis,
    "mots": _mots,
}
