"""Results drawn over their frame: a tinted mask with its outline, or a box, and a label that reads on any
background."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import UsageError
from visrt.runtime.masks import Rle, decode_region
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.sinks.labels import Colour, check_font, font_for, label_chip
from visrt.runtime.sources.source import Image

__all__ = ["OverlayStyle", "Trails", "colour_of", "draw"]

Rectangle = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

TEXT_MAX = 48
"""Characters of a label; a longer class name is cut."""


HUES: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
    (0, 158, 115),
)
"""Okabe and Ito's colours (2008), ordered so that neighbours differ most under protanopia and deuteranopia."""

SHADES = ((0, 0.0), (255, 0.45), (0, 0.35))
"""Grey level and share mixed in: the hues as they are, then tints, then shades."""


def colour_of(identity: int) -> Colour:
    """The colour of object `identity`; it repeats after 21 ids."""
    hue = HUES[identity % len(HUES)]
    grey, share = SHADES[identity // len(HUES) % len(SHADES)]
    red, green, blue = (round(channel * (1 - share) + grey * share) for channel in hue)
    return red, green, blue


@dataclass(frozen=True)
class OverlayStyle:
    """What is drawn and how. opacity: of the masks' tint, 0..1. line and text are shares of the frame's shorter side.

    masks, boxes, labels, trails: whether each is drawn; of objects without masks boxes always are. trail_frames: how
    far back a trail goes. font: a font file for labels; None looks for one that has their letters.
    """

    opacity: float = 0.4
    line: float = 1 / 240
    text: float = 1 / 30
    masks: bool = True
    boxes: bool = False
    labels: bool = True
    trails: bool = False
    trail_frames: int = 30
    font: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.opacity <= 1:
            raise UsageError(f"opacity is {self.opacity}; expected 0 to 1")
        if self.trail_frames < 2:
            raise UsageError(f"trail_frames is {self.trail_frames}; expected 2 or more")
        if self.font is not None:
            check_font(self.font)


STYLE = OverlayStyle()

Point = tuple[int, int]


class Trails:
    """Where objects were in the last frames: the middle of their boxes, by id. `add` each result once, in order."""

    def __init__(self, frames: int = STYLE.trail_frames) -> None:
        self._frames = frames
        self._seen = 0
        self._points: dict[int, deque[tuple[int, Point]]] = {}

    def add(self, result: FrameResult) -> None:
        self._seen += 1
        for shown in result.objects:
            x, y, width, height = shown.box
            points = self._points.setdefault(shown.id, deque(maxlen=self._frames))
            points.append((self._seen, (x + width // 2, y + height // 2)))
        over = [one for one, points in self._points.items() if points[-1][0] <= self._seen - self._frames]
        for one in over:
            del self._points[one]

    def of(self, identity: int) -> list[Point]:
        """The places of an object in the last frames, the oldest first."""
        since = self._seen - self._frames
        return [point for frame, point in self._points.get(identity, ()) if frame > since]


def draw(
    image: Image,
    result: FrameResult,
    classes: Sequence[str] = (),
    style: OverlayStyle = STYLE,
    trails: Trails | None = None,
) -> Image:
    """A copy of `image` [H, W, 3] with the objects of `result` drawn over it; every object keeps its colour.

    classes: their names, where the objects do not carry them. trails: what they left, `result` included.
    """
    canvas = image.copy()
    objects = sorted(result.objects, key=lambda shown: shown.id)
    for shown in objects:
        _draw_shape(canvas, shown, style)
        if style.trails and trails is not None:
            points = np.array(trails.of(shown.id), dtype=np.int32).reshape(-1, 1, 2)
            cv2.polylines(canvas, [points], False, colour_of(shown.id), _thickness(canvas, style), cv2.LINE_AA)
    taken: list[Rectangle] = []
    for shown in objects if style.labels else ():
        chip = label_chip(_text(shown, classes, style.font), colour_of(shown.id), _text_px(canvas, style), style.font)
        place = _free_place(shown.box, chip.shape, canvas.shape, taken)
        _paste(canvas, chip, place)
        taken.append(place)
    return canvas


def _thickness(canvas: Image, style: OverlayStyle) -> int:
    return max(1, round(int(min(canvas.shape[:2])) * style.line))


def _draw_shape(canvas: Image, shown: TrackedObject, style: OverlayStyle) -> None:
    """Blends inside the box only: a whole frame a mask would cost more than the network's share of it."""
    x, y, width, height = shown.box
    if width <= 0 or height <= 0:
        return
    thickness = _thickness(canvas, style)
    if shown.rle is not None and style.masks:
        _draw_mask(canvas, shown, shown.rle, style, thickness)
    if style.boxes or shown.rle is None:
        cv2.rectangle(canvas, (x, y), (x + width - 1, y + height - 1), colour_of(shown.id), thickness)


def _draw_mask(canvas: Image, shown: TrackedObject, rle: Rle, style: OverlayStyle, thickness: int) -> None:
    x, y, width, height = shown.box
    mask = decode_region(rle, shown.box)
    region = canvas[y : y + height, x : x + width]
    colour = colour_of(shown.id)
    tint = tuple(style.opacity * channel for channel in (*colour, 0))
    cv2.copyTo(cv2.add(cv2.convertScaleAbs(region, alpha=1 - style.opacity), tint), mask, region)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(region, outlines, -1, colour, thickness)


def _text(shown: TrackedObject, classes: Sequence[str], font: str | None) -> str:
    """Name, id and score; the class number where no font has the letters of the name."""
    name = shown.name or (classes[shown.label] if 0 <= shown.label < len(classes) else "")
    if not name or font_for(name, font) is None:
        name = f"class {shown.label}"
    numbers = f" {shown.id}  {shown.score:.2f}"
    return name[: TEXT_MAX - len(numbers)] + numbers


def _text_px(canvas: Image, style: OverlayStyle) -> int:
    return max(13, int(min(canvas.shape[0], canvas.shape[1]) * style.text))


def _free_place(box: Rectangle, chip: tuple[int, ...], frame: tuple[int, ...], taken: Sequence[Rectangle]) -> Rectangle:
    """The place of a label: above the box, else just inside it, else further down until it covers no other label."""
    height, width = chip[:2]
    x = max(0, min(box[0], frame[1] - width))
    lowest = max(0, frame[0] - height)
    tries = [box[1] - height, *(box[1] + step * height for step in range(6))]
    places = [(x, min(y, lowest), width, height) for y in tries if y >= 0]
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    return next(free, places[0])


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _paste(canvas: Image, chip: NDArray[np.uint8], place: Rectangle) -> None:
    x, y, width, height = place
    target = canvas[y : y + height, x : x + width]
    target[...] = chip[: target.shape[0], : target.shape[1]]
