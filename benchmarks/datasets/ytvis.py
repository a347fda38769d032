"""Annotated videos and results in the YouTube-VIS form, read strictly: the first fault is told by its json path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrt.benchmarks.datasets.json_faults import an_object, known_id, objects_in, read_json, short, whole_number
from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle, checked_rle

__all__ = [
    "ANNOTATIONS",
    "PICTURES",
    "AnnotatedSet",
    "AnnotatedVideo",
    "Track",
    "categories_in",
    "crowd_of",
    "load_annotations",
    "load_class_map",
    "load_results",
    "picture_at",
    "read_annotations",
]

ANNOTATIONS = "instances.json"
PICTURES = "JPEGImages"
ANOTHER_SET = "the annotations'; these are results of another set, or of another version of it: "


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
    values = read_json(path)
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
    return read_annotations(folder / ANNOTATIONS, folder / PICTURES, classes, mapped)


def read_annotations(
    path: Path,
    pictures: Path,
    classes: Sequence[str] | None = None,
    mapped: Mapping[str, str | None] | None = None,
) -> AnnotatedSet:
    """As `load_annotations`, from the file `path` with its pictures below the folder `pictures`."""
    values = an_object(read_json(path), f"{path}")
    categories = categories_in(path, values)
    names = tuple(classes) if classes is not None else tuple(categories.values())
    label_of = _labels(path, categories, names, mapped)
    videos = objects_in(values, "videos", path)
    shapes = {video["id"]: _shape(video, f"{path}: videos[{i}]") for i, video in enumerate(videos)}
    tracks = _tracks(path, values, shapes, label_of)
    return AnnotatedSet(
        tuple(_video(pictures, video, shapes, tracks, f"{path}: videos[{i}]") for i, video in enumerate(videos)),
        names,
        label_of,
    )


def load_results(path: Path, annotated: AnnotatedSet) -> dict[int, list[Track]]:
    """Predicted tracks of a results file by video id: [{video_id, category_id, score, segmentations}].

    Category ids are those of the annotations. Raises DataError.
    """
    values = read_json(path)
    if not isinstance(values, list):
        raise DataError(f"{path}: holds a {type(values).__name__}; expected a list of tracks")
    _refuse_doubled_ids(path, values)
    shapes = {video.id: (len(video.pictures), video.size) for video in annotated.videos}
    predicted: dict[int, list[Track]] = {video: [] for video in shapes}
    for i, value in enumerate(values):
        where = f"{path}: [{i}]"
        entry = an_object(value, where)
        video = known_id(entry, "video_id", shapes, where, ANOTHER_SET)
        label = annotated.label_of[known_id(entry, "category_id", annotated.label_of, where, ANOTHER_SET)]
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
    for i, annotation in enumerate(objects_in(values, "annotations", path)):
        where = f"{path}: annotations[{i}]"
        video = known_id(annotation, "video_id", shapes, where)
        label = label_of[known_id(annotation, "category_id", label_of, where)]
        masks, crowd = _masks(annotation, where, *shapes[video]), crowd_of(annotation, where)
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
    names = video["file_names"]
    pictures = tuple(picture_at(folder, name, f"{where}.file_names[{t}]") for t, name in enumerate(names))
    number = video["id"]
    title = Path(names[0]).parent.name or str(number)
    return AnnotatedVideo(number, title, pictures, shapes[number][1], tuple(tracks.get(number, ())))


def picture_at(folder: Path, name: str, where: str) -> Path:
    """The picture `name` below `folder`, which is there and does not lead out of it; `where` is its json path."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{where}: {name} leads out of {folder.name}; expected a path within it")
    if not (folder / name).is_file():
        raise DataError(f"{where}: there is no picture {folder / name}")
    return folder / name


def _shape(video: dict[str, Any], where: str) -> tuple[int, tuple[int, int]]:
    """Number of frames, and their size (height, width)."""
    sides = whole_number(video, "height", where), whole_number(video, "width", where)
    if 0 in sides:
        raise DataError(f"{where}: {sides[0]} x {sides[1]} pixels; expected a height and a width of at least 1")
    names = video.get("file_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}.file_names: expected a list of at least one file name")
    if video.get("length", len(names)) != len(names):
        raise DataError(f"{where}.length: {video['length']!r}, but file_names holds {len(names)}; they must agree")
    return len(names), sides


def categories_in(path: Path, values: dict[str, Any]) -> dict[int, str]:
    """Names by id, each name once."""
    categories: dict[int, str] = {}
    for i, category in enumerate(objects_in(values, "categories", path)):
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
        raise DataError(f"{where}.score: expected a finite number; found {short(score)}")
    return float(score)


def crowd_of(annotation: dict[str, Any], where: str) -> bool:
    """Whether its members are not told apart; no, where nothing is said."""
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}.iscrowd: expected 0 or 1; found {short(crowd)}")
    return bool(crowd)


def _refuse_doubled_ids(path: Path, entries: list[Any]) -> None:
    """Tracks of results need no id; where they have one, each has its own."""
    first: dict[int, int] = {}
    for i, entry in enumerate(entries):
        if isinstance(entry, dict) and "id" in entry:
            number = whole_number(entry, "id", f"{path}: [{i}]")
            if first.setdefault(number, i) != i:
                raise DataError(f"{path}: [{i}].id: {number} is the id of [{first[number]}] too; ids must differ")
