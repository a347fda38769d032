"""Labels of objects as small pictures, in a font that has their letters."""

from __future__ import annotations

import logging
import os
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from visrt.runtime.errors import UsageError
from visrt.runtime.sources.source import Image

__all__ = ["Colour", "check_font", "font_for", "label_chip", "text_colour_on"]

LOGGER = logging.getLogger("visrt.overlay")

Colour = tuple[int, int, int]
"""Red, green, blue, 0-255."""

BUILT_IN = ""
"""Pillow's own font, which knows Latin letters."""

ABSENT = "\U0010fffe"
"""A code point that no font has: how it looks is how a font draws what it lacks."""

PREFERRED = ("notosans", "dejavusans", "arialunicode", "liberationsans", "segoeui", "msyh", "pingfang")
"""Beginnings of the names of system fonts that are tried first, as they read well when small."""

TRIED_MAX = 400
"""System fonts that are looked at."""


def text_colour_on(background: Colour) -> Colour:
    """Black or white, whichever reads better on `background` (relative luminance of WCAG 2, equal contrast at 0.18)."""
    linear = [(channel / 255) ** 2.2 for channel in background]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.18 else (255, 255, 255)


@lru_cache(maxsize=1024)
def label_chip(text: str, colour: Colour, size_px: int, font_file: str | None = None) -> Image:
    """The label as a small picture [h, w, 3], `text` on a ground of the object's colour."""
    found = font_for(text, font_file)
    font = _font(BUILT_IN if found is None else found, size_px)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = font.getmetrics()
    margin = max(2, size_px // 5)
    size = (int(right - left) + 2 * margin, ascent + descent + margin)
    chip = PillowImage.new("RGB", size, colour)
    ImageDraw.Draw(chip).text((margin - left, margin // 2), text, font=font, fill=text_colour_on(colour))
    return np.array(chip)


def check_font(font_file: str) -> None:
    """Raises UsageError where `font_file` is no font."""
    try:
        ImageFont.truetype(font_file, 12)
    except OSError as error:
        raise UsageError(f"{font_file}: not a font file that can be read ({error}); expected a .ttf or .otf") from None


def font_for(text: str, font_file: str | None = None) -> str | None:
    """A font that has all letters of `text`: `font_file`, where one is given, Pillow's own as BUILT_IN, or one of the
    system. None, and one remark, where there is none."""
    return _font_with("".join(sorted({letter for letter in text if not letter.isspace()})), font_file)


@lru_cache(maxsize=256)
def _font_with(letters: str, font_file: str | None) -> str | None:
    for candidate in (font_file or BUILT_IN, BUILT_IN):
        if _has(candidate, letters):
            return candidate
    for path in _system_fonts():
        if _has(path, letters):
            return path
    LOGGER.warning(
        "no font here has all of the letters %s: the number of a class is shown in place of its name; give a font that "
        "has them",
        " ".join(letters),
    )
    return None


def _has(font_file: str, letters: str) -> bool:
    try:
        font = _font(font_file, 20)
        absent = _drawn(font, ABSENT)
        return all(_drawn(font, letter) != absent for letter in letters)
    except (OSError, ValueError):
        return False


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(letter, mode="1")
    return mask.size, bytes(mask)


@lru_cache(maxsize=32)
def _font(font_file: str, size_px: int) -> ImageFont.FreeTypeFont:
    if font_file != BUILT_IN:
        return ImageFont.truetype(font_file, size_px)
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache(maxsize=1)
def _system_fonts() -> tuple[str, ...]:
    """Font files of this machine, those that read well first."""
    files = [path for folder in _font_folders() if folder.is_dir() for path in folder.rglob("*")]
    fonts = [path for path in files if path.suffix.lower() in (".ttf", ".otf", ".ttc")]

    def rank(path: Path) -> tuple[int, int, str]:
        name = path.stem.lower().replace("-", "").replace("_", "")
        order = next((at for at, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED))
        return order, len(name), str(path)

    return tuple(str(path) for path in sorted(fonts, key=rank)[:TRIED_MAX])


def _font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", r"C:\Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    return [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        home / ".local" / "share" / "fonts",
        home / ".fonts",
    ]
