"""COCO json: photos, each read as a video of one frame, and written as frames that know their track.

A file that says `video_id`, `frame_index` and `track_id`, as ours do, is read back as videos.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visrt.benchmarks.datasets.json_faults import an_object, known_id, objects_in, read_json, short, whole_number
from visrt.benchmarks.datasets.ytvis import AnnotatedSet, AnnotatedVideo, Track, categories_in, crowd_of, picture_at
from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle
from visrt.training.segmentations import area_px, box_px, rle_of

__all__ = ["IMAGES", "coco_values", "read_coco"]

IMAGES = "images"


@dataclass(frozen=True)
class _Image:
    """A photo, or the frame `at` = (video, position) of a video."""

    path: Path
    size: tuple[int, int]
    at: tuple[int, int]


@dataclass
class _Object:
    """Masks by frame of one object on its way."""

    label: int
    crowd: bool
    masks: dict[int, Rle] = field(default_factory=dict)


def read_coco(path: Path, pictures: Path) -> AnnotatedSet:
    """The images of the file `path`, their pictures below the folder `pictures`. Raises DataError."""
    values = an_object(read_json(path), f"{path}")
    categories = categories_in(path, values)
    label_of = {number: label for label, number in enumerate(categories)}
    images = _images(path, values, pictures)
    tracks = _objects_of(path, values, images, label_of)
    frames: dict[int, list[_Image]] = defaultdict(list)
    for image in images.values():
        frames[image.at[0]].append(image)
    videos = [_video(path, number, of_video, tracks[number]) for number, of_video in frames.items()]
    return AnnotatedSet(tuple(videos), tuple(categories.values()), label_of)


def _images(path: Path, values: dict[str, Any], pictures: Path) -> dict[int, _Image]:
    images: dict[int, _Image] = {}
    taken: dict[tuple[int, int], int] = {}
    for i, image in enumerate(objects_in(values, "images", path)):
        where = f"{path}: images[{i}]"
        size = whole_number(image, "height", where), whole_number(image, "width", where)
        if 0 in size:
            raise DataError(f"{where}: {size[0]} x {size[1]} pixels; expected a height and a width of at least 1")
        name = image.get("file_name")
        if not isinstance(name, str):
            raise DataError(f"{where}.file_name: expected a text; found {short(name)}")
        at = (image["id"], 0)
        if {"video_id", "frame_index"} <= image.keys():
            at = whole_number(image, "video_id", where), whole_number(image, "frame_index", where)
        if taken.setdefault(at, i) != i:
            raise DataError(f"{where}.frame_index: {at[1]} of video {at[0]} is images[{taken[at]}] too")
        images[image["id"]] = _Image(picture_at(pictures, name, f"{where}.file_name"), size, at)
    return images


def _objects_of(
    path: Path, values: dict[str, Any], images: Mapping[int, _Image], label_of: Mapping[int, int]
) -> dict[int, dict[int, _Object]]:
    """By video and track; an annotation without a track is an object of its own."""
    found: dict[int, dict[int, _Object]] = defaultdict(dict)
    for i, annotation in enumerate(objects_in(values, "annotations", path)):
        where = f"{path}: annotations[{i}]"
        image = images[known_id(annotation, "image_id", images, where)]
        label = label_of[known_id(annotation, "category_id", label_of, where)]
        rle = rle_of(annotation.get("segmentation"), f"{where}.segmentation", image.size)
        key = whole_number(annotation, "track_id", where) if "track_id" in annotation else -1 - i
        video, frame = image.at
        one = found[video].setdefault(key, _Object(label, crowd_of(annotation, where)))
        if frame in one.masks or label != one.label:
            raise DataError(f"{where}.track_id: {key} has two masks in a frame, or two categories; expected one each")
        one.masks[frame] = rle
    return found


def _video(path: Path, number: int, images: list[_Image], objects: Mapping[int, _Object]) -> AnnotatedVideo:
    images = sorted(images, key=lambda image: image.at)
    if len({image.size for image in images}) > 1:
        raise DataError(f"{path}: images: the frames of video {number} are of different sizes; expected one")
    places = [image.at[1] for image in images]
    tracks = tuple(Track(one.label, tuple(map(one.masks.get, places)), crowd=one.crowd) for one in objects.values())
    first = images[0].path
    name = first.stem if len(images) == 1 else first.parent.name
    return AnnotatedVideo(number, name, tuple(image.path for image in images), images[0].size, tracks)


def coco_values(annotated: AnnotatedSet, names: Mapping[int, list[str]]) -> dict[str, Any]:
    """The content of a COCO file; `names` are the pictures' file names by video."""
    category = {label: number for number, label in annotated.label_of.items() if label is not None}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    track_id = 0
    for video in annotated.videos:
        first = len(images) + 1
        sides = {"height": video.size[0], "width": video.size[1]}
        for t, name in enumerate(names[video.id]):
            place = {"video_id": video.id, "frame_index": t}
            images.append({"id": first + t, "file_name": name, **sides, **place})
        for track in video.tracks:
            track_id += 1
            for t, mask in enumerate(track.masks):
                if mask is not None:
                    entry = {"id": len(annotations) + 1, "image_id": first + t, "track_id": track_id}
                    annotations.append({**entry, **_annotation(track, mask), "category_id": category[track.label]})
    categories = [{"id": number, "name": annotated.classes[label]} for label, number in category.items()]
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(track: Track, mask: Rle) -> dict[str, Any]:
    return {"iscrowd": int(track.crowd), "segmentation": mask, "area": area_px(mask), "bbox": list(box_px(mask))}
