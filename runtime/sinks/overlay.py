"""Results drawn over their frame: a tinted mask with its outline, or a box, and a label that reads on any
background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from visrt.runtime.masks import decode_region
from visrt.runtime.results import FrameResult, TrackedObject
from visrt.runtime.sources.source import Image

__all__ = ["OverlayStyle", "colour_of", "draw"]

Rectangle = tuple[int, int, int, int]
"""x, y, width, height in pixels."""

TEXT_MAX = 48
"""Characters of a label; a longer class name is cut."""


Colour = tuple[int, int, int]
"""Red, green, blue, 0-255."""

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


def text_colour_on(background: Colour) -> Colour:
    """Black or white, whichever reads better on `background` (relative luminance of WCAG 2, equal contrast at 0.18)."""
    linear = [(channel / 255) ** 2.2 for channel in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.18 else (255, 255, 255)


@dataclass(frozen=True)
class OverlayStyle:
    """Style of the drawing. opacity: of the tint, 0..1. line and text are shares of the frame's shorter side."""

    opacity: float = 0.4
    line: float = 1 / 240
    text: float = 1 / 30


STYLE = OverlayStyle()


def draw(image: Image, result: FrameResult, classes: Sequence[str], style: OverlayStyle = STYLE) -> Image:
    """A copy of `image` [H, W, 3] with the objects of `result` drawn over it; every object keeps its colour."""
    canvas = image.copy()
    objects = sorted(result.objects, key=lambda shown: shown.id)
    for shown in objects:
        _draw_shape(canvas, shown, style)
    taken: list[Rectangle] = []
    for shown in objects:
        chip = _label_chip(_text(shown, classes), colour_of(shown.id), _text_px(canvas, style))
        place = _free_place(shown.box, chip.shape, canvas.shape, taken)
        _paste(canvas, chip, place)
        taken.append(place)
    return canvas


def _draw_shape(canvas: Image, shown: TrackedObject, style: OverlayStyle) -> None:
    """Blends inside the box only: a whole frame a mask would cost more than the network's share of it."""
    x, y, width, height = shown.box
    if width <= 0 or height <= 0:
        return
    thickness = max(1, round(min(canvas.shape[0], canvas.shape[1]) * style.line))
    if shown.rle is None:
        cv2.rectangle(canvas, (x, y), (x + width - 1, y + height - 1), colour_of(shown.id), thickness)
        return
    mask = decode_region(shown.rle, shown.box)
    region = canvas[y : y + height, x : x + width]
    colour = colour_of(shown.id)
    tint = tuple(style.opacity * channel for channel in (*colour, 0))
    cv2.copyTo(cv2.add(cv2.convertScaleAbs(region, alpha=1 - style.opacity), tint), mask, region)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    cv2.drawContours(region, outlines, -1, colour, thickness)


def _text(shown: TrackedObject, classes: Sequence[str]) -> str:
    name = classes[shown.label] if 0 <= shown.label < len(classes) else f"class {shown.label}"
    numbers = f" {shown.id}  {shown.score:.2f}"
    return name[: TEXT_MAX - len(numbers)] + numbers


def _text_px(canvas: Image, style: OverlayStyle) -> int:
    return max(13, int(min(canvas.shape[0], canvas.shape[1]) * style.text))


@lru_cache(maxsize=1024)
def _label_chip(text: str, colour: Colour, size_px: int) -> Image:
    """The label as a small picture [h, w, 3], `text` on a ground of the object's colour."""
    font = _font(size_px)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    margin = max(2, size_px // 5)
    size = (int(right - left) + 2 * margin, ascent + descent + margin)
    chip = PillowImage.new("RGB", size, colour)
    ImageDraw.Draw(chip).text((margin - left, margin // 2), text, font=font, fill=text_colour_on(colour))
    return np.array(chip)


@lru_cache(maxsize=8)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


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
