"""The formats of annotated sets that are read, YouTube-VIS, COCO, DAVIS's pngs, MOTS's txt; which a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from visrt.benchmarks.datasets.coco import IMAGES, read_coco
from visrt.benchmarks.datasets.davis import MASKS, load_object_names, read_davis
from visrt.benchmarks.datasets.json_faults import read_json, short
from visrt.benchmarks.datasets.mots import CLASSES, find_mots, read_mots
from visrt.benchmarks.datasets.ytvis import ANNOTATIONS, PICTURES, AnnotatedSet, read_annotations
from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.image_folder import images_in

__all__ = ["NAMES", "READERS", "ReadSet", "SetPlaces", "format_of", "read_set"]

NAMES = "names.json"
"""Classes of sets whose format knows none; written by us, and read where it lies beside the annotations."""


@dataclass(frozen=True)
class SetPlaces:
    """Where a set lies: its folder and, where they are not at the usual place in it, its annotations (a json file, or
    DAVIS's folder of masks), its pictures, and its names.json."""

    folder: Path
    annotations: Path | None = None
    images: Path | None = None
    names: Path | None = None

    @property
    def names_file(self) -> Path | None:
        beside = self.folder / NAMES
        return self.names or (beside if beside.is_file() else None)


@dataclass(frozen=True)
class ReadSet:
    """A set, its format, and what was left out of it."""

    annotated: AnnotatedSet
    format: str
    remarks: tuple[str, ...] = ()


def read_set(places: SetPlaces, name: str | None = None) -> ReadSet:
    """The set at `places` in the format `name`, or in the one it looks like. Raises DataError."""
    if not places.folder.is_dir():
        raise UsageError(f"{places.folder}: there is no such folder; give the one that holds the set")
    name = name or format_of(places)
    return READERS[name](places)


def format_of(places: SetPlaces) -> str:
    """The name of the format that a set looks like."""
    path = places.annotations or places.folder / ANNOTATIONS
    if path.is_file():
        values = read_json(path)
        # COCO files of video frames hold both lists.
        for name, key in (("coco", "images"), ("youtube-vis", "videos")):
            if isinstance(values, dict) and key in values:
                return name
    if path.is_dir() or (places.folder / MASKS).is_dir():
        return "davis"
    if next(places.folder.glob("*/gt/gt.txt"), None) or (places.folder / "instances_txt").is_dir():
        return "mots"
    raise DataError(
        f"{places.folder}: looks like no annotated set: it holds neither {ANNOTATIONS} with videos or images, nor "
        f"{MASKS}/, NAME/gt/gt.txt or instances_txt/; name the format, or the file with --annotations"
    )


def _youtube_vis(places: SetPlaces) -> ReadSet:
    path = places.annotations or places.folder / ANNOTATIONS
    return ReadSet(read_annotations(path, places.images or places.folder / PICTURES), "youtube-vis")


def _coco(places: SetPlaces) -> ReadSet:
    path = places.annotations or places.folder / ANNOTATIONS
    return ReadSet(read_coco(path, places.images or places.folder / IMAGES), "coco")


def _davis(places: SetPlaces) -> ReadSet:
    pictures = places.images or places.folder / PICTURES
    named = places.names_file
    classes = None if named is None else load_object_names(named)
    annotated = read_davis(pictures, places.annotations or places.folder / MASKS, classes)
    bare = sum(len(images_in(v.pictures[0].parent)) - len(v.pictures) for v in annotated.videos)
    told = (f"{bare} pictures without a png of masks are left out",) if bare else ()
    return ReadSet(annotated, "davis", told)


def _mots(places: SetPlaces) -> ReadSet:
    named = places.names_file
    classes = CLASSES if named is None else _class_numbers(named)
    return ReadSet(read_mots(find_mots(places.folder, places.images), classes), "mots")


def _class_numbers(path: Path) -> dict[int, str]:
    """{"1": "car", "2": "pedestrian"}: names of MOTS's class numbers."""
    values = read_json(path)
    if not isinstance(values, dict) or not values:
        raise DataError(f"{path}: expected an object of class numbers and names; found {short(values)}")
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
