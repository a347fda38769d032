"""YOLO segmentation sets: data.yaml names classes and splits, a txt for each picture holds `class x1 y1 x2 y2 ...`.

Corners are parts of the picture's width and height, 0 to 1. The txt of `.../images/a.jpg` is `.../labels/a.txt`; where
no folder is named images it lies next to the picture. A picture without a txt shows no object. Rows of five numbers
are boxes, from which no mask can be learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.sources.image_folder import IMAGE_SUFFIXES, natural_order
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.json_faults import Faults, short
from visrt.training.data.picture_folder import ReadRules
from visrt.training.data.picture_size import size_of
from visrt.training.data.segmentations import rle_of

__all__ = ["LABELS", "label_file", "read_yolo", "yolo_file", "yolo_splits"]

LABELS = "labels"
PICTURES = "images"
SPLITS = ("train", "val", "test")
SLACK = 0.01
"""How far beyond the picture's edge a corner may lie, as rounding puts it."""


def yolo_file(folder: Path) -> Path | None:
    """The yaml in `folder` that describes a YOLO set: data.yaml, or the only one with names. Raises DataError."""
    files = sorted(path for pattern in ("*.yaml", "*.yml") for path in folder.glob(pattern))
    usual = [path for path in files if path.stem == "data"]
    described = usual or [path for path in files if _describes(path)]
    if len(described) > 1:
        found = ", ".join(path.name for path in described)
        raise DataError(f"{folder}: {found} all describe a YOLO set; give the one that counts as the data")
    return described[0] if described else None


def _describes(file: Path) -> bool:
    """Whether a yaml of any name seems to be meant for YOLO; others may lie in the same folder."""
    try:
        return b"names" in file.read_bytes() and "names" in _values(file)
    except (OSError, DataError):
        return False


def yolo_splits(file: Path) -> dict[str, Path]:
    """The folders of pictures that `file` names, by split: train, val, test; those that are there.

    Raises DataError if there is none.
    """
    values = _values(file)
    named = {split: values[split] for split in SPLITS if values.get(split)}
    for split, place in named.items():
        if not isinstance(place, str) or place.endswith(".txt"):
            raise DataError(f"{file}: {split}: expected one folder of pictures; found {short(place)}")
    splits = {split: _folder(file, values, place) for split, place in named.items()}
    found = {split: folder for split, folder in splits.items() if folder is not None}
    if not found:
        raise DataError(
            f"{file}: none of the folders of train, val and test is there: "
            f"{', '.join(named.values()) or 'none named'}; "
            "correct the paths, which count from the file"
        )
    return found


def _folder(file: Path, values: Mapping[str, Any], place: str) -> Path | None:
    """The folder `place`, from `path` or from the file itself; exports of Roboflow give it one level too high."""
    root = file.parent / str(values.get("path") or "")
    shown = place.removeprefix("../")
    places = (root / place, root / shown, file.parent / place, file.parent / shown)
    return next((folder for folder in places if folder.is_dir()), None)


def read_yolo(file: Path, pictures: Path, rules: ReadRules) -> AnnotatedSet:
    """The set of the folder `pictures` and those in it; `file` names the classes. Each photo is a video of one frame.

    Raises DataError with the files and lines of all faults.
    """
    names = _names(file)
    label_of = {number: label for label, number in enumerate(names)}
    found = sorted(
        (p for p in pictures.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")),
        key=lambda path: (str(path.parent), natural_order(path)),
    )
    if not found:
        raise DataError(f"{pictures}: there is no picture; expected those of {file}")
    faults = Faults(file, rules.skip_faulty)
    videos = tuple(_photo(number, path, label_of, file, faults) for number, path in enumerate(found, start=1))
    left_out = faults.remarks()
    bare = sum(not label_file(path).is_file() for path in found)
    if bare == len(found):
        raise DataError(f"{pictures}: no picture has a txt; expected {label_file(found[0])} and so on")
    remarks = (f"{pictures}: {bare} of {len(found)} pictures have no txt and so no object",) if bare else ()
    return AnnotatedSet(videos, tuple(names.values()), label_of, (*left_out, *remarks))


def label_file(picture: Path) -> Path:
    """The txt of a picture."""
    parts = list(picture.parent.parts)
    if PICTURES in parts:
        last = len(parts) - 1 - parts[::-1].index(PICTURES)
        parts[last] = LABELS
    return Path(*parts) / f"{picture.stem}.txt"


def _photo(number: int, path: Path, label_of: Mapping[int, int], file: Path, faults: Faults) -> AnnotatedVideo:
    size = size_of(path)
    labels = label_file(path)
    tracks = tuple(_objects(labels, size, label_of, file, faults)) if labels.is_file() else ()
    return AnnotatedVideo(number, path.stem, (path,), size, tracks)


def _objects(
    labels: Path, size: tuple[int, int], label_of: Mapping[int, int], file: Path, faults: Faults
) -> Iterator[Track]:
    try:
        text = labels.read_text()
    except (OSError, ValueError) as error:
        raise DataError(f"{labels}: cannot be read as text ({error})") from None
    for i, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                one = _object(line.split(), f"{labels}: line {i}", size, label_of, file)
            except DataError as error:
                faults.add(error)
            else:
                yield one


def _object(fields: list[str], where: str, size: tuple[int, int], label_of: Mapping[int, int], file: Path) -> Track:
    if len(fields) == 5:
        raise DataError(
            f"{where}: five numbers are a box, and masks are learned from outlines, class x1 y1 x2 y2 x3 y3 ...; "
            "export the set for segmentation"
        )
    kind, *corners = (_number(field, where) for field in fields)
    if len(corners) < 6 or len(corners) % 2:
        raise DataError(f"{where}: {len(fields)} numbers; expected a class and x and y of at least three corners")
    if kind not in label_of:
        known = ", ".join(map(str, label_of))
        raise DataError(f"{where}: class {fields[0]} is none of those that {file} names: {known}")
    height, width = size
    for value in corners:
        if not -SLACK <= value <= 1 + SLACK:
            raise DataError(f"{where}: a corner at {value:g}; expected parts of the picture's width and height, 0 to 1")
    polygon = [value * (height if k % 2 else width) for k, value in enumerate(corners)]
    return Track(label_of[int(kind)], (rle_of([polygon], where, size),))


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: expected numbers; found {short(text)}") from None


def _names(file: Path) -> dict[int, str]:
    """Class names by their numbers."""
    expected = "names: a list of different class names, or an object of numbers and names"
    names = _values(file).get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError(f"{file}: expected {expected}; found {short(names)}")
    for number, name in names.items():
        if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, int):
            raise DataError(f"{file}: names: {short(number)}: {short(name)}; expected {expected}, names in quotes")
    if len(set(names.values())) < len(names):
        raise DataError(f"{file}: expected {expected}; one is there twice")
    return names


def _values(file: Path) -> dict[str, Any]:
    import yaml

    expected = "a YOLO description with names, train and val"
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(
            f"{file}: cannot be read as yaml ({' '.join(str(error).split())}); expected {expected}"
        ) from None
    if not isinstance(values, dict):
        raise DataError(f"{file}: holds {short(values)}; expected {expected}")
    return values
