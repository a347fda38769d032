"""COCO json: photos, and videos where images name their video and annotations their track. Written with both.

Photos are videos of one frame. The usual spellings are read: CocoVID's `instance_id` and `frame_id`, kwcoco's and TAO's
`track_id` and `frame_index`, CVAT's and Datumaro's `attributes.track_id`. Tracks that are seen and cannot be read are
said.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle
from visrt.runtime.sources.image_folder import natural_order
from visrt.training.data.annotation_files import (
    Sizes,
    StatedShapes,
    annotations_in,
    categories_in,
    form_of,
    formed,
    has_annotations,
    is_among,
    is_crowd,
)
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.placing import Pictures, folder_names, placed, track_ids, write_json
from visrt.training.data.json_faults import Faults, known_id, placed_by_id, short, whole_number
from visrt.training.data.picture_folder import PictureFolder, ReadRules, complete_videos
from visrt.training.data.segmentations import area_px, box_px

__all__ = ["IMAGES", "coco_set", "picture_name", "write_coco"]

IMAGES = "images"
"""Folder of pictures of COCO."""


def _spelt(*names: str) -> dict[str, None]:
    """Each of `names`, words with spaces between, as keys write it: a_b, aB, a-b, ab."""
    forms: dict[str, None] = {}
    for name in names:
        first, *others = name.split()
        camel = first + "".join(word.capitalize() for word in others)
        forms |= dict.fromkeys(("_".join([first, *others]), camel, "-".join([first, *others]), first + "".join(others)))
    return forms


VIDEO_KEYS = _spelt("video id", "vid id", "sequence id", "seq id", "clip id", "video name", "video")
FRAME_KEYS = _spelt("frame index", "frame id", "frame number", "frame num", "frame idx", "frame", "mot frame id")
TRACK_KEYS = _spelt("track id", "tracking id", "track")
OBJECT_KEYS = _spelt("instance id", "object id", "obj id")
"""Names of tracks too, but numbers within one picture in some files."""
NO_TRACK = (None, "", -1)
NESTED = "attributes"


@dataclass(frozen=True)
class _TrackKey:
    """Where annotations name their track. nested: within their attributes."""

    key: str
    nested: bool = False

    @property
    def shown(self) -> str:
        return f"{NESTED}.{self.key}" if self.nested else self.key

    def of(self, annotation: dict[str, Any], where: str) -> int | str | None:
        """The track, a whole number or a text; None where there is none."""
        inner = annotation.get(NESTED) if self.nested else annotation
        value = inner.get(self.key) if isinstance(inner, dict) else None
        if value in NO_TRACK or isinstance(value, str):
            return value or None if isinstance(value, str) else None
        assert isinstance(inner, dict)
        return whole_number(inner, self.key, where)


def _first_key(entries: Iterable[dict[str, Any]], keys: dict[str, None]) -> str | None:
    """The first of `keys` that an entry has."""
    found = next((one for one in entries if not keys.keys().isdisjoint(one)), None)
    return None if found is None else next(key for key in keys if key in found)


def _track_key(annotations: Sequence[dict[str, Any]]) -> _TrackKey | None:
    nested = [one[NESTED] for one in annotations if isinstance(one.get(NESTED), dict)]
    for keys in (TRACK_KEYS, OBJECT_KEYS):
        for entries, is_nested in ((annotations, False), (nested, True)):
            key = _first_key(entries, keys)
            if key is not None:
                return _TrackKey(key, is_nested)
    return None


@dataclass(frozen=True)
class _Image:
    """A photo, or the frame `at` = (video, place) of a video; the place is a number or, of files, their order."""

    path: Path
    size: tuple[int, int]
    at: tuple[int | str, Any]


@dataclass
class _Object:
    """The masks of one object by its frames."""

    label: int
    crowd: bool
    track: int | str | None
    masks: dict[Any, Rle] = field(default_factory=dict)


def coco_set(path: Path, values: dict[str, Any], pictures: Path, rules: ReadRules) -> AnnotatedSet:
    """The set in `values`, read from `path`, with its pictures below the folder `pictures`."""
    faults, shapes, sizes = Faults(path, rules.skip_faulty), StatedShapes(path), Sizes(path)
    categories, label_of = categories_in(path, values)
    folder = PictureFolder(pictures)
    track_key = _track_key(_objects_in(values.get("annotations")))
    frames = _Frames.of(path, values, track_key)
    images, lost = _images(path, values, folder, frames, faults, sizes)
    form = form_of(values, "segmentation", "bbox", rules.skip_faulty)
    objects: dict[int | str, dict[int | str, _Object]] = defaultdict(dict)
    for where, annotation in annotations_in(path, values, faults):
        if is_among(annotation.get("image_id"), lost):
            continue
        try:
            image = images[known_id(annotation, "image_id", images, where)]
            label = label_of[known_id(annotation, "category_id", label_of, where)]
            rle = form.read(annotation.get(form.key), f"{where}.{form.key}", image.size)
            track = track_key.of(annotation, where) if track_key and frames.tracked else None
            # An annotation without a track is an object of its own; places are no ids of a file.
            one = objects[image.at[0]].setdefault(
                where if track is None else track, _Object(label, is_crowd(annotation, where), track)
            )
            if image.at[1] in one.masks or (label, is_crowd(annotation, where)) != (one.label, one.crowd):
                assert track_key is not None
                raise DataError(
                    f"{where}.{track_key.shown}: {track} has two masks in a frame, two categories or two values of "
                    "iscrowd; expected one each"
                )
            one.masks[image.at[1]] = rle
            if not form.boxes_only:
                shapes.add(f"{where}.{form.key}", rle, annotation.get("bbox"), annotation.get("area"))
        except DataError as error:
            faults.add(error)
    videos = _videos(images.values(), objects, frames, faults)
    remarks = (*faults.remarks(), *frames.remarks(track_key), *sizes.remarks(), *shapes.remarks())
    if not videos:
        raise DataError(f"{path}: images: none is left without a fault")
    known = has_annotations(values)
    read = formed(AnnotatedSet(videos, categories, label_of, remarks, annotated=known), form, path)
    return complete_videos(read, folder, path, rules.missing)


def picture_name(image: dict[str, Any]) -> object:
    """The file name of an image; LVIS has its address in COCO alone, whose end is the name below COCO's folder."""
    name, url = image.get("file_name"), image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if name is None and isinstance(url, str) else name


def _objects_in(entries: object) -> list[dict[str, Any]]:
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


@dataclass(frozen=True)
class _Frames:
    """How images tell their video and their place in it. by_folder: not at all; tracks show that those of a folder are
    a video. tracked: tracks are read."""

    path: Path
    video_key: str | None
    frame_key: str | None
    by_folder: bool
    tracked: bool
    names: Mapping[Any, str]
    unread: str = ""

    @classmethod
    def of(cls, path: Path, values: dict[str, Any], track_key: _TrackKey | None) -> _Frames:
        images, annotations = _objects_in(values.get("images")), _objects_in(values.get("annotations"))
        video_key, frame_key = _first_key(images, VIDEO_KEYS), _first_key(images, FRAME_KEYS)
        named = (one for one in _objects_in(values.get("videos")) if isinstance(one.get("id"), int | str))
        names = {one["id"]: one["name"] for one in named if isinstance(one.get("name"), str)}
        if video_key is not None:
            return cls(path, video_key, frame_key, False, True, names)
        if track_key is None:
            return cls(path, None, None, False, False, {}, _unknown_key(annotations))
        going_on = _goes_on(images, annotations, track_key)
        by_folder = going_on and (track_key.key in TRACK_KEYS or track_key.nested) and _one_size_a_folder(images)
        unread = track_key.shown if going_on and not by_folder else ""
        return cls(path, None, None, by_folder, by_folder, {}, unread)

    def at(self, number: int, image: dict[str, Any], where: str) -> tuple[int | str, Any]:
        """The video of image `number`, and its place there."""
        name = str(image.get("file_name"))
        if self.by_folder:
            return _folder(image), natural_order(Path(name.replace("\\", "/")))
        if self.video_key is None:
            return number, 0
        given = image.get(self.video_key)
        if given is None:
            return f"image {number}", 0
        video = given if isinstance(given, str) else whole_number(image, self.video_key, where)
        if self.frame_key is None:
            return video, natural_order(Path(name))
        return video, whole_number(image, self.frame_key, where)

    def remarks(self, track_key: _TrackKey | None) -> tuple[str, ...]:
        """What was guessed, and tracks that were seen and not read."""
        said = []
        if self.by_folder and track_key is not None:
            said.append(
                f"images have no video_id and frame_index: as {track_key.shown} goes on from one to the next, those of "
                "a folder are read as one video in the order of their names"
            )
        elif self.video_key is not None and self.frame_key is None:
            said.append("images have no frame_index: the frames of a video are read in the order of their names")
        if self.video_key is not None and track_key is None:
            said.append(
                "images are frames of videos, but annotations have no track_id: each mask is an object of its own"
            )
        if self.unread:
            said.append(
                f"annotations have {self.unread}, which looks like tracks and is not read; for videos give images "
                "video_id and frame_index, and annotations track_id"
            )
        return tuple(f"{self.path}: {one}" for one in said)


def _unknown_key(annotations: Iterable[dict[str, Any]]) -> str:
    """A key of annotations that seems to name tracks, in a spelling of its own."""
    keys: dict[str, None] = {}
    for one in annotations:
        keys.update(dict.fromkeys(one))
        inner = one.get(NESTED)
        if isinstance(inner, dict):
            keys.update(dict.fromkeys(inner))
    return next((key for key in keys if re.search("track", str(key), re.IGNORECASE)), "")


def _folder(image: dict[str, Any]) -> str:
    """The folder in the file name of an image."""
    return str(PurePosixPath(str(image.get("file_name")).replace("\\", "/")).parent)


def _goes_on(images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], key: _TrackKey) -> bool:
    """Whether one of the tracks is in several images of a folder, and none twice in one."""
    folders = {str(one.get("id")): _folder(one) for one in images}
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in annotations:
        inner = one.get(NESTED) if key.nested else one
        track = inner.get(key.key) if isinstance(inner, dict) else None
        if track in NO_TRACK or isinstance(track, dict | list):
            continue
        image = str(one.get("image_id"))
        of_track = seen[folders.get(image, ""), str(track)]
        if image in of_track:
            return False
        of_track.add(image)
    return any(len(of_track) > 1 for of_track in seen.values())


def _one_size_a_folder(images: Iterable[dict[str, Any]]) -> bool:
    sizes: dict[str, tuple[str, str]] = {}
    given = ((_folder(one), (str(one.get("height")), str(one.get("width")))) for one in images)
    return all(sizes.setdefault(folder, size) == size for folder, size in given)


def _images(
    path: Path, values: dict[str, Any], folder: PictureFolder, frames: _Frames, faults: Faults, sizes: Sizes
) -> tuple[dict[int, _Image], set[int]]:
    """The images, and the ids of faulty ones."""
    images: dict[int, _Image] = {}
    lost = set[int]()
    taken: dict[tuple[int | str, Any], str] = {}
    for number, (where, image) in placed_by_id(values, "images", path, faults).items():
        try:
            file = folder.find(picture_name(image), f"{where}.file_name")
            size = sizes.of(image, where, file)
            at = frames.at(number, image, where)
            if taken.setdefault(at, where) != where:
                other = taken[at].removeprefix(f"{path}: ")
                key = frames.frame_key or "file_name"
                raise DataError(f"{where}.{key}: {short(image.get(key))} of video {at[0]} is {other} too")
        except DataError as error:
            faults.add(error)
            lost.add(number)
            continue
        images[number] = _Image(file, size, at)
    return images, lost


def _videos(
    images: Iterable[_Image], objects: Mapping[int | str, Mapping[int | str, _Object]], frames: _Frames, faults: Faults
) -> tuple[AnnotatedVideo, ...]:
    by_video: dict[int | str, list[_Image]] = defaultdict(list)
    for image in images:
        by_video[image.at[0]].append(image)
    numbers = _numbers(by_video)
    videos = []
    for key, of_video in by_video.items():
        with faults.entry():
            inside = objects.get(key, {}).values()
            videos.append(_video(numbers[key], frames.names.get(key, ""), of_video, inside, frames.path))
    return tuple(videos)


def _numbers(keys: Iterable[int | str]) -> dict[int | str, int]:
    """A number for each video: its own, or its place if it has a text."""
    listed = list(keys)
    if all(isinstance(key, int) for key in listed):
        return {key: int(key) for key in listed}
    return {key: i for i, key in enumerate(listed, start=1)}


def _video(number: int, name: str, images: list[_Image], objects: Iterable[_Object], path: Path) -> AnnotatedVideo:
    images = sorted(images, key=lambda image: image.at[1])
    if len({image.size for image in images}) > 1:
        raise DataError(f"{path}: images: the frames of video {number} are of different sizes; expected one")
    places = [image.at[1] for image in images]
    tracks = tuple(
        Track(
            one.label,
            tuple(map(one.masks.get, places)),
            crowd=one.crowd,
            id=one.track if isinstance(one.track, int) else None,
        )
        for one in objects
    )
    first = images[0].path
    own = first.stem if len(images) == 1 else first.parent.name
    return AnnotatedVideo(number, name or own, tuple(image.path for image in images), images[0].size, tracks)


def write_coco(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    names = placed(annotated, folder / IMAGES, pictures)
    ids, remarks = track_ids(annotated)
    write_json(folder / "instances.json", _values(annotated, names, ids))
    return remarks


def _values(
    annotated: AnnotatedSet, names: Mapping[int, list[str]], ids: Mapping[int, Sequence[int]]
) -> dict[str, Any]:
    """The content of a COCO file; `names` are the pictures' file names, `ids` those of the tracks by video."""
    category = {label: number for number, label in annotated.label_of.items() if label is not None}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video in annotated.videos:
        first = len(images) + 1
        sides = {"height": video.size[0], "width": video.size[1]}
        for t, name in enumerate(names[video.id]):
            place = {"video_id": video.id, "frame_index": t}
            images.append({"id": first + t, "file_name": name, **sides, **place})
        for track_id, track in zip(ids[video.id], video.tracks, strict=True):
            scored = {} if track.score == 1.0 else {"score": track.score}
            annotations += [
                {
                    "id": i,
                    "image_id": first + t,
                    "track_id": track_id,
                    "iscrowd": int(track.crowd),
                    "segmentation": mask,
                    "area": area_px(mask),
                    "bbox": list(box_px(mask)),
                    "category_id": category[track.label],
                    **scored,
                }
                for i, (t, mask) in enumerate(_visible(track), start=len(annotations) + 1)
            ]
    videos = [{"id": v.id, "name": name} for v, name in zip(annotated.videos, folder_names(annotated), strict=True)]
    categories = [{"id": number, "name": annotated.classes[label]} for label, number in category.items()]
    kept = annotations if annotated.annotated else None
    return {"videos": videos, "images": images, "annotations": kept, "categories": categories}


def _visible(track: Track) -> list[tuple[int, Rle]]:
    """Frame numbers and masks where there is one."""
    return [(t, mask) for t, mask in enumerate(track.masks) if mask is not None]
