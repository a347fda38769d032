"""The reader of YouTube-VIS json (videos) and COCO json (photos) for training, `visrt data` and `visrt eval` alike.

Both formats may give a mask as RLE, compressed or not, or as polygons. A photo becomes a video of one frame. COCO
images with `video_id` and `frame_index`, and annotations with `track_id`, as `visrt data convert` writes them, become
videos again. Every fault is a `DataError` that begins with the file and the json path of the first fault, for example
`instances.json: annotations[3].image_id`. What is left out later is checked all the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.masks import PIXELS_MAX, Rle
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.json_faults import known_id, objects_by_id, short, whole_number
from visrt.training.data.picture_folder import MissingPictures, PictureFolder, complete_videos
from visrt.training.data.segmentations import rle_of, rle_of_box

__all__ = ["categories_in", "coco_set", "masks_in", "size_in", "youtube_vis_set"]

FRAME_KEYS = ("frame_index", "frame_id")
"""Of an image with `video_id`: its place in the video, as visrt writes it and as ImageNet VID is converted."""
TRACK_KEYS = ("track_id", "instance_id")


def youtube_vis_set(
    path: Path, values: dict[str, Any], pictures: Path, missing: MissingPictures = MissingPictures.refuse
) -> AnnotatedSet:
    """The set in `values`, read from `path`, with its pictures below the folder `pictures`.

    Several videos without one annotation are a split whose annotations are kept back, as servers give it out.
    """
    categories, label_of = categories_in(path, values)
    videos = objects_by_id(values, "videos", path)
    shapes = {number: _shape(video, f"{path}: videos[{i}]") for i, (number, video) in enumerate(videos.items())}
    tracks: dict[int, list[Track]] = defaultdict(list)
    form = _form(values, VIDEO_MASKS, VIDEO_BOXES)
    for where, annotation in _annotations(path, values):
        number = known_id(annotation, "video_id", shapes, where)
        label = label_of[known_id(annotation, "category_id", label_of, where)]
        masks = masks_in(annotation, where, *shapes[number], form)
        tracks[number].append(Track(label, masks, crowd=_is_crowd(annotation, where)))
    annotated = []
    folder = PictureFolder(pictures)
    for i, (number, video) in enumerate(videos.items()):
        where = f"{path}: videos[{i}].file_names"
        files = tuple(folder.find(name, f"{where}[{t}]") for t, name in enumerate(video["file_names"]))
        name = Path(video["file_names"][0]).parent.name or str(number)
        annotated.append(AnnotatedVideo(number, name, files, shapes[number][1], tuple(tracks[number])))
    known = any(tracks.values()) or (len(videos) == 1 and _has_annotations(values))
    read = _formed(AnnotatedSet(tuple(annotated), categories, label_of, annotated=known), form, path)
    return complete_videos(read, folder, path, missing)


def _shape(video: dict[str, Any], where: str) -> tuple[int, tuple[int, int]]:
    """Number of frames, and their size (height, width)."""
    size = size_in(video, where)
    names = video.get("file_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{where}.file_names: expected a list of at least one file name; found {short(names)}")
    if video.get("length", len(names)) != len(names):
        raise DataError(f"{where}.length: {video['length']!r}, but file_names holds {len(names)}; they must agree")
    return len(names), size


@dataclass(frozen=True)
class _Form:
    """How a file gives its masks: the key in an annotation, and the reader of its value. unread: masks left unread."""

    key: str
    read: Callable[[object, str, tuple[int, int]], Rle]
    boxes_only: bool = False
    unread: int = 0


VIDEO_MASKS, VIDEO_BOXES = _Form("segmentations", rle_of), _Form("bboxes", rle_of_box, boxes_only=True)
PHOTO_MASKS, PHOTO_BOXES = _Form("segmentation", rle_of), _Form("bbox", rle_of_box, boxes_only=True)


def _form(values: dict[str, Any], masks: _Form, boxes: _Form) -> _Form:
    """`boxes` if some objects lack a mask and each has a box; else `masks`, whose reader names the first that lacks."""
    entries = values.get("annotations")
    objects = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    masked = sum(1 for one in objects if one.get(masks.key))
    if masked == len(objects) or not all(one.get(boxes.key) for one in objects):
        return masks
    return replace(boxes, unread=masked)


def _formed(annotated: AnnotatedSet, form: _Form, path: Path) -> AnnotatedSet:
    if not form.unread:
        return replace(annotated, boxes_only=form.boxes_only)
    remark = f"{path}: not each object has a mask: the boxes of all are read, and the masks of {form.unread} are not"
    return replace(annotated, boxes_only=form.boxes_only, remarks=(*annotated.remarks, remark))


def masks_in(
    value: dict[str, Any], where: str, frames: int, size: tuple[int, int], form: _Form = VIDEO_MASKS
) -> tuple[Rle | None, ...]:
    """The `segmentations` of a track of a video of so many frames of `size` (height, width), or what `form` names."""
    masks = value.get(form.key)
    if not isinstance(masks, list) or len(masks) != frames:
        found = f"{len(masks)} entries" if isinstance(masks, list) else short(masks)
        raise DataError(f"{where}.{form.key}: expected one entry for each of {frames} frames; found {found}")
    return tuple(
        None if mask is None else form.read(mask, f"{where}.{form.key}[{t}]", size) for t, mask in enumerate(masks)
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


def coco_set(
    path: Path, values: dict[str, Any], pictures: Path, missing: MissingPictures = MissingPictures.refuse
) -> AnnotatedSet:
    """The set in `values`, read from `path`, with its pictures below the folder `pictures`."""
    categories, label_of = categories_in(path, values)
    folder = PictureFolder(pictures)
    images = _images(path, values, folder)
    form = _form(values, PHOTO_MASKS, PHOTO_BOXES)
    objects = _objects(path, values, images, label_of, form)
    frames: dict[int, list[_Image]] = defaultdict(list)
    for image in images.values():
        frames[image.at[0]].append(image)
    videos = [_coco_video(path, number, of_video, objects[number]) for number, of_video in frames.items()]
    known = _has_annotations(values)
    read = _formed(AnnotatedSet(tuple(videos), categories, label_of, annotated=known), form, path)
    return complete_videos(read, folder, path, missing)


def _images(path: Path, values: dict[str, Any], folder: PictureFolder) -> dict[int, _Image]:
    images: dict[int, _Image] = {}
    taken: dict[tuple[int, int], int] = {}
    for i, (number, image) in enumerate(objects_by_id(values, "images", path).items()):
        where = f"{path}: images[{i}]"
        size = size_in(image, where)
        at = (number, 0)
        place = next((key for key in FRAME_KEYS if key in image), None)
        if place and "video_id" in image:
            at = whole_number(image, "video_id", where), whole_number(image, place, where)
        if taken.setdefault(at, i) != i:
            raise DataError(f"{where}.{place}: {at[1]} of video {at[0]} is images[{taken[at]}] too")
        images[number] = _Image(folder.find(image.get("file_name"), f"{where}.file_name"), size, at)
    return images


def _objects(
    path: Path, values: dict[str, Any], images: Mapping[int, _Image], label_of: Mapping[int, int], form: _Form
) -> dict[int, list[_Object]]:
    """By video. An annotation without a track is an object of its own."""
    objects: dict[int, dict[int | str, _Object]] = defaultdict(dict)
    for i, (where, annotation) in enumerate(_annotations(path, values)):
        image = images[known_id(annotation, "image_id", images, where)]
        label = label_of[known_id(annotation, "category_id", label_of, where)]
        rle = form.read(annotation.get(form.key), f"{where}.{form.key}", image.size)
        named = next((key for key in TRACK_KEYS if key in annotation), None)
        track = _track_id(annotation, named, where) if named else -1 - i
        video, frame = image.at
        new = _Object(label, _is_crowd(annotation, where))
        one = objects[video].setdefault(track, new)
        if frame in one.masks or (new.label, new.crowd) != (one.label, one.crowd):
            raise DataError(
                f"{where}.{named}: {track} has two masks in a frame, two categories or two values of iscrowd; "
                "expected one each"
            )
        one.masks[frame] = rle
    return defaultdict(list, {video: list(by_track.values()) for video, by_track in objects.items()})


def _track_id(annotation: dict[str, Any], key: str, where: str) -> int | str:
    """A whole number, or a text as some tools write."""
    track = annotation[key]
    return track if isinstance(track, str) else whole_number(annotation, key, where)


def _coco_video(path: Path, number: int, images: list[_Image], objects: Sequence[_Object]) -> AnnotatedVideo:
    images = sorted(images, key=lambda image: image.at)
    if len({image.size for image in images}) > 1:
        raise DataError(f"{path}: images: the frames of video {number} are of different sizes; expected one")
    places = [image.at[1] for image in images]
    tracks = tuple(Track(one.label, tuple(map(one.masks.get, places)), crowd=one.crowd) for one in objects)
    first = images[0].path
    name = first.stem if len(images) == 1 else first.parent.name
    return AnnotatedVideo(number, name, tuple(image.path for image in images), images[0].size, tracks)


def categories_in(path: Path, values: dict[str, Any]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names, which differ, in the order of the file, and the label of each category id."""
    names: dict[str, None] = {}
    entries = objects_by_id(values, "categories", path)
    for i, category in enumerate(entries.values()):
        name = category.get("name")
        if not isinstance(name, str) or name in names:
            raise DataError(f"{path}: categories[{i}].name: expected a text no other category has; found {short(name)}")
        names[name] = None
    return tuple(names), {number: label for label, number in enumerate(entries)}


def _has_annotations(values: dict[str, Any]) -> bool:
    """Files of splits that a server scores have none: no such key, or null."""
    return values.get("annotations") is not None


def _annotations(path: Path, values: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each annotation after its place."""
    if not _has_annotations(values):
        return
    for i, annotation in enumerate(objects_by_id(values, "annotations", path).values()):
        yield f"{path}: annotations[{i}]", annotation


def size_in(value: dict[str, Any], where: str) -> tuple[int, int]:
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
