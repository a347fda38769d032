"""DAVIS's layout: JPEGImages/NAME/ and Annotations/NAME/ with one png a frame whose values are the objects' numbers.

Read: 0 is nothing. 255 is void, a crowd of each class, unless it is all there is, as in DAVIS 2016. Pngs in RGB number
objects by colour. A picture without a png is not annotated and left out (YouTube-VOS annotates every fifth). Written: a
png holds one object a pixel, so of two that overlap the smaller is kept; crowds become void.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from visrt.runtime.errors import DataError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.masks import Rle, decode
from visrt.runtime.sinks.overlay import colour_of
from visrt.runtime.sources.image_folder import images_in
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.formats.placing import (
    Pictures,
    crowd_remarks,
    overlap_remarks,
    placed,
    score_remarks,
    write_json,
)
from visrt.training.data.json_faults import Faults, short
from visrt.training.data.picture_folder import ReadRules
from visrt.training.data.picture_size import opened, size_of
from visrt.training.data.segmentations import rle_of_mask

__all__ = [
    "MASKS",
    "PICTURES",
    "crowd_of_each_class",
    "crowded",
    "load_object_names",
    "numbers_of",
    "read_davis",
    "without_overlap",
    "write_davis",
    "write_masks",
]

STRICT = ReadRules()
MASKS = "Annotations"
PICTURES = "JPEGImages"
SIZES = ("480p", "1080p", "Full-Resolution")
"""Folders between those two and the videos, in the sets as they are given out."""
VOID = 255
MANY = 254
ONE_CLASS = "object"

Numbers = NDArray[np.int64]
ObjectNames = Mapping[str, Mapping[int, str]]


def load_object_names(path: Path) -> dict[str, dict[int, str]]:
    """{"dogs-jump": {"1": "dog", "2": "dog", "3": "person"}, ...}: the class of each object of each video."""
    values = read_json_object(path, 'an object of videos: {"dogs-jump": {"1": "dog", "2": "person"}}')
    found: dict[str, dict[int, str]] = {}
    for name, classes in values.items():
        if not isinstance(classes, dict):
            raise DataError(f"{path}: {name}: expected an object of numbers and classes; found {short(classes)}")
        for number, kind in classes.items():
            if not (number.isdecimal() and isinstance(kind, str)):
                raise DataError(f"{path}: {name}.{number}: expected a class by a number; found {short(kind)}")
        found[name] = {int(number): kind for number, kind in classes.items()}
    return found


def read_davis(
    pictures: Path, masks: Path, named: ObjectNames | None = None, rules: ReadRules = STRICT
) -> AnnotatedSet:
    """The videos that have a folder in `masks`, their classes by `named` or, without, all of one class."""
    pictures, masks = _inner(pictures), _inner(masks)
    folders = sorted(path for path in masks.iterdir() if path.is_dir())
    if not folders:
        raise DataError(f"{masks}: holds no folder; expected one of png masks for each video")
    names = [ONE_CLASS] if named is None else sorted({kind for of in named.values() for kind in of.values()})
    faults = Faults(masks, rules.skip_faulty)
    videos = []
    for number, folder in enumerate(folders, start=1):
        objects = None if named is None else named.get(folder.name, {})
        with faults.entry():
            videos.append(_video(number, pictures / folder.name, folder, objects, names, faults))
    remarks = faults.remarks()
    if not videos:
        raise DataError(f"{masks}: no video is left without a fault")
    return AnnotatedSet(tuple(videos), tuple(names), {label + 1: label for label in range(len(names))}, remarks)


def _inner(folder: Path) -> Path:
    """The folder of the videos: `folder`, or the one size that lies in it."""
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder; expected {PICTURES}/ and {MASKS}/, or name them")
    sizes = [folder / size for size in SIZES if (folder / size).is_dir()]
    if len(sizes) > 1:
        raise DataError(f"{folder}: holds {' and '.join(path.name for path in sizes)}; name one with --images, --masks")
    return sizes[0] if sizes else folder


def _video(
    number: int,
    pictures: Path,
    masks: Path,
    classes: Mapping[int, str] | None,
    names: Sequence[str],
    faults: Faults,
) -> AnnotatedVideo:
    pngs = [path for path in images_in(masks) if path.suffix.lower() == ".png"]
    by_stem = {path.stem: path for path in images_in(pictures)} if pictures.is_dir() else {}
    expected = "expected a png mask for each annotated picture of a video"
    for path in pngs:
        if path.stem not in by_stem:
            faults.add(DataError(f"{path}: there is no picture {pictures / path.stem}.*; {expected}"))
    pngs = [path for path in pngs if path.stem in by_stem]
    if not pngs:
        raise DataError(f"{masks}: holds no png of a picture; {expected}")
    size = size_of(by_stem[pngs[0].stem])
    read: dict[Path, dict[int, Rle]] = {}
    for path in pngs:
        with faults.entry():
            read[path] = _objects_in(path, by_stem[path.stem], size)
    pngs, frames = list(read), list(read.values())
    if not pngs:
        raise DataError(f"{masks}: no png is left without a fault")
    numbers = sorted({number for frame in frames for number in frame})
    tracks: list[Track] = []
    for identity in numbers:
        masks_of = tuple(frame.get(identity) for frame in frames)
        # In DAVIS 2016 the only object is white; elsewhere white is nobody's.
        if identity == VOID and (len(numbers) > 1 if classes is None else VOID not in classes):
            tracks += crowd_of_each_class(masks_of, len(names))
        else:
            with faults.entry():
                tracks.append(Track(_label(identity, classes, names, masks), masks_of))
    return AnnotatedVideo(number, masks.name, tuple(by_stem[path.stem] for path in pngs), size, tuple(tracks))


def _label(identity: int, classes: Mapping[int, str] | None, names: Sequence[str], folder: Path) -> int:
    if classes is None:
        return 0
    if identity not in classes:
        raise DataError(f"{folder}: object {identity} has no class; name one for it in the file of --names")
    return names.index(classes[identity])


def crowd_of_each_class(masks: tuple[Rle | None, ...], classes: int) -> list[Track]:
    """Regions to ignore, whatever their class: the YouTube-VIS form knows crowds of a class only."""
    return [Track(label, masks, crowd=True) for label in range(classes)]


def _objects_in(path: Path, picture: Path, size: tuple[int, int]) -> dict[int, Rle]:
    """The mask of each number in the png at `path`, which is as large as its picture."""
    for other in (path, picture):
        found = size_of(other)
        if found != size:
            raise DataError(f"{other}: {found[0]} x {found[1]} pixels, its video's first picture {size[0]} x {size[1]}")
    with opened(path) as png:
        numbers = numbers_of(png)
    return {int(number): rle_of_mask(numbers == number) for number in np.unique(numbers) if number}


def numbers_of(png: PIL.Image.Image) -> Numbers:
    """Objects' numbers [H, W] of a mask: the index of its palette, its grey, or its colour as one number."""
    if png.mode in ("RGB", "RGBA"):
        colours = np.asarray(png.convert("RGB")).astype(np.int64)
        numbers: Numbers = (colours[..., 0] << 16) + (colours[..., 1] << 8) + colours[..., 2]
        return numbers
    return np.asarray(png).astype(np.int64)


def write_davis(annotated: AnnotatedSet, folder: Path, placing: Pictures) -> list[str]:
    names = placed(annotated, folder / PICTURES, placing)
    lost = 0
    for video in annotated.videos:
        masks = folder / MASKS / Path(names[video.id][0]).parent
        masks.mkdir(parents=True)
        lost += write_masks(video, masks, [Path(name).name for name in names[video.id]])
    classes = {Path(names[v.id][0]).parent.name: _object_names(v, annotated.classes) for v in annotated.videos}
    write_json(folder / "names.json", classes)
    return overlap_remarks(lost) + crowd_remarks(annotated) + score_remarks(annotated, "DAVIS")


def _object_names(video: AnnotatedVideo, classes: Sequence[str]) -> dict[str, str]:
    labels = [track.label for track in video.tracks if not track.crowd]
    return {str(number): classes[label] for number, label in enumerate(labels, start=1)}


def write_masks(video: AnnotatedVideo, folder: Path, names: Sequence[str]) -> int:
    """Writes a png into `folder` for each frame, under the stem of its file name; returns the pixels left out."""
    objects = [track for track in video.tracks if not track.crowd]
    if len(objects) > MANY:
        raise DataError(f"video {video.name} has {len(objects)} objects; a png of masks tells {MANY} apart")
    lost = 0
    for name, (numbers, covered) in zip(names, _frames(video, objects), strict=True):
        png = PIL.Image.fromarray(numbers)
        png.putpalette([channel for i in range(256) for channel in (colour_of(i - 1) if i else (0, 0, 0))])
        png.save(folder / (re.sub(r"\.[^.]*$", "", name) + ".png"))
        lost += covered
    return lost


def _frames(video: AnnotatedVideo, objects: Sequence[Track]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Numbers [H, W] of each frame, and pixels of objects that others cover."""
    for t in range(len(video.pictures)):
        numbers, lost = without_overlap([track.masks[t] for track in objects], video.size)
        numbers[crowded(video, t) & (numbers == 0)] = VOID
        yield numbers.astype(np.uint8), lost


def crowded(video: AnnotatedVideo, t: int) -> NDArray[np.bool_]:
    """The mask [H, W] of the crowds in frame `t`."""
    place = np.zeros(video.size, dtype=bool)
    for track in video.tracks:
        mask = track.masks[t]
        if track.crowd and mask is not None:
            place |= decode(mask)
    return place


def without_overlap(masks: Sequence[Rle | None], size: tuple[int, int]) -> tuple[Numbers, int]:
    """Numbers from 1 [H, W], the smaller of two objects on top, and how many pixels of the larger ones that hides."""
    numbers = np.zeros(size, np.int64)
    seen = {i: decode(mask) for i, mask in enumerate(masks, start=1) if mask is not None}
    hidden = 0
    for i, mask in sorted(seen.items(), key=lambda item: -item[1].sum()):
        hidden += int((numbers[mask] > 0).sum())
        numbers[mask] = i
    return numbers, hidden
