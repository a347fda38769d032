"""A summary of an annotated set, and what looks wrong in it though its format allows it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from visrt.runtime.errors import VisrtError
from visrt.runtime.masks import run_lengths
from visrt.runtime.sources.image_folder import read_image
from visrt.runtime.sources.source import VideoSettings
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.picture_size import is_turned, size_fault, size_of

__all__ = ["ClassCount", "SetSurvey", "decoded_size", "survey"]


@dataclass(frozen=True)
class ClassCount:
    """Objects of a class, in how many videos they are, the masks they have, and crowds."""

    objects: int
    videos: int
    masks: int
    crowds: int


@dataclass(frozen=True)
class SetSurvey:
    """sizes: videos by (height, width). oddities: what looks wrong, each with its number and first place.

    faults: pictures that cannot be used, each reported with its file.
    """

    videos: int
    frames: int
    sizes: dict[tuple[int, int], int]
    classes: dict[str, ClassCount]
    oddities: tuple[str, ...]
    faults: tuple[str, ...]


def survey(
    annotated: AnnotatedSet,
    size: Callable[[Path], tuple[int, int]] = size_of,
    on_video: Callable[[str], None] = lambda _: None,
) -> SetSurvey:
    """Counts over the set; every picture is looked at by `size`, its head only or (`decoded_size`) all of it."""
    faults: list[str] = []
    turned: list[str] = []
    for video in annotated.videos:
        faults += _faults(video, size, turned)
        on_video(video.name)
    return SetSurvey(
        len(annotated.videos),
        sum(len(video.pictures) for video in annotated.videos),
        dict(Counter(video.size for video in annotated.videos).most_common()),
        {name: _class_count(annotated, label) for label, name in enumerate(annotated.classes)},
        (*_oddities(annotated), *_turned_pictures(turned)),
        tuple(faults),
    )


def decoded_size(path: Path) -> tuple[int, int]:
    """Height and width of the picture at `path`, read to its end."""
    height, width = read_image(path, VideoSettings().max_pixels).shape[:2]
    return height, width


def _faults(video: AnnotatedVideo, size: Callable[[Path], tuple[int, int]], turned: list[str]) -> Iterator[str]:
    """What is wrong with each picture; those that are shown turned go to `turned`."""
    for path in video.pictures:
        try:
            found, is_shown_turned = size(path), is_turned(path)
        except VisrtError as error:
            yield str(error)
            continue
        if is_shown_turned:
            turned.append(str(path))
        if fault := size_fault(path, found, video.size):
            yield fault


def _turned_pictures(turned: list[str]) -> Iterator[str]:
    what = (
        "pictures with an EXIF orientation, which are read as shown: masks that were drawn on the pixels as stored lie "
        "elsewhere"
    )
    yield from _places_of(what, turned)


def _class_count(annotated: AnnotatedSet, label: int) -> ClassCount:
    of_class = [(video.id, track) for video in annotated.videos for track in video.tracks if track.label == label]
    objects = [(number, track) for number, track in of_class if not track.crowd]
    masks = sum(mask is not None for _, track in objects for mask in track.masks)
    return ClassCount(len(objects), len({number for number, _ in objects}), masks, len(of_class) - len(objects))


def _oddities(annotated: AnnotatedSet) -> Iterator[str]:
    """Each kind once, with how often and where first."""
    if not annotated.annotated:
        yield (
            "no annotations, as in files for evaluation servers: this set serves for `visrt eval --write-results` and "
            "`visrt data draw`, and for no training and no figures"
        )
        return
    tracks = [(video, i, track) for video in annotated.videos for i, track in enumerate(video.tracks)]
    checks: dict[str, Callable[[Track], bool]] = {
        "objects that are in no frame": lambda track: not any(map(_pixels, _masks(track))),
        "masks given without a pixel": lambda track: not all(map(_pixels, _masks(track))) and any(_masks(track)),
    }
    for problem, odd in checks.items():
        places = [f"object {i} of {video.name}" for video, i, track in tracks if odd(track)]
        yield from _places_of(problem, places)
    yield from _places_of("videos without an object", [video.name for video in annotated.videos if not video.tracks])
    yield from _places_of("objects given twice", list(_doubled(annotated)))
    seen = {track.label for _, _, track in tracks}
    yield from _places_of("classes without an object", [n for i, n in enumerate(annotated.classes) if i not in seen])


def _places_of(what: str, places: list[str]) -> Iterator[str]:
    if places:
        yield f"{len(places)} {what}, the first: {places[0]}"


def _doubled(annotated: AnnotatedSet) -> Iterator[str]:
    for video in annotated.videos:
        counts = Counter((t.label, tuple(mask and mask["counts"] for mask in t.masks)) for t in video.tracks)
        yield from (f"of {video.name}" for count in counts.values() for _ in range(count - 1))


def _masks(track: Track) -> list[str]:
    return [mask["counts"] for mask in track.masks if mask is not None]


def _pixels(counts: str) -> int:
    return int(run_lengths(counts)[1::2].sum())
