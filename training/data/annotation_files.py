"""The reader of YouTube-VIS json (videos) and COCO json (photos) for training, `visrt data` and `visrt eval` alike.

Both formats may give a mask as RLE, compressed or not, or as polygons. A photo becomes a video of one frame. COCO
images with `video_id` and `frame_index`, and annotations with `track_id`, as `visrt data convert` writes them, become
videos again. Every fault is a `DataError` that begins with the file and the json path of the first fault, for example
`instances.json: annotations[3].image_id`. What is left out later is checked all the same.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.masks import PIXELS_MAX, Rle
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.json_faults import known_id, objects_by_id, short, whole_number
from visrt.training.data.segmentations import rle_of

__all__ = ["PictureFolder", "coco_set", "masks_in", "youtube_vis_set"]


def youtube_vis_set(path: Path, values: dict[str, Any], pictures: Path) -> AnnotatedSet:
    """The set in `values`, read from `path`, with its pictures below the folder `pictures`."""
    categories, label_of = _categories(path, values)
    videos = objects_by_id(values, "videos", path)
    shapes = {number: _shape(video, f"{path}: videos[{i}]") for i, (number, video) in enumerate(videos.items())}
    tracks: dict[int, list[Track]] = defaultdict(list)
    for where, annotation in _annotations(path, values):
        number = known_id(annotation, "video_id", shapes, where)
        label = label_of[known_id(annotation, "category_id", label_of, where)]
        masks = masks_in(annotation, where, *shapes[number])
        tracks[number].append(Track(label, masks, crowd=_is_crowd(annotation, where)))
    annotated = []
    folder = PictureFolder(pictures)
    for i, (number, video) in enumerate(videos.items()):
        where = f"{path}: videos[{i}].file_names"
        files = tuple(_picture(folder, name, f"{where}[{t}]") for t, name in enumerate(video["file_names"]))
        name = Path(video["file_names"][0]).parent.name or str(number)
        annotated.append(AnnotatedVideo(number, name, files, shapes[number][1], tuple(tracks[number])))
    return AnnotatedSet(tuple(annotated), categories, label_of)


def _shape(video: dict[str, Any], where: str) -> tuple[int, tuple[int, int]]:
    """Number of frames, and their size (height, width)."""
    size = _size(video, where)
    names = video.get("file_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}.file_names: expected a list of at least one file name; found {short(names)}")
    if video.get("length", len(names)) != len(names):
        raise DataError(f"{where}.length: {video['length']!r}, but file_names holds {len(names)}; they must agree")
    return len(names), size


def masks_in(value: dict[str, Any], where: str, frames: int, size: tuple[int, int]) -> tuple[Rle | None, ...]:
    """The `segmentations` of a track of a video of so many frames of `size` (height, width)."""
    masks = value.get("segmentations")
    if not isinstance(masks, list) or len(masks) != frames:
        found = f"{len(masks)} entries" if isinstance(masks, list) else short(masks)
        raise DataError(f"{where}.segmentations: expected one entry for each of {frames} frames; found {found}")
    return tuple(
        None if mask is None else rle_of(mask, f"{where}.segmentations[{t}]", size) for t, mask in enumerate(masks)
    )


@dataclass(frozen=True)
class _Image:
    """A photo, or the frame `at` = (video, position) of a video."""

    path: Path
    size: tuple[int, int]
    at: tuple[int, int]


@dataclass
class _Object:
    """The masks of one object by its frames."""

    label: int
    crowd: bool
    masks: dict[int, Rle] = field(default_factory=dict)


def coco_set(path: Path, values: dict[str, Any], pictures: Path) -> AnnotatedSet:
    """The set in `values`, read from `path`, with its pictures below the folder `pictures`."""
    categories, label_of = _categories(path, values)
    images = _images(path, values, pictures)
    objects = _objects(path, values, images, label_of)
    frames: dict[int, list[_Image]] = defaultdict(list)
    for image in images.values():
        frames[image.at[0]].append(image)
    videos = [_coco_video(path, number, of_video, objects[number]) for number, of_video in frames.items()]
    return AnnotatedSet(tuple(videos), categories, label_of)


def _images(path: Path, values: dict[str, Any], pictures: Path) -> dict[int, _Image]:
    images: dict[int, _Image] = {}
    taken: dict[tuple[int, int], int] = {}
    folder = PictureFolder(pictures)
    for i, (number, image) in enumerate(objects_by_id(values, "images", path).items()):
        where = f"{path}: images[{i}]"
        size = _size(image, where)
        at = (number, 0)
        if {"video_id", "frame_index"} <= image.keys():
            at = whole_number(image, "video_id", where), whole_number(image, "frame_index", where)
        if taken.setdefault(at, i) != i:
            raise DataError(f"{where}.frame_index: {at[1]} of video {at[0]} is images[{taken[at]}] too")
        images[number] = _Image(_picture(folder, image.get("file_name"), f"{where}.file_name"), size, at)
    return images


def _objects(
    path: Path, values: dict[str, Any], images: Mapping[int, _Image], label_of: Mapping[int, int]
) -> dict[int, list[_Object]]:
    """By video. An annotation without a track is an object of its own."""
    objects: dict[int, dict[int | str, _Object]] = defaultdict(dict)
    for i, (where, annotation) in enumerate(_annotations(path, values)):
        image = images[known_id(annotation, "image_id", images, where)]
        label = label_of[known_id(annotation, "category_id", label_of, where)]
        rle = rle_of(annotation.get("segmentation"), f"{where}.segmentation", image.size)
        track = _track_id(annotation, where) if "track_id" in annotation else -1 - i
        video, frame = image.at
        new = _Object(label, _is_crowd(annotation, where))
        one = objects[video].setdefault(track, new)
        if frame in one.masks or (new.label, new.crowd) != (one.label, one.crowd):
            raise DataError(
                f"{where}.track_id: {track} has two masks in a frame, two categories or two values of iscrowd; "
                "expected one each"
            )
        one.masks[frame] = rle
    return defaultdict(list, {video: list(by_track.values()) for video, by_track in objects.items()})


def _track_id(annotation: dict[str, Any], where: str) -> int | str:
    """A whole number, or a text as some tools write."""
    track = annotation["track_id"]
    return track if isinstance(track, str) else whole_number(annotation, "track_id", where)


def _coco_video(path: Path, number: int, images: list[_Image], objects: Sequence[_Object]) -> AnnotatedVideo:
    images = sorted(images, key=lambda image: image.at)
    if len({image.size for image in images}) > 1:
        raise DataError(f"{path}: images: the frames of video {number} are of different sizes; expected one")
    places = [image.at[1] for image in images]
    tracks = tuple(Track(one.label, tuple(map(one.masks.get, places)), crowd=one.crowd) for one in objects)
    first = images[0].path
    name = first.stem if len(images) == 1 else first.parent.name
    return AnnotatedVideo(number, name, tuple(image.path for image in images), images[0].size, tracks)


def _categories(path: Path, values: dict[str, Any]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names, which differ, in the order of the file, and the label of each category id."""
    names: dict[str, None] = {}
    entries = objects_by_id(values, "categories", path)
    for i, category in enumerate(entries.values()):
        name = category.get("name")
        if not isinstance(name, str) or name in names:
            raise DataError(f"{path}: categories[{i}].name: expected a text no other category has; found {short(name)}")
        names[name] = None
    return tuple(names), {number: label for label, number in enumerate(entries)}


def _annotations(path: Path, values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each annotation after its place."""
    for i, annotation in enumerate(objects_by_id(values, "annotations", path).values()):
        yield f"{path}: annotations[{i}]", annotation


def _size(value: dict[str, Any], where: str) -> tuple[int, int]:
    """Height and width."""
    height, width = whole_number(value, "height", where, least=1), whole_number(value, "width", where, least=1)
    if height * width > PIXELS_MAX:
        raise DataError(f"{where}: {short(height)} x {short(width)} is beyond the limit of {PIXELS_MAX} pixels")
    return height, width


def _is_crowd(annotation: dict[str, Any], where: str) -> bool:
    """Whether its members are not annotated one by one; no, where the file does not state it."""
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(f"{where}.iscrowd: expected 0 or 1; found {short(crowd)}")
    return bool(crowd)


class PictureFolder:
    """Which files a folder of pictures holds, at any depth; each folder in it is listed once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, frozenset[str]] = {}

    def __contains__(self, name: str) -> bool:
        """Whether the path `name`, as `Path` writes it, is a file below the folder."""
        folder, _, file = name.rpartition("/")
        if folder not in self._files:
            self._files[folder] = _files_in(self.root / folder)
        # Not listed under this name is no proof: a disk may not tell upper from lower case.
        return file in self._files[folder] or os.path.isfile(self.root / name)


def _files_in(folder: Path) -> frozenset[str]:
    """One call for a folder where a question for each of 118,000 pictures takes a minute on a network disk."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (OSError, ValueError):
        return frozenset()


def _picture(pictures: PictureFolder, name: object, where: str) -> Path:
    """The picture `name` below `pictures`, which exists and does not lead out of it; `where` is its json path."""
    if not isinstance(name, str):
        raise DataError(f"{where}: expected a text; found {short(name)}")
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{where}: {name} leads out of {pictures.root.name}; expected a path within it")
    if path.as_posix() not in pictures:
        raise DataError(f"{where}: there is no picture {pictures.root / name}")
    return pictures.root / path
