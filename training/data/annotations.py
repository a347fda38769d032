"""Annotated sets, whatever their format: videos with whole tracks, and class maps from their categories to classes.

One rule for class maps. A map names for categories of the set a class, or null to leave the category out; a category
that it does not name is left out too. Nothing is left out silently: `AnnotatedSet.remarks` tell how many objects of
which categories were. Training uses objects that are left out as occluders, never as targets. Scoring is strict: each
category must be named (`refuse_unnamed`), for an object that is missing from the ground truth by oversight turns a
right report into a false positive.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from visrt.runtime.errors import DataError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.masks import Rle

__all__ = [
    "NO_TARGET",
    "AnnotatedSet",
    "AnnotatedVideo",
    "ClassMap",
    "Track",
    "load_class_map",
    "refuse_unnamed",
    "with_classes",
]

NO_TARGET = -1
"""Label of an object whose category is left out: it may serve as an occluder, never as a target."""

ClassMap = Mapping[str, str | None]
"""Category of the set -> class; None leaves the category out."""


@dataclass(frozen=True)
class Track:
    """One object through a video: a mask or None for each frame. score: 1 for annotations. crowd: a region whose
    members are not annotated one by one."""

    label: int
    masks: tuple[Rle | None, ...]
    score: float = 1.0
    crowd: bool = False


@dataclass(frozen=True)
class AnnotatedVideo:
    """One video, or a photo as a video of one frame: its pictures in order, their size (height, width), the annotated
    tracks, and those that a class map left out, labelled NO_TARGET."""

    id: int
    name: str
    pictures: tuple[Path, ...]
    size: tuple[int, int]
    tracks: tuple[Track, ...]
    left_out: tuple[Track, ...] = ()


@dataclass(frozen=True)
class AnnotatedSet:
    """Videos, the class names that labels index, and the label of each category id of the file (None = left out).

    remarks: what was left out on the way here.
    """

    videos: tuple[AnnotatedVideo, ...]
    classes: tuple[str, ...]
    label_of: Mapping[int, int | None]
    remarks: tuple[str, ...] = ()


def load_class_map(path: Path) -> dict[str, str | None]:
    """The class map in the json file at `path`: {"dog": "animal", "chair": null, ...}."""
    expected = 'one object of names to names, or to null to leave a category out: {"dog": "animal", "chair": null}'
    values = read_json_object(path, expected)
    for name, target in values.items():
        if target is not None and not isinstance(target, str):
            raise DataError(f"{path}: {name} is {target!r}; expected {expected}")
    return values


def with_classes(
    annotated: AnnotatedSet, class_map: ClassMap | None, where: Path, classes: Sequence[str] | None = None
) -> AnnotatedSet:
    """The set `annotated`, as it was read from `where`, with labels that index `classes`.

    Without a map a category keeps its name; without `classes` they are what the map names, in that order.
    """
    if class_map is None:
        class_map = {name: name for name in annotated.classes}
    _refuse_unknown(annotated, class_map, where)
    targets = [class_map.get(name) for name in annotated.classes]
    names = tuple(dict.fromkeys(filter(None, class_map.values()))) if classes is None else tuple(classes)
    lost = sorted({target for target in targets if target is not None and target not in names})
    if lost:
        raise DataError(
            f"{where}: {', '.join(lost)} are none of the classes {', '.join(names)}; give a class map that names a "
            "class for each category, or null to leave it out"
        )
    labels = [None if target is None else names.index(target) for target in targets]
    counts: Counter[str] = Counter()
    videos = []
    for video in annotated.videos:
        kept, left_out = [], []
        for track in video.tracks:
            label = labels[track.label]
            if label is None:
                left_out.append(replace(track, label=NO_TARGET))
                counts[annotated.classes[track.label]] += 1
            else:
                kept.append(replace(track, label=label))
        videos.append(replace(video, tracks=tuple(kept), left_out=tuple(left_out)))
    label_of = {number: None if old is None else labels[old] for number, old in annotated.label_of.items()}
    return AnnotatedSet(tuple(videos), names, label_of, (*annotated.remarks, *_left_out(counts, where)))


def _left_out(counts: Counter[str], where: Path, most: int = 20) -> Iterator[str]:
    """A remark on what a class map left out of the set read from `where`, if anything; at most so many categories."""
    if counts:
        named = ", ".join(f"{count} {name}" for name, count in counts.most_common(most))
        more = f" and those of {len(counts) - most} categories more" if len(counts) > most else ""
        yield f"{where}: the class map leaves out {counts.total()} annotated objects: {named}{more}"


def _refuse_unknown(annotated: AnnotatedSet, class_map: ClassMap, where: Path) -> None:
    """A map may serve several sets and name categories that one of them lacks. Where it leaves out others at the same
    time, a name is probably misspelt."""
    unknown = sorted(set(class_map) - set(annotated.classes))
    if unknown and set(annotated.classes) - set(class_map):
        known = ", ".join(sorted(annotated.classes))
        raise DataError(f"{where}: lacks {unknown[0]!r}, a category that the class map names; it has: {known}")


def refuse_unnamed(annotated: AnnotatedSet, class_map: ClassMap, where: Path, classes: Sequence[str]) -> None:
    """Raises DataError unless `class_map` names each category of `annotated` and keeps at least one."""
    unnamed = [name for name in annotated.classes if name not in class_map]
    if unnamed:
        raise DataError(
            f"{where}: categories {', '.join(unnamed)} are not in the class map; name one of {', '.join(classes)} for "
            "each, or null to leave it out"
        )
    if not any(class_map[name] for name in annotated.classes):
        raise DataError(f"{where}: the class map leaves out every category; name a class for at least one")
