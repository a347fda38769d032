"""YouTube-VIS json: videos, and for each object a mask a frame. Written with the boxes and areas of the masks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from visrt.runtime.errors import DataError
from visrt.runtime.masks import Rle
from visrt.training.data.annotation_files import (
    Form,
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
from visrt.training.data.formats.placing import Pictures, placed, track_ids, write_json
from visrt.training.data.json_faults import Faults, known_id, placed_by_id, short
from visrt.training.data.picture_folder import PictureFolder, ReadRules, complete_videos
from visrt.training.data.segmentations import area_px, box_px, rle_of

__all__ = ["JPEG_IMAGES", "masks_in", "write_youtube_vis", "youtube_vis_set"]

JPEG_IMAGES = "JPEGImages"
MASKS, BOXES = "segmentations", "bboxes"


def youtube_vis_set(path: Path, values: dict[str, Any], pictures: Path, rules: ReadRules) -> AnnotatedSet:
    """The set in `values`, read from `path`, with its pictures below the folder `pictures`.

    Several videos without one annotation are a split whose annotations are kept back, as servers give it out.
    """
    faults, shapes, sizes = Faults(path, rules.skip_faulty), StatedShapes(path), Sizes(path)
    categories, label_of = categories_in(path, values)
    folder = PictureFolder(pictures)
    videos, lost = _videos(path, values, folder, faults, sizes)
    tracks: dict[int, list[Track]] = defaultdict(list)
    form = form_of(values, MASKS, BOXES, rules.skip_faulty)
    for where, annotation in annotations_in(path, values, faults):
        if is_among(annotation.get("video_id"), lost):
            continue
        with faults.entry():
            number = known_id(annotation, "video_id", videos, where)
            label = label_of[known_id(annotation, "category_id", label_of, where)]
            video = videos[number]
            masks = masks_in(annotation, where, len(video.pictures), video.size, form, faults)
            identity = annotation["id"] if not isinstance(annotation.get("track_id"), int) else annotation["track_id"]
            tracks[number].append(Track(label, masks, crowd=is_crowd(annotation, where), id=int(identity)))
            if not form.boxes_only:
                _compare(shapes, annotation, where, masks)
    known = any(tracks.values()) or (len(videos) == 1 and has_annotations(values))
    annotated = tuple(_with_tracks(video, tracks[number]) for number, video in videos.items())
    remarks = (*faults.remarks(), *sizes.remarks(), *shapes.remarks())
    if not annotated:
        raise DataError(f"{path}: videos: none is left without a fault")
    read = formed(AnnotatedSet(annotated, categories, label_of, remarks, annotated=known), form, path)
    return complete_videos(read, folder, path, rules.missing)


def _videos(
    path: Path, values: dict[str, Any], folder: PictureFolder, faults: Faults, sizes: Sizes
) -> tuple[dict[int, AnnotatedVideo], set[int]]:
    """The videos without their tracks, and the ids of faulty ones."""
    videos, lost = {}, set[int]()
    for number, (where, video) in placed_by_id(values, "videos", path, faults).items():
        try:
            names = video.get("file_names")
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise DataError(f"{where}.file_names: expected a list of at least one file name; found {short(names)}")
            if video.get("length", len(names)) != len(names):
                raise DataError(
                    f"{where}.length: {video['length']!r}, but file_names holds {len(names)}; they must agree"
                )
            files = tuple(folder.find(name, f"{where}.file_names[{t}]") for t, name in enumerate(names))
            size = sizes.of(video, where, files[0])
        except DataError as error:
            faults.add(error)
            lost.add(number)
            continue
        videos[number] = AnnotatedVideo(number, Path(names[0]).parent.name or str(number), files, size, ())
    return videos, lost


def _with_tracks(video: AnnotatedVideo, tracks: list[Track]) -> AnnotatedVideo:
    return AnnotatedVideo(video.id, video.name, video.pictures, video.size, tuple(tracks))


def _compare(shapes: StatedShapes, annotation: dict[str, Any], where: str, masks: tuple[Rle | None, ...]) -> None:
    boxes, areas = annotation.get(BOXES), annotation.get("areas")
    for t, mask in enumerate(masks):
        if mask is not None:
            place = f"{where}.{MASKS}[{t}]"
            shapes.add(place, mask, _at(boxes, t), _at(areas, t))


def _at(values: object, t: int) -> object:
    return values[t] if isinstance(values, list) and t < len(values) else None


def masks_in(
    value: dict[str, Any],
    where: str,
    frames: int,
    size: tuple[int, int],
    form: Form = Form(MASKS, rle_of),  # noqa: B008  # frozen
    faults: Faults | None = None,
) -> tuple[Rle | None, ...]:
    """The `segmentations` of a track of a video of so many frames of `size` (height, width), or what `form` names.

    An empty list is an absent object too. faults: takes the faulty masks of single frames, which are left out then.
    """
    masks = value.get(form.key)
    if not isinstance(masks, list) or len(masks) != frames:
        found = f"{len(masks)} entries" if isinstance(masks, list) else short(masks)
        raise DataError(f"{where}.{form.key}: expected one entry for each of {frames} frames; found {found}")
    read: list[Rle | None] = []
    for t, mask in enumerate(masks):
        try:
            absent = mask is None or mask == []
            read.append(None if absent else form.read(mask, f"{where}.{form.key}[{t}]", size))
        except DataError as error:
            if faults is None:
                raise
            faults.add(error)
            read.append(None)
    return tuple(read)


def write_youtube_vis(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    names = placed(annotated, folder / JPEG_IMAGES, pictures)
    category = {label: number for number, label in annotated.label_of.items() if label is not None}
    videos = [
        {"id": v.id, "height": v.size[0], "width": v.size[1], "length": len(v.pictures), "file_names": names[v.id]}
        for v in annotated.videos
    ]
    ids, remarks = track_ids(annotated)
    tracks = [
        (video, number, track)
        for video in annotated.videos
        for number, track in zip(ids[video.id], video.tracks, strict=True)
    ]
    annotations = [
        {
            "id": i,  # from 1: tools take 0 for none
            "track_id": number,
            "video_id": video.id,
            "category_id": category[track.label],
            "iscrowd": int(track.crowd),
            "height": video.size[0],
            "width": video.size[1],
            "length": len(video.pictures),
            MASKS: track.masks,
            BOXES: [None if mask is None else box_px(mask) for mask in track.masks],
            "areas": [None if mask is None else area_px(mask) for mask in track.masks],
            **_scored(track),
        }
        for i, (video, number, track) in enumerate(tracks, start=1)
    ]
    categories = [{"id": number, "name": annotated.classes[label]} for label, number in category.items()]
    kept = annotations if annotated.annotated else None
    write_json(folder / "instances.json", {"videos": videos, "annotations": kept, "categories": categories})
    return remarks


def _scored(track: Track) -> dict[str, float]:
    """The score, of what a network reported."""
    return {} if track.score == 1.0 else {"score": track.score}
