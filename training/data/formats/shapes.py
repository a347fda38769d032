"""What the formats of labelling tools share: shapes of many kinds, of which masks, polygons and boxes are instances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from visrt.runtime.errors import DataError
from visrt.training.data.annotations import AnnotatedSet, AnnotatedVideo, Track
from visrt.training.data.json_faults import short

__all__ = ["Labels", "Shown", "settled"]


@dataclass(frozen=True)
class Shown:
    """An object that a tool's file shows. is_box: drawn as a box, whose rectangle its masks are."""

    track: Track
    is_box: bool = False


class Labels:
    """Class names and their numbers from 1. listed: by the file, which has no others; known: others may come."""

    def __init__(self, listed: Iterable[str] = (), known: Iterable[str] = ()) -> None:
        self.names = list(dict.fromkeys(listed))
        self._closed = bool(self.names)
        self.names += [name for name in dict.fromkeys(known) if name not in self.names]

    def of(self, name: object, where: str) -> int:
        """The label of `name`. Raises DataError if it is no name, or none of those that the file lists."""
        if not isinstance(name, str) or not name or (self._closed and name not in self.names):
            expected = f"one of {', '.join(self.names)}" if self._closed else "the name of a class"
            raise DataError(f"{where}: label: expected {expected}; found {short(name)}")
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)

    @property
    def label_of(self) -> dict[int, int]:
        return {label + 1: label for label in range(len(self.names))}


def settled(
    path: Path,
    videos: Sequence[tuple[AnnotatedVideo, Sequence[Shown]]],
    labels: Labels,
    unread: Counter[str],
    remarks: Iterable[str] = (),
) -> AnnotatedSet:
    """The set of `videos` with what they show: masks, or boxes where there are no masks.

    unread: by kind, the shapes that are no instances. Raises DataError where there are no others.
    """
    kinds = Counter("box" if one.is_box else "mask" for _, shown in videos for one in shown)
    others = ", ".join(f"{count} {kind}" for kind, count in unread.most_common())
    if unread and not kinds:
        raise DataError(f"{path}: holds no instances, only {others}; expected polygons, masks or boxes")
    said = list(remarks)
    boxes_only = bool(kinds) and not kinds["mask"]
    if kinds["box"] and not boxes_only:
        unread = unread + Counter({"box": kinds["box"]})
        others = ", ".join(f"{count} {kind}" for kind, count in unread.most_common())
    if others:
        said.append(f"{path}: left out, as only masks and polygons are read where there are any: {others}")
    complete = tuple(
        replace(video, tracks=tuple(one.track for one in shown if boxes_only or not one.is_box))
        for video, shown in videos
    )
    return AnnotatedSet(complete, tuple(labels.names), labels.label_of, tuple(said), boxes_only)
