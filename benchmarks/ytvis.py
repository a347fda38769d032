"""Annotated videos and results in the YouTube-VIS form, read strictly: the first fault is told by its json path."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, checked_rle

__all__ = ["AnnotatedSet", "AnnotatedVideo", "Track", "load_annotations", "load_class_map", "load_results"]

ANNOTATIONS = "instances.json"
PICTURES = "JPEGImages"


@dataclass(frozen=True)
class Track:
    """One object through a video: a mask or None for each frame. score: 1 for annotations."""

    label: int
    masks: tuple[Rle | None, ...]
    score: float = 1.0
    crowd: bool = False


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video: its pictures in order, their size (height, width) and the annotated tracks."""

    id: int
    name: str
    pictures: tuple[Path, ...]
    size: tuple[int, int]
    tracks: tuple[Track, ...]


@dataclass(frozen=True)
class AnnotatedSet:
    """Videos, the class names the labels mean, and the label of each category id of the file (None = left out)."""

    videos: tuple[AnnotatedVideo, ...]
    classes: tuple[str, ...]
    label_of: Mapping[int, int | None]


def load_class_map(path: Path) -> dict[str, str | None]:
    """{"dog": "animal", "chair": null, ...}: category of the data -> class of the bundle, null to leave it out."""
    values = _json(path)
    if not isinstance(values, dict) or not all(v is None or isinstance(v, str) for v in values.values()):
        raise DataError(f"{path}: expected one json object of names to names, or to null to leave a category out")
    return values


def load_annotations(
    folder: Path, classes: Sequence[str] | None = None, mapped: Mapping[str, str | None] | None = None
) -> AnnotatedSet:
    """The annotated videos of `folder` (instances.json, JPEGImages/).

    Labels index `classes` (default: the file's own). `mapped`, where given, names a class or None for each category
    of the file: a name both happen to share is no promise that they mean the same. Raises DataError.
    """
    path = folder / ANNOTATIONS
    values = _object(_json(path), f"{path}")
    categories = _categories(path, values)
    names = tuple(classes) if classes is not None else tuple(categories.values())
    label_of = _labels(path, categories, names, mapped)
    videos = _objects(values, "videos", path)
    shapes = {video["id"]: _shape(video, f"{path}: videos[{i}]") for i, video in enumerate(videos)}
    tracks = _tracks(path, values, shapes, label_of)
    return AnnotatedSet(
        tuple(_video(folder, video, shapes, tracks, f"{path}: videos[{i}]") for i, video in enumerate(videos)),
        names,
        label_of,
    )


def load_results(path: Path, annotated: AnnotatedSet) -> dict[int, list[Track]]:
    """Predicted tracks of a results file by video id: [{video_id, category_id, score, segmentations}].

    Category ids are those of the annotations. Raises DataError.
    """
    values = _json(path)
    if not isinstance(values, list):
        raise DataError(f"{path}: holds a {type(values).__name__}; expected a list of tracks")
    _refuse_doubled_ids(path, values)
    shapes = {video.id: (len(video.pictures), video.size) for video in annotated.videos}
    predicted: dict[int, list[Track]] = {video: [] for video in shapes}
    for i, value in enumerate(values):
        where = f"{path}: [{i}]"
        entry = _object(value, where)
        video = _known(entry, "video_id", shapes, where, ANOTHER_SET)
        label = annotated.label_of[_known(entry, "category_id", annotated.label_of, where, ANOTHER_SET)]
        masks = _masks(entry, where, *shapes[video])
        if label is not None:
            predicted[video].append(Track(label, masks, _score(entry, where)))
    return predicted


def _tracks(
    path: Path,
    values: dict[str, Any],
    shapes: Mapping[int, tuple[int, tuple[int, int]]],
    label_of: Mapping[int, int | None],
) -> dict[int, list[Track]]:
    """The annotated tracks by video id; what is left out is checked all the same."""
    tracks: dict[int, list[Track]] = {}
    for i, annotation in enumerate(_objects(values, "annotations", path)):
        where = f"{path}: annotations[{i}]"
        video = _known(annotation, "video_id", shapes, where)
        label = label_of[_known(annotation, "category_id", label_of, where)]
        masks, crowd = _masks(annotation, where, *shapes[video]), _crowd(annotation, where)
        if label is not None:
            tracks.setdefault(video, []).append(Track(label, masks, crowd=crowd))
    return tracks


def _video(
    folder: Path,
    video: dict[str, Any],
    shapes: Mapping[int, tuple[int, tuple[int, int]]],
    tracks: Mapping[int, list[Track]],
    where: str,
) -> AnnotatedVideo:
    pictures = tuple(folder / PICTURES / name for name in video["file_names"])
    for t, (name, picture) in enumerate(zip(video["file_names"], pictures, strict=True)):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{where}.file_names[{t}]: {name} leads out of {PICTURES}; expected a path within it")
        if not picture.is_file():
            raise DataError(f"{where}.file_names[{t}]: there is no picture {picture}")
    number = video["id"]
    title = Path(video["file_names"][0]).parent.name or str(number)
    return AnnotatedVideo(number, title, pictures, shapes[number][1], tuple(tracks.get(number, ())))


def _shape(video: dict[str, Any], where: str) -> tuple[int, tuple[int, int]]:
    """Number of frames, and their size (height, width)."""
    sides = _int(video, "height", where), _int(video, "width", where)
    if 0 in sides:
        raise DataError(f"{where}: {sides[0]} x {sides[1]} pixels; expected a height and a width of at least 1")
    names = video.get("file_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}.file_names: expected a list of at least one file name")
    if video.get("length", len(names)) != len(names):
        raise DataError(f"{where}.length: {video['length']!r}, but file_names holds {len(names)}; they must agree")
    return len(names), sides


def _categories(path: Path, values: dict[str, Any]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for i, category in enumerate(_objects(values, "categories", path)):
        name = category.get("name")
        if not isinstance(name, str) or name in categories.values():
            raise DataError(f"{path}: categories[{i}].name: expected a text no other category has; found {name!r}")
        categories[category["id"]] = name
    return categories


def _labels(
    path: Path, categories: Mapping[int, str], names: Sequence[str], mapped: Mapping[str, str | None] | None
) -> dict[int, int | None]:
    wanted = {name: name for name in categories.values()} if mapped is None else mapped
    unmapped = [name for name in categories.values() if name not in wanted]
    if unmapped:
        raise DataError(
            f"{path}: categories {', '.join(unmapped)} are not in the class map; name one of {', '.join(names)} for "
            "each, or null to leave it out"
        )
    renamed = {number: wanted[name] for number, name in categories.items()}
    lost = sorted({name for name in renamed.values() if name is not None and name not in names})
    if lost:
        raise DataError(
            f"{path}: {', '.join(lost)} are none of the classes {', '.join(names)}; give a class map that names a "
            "class for each category, or null to leave it out"
        )
    if not any(renamed.values()):
        raise DataError(f"{path}: the class map leaves out every category; name a class for at least one")
    return {number: None if name is None else names.index(name) for number, name in renamed.items()}


def _masks(value: dict[str, Any], where: str, frames: int, size: tuple[int, int]) -> tuple[Rle | None, ...]:
    masks = value.get("segmentations")
    if not isinstance(masks, list) or len(masks) != frames:
        found = f"{len(masks)} entries" if isinstance(masks, list) else f"{type(masks).__name__}"
        raise DataError(f"{where}.segmentations: expected one entry for each of {frames} frames; found {found}")
    return tuple(
        None if mask is None else checked_rle(mask, f"{where}.segmentations[{t}]", size) for t, mask in enumerate(masks)
    )


def _score(entry: dict[str, Any], where: str) -> float:
    score = entry.get("score")
    # A bound, not isfinite: that cannot take a whole number beyond the range of a float. NaN is below no bound.
    if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e300:
        raise DataError(f"{where}.score: expected a finite number; found {_short(score)}")
    return float(score)


def _crowd(annotation: dict[str, Any], where: str) -> bool:
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}.iscrowd: expected 0 or 1; found {_short(crowd)}")
    return bool(crowd)


ANOTHER_SET = "the annotations'; these are results of another set, or of another version of it: "


def _known(value: dict[str, Any], key: str, known: Mapping[int, Any], where: str, whose: str = "the file's: ") -> int:
    number = _int(value, key, where)
    if number not in known:
        some = ", ".join(map(str, list(known)[:10])) + (", ..." if len(known) > 10 else "")
        raise DataError(f"{where}.{key}: {number} is none of {whose}{some}")
    return number


def _int(value: dict[str, Any], key: str, where: str) -> int:
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise DataError(f"{where}.{key}: expected a whole number of zero or more; found {number!r}")
    return number


def _objects(values: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """The objects of a list, each with an id of its own. Only annotations may be none."""
    found = values.get(key)
    if not isinstance(found, list) or (not found and key != "annotations"):
        raise DataError(f"{path}: {key}: expected a list{_some(key)}; found {_short(found)}")
    first: dict[int, int] = {}
    for i, value in enumerate(found):
        number = _int(_object(value, f"{path}: {key}[{i}]"), "id", f"{path}: {key}[{i}]")
        if first.setdefault(number, i) != i:
            raise DataError(f"{path}: {key}[{i}].id: {number} is the id of {key}[{first[number]}] too; ids must differ")
    return found


def _refuse_doubled_ids(path: Path, entries: list[Any]) -> None:
    """Tracks of results need no id; where they have one, each has its own."""
    first: dict[int, int] = {}
    for i, entry in enumerate(entries):
        if isinstance(entry, dict) and "id" in entry:
            number = _int(entry, "id", f"{path}: [{i}]")
            if first.setdefault(number, i) != i:
                raise DataError(f"{path}: [{i}].id: {number} is the id of [{first[number]}] too; ids must differ")


def _some(key: str) -> str:
    return "" if key == "annotations" else " of at least one"


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a number beyond all measure"
    return text if len(text) <= 60 else text[:57] + "..."


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object; found {type(value).__name__}")
    return value


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; give a folder with {ANNOTATIONS} and {PICTURES}/, or a json file"
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as json ({error})") from None
