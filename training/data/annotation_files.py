"""What the json files of COCO and of YouTube-VIS share: categories, sizes, masks or boxes, and what is said of them.

A mask may be RLE, compressed or not, polygons, one bare polygon, or kwcoco's polygons with holes. Faults go to a
`Faults`, which tells all of them at once. What is left out later is checked all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import DataError
from visrt.runtime.masks import PIXELS_MAX, Rle
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.json_faults import Faults, objects_by_id, placed_by_id, short, whole_number
from visrt.training.data.picture_size import size_of
from visrt.training.data.segmentations import areas_px, boxes_px, rle_of, rle_of_box

__all__ = [
    "Form",
    "Sizes",
    "StatedShapes",
    "annotations_in",
    "categories_in",
    "form_of",
    "formed",
    "has_annotations",
    "is_among",
    "is_crowd",
    "size_in",
]


@dataclass(frozen=True)
class Form:
    """How a file gives its masks: the key in an annotation, and the reader of its value. unread: masks left unread."""

    key: str
    read: Callable[[object, str, tuple[int, int]], Rle]
    boxes_only: bool = False
    unread: int = 0


def form_of(values: dict[str, Any], masks: str, boxes: str, skip_faulty: bool = False) -> Form:
    """Boxes, the key `boxes`, where each object has one and hardly any a mask; else masks, whose reader names those
    that lack one. skip_faulty: objects without a mask may be left out, so that any mask is worth reading."""
    entries = values.get("annotations")
    objects = [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    masked = sum(1 for one in objects if one.get(masks))
    most = 2 * masked >= len(objects) or (masked and skip_faulty)
    if most or not all(one.get(boxes) for one in objects):
        return Form(masks, rle_of)
    return Form(boxes, rle_of_box, boxes_only=True, unread=masked)


def formed(annotated: AnnotatedSet, form: Form, path: Path) -> AnnotatedSet:
    """`annotated` with what `form` says of it."""
    if not form.unread:
        return replace(annotated, boxes_only=form.boxes_only)
    remark = f"{path}: not each object has a mask: the boxes of all are read, and the masks of {form.unread} are not"
    return replace(annotated, boxes_only=form.boxes_only, remarks=(*annotated.remarks, remark))


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


def has_annotations(values: dict[str, Any]) -> bool:
    """Files of splits that a server scores have none: no such key, or null."""
    return values.get("annotations") is not None


def annotations_in(path: Path, values: dict[str, Any], faults: Faults) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each annotation after its place."""
    if has_annotations(values):
        yield from placed_by_id(values, "annotations", path, faults).values()


def size_in(value: dict[str, Any], where: str) -> tuple[int, int]:
    """Height and width."""
    height, width = whole_number(value, "height", where, least=1), whole_number(value, "width", where, least=1)
    if height * width > PIXELS_MAX:
        raise DataError(f"{where}: {short(height)} x {short(width)} is beyond the limit of {PIXELS_MAX} pixels")
    return height, width


class Sizes:
    """Heights and widths as a file gives them; where it gives neither, or -1 as VIA does, those of the pictures."""

    def __init__(self, path: Path) -> None:
        self._path, self._from_pictures = path, 0

    def of(self, value: dict[str, Any], where: str, picture: Path) -> tuple[int, int]:
        given = value.get("height"), value.get("width")
        if given not in ((None, None), (-1, -1)) or not picture.is_file():
            return size_in(value, where)
        self._from_pictures += 1
        return size_of(picture)

    def remarks(self) -> tuple[str, ...]:
        if not self._from_pictures:
            return ()
        return (f"{self._path}: {self._from_pictures} entries give no width and height; those of the pictures count",)


def is_among(number: object, ids: set[int]) -> bool:
    """Whether an annotation is of one of `ids`, entries that are left out with all that belongs to them."""
    return isinstance(number, int | float) and number in ids


def is_crowd(annotation: dict[str, Any], where: str) -> bool:
    """Whether its members are not annotated one by one; no, where the file does not state it."""
    crowd = annotation.get("iscrowd") or 0
    if crowd not in (0, 1):
        raise DataError(f"{where}.iscrowd: expected 0 or 1; found {short(crowd)}")
    return bool(crowd)


SLACK_PX = 2
"""How far a mask may reach beyond its box: tools round differently."""
LEAST_INSIDE = 0.5
"""Part of a mask's tight box that lies in the box the file gives."""
MOST_TIMES = 2.0
"""An area that differs by more is another mask's."""
PORTION = 4096
FIRST_PLACES = 3


class StatedShapes:
    """Masks beside the boxes and areas that a file gives for them: a mask in another order, turned or moved shows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: list[str] = []
        self._masks: list[Rle] = []
        self._stated: list[tuple[float, ...]] = []
        self._found: dict[str, tuple[int, list[str]]] = {OUTSIDE: (0, []), OF_ANOTHER_AREA: (0, [])}

    def add(self, where: str, mask: Rle, box: object, area: object) -> None:
        """The mask at `where`; `box` (x, y, width, height) and `area` as the file gives them, whatever they are."""
        boxed = _numbers(box, 4) or UNKNOWN_BOX
        [sized] = _numbers([area], 1) or [nan]
        if boxed is not UNKNOWN_BOX or sized == sized:
            self._places.append(where)
            self._masks.append(mask)
            self._stated.append((*boxed, sized))
            if len(self._masks) == PORTION:
                self._compare()

    def remarks(self) -> tuple[str, ...]:
        self._compare()
        return tuple(
            f"{self._path}: {count} {what}, the first: {', '.join(places)}; are they in the order of columns, and of "
            "the picture as it is shown?"
            for what, (count, places) in self._found.items()
            if count
        )

    def _compare(self) -> None:
        places, masks, stated = self._places, self._masks, np.array(self._stated, np.float64).reshape(-1, 5)
        self._places, self._masks, self._stated = [], [], []
        counts = [mask["counts"].encode("ascii") for mask in masks]
        sizes = np.array([mask["size"] for mask in masks]).reshape(-1, 2)
        for size in {(height, width) for height, width in sizes.tolist()}:
            chosen = np.flatnonzero((sizes == size).all(1))
            texts = [counts[k] for k in chosen.tolist()]
            tight, pixels = boxes_px(texts, size).astype(np.float64), areas_px(texts, size)
            seen = pixels > 0
            with np.errstate(all="ignore"):  # whatever numbers the file has
                outside = seen & (_inside(tight, stated[chosen, :4]) < LEAST_INSIDE)
                another = seen & _is_another(pixels, stated[chosen, 4], stated[chosen, :4])
            self._note(OUTSIDE, [places[k] for k in chosen[outside].tolist()])
            self._note(OF_ANOTHER_AREA, [places[k] for k in chosen[another].tolist()])

    def _note(self, what: str, places: list[str]) -> None:
        count, first = self._found[what]
        named = [place.removeprefix(f"{self._path}: ") for place in places[:FIRST_PLACES]]
        self._found[what] = count + len(places), [*first, *named][:FIRST_PLACES]


NUMBERS = {int, float}
UNKNOWN_BOX = (nan,) * 4
OUTSIDE = "masks lie outside the box given for them"
OF_ANOTHER_AREA = "masks are of another area than is given for them"

Floats = NDArray[np.float64]


def _numbers(values: object, count: int) -> list[float] | None:
    """`values` as so many numbers; None if they are not."""
    if not isinstance(values, list) or len(values) != count or not {*map(type, values)} <= NUMBERS:
        return None
    try:
        return [float(value) for value in values]
    except OverflowError:
        return None


def _inside(tight: Floats, box: Floats) -> Floats:
    """The part of each of the boxes `tight` [N, 4] that lies in its `box`, x, y, width, height, with some slack; NaN
    where that is not known."""
    first = np.maximum(tight[:, :2], box[:, :2] - SLACK_PX)
    last = np.minimum(tight[:, :2] + tight[:, 2:], box[:, :2] + box[:, 2:] + SLACK_PX)
    part: Floats = np.maximum(last - first, 0).prod(1) / np.maximum(tight[:, 2:].prod(1), 1)
    return part


def _is_another(pixels: NDArray[np.int64], area: Floats, box: Floats) -> NDArray[np.bool_]:
    """Whether an `area` [N] is not that of so many `pixels`. Some tools write the area of the `box`."""
    apart = (np.abs(pixels - area) > PIXELS_APART) & ((pixels < area / MOST_TIMES) | (pixels > area * MOST_TIMES))
    of_box = box[:, 2] * box[:, 3]
    return np.asarray(apart & ~(np.abs(area - of_box) <= 0.1 * of_box))


PIXELS_APART = 30
"""Small masks lose or gain as many at their edges."""
