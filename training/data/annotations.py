"""Annotated sets, whatever their format: videos with whole tracks, and class maps from their categories to classes.

One rule for class maps, in training, checking and scoring. A map names for categories of the set a class, or null to
leave the category out; a category that it does not name is left out too. A list of names keeps those categories under
their own names. Nothing is left out silently: `AnnotatedSet.remarks` say how many objects of which categories were.
Training uses objects that are left out as occluders, never as targets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from visrt.runtime.errors import DataError
from visrt.runtime.json_file import read_json_object
from visrt.runtime.masks import Rle

__all__ = [
    "NO_TARGET",
    "AnnotatedSet",
    "AnnotatedVideo",
    "ClassChoice",
    "ClassMap",
    "Track",
    "chosen_map",
    "class_labels",
    "left_out_remarks",
    "load_class_map",
    "plain_name",
    "require_annotations",
    "with_classes",
]

NO_TARGET = -1
"""Label of an object whose category is left out: it may serve as an occluder, never as a target."""

ClassMap = Mapping[str, str | None]
"""Category of the set -> class; None leaves the category out."""
ClassChoice = ClassMap | tuple[str, ...]
"""A class map, or the names of the categories to keep."""


@dataclass(frozen=True)
class Track:
    """One object through a video: a mask or None for each frame. score: 1 for annotations. crowd: a region whose
    members are not annotated one by one. id: its number in the file that it was read from, if it has one there."""

    label: int
    masks: tuple[Rle | None, ...]
    score: float = 1.0
    crowd: bool = False
    id: int | None = None


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

    remarks: what was left out on the way here. boxes_only: the file has boxes and no masks; each mask is the rectangle
    of a box. annotated: False where the file lists videos and keeps their annotations back, as files for evaluation
    servers do. fps: frames a second at which the set is annotated; None unknown. official: its key in OFFICIAL_SETS.
    missing: names of videos that are listed but not on disk, and were left out.
    """

    videos: tuple[AnnotatedVideo, ...]
    classes: tuple[str, ...]
    label_of: Mapping[int, int | None]
    remarks: tuple[str, ...] = ()
    boxes_only: bool = False
    annotated: bool = True
    fps: float | None = None
    official: str | None = None
    missing: tuple[str, ...] = ()


def require_annotations(annotated: AnnotatedSet, where: Path, use: str) -> None:
    """Raises DataError if the set read from `where` has no annotations, which `use` (a noun) needs."""
    if not annotated.annotated:
        raise DataError(
            f"{where}: lists {len(annotated.videos)} videos without annotations, as the files for evaluation servers "
            f"do; {use} needs annotations. Give a split that has them (usually train); this one serves for "
            "`visrt eval --write-results` and `visrt data draw`"
        )


def load_class_map(path: Path) -> dict[str, str | None]:
    """The class map in the json file at `path`: {"dog": "animal", "chair": null, ...}."""
    expected = 'one object of names to names, or to null to leave a category out: {"dog": "animal", "chair": null}'
    values = read_json_object(path, expected)
    for name, target in values.items():
        if target is not None and not isinstance(target, str):
            raise DataError(f"{path}: {name} is {target!r}; expected {expected}")
    return values


def with_classes(
    annotated: AnnotatedSet, choice: ClassChoice | None, where: Path, classes: Sequence[str] | None = None
) -> AnnotatedSet:
    """The set `annotated`, as it was read from `where`, with labels that index `classes`.

    Without a choice a category keeps its name; without `classes` they are what the choice names, in that order.
    """
    names, labels = class_labels(annotated.classes, choice, where, classes)
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
    remarks = (*annotated.remarks, *left_out_remarks(counts, where))
    return replace(annotated, videos=tuple(videos), classes=names, label_of=label_of, remarks=remarks)


def class_labels(
    categories: Sequence[str], choice: ClassChoice | None, where: Path, classes: Sequence[str] | None = None
) -> tuple[tuple[str, ...], list[int | None]]:
    """The classes, and of each of the `categories` in the set at `where` its index in them; None where it is left out.

    As `with_classes`.
    """
    class_map = chosen_map(categories, choice, where)
    targets = [class_map.get(name) for name in categories]
    names = tuple(dict.fromkeys(filter(None, class_map.values()))) if classes is None else tuple(classes)
    lost = sorted({target for target in targets if target is not None and target not in names})
    if lost:
        raise DataError(
            f"{where}: {_listed(lost)} are none of the classes {_listed(names)}; give a class map that names a "
            "class for each category, or null to leave it out"
        )
    return names, [None if target is None else names.index(target) for target in targets]


def left_out_remarks(counts: Counter[str], where: Path, most: int = 20) -> Iterator[str]:
    """A remark on what a class map left out of the set read from `where`, if anything; at most so many categories."""
    if counts:
        named = ", ".join(f"{count} {name}" for name, count in counts.most_common(most))
        more = f" and those of {len(counts) - most} categories more" if len(counts) > most else ""
        yield f"{where}: the class map leaves out {counts.total()} annotated objects: {named}{more}"


def chosen_map(categories: Sequence[str], choice: ClassChoice | None, where: Path) -> ClassMap:
    """`choice` as a class map for a set of `categories`, read from `where`.

    A list must be of categories that the set has. A map may serve several sets and name categories that one of them
    lacks, but a name close to a category that would be left out is taken for misspelt. Raises DataError.
    """
    if choice is None:
        return {name: name for name in categories}
    left_out = sorted(set(categories) - set(choice))
    for name in choice:
        meant = _meant(name, left_out)
        if name not in categories and (meant or not isinstance(choice, Mapping)):
            hint = f"did you mean {meant!r}? It has" if meant else "it has"
            raise DataError(f"{where}: lacks the category {name!r}; {hint}: {_listed(sorted(categories))}")
    class_map = choice if isinstance(choice, Mapping) else {name: name for name in choice}
    if not any(class_map.get(name) for name in categories):
        raise DataError(
            f"{where}: the class map leaves out every category; name a class for at least one of: "
            f"{_listed(sorted(categories))}"
        )
    return class_map


def _listed(names: Sequence[str], most: int = 100) -> str:
    """Sets of a large vocabulary have more categories than anyone reads."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _meant(name: str, categories: Sequence[str]) -> str | None:
    """The one of `categories` that is `name` in another spelling, or close to it."""
    spelt = {plain_name(category): category for category in categories}
    close = get_close_matches(plain_name(name), spelt, n=1, cutoff=0.8)
    return spelt[close[0]] if close else None


def plain_name(name: str) -> str:
    """The name of a category without what files spell differently."""
    return name.casefold().replace("_", " ").replace("-", " ").strip()
