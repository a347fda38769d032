"""COCO json (photos) and YouTube-VIS json (videos) to one form: videos of annotated frames; a photo is a video of one.

Every fault is a `DataError` with the path inside the json, for example `instances.json: annotations[3].image_id`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, Discriminator, NonNegativeInt, PositiveInt, Tag, ValidationError

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle
from visrt.training.segmentations import rle_from_counts, rle_from_polygons, rle_from_text

__all__ = [
    "NO_TARGET",
    "AnnotatedFrame",
    "AnnotatedObject",
    "AnnotatedSet",
    "AnnotatedVideo",
    "class_map",
    "coco",
    "youtube_vis",
]

NO_TARGET = -1
"""Label of an object whose class is not trained: it may serve as an occluder, never as a target."""


@dataclass(frozen=True)
class AnnotatedObject:
    """One object in one frame. label: index into the set's classes or NO_TARGET. kind: its class name in the file.
    track: the same number in every frame of its video.
    """

    label: int
    kind: str
    track: int
    rle: Rle


@dataclass(frozen=True, eq=False)
class AnnotatedFrame:
    """A picture on disk and its objects; `crowds` are regions whose members are not told apart.

    Equal to itself only, which makes it a quick key of a cache.
    """

    path: Path
    height_px: int
    width_px: int
    objects: tuple[AnnotatedObject, ...]
    crowds: tuple[Rle, ...] = ()


@dataclass(frozen=True)
class AnnotatedVideo:
    """Frames in order."""

    name: str
    frames: tuple[AnnotatedFrame, ...]


@dataclass(frozen=True)
class AnnotatedSet:
    """classes: what the labels mean."""

    classes: tuple[str, ...]
    videos: tuple[AnnotatedVideo, ...]


class _Rle(BaseModel):
    size: tuple[int, int]
    counts: str | list[NonNegativeInt]


def _form(value: Any) -> str:
    return "polygons" if isinstance(value, list) else "rle"


Segmentation = Annotated[
    Annotated[_Rle, Tag("rle")] | Annotated[list[list[float]], Tag("polygons")], Discriminator(_form)
]


class _Category(BaseModel):
    id: int
    name: str


class _Image(BaseModel):
    id: int
    file_name: str
    width: PositiveInt
    height: PositiveInt


class _ImageAnnotation(BaseModel):
    image_id: int
    category_id: int
    segmentation: Segmentation
    iscrowd: int = 0


class _CocoFile(BaseModel):
    images: list[_Image]
    annotations: list[_ImageAnnotation]
    categories: list[_Category]


class _Video(BaseModel):
    id: int
    file_names: list[str]
    width: PositiveInt
    height: PositiveInt


class _VideoAnnotation(BaseModel):
    video_id: int
    category_id: int
    segmentations: list[Segmentation | None]
    iscrowd: int = 0


class _VideoFile(BaseModel):
    videos: list[_Video]
    annotations: list[_VideoAnnotation]
    categories: list[_Category]


F = TypeVar("F", _CocoFile, _VideoFile)


def coco(json_path: Path, images: Path, mapped: Mapping[str, str] | None = None) -> AnnotatedSet:
    """The COCO set of `json_path` with its pictures in the folder `images`; `mapped`: see `class_map`."""
    file = _parsed(_CocoFile, json_path)
    classes = _Classes(json_path, file.categories, mapped)
    sizes = {image.id: (image.height, image.width) for image in file.images}
    objects: dict[int, list[AnnotatedObject]] = defaultdict(list)
    crowds: dict[int, list[Rle]] = defaultdict(list)
    for i, one in enumerate(file.annotations):
        where = f"annotations[{i}]"
        if one.image_id not in sizes:
            _refuse(json_path, f"{where}.image_id", f"is {one.image_id}, the id of no image")
        label, kind = classes.of(one.category_id, where)
        rle = _rle(json_path, f"{where}.segmentation", one.segmentation, sizes[one.image_id])
        if one.iscrowd:
            crowds[one.image_id].append(rle)
        else:
            objects[one.image_id].append(AnnotatedObject(label, kind, i, rle))
    videos = []
    for i, image in enumerate(file.images):
        path = _picture(json_path, f"images[{i}].file_name", images, image.file_name)
        frame = AnnotatedFrame(path, image.height, image.width, tuple(objects[image.id]), tuple(crowds[image.id]))
        videos.append(AnnotatedVideo(image.file_name, (frame,)))
    return AnnotatedSet(classes.names, tuple(videos))


def youtube_vis(json_path: Path, images: Path, mapped: Mapping[str, str] | None = None) -> AnnotatedSet:
    """The YouTube-VIS set of `json_path` with its frames below `images`; an object may be absent from any frame."""
    file = _parsed(_VideoFile, json_path)
    classes = _Classes(json_path, file.categories, mapped)
    by_id = {video.id: video for video in file.videos}
    objects: dict[tuple[int, int], list[AnnotatedObject]] = defaultdict(list)
    crowds: dict[tuple[int, int], list[Rle]] = defaultdict(list)
    for i, one in enumerate(file.annotations):
        where = f"annotations[{i}]"
        if one.video_id not in by_id:
            _refuse(json_path, f"{where}.video_id", f"is {one.video_id}, the id of no video")
        video = by_id[one.video_id]
        if len(one.segmentations) != len(video.file_names):
            told = f"has {len(one.segmentations)} entries; video {video.id} has {len(video.file_names)} frames"
            _refuse(json_path, f"{where}.segmentations", told)
        label, kind = classes.of(one.category_id, where)
        for t, segmentation in enumerate(one.segmentations):
            if segmentation is None:
                continue
            rle = _rle(json_path, f"{where}.segmentations[{t}]", segmentation, (video.height, video.width))
            if one.iscrowd:
                crowds[video.id, t].append(rle)
            else:
                objects[video.id, t].append(AnnotatedObject(label, kind, i, rle))
    return AnnotatedSet(
        classes.names,
        tuple(_video(json_path, images, i, video, objects, crowds) for i, video in enumerate(file.videos)),
    )


def _video(
    json_path: Path,
    images: Path,
    i: int,
    video: _Video,
    objects: Mapping[tuple[int, int], Sequence[AnnotatedObject]],
    crowds: Mapping[tuple[int, int], Sequence[Rle]],
) -> AnnotatedVideo:
    frames = []
    for t, name in enumerate(video.file_names):
        path = _picture(json_path, f"videos[{i}].file_names[{t}]", images, name)
        key = (video.id, t)
        frames.append(
            AnnotatedFrame(path, video.height, video.width, tuple(objects.get(key, ())), tuple(crowds.get(key, ())))
        )
    if not frames:
        _refuse(json_path, f"videos[{i}].file_names", "is empty; expected at least one frame")
    return AnnotatedVideo(str(PurePosixPath(video.file_names[0]).parent), tuple(frames))


def class_map(path: Path) -> dict[str, str]:
    """Source class name -> target class name; the targets are numbered in order of first appearance.

    Source classes that the map does not name are not targets.
    """
    values = _json(path)
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise DataError(f'{path}: expected one object like {{"car": "vehicle"}}, names to names')
    return values


class _Classes:
    """Category ids to labels."""

    def __init__(self, path: Path, categories: Sequence[_Category], mapped: Mapping[str, str] | None) -> None:
        self._path = path
        self._kinds = {category.id: category.name for category in categories}
        repeated = [key for key, count in Counter(category.id for category in categories).items() if count > 1]
        if repeated:
            _refuse(path, "categories", f"holds id {repeated[0]} more than once")
        if mapped is None:
            mapped = {name: name for name in self._kinds.values()}
        unknown = sorted(set(mapped) - set(self._kinds.values()))
        if unknown:
            known = ", ".join(sorted(self._kinds.values()))
            _refuse(path, "categories", f"lacks {unknown[0]!r}, which the class map names; it has: {known}")
        self.names = tuple(dict.fromkeys(mapped.values()))
        self._labels = {name: self.names.index(target) for name, target in mapped.items()}

    def of(self, category_id: int, where: str) -> tuple[int, str]:
        """(label, class name in the file) of `category_id`."""
        if category_id not in self._kinds:
            _refuse(self._path, f"{where}.category_id", f"is {category_id}, the id of no category")
        kind = self._kinds[category_id]
        return self._labels.get(kind, NO_TARGET), kind


def _rle(path: Path, where: str, given: _Rle | list[list[float]], size: tuple[int, int]) -> Rle:
    try:
        if isinstance(given, list):
            return rle_from_polygons(given, size)
        if given.size != size:
            raise ValueError(f"size is {list(given.size)}; the picture has {list(size)} (height, width)")
        if isinstance(given.counts, str):
            return rle_from_text(given.counts, size)
        return rle_from_counts(given.counts, size)
    except ValueError as error:
        _refuse(path, where, f"is not a mask: {error}")


def _picture(json_path: Path, where: str, folder: Path, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        _refuse(json_path, where, f"is {name!r}; expected a path below the picture folder")
    path = folder / name
    if not path.is_file():
        _refuse(json_path, where, f"is {name!r}; there is no such file in {folder}")
    return path


def _parsed(form: type[F], path: Path) -> F:
    values = _json(path)
    try:
        return form.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        where = _json_path([part for part in fault["loc"] if part not in ("rle", "polygons")])
        _refuse(path, where or "the file", f"is wrong: {fault['msg']}; given {str(fault['input'])[:60]!r}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected a json file") from None
    except ValueError as error:
        raise DataError(f"{path}: not json: {error}") from None


def _json_path(parts: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _refuse(path: Path, where: str, told: str) -> NoReturn:
    raise DataError(f"{path}: {where} {told}")
