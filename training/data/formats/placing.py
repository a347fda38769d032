"""Writing a set: its pictures under names of their own in a new folder, and json files."""

from __future__ import annotations

import json
import re
import shutil
from enum import Enum
from pathlib import Path
from typing import Any

from visrt.runtime.sinks.output import write_atomically
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.video_frames import is_temporary
from visrt.training.data.segmentations import area_px

__all__ = [
    "Pictures",
    "crowd_remarks",
    "empty_masks",
    "folder_names",
    "overlap_remarks",
    "place",
    "placed",
    "score_remarks",
    "track_ids",
    "write_json",
]


class Pictures(str, Enum):
    """How pictures come into the new set: as copies, or as links to where they lie."""

    copy = "copy"
    link = "link"


def placed(annotated: AnnotatedSet, folder: Path, pictures: Pictures) -> dict[int, list[str]]:
    """Brings all pictures below `folder`; their names there, by video."""
    names = {}
    for video, name in zip(annotated.videos, folder_names(annotated), strict=True):
        names[video.id] = [f"{name}/{file}" for file in _file_names(video)]
        for picture, target in zip(video.pictures, names[video.id], strict=True):
            place(picture, folder / target, pictures)
    return names


def folder_names(annotated: AnnotatedSet) -> list[str]:
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


def place(picture: Path, target: Path, pictures: Pictures) -> None:
    """Brings `picture` to `target`; a frame of a video, which is taken out for the time being, as a copy always."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if pictures is Pictures.link and not is_temporary(picture):
        target.symlink_to(picture.resolve())
    else:
        shutil.copyfile(picture, target)


def write_json(path: Path, values: Any) -> None:
    write_atomically(path, [json.dumps(values, separators=(",", ":")).encode() + b"\n"])


def overlap_remarks(pixels: int) -> list[str]:
    """A remark on `pixels` lost in a format in which a pixel is of one object."""
    return [f"{pixels} pixels where objects overlap went to the smaller one"] if pixels else []


def score_remarks(annotated: AnnotatedSet, format: str) -> list[str]:
    """A remark on scores of objects that a network found, in a `format` that has no place for them."""
    scored = sum(track.score != 1.0 for video in annotated.videos for track in video.tracks)
    return [f"the scores of {scored} objects are left out, as {format} has none"] if scored else []


def track_ids(annotated: AnnotatedSet) -> tuple[dict[int, list[int]], list[str]]:
    """By video, a number for each track, all different: its own where all have one and it is no other's, else counted
    from 1. And a remark if numbers are lost."""
    known = [track.id for video in annotated.videos for track in video.tracks]
    own = None not in known and len(set(known)) == len(known)
    counted = iter(range(1, len(known) + 1))
    ids = {
        video.id: [track.id if own and track.id is not None else next(counted) for track in video.tracks]
        for video in annotated.videos
    }
    lost = not own and any(number is not None for number in known)
    remark = "ids of tracks are counted anew from 1, as not each object has one of its own"
    return ids, [remark] if lost else []


def empty_masks(track: Track) -> int:
    """Masks of `track` without a pixel."""
    return sum(mask is not None and not area_px(mask) for mask in track.masks)


def crowd_remarks(annotated: AnnotatedSet) -> list[str]:
    """A remark on crowds in a format in which a region to ignore has no class."""
    crowds = sum(track.crowd for video in annotated.videos for track in video.tracks)
    return [f"{crowds} crowds became regions to ignore for every class"] if crowds else []
