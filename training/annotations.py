"""COCO json (photos) and YouTube-VIS json (videos) to one form: videos of annotated frames; a photo is a video of one.

Every fault is a `DataError` with the path inside the json, for example `instances.json: annotations[3].image_id`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, Discriminator, PositiveInt, Tag, ValidationError

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle
from visrt.training.segmentations import rle_of

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


def _form(value: Any) -> str:
    return "polygons" if isinstance(value, list) else "rle"


# What an RLE must hold is checked where the size of its picture is known.
Segmentation = Annotated[
    Annotated[dict[str, Any], Tag("rle")] | Annotated[list[list[float]], Tag("polygons")], Discriminator(_form)
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


@dataclass(frozen=True)
class _Terms:
    """How a format calls its parts, for messages."""

    videos: str
    video_id: str
    file_name: str
    segmentation: str


COCO = _Terms("images", "image_id", "file_name", "segmentation")
YOUTUBE_VIS = _Terms("videos", "video_id", "file_names[{t}]", "segmentations[{t}]")


def coco(json_path: Path, images: Path, mapped: Mapping[str, str] | None = None) -> AnnotatedSet:
    """The COCO set of `json_path` with its pictures in the folder `images`; `mapped`: see `class_map`."""
    file = _parsed(_CocoFile, json_path)
    videos = [_Video(id=i.id, file_names=[i.file_name], width=i.width, height=i.height) for i in file.images]
    annotations = [
        _VideoAnnotation.model_construct(
            video_id=a.image_id, category_id=a.category_id, segmentations=[a.segmentation], iscrowd=a.iscrowd
        )
        for a in file.annotations
    ]
    form = _VideoFile.model_construct(videos=videos, annotations=annotations, categories=file.categories)
    return _annotated(form, json_path, images, mapped, COCO)


def youtube_vis(json_path: Path, images: Path, mapped: Mapping[str, str] | None = None) -> AnnotatedSet:
    """The YouTube-VIS set of `json_path` with its frames below `images`; an object may be absent from any frame."""
    return _annotated(_parsed(_VideoFile, json_path), json_path, images, mapped, YOUTUBE_VIS)


def _annotated(
    file: _VideoFile, json_path: Path, images: Path, mapped: Mapping[str, str] | None, terms: _Terms
) -> AnnotatedSet:
    classes = _Classes(json_path, file.categories, mapped)
    objects: _ByFrame[AnnotatedObject] = defaultdict(list)
    crowds: _ByFrame[Rle] = defaultdict(list)
    _refuse_repeated(json_path, terms.videos, [video.id for video in file.videos])
    by_id = {video.id: video for video in file.videos}
    for i, one in enumerate(file.annotations):
        where = f"annotations[{i}]"
        if one.video_id not in by_id:
            _refuse(json_path, f"{where}.{terms.video_id}", f"is {one.video_id}, an id that {terms.videos} lacks")
        label, kind = classes.of(one.category_id, where)
        for t, rle in _rles(one, by_id[one.video_id], f"{json_path}: {where}", terms):
            if one.iscrowd:
                crowds[one.video_id, t].append(rle)
            else:
                objects[one.video_id, t].append(AnnotatedObject(label, kind, i, rle))
    videos = []
    for i, video in enumerate(file.videos):
        where = f"{terms.videos}[{i}].{terms.file_name}"
        videos.append(_video(video, _pictures(json_path, where, images, video), objects, crowds))
    return AnnotatedSet(classes.names, tuple(videos))


T = TypeVar("T")
_ByFrame = dict[tuple[int, int], list[T]]


def _rles(one: _VideoAnnotation, video: _Video, where: str, terms: _Terms) -> Iterator[tuple[int, Rle]]:
    """(frame number, mask) of one annotation where it is visible."""
    if len(one.segmentations) != len(video.file_names):
        told = f"has {len(one.segmentations)} entries; video {video.id} has {len(video.file_names)} frames"
        raise DataError(f"{where}.segmentations {told}")
    for t, segmentation in enumerate(one.segmentations):
        if segmentation is not None:
            yield t, rle_of(segmentation, f"{where}.{terms.segmentation.format(t=t)}", (video.height, video.width))


def _video(
    video: _Video, pictures: Sequence[Path], objects: _ByFrame[AnnotatedObject], crowds: _ByFrame[Rle]
) -> AnnotatedVideo:
    frames = tuple(
        AnnotatedFrame(
            path, video.height, video.width, tuple(objects.get((video.id, t), ())), tuple(crowds.get((video.id, t), ()))
        )
        for t, path in enumerate(pictures)
    )
    return AnnotatedVideo(video.file_names[0], frames)


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
        _refuse_repeated(path, "categories", [category.id for category in categories])
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


def _pictures(json_path: Path, where: str, folder: Path, video: _Video) -> list[Path]:
    """The files of the frames of `video`, all there and all below `folder`."""
    if not video.file_names:
        _refuse(json_path, where.format(t=""), "is empty; expected at least one frame")
    paths = []
    for t, name in enumerate(video.file_names):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            _refuse(json_path, where.format(t=t), f"is {name!r}; expected a path below the picture folder")
        if not (folder / name).is_file():
            _refuse(json_path, where.format(t=t), f"is {name!r}; there is no such file in {folder}")
        paths.append(folder / name)
    return paths


def _refuse_repeated(path: Path, where: str, ids: Sequence[int]) -> None:
    repeated = [key for key, count in Counter(ids).items() if count > 1]
    if repeated:
        _refuse(path, where, f"has the id {repeated[0]} more than once")


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
