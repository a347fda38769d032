"""Layouts of annotated sets on disk: which sets a folder holds, by split, in which format and where.

Known are visrt's own instances.json, the standard COCO layout (annotations/ next to folders of pictures), Roboflow's
exports, YOLO's data.yaml, DAVIS and MOTS; each alone, or once in each of the folders train, valid and test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from visrt.runtime.errors import DataError, UsageError
from visrt.runtime.sources.image_folder import images_in
from visrt.training.data.formats.davis import MASKS
from visrt.training.data.formats.yolo import LABELS, label_file, yolo_file, yolo_splits

__all__ = ["ANNOTATIONS", "IMAGES", "NAMES", "FoundSet", "SetPlaces", "found_sets", "only_set"]

ANNOTATIONS = "instances.json"
ROBOFLOW = "_annotations.coco.json"
"""Annotations of Roboflow's COCO export, next to the pictures."""
IMAGES = "images"
"""Folder of pictures of COCO."""
NAMES = "names.json"
"""Classes of sets whose format knows none; written by visrt, and read where it lies next to the annotations."""

SPLITS = {"train": ("train",), "val": ("valid", "val", "validation"), "test": ("test",)}
"""Names that the folder of a split may have."""
NO_MASKS = ("captions", "person_keypoints", "image_info")
"""Beginnings of standard COCO files that hold no masks of all objects."""


@dataclass(frozen=True)
class SetPlaces:
    """The place of a set: its folder and, where they are not at the usual place in it, its annotations (a json or yaml
    file, or DAVIS's folder of masks), its pictures, and its names.json."""

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
class FoundSet:
    """A set on disk. kind: "json" (COCO or YouTube-VIS, as the file says), "yolo", "davis" or "mots". given_as: the
    folder or file that means this set and no other."""

    kind: str
    places: SetPlaces
    given_as: Path


Splits = dict[str, FoundSet]
"""Sets by split: "train", "val" and "test", or "all" for one that is not divided."""


def found_sets(place: Path) -> Splits:
    """The sets that `place` holds, a folder, or an annotation file (json, yaml) where a folder has several.

    Raises UsageError if there is no such place, DataError if it holds no set or sets of several layouts.
    """
    if not place.exists():
        raise UsageError(f"{place}: there is no such folder; give the one that holds the set")
    if place.is_file():
        return _of_file(place)
    found = {name: splits for name, splits in _layouts(place) if splits}
    if not found:
        raise DataError(
            f"{place}: looks like no annotated set: it holds neither {ANNOTATIONS} with videos or images, nor "
            f"{ROBOFLOW}, annotations/*.json, data.yaml (YOLO), {MASKS}/, NAME/gt/gt.txt or instances_txt/, nor a "
            "folder train that does; give the folder that does (`visrt data` takes a file elsewhere with --annotations)"
        )
    if len(found) > 1:
        raise DataError(
            f"{place}: holds sets of several layouts: {', '.join(found)}; give the annotation file of one in place of "
            "the folder, or for `visrt data` the format with --from"
        )
    [splits] = found.values()
    return splits


def only_set(place: Path) -> FoundSet:
    """The one set that `place` holds. Raises DataError that lists them if there are several."""
    sets = found_sets(place)
    if len(sets) == 1:
        return next(iter(sets.values()))
    listed = ", ".join(f"{found.given_as} ({split})" for split, found in sets.items())
    raise DataError(f"{place}: holds {len(sets)} sets; give one of: {listed}")


def _layouts(folder: Path) -> Iterator[tuple[str, Splits]]:
    """The name of each layout, and what there is of it in `folder`."""
    single = _single(folder)
    yield from ((name, {"all": found}) for name, found in single.items())
    yield "train/ and valid/", {} if single else _divided(folder)
    yield "annotations/*.json", _standard_coco(folder)
    described = yolo_file(folder)
    if described is not None:
        yield described.name, _yolo(described)
    elif not single and (split := _yolo_split(folder)):
        yield f"{LABELS}/", {"all": split}


def _single(folder: Path) -> dict[str, FoundSet]:
    """Undivided sets right in `folder`, by the name of what shows them."""
    found = {}
    if (folder / ANNOTATIONS).is_file():
        found[ANNOTATIONS] = FoundSet("json", SetPlaces(folder), folder)
    if (folder / ROBOFLOW).is_file():
        found[ROBOFLOW] = FoundSet("json", SetPlaces(folder, folder / ROBOFLOW, folder), folder)
    if any(path.name == MASKS and path.is_dir() for path in folder.iterdir()):  # some disks ignore case
        found[f"{MASKS}/"] = FoundSet("davis", SetPlaces(folder), folder)
    if next(folder.glob("*/gt/gt.txt"), None) or (folder / "instances_txt").is_dir():
        found["MOTS txt"] = FoundSet("mots", SetPlaces(folder), folder)
    return found


def _divided(folder: Path) -> Splits:
    """A set in each of the folders train, valid and test."""
    splits = {}
    for split, names in SPLITS.items():
        inner = [folder / name for name in names if (folder / name).is_dir()]
        sets = [found for path in inner for found in _single(path).values()]
        if len(sets) > 1:
            listed = ", ".join(str(found.places.json_file) for found in sets)
            raise DataError(f"{folder}: {len(sets)} sets could be the split {split}: {listed}; remove all but one")
        if sets:
            splits[split] = sets[0]
    return splits


def _standard_coco(folder: Path) -> Splits:
    """annotations/instances_train2017.json with train2017/ or images/train2017/, and so on."""
    files = sorted((folder / "annotations").glob("*.json"))
    files = [file for file in files if not file.name.startswith(NO_MASKS)]
    splits = {}
    for file in files:
        split = _split_named(file.stem) if len(files) > 1 else "all"
        if split is None or split in splits:
            listed = ", ".join(file.name for file in files)
            raise DataError(
                f"{folder / 'annotations'}: {listed}: which is for training does not show in the names; give one of "
                "these files in place of the folder"
            )
        splits[split] = FoundSet("json", SetPlaces(folder, file, _pictures_for(file)), file)
    return splits


def _split_named(stem: str) -> str | None:
    """The split that the words of a file's name say."""
    words = re.split(r"[^a-z]+", stem.casefold())
    return next((split for split, names in SPLITS.items() if any(name in words for name in names)), None)


def _pictures_for(file: Path) -> Path:
    """The folder of pictures of a json in annotations/: named like it, or images/."""
    root = file.parent.parent
    name = file.stem.removeprefix("instances_")
    places = [root / name, root / IMAGES / name, root / IMAGES]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        looked = ", ".join(map(str, places))
        raise DataError(f"{file}: its folder of pictures was looked for in vain at {looked}; move the pictures there")
    return folder


def _yolo(file: Path) -> Splits:
    """The splits of data.yaml; one that has the pictures of another counts once."""
    splits: dict[str, FoundSet] = {}
    for split, pictures in yolo_splits(file).items():
        if not any(found.places.images == pictures for found in splits.values()):
            given_as = pictures.parent if pictures.name == IMAGES else pictures
            splits[split] = FoundSet("yolo", SetPlaces(file.parent, file, pictures), given_as)
    return splits


def _yolo_split(folder: Path) -> FoundSet | None:
    """`folder` as a split of a YOLO set: data.yaml lies one to three folders up."""
    pictures = folder / IMAGES if (folder / IMAGES).is_dir() else folder
    if not label_file(pictures / "any").parent.is_dir():
        return None
    for root in list(folder.resolve().parents)[:3]:
        file = yolo_file(root)
        if file is not None and any(p.resolve() == pictures.resolve() for p in yolo_splits(file).values()):
            return FoundSet("yolo", SetPlaces(file.parent, file, pictures), folder)
    return None


def _of_file(file: Path) -> Splits:
    if file.suffix in (".yaml", ".yml"):
        return _yolo(file)
    if file.suffix == ".json":
        return {"all": FoundSet("json", SetPlaces(file.parent, file, _pictures_beside(file)), file)}
    raise UsageError(f"{file}: expected a folder, or an annotation file that ends in .json or .yaml")


def _pictures_beside(file: Path) -> Path | None:
    """The folder of pictures of a json anywhere; None = the usual one of its format."""
    if file.parent.name == "annotations":
        return _pictures_for(file)
    return file.parent if images_in(file.parent) else None
