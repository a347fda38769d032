"""Annotated sets written in each of the formats; `WRITERS` names them. What a format cannot hold is reported."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from visrt.runtime.masks import Rle
from visrt.runtime.sinks.output import cannot_write, write_atomically
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.davis import MASKS, write_masks
from visrt.training.data.formats.mots import mots_lines
from visrt.training.data.segmentations import area_px, box_px
from visrt.training.data.set_formats import ANNOTATIONS, IMAGES, NAMES, PICTURES

__all__ = ["WRITERS", "Pictures", "write_set"]


class Pictures(str, Enum):
    """How pictures come into the new set: as copies, or as links to where they lie."""

    copy = "copy"
    link = "link"


def write_set(annotated: AnnotatedSet, folder: Path, name: str, pictures: Pictures) -> list[str]:
    """Writes `annotated` in the format `name` into the empty `folder`; returns what it could not say."""
    try:
        return WRITERS[name](annotated, folder, pictures)
    except OSError as error:
        raise cannot_write(folder, error) from None


def _youtube_vis(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    names = _placed(annotated, folder / PICTURES, pictures)
    _write_json(folder / ANNOTATIONS, _youtube_vis_values(annotated, names))
    return []


def _coco(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    names = _placed(annotated, folder / IMAGES, pictures)
    _write_json(folder / ANNOTATIONS, _coco_values(annotated, names))
    return []


def _davis(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    names = _placed(annotated, folder / PICTURES, pictures)
    lost = 0
    for video in annotated.videos:
        masks = folder / MASKS / Path(names[video.id][0]).parent
        masks.mkdir(parents=True)
        lost += write_masks(video, masks, [Path(name).name for name in names[video.id]])
    classes = {Path(names[v.id][0]).parent.name: _object_names(v, annotated.classes) for v in annotated.videos}
    _write_json(folder / NAMES, classes)
    return _hidden(lost) + _crowds(annotated)


def _object_names(video: AnnotatedVideo, classes: tuple[str, ...]) -> dict[str, str]:
    labels = [track.label for track in video.tracks if not track.crowd]
    return {str(number): classes[label] for number, label in enumerate(labels, start=1)}


def _mots(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> list[str]:
    lost = 0
    for video, name in zip(annotated.videos, _folder_names(annotated), strict=True):
        for t, picture in enumerate(video.pictures, start=1):
            _place(picture, folder / name / "img1" / f"{t:06d}{picture.suffix}", pictures)
        lines, hidden = mots_lines(video)
        lost += hidden
        (folder / name / "gt").mkdir(parents=True)
        write_atomically(folder / name / "gt" / "gt.txt", [f"{line}\n".encode() for line in lines])
    _write_json(folder / NAMES, {str(label + 1): name for label, name in enumerate(annotated.classes)})
    return _hidden(lost) + _crowds(annotated)


def _hidden(pixels: int) -> list[str]:
    return [f"{pixels} pixels where objects overlap went to the smaller one"] if pixels else []


def _crowds(annotated: AnnotatedSet) -> list[str]:
    crowds = sum(track.crowd for video in annotated.videos for track in video.tracks)
    return [f"{crowds} crowds became regions to ignore for every class"] if crowds else []


WRITERS: dict[str, Callable[[AnnotatedSet, Path, Pictures], list[str]]] = {
    "youtube-vis": _youtube_vis,
    "coco": _coco,
    "davis": _davis,
    "mots": _mots,
}


def _youtube_vis_values(annotated: AnnotatedSet, names: Mapping[int, list[str]]) -> dict[str, Any]:
    category = {label: number for number, label in annotated.label_of.items() if label is not None}
    videos = [
        {"id": v.id, "height": v.size[0], "width": v.size[1], "length": len(v.pictures), "file_names": names[v.id]}
        for v in annotated.videos
    ]
    tracks = [(video.id, track) for video in annotated.videos for track in video.tracks]
    annotations = [
        {
            "id": i,
            "video_id": number,
            "category_id": category[track.label],
            "iscrowd": int(track.crowd),
            "segmentations": track.masks,
        }
        for i, (number, track) in enumerate(tracks, start=1)
    ]
    categories = [{"id": number, "name": annotated.classes[label]} for label, number in category.items()]
    return {"videos": videos, "annotations": annotations if annotated.annotated else None, "categories": categories}


def _coco_values(annotated: AnnotatedSet, names: Mapping[int, list[str]]) -> dict[str, Any]:
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
                }
                for i, (t, mask) in enumerate(_visible(track), start=len(annotations) + 1)
            ]
    categories = [{"id": number, "name": annotated.classes[label]} for label, number in category.items()]
    return {"images": images, "annotations": annotations if annotated.annotated else None, "categories": categories}


def _visible(track: Track) -> list[tuple[int, Rle]]:
    """Frame numbers and masks where there is one."""
    return [(t, mask) for t, mask in enumerate(track.masks) if mask is not None]


def _placed(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> dict[int, list[str]]:
    """Brings all pictures below `folder`; their names there, by video."""
    names = {}
    for video, name in zip(annotated.videos, _folder_names(annotated), strict=True):
        names[video.id] = [f"{name}/{file}" for file in _file_names(video)]
        for picture, placed in zip(video.pictures, names[video.id], strict=True):
            _place(picture, folder / placed, pictures)
    return names


def _folder_names(annotated: AnnotatedSet) -> list[str]:
    """A folder of its own for each video, named as the video where that is free."""
    taken: dict[str, int] = {}
    names = []
    for video in annotated.videos:
        name = re.sub(r"[^\w.-]+", "_", video.name).lstrip(".") or str(video.id)
        if taken.setdefault(name.casefold(), video.id) != video.id:
            name = f"{name}_{video.id}"
        names.append(name)
    return names


def _file_names(video: AnnotatedVideo) -> list[str]:
    """The pictures' own names where they differ by more than their suffix, else their numbers."""
    stems = {picture.stem.casefold() for picture in video.pictures}
    if len(stems) == len(video.pictures):
        return [picture.name for picture in video.pictures]
    return [f"{t:06d}{picture.suffix}" for t, picture in enumerate(video.pictures)]


def _place(picture: Path, target: Path, pictures: Pictures) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if pictures is Pictures.link:
        target.symlink_to(picture.resolve())
    else:
        shutil.copyfile(picture, target)


def _write_json(path: Path, values: Any) -> None:
    write_atomically(path, [json.dumps(values, separators=(",", ":")).encode() + b"\n"])
