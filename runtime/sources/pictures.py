"""Picture files as a screen shows them: RGB of 8 bits, upright, transparency on white; and all pictures of a file."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from PIL import ImageCms, ImageOps, UnidentifiedImageError, features

from visrt.runtime.errors import SourceError
from visrt.runtime.sources.displayed import TRANSPARENT, Remark, on_white
from visrt.runtime.sources.source import Image
from visrt.runtime.sources.value_range import Numbers, ValueRange

__all__ = ["PictureReader", "read_image"]

DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
ORIENTATION = 0x0112
REDUCED = 0x00FE
"""TIFF's tag that marks a page as a smaller version of another."""

ONE_PICTURE = frozenset({"MPO", "PSD", "ICO", "ICNS"})
"""Formats whose further pictures are previews, depth, layers or sizes of the first."""


def read_image(path: Path, max_pixels: int) -> Image:
    """The first picture at `path`, RGB [H, W, 3], as displayed. Its size is checked before it is decoded."""
    return PictureReader(max_pixels).first(path)


class PictureReader:
    """Reads pictures. What is black and white in pictures of more than 8 bits is that of the first, for all of them.

    `remark` is called with what is read in part, or changed to be shown.
    """

    def __init__(
        self,
        max_pixels: int,
        value_range: tuple[float, float] | None = None,
        remark: Remark = lambda _: None,
    ) -> None:
        self._max_pixels, self._remark = max_pixels, remark
        self._range = ValueRange(value_range, remark)
        self._pages_said = False

    def first(self, path: Path) -> Image:
        """The picture at `path`, the first of several. Raises SourceError where there is none that can be read."""
        with self._open(path) as picture:
            if isinstance(picture, list):
                self._remark_pages(path, len(picture))
                return self._eight_bit(picture[0])
            self._remark_pages(path, len(_pages(picture)))
            return self._shown(picture, path)

    def count(self, path: Path) -> int:
        """How many pictures `path` holds, 1 where it cannot be read."""
        try:
            with self._open(path) as picture:
                return len(picture) if isinstance(picture, list) else len(_pages(picture))
        except SourceError:
            return 1

    def all(self, path: Path) -> Iterator[tuple[Image | SourceError, float | None]]:
        """Every picture of the file in order, or why it cannot be read, and its duration in seconds if it has one."""
        with self._open(path) as picture:
            if isinstance(picture, list):
                yield from ((self._eight_bit(page), None) for page in picture)
                return
            for page in _pages(picture):
                try:
                    picture.seek(page)
                    _refuse_giant(picture, path, self._max_pixels)
                    shown: Image | SourceError = self._shown(picture, path)
                except _UNREADABLE as error:
                    shown = _not_readable(f"{path}, picture {page + 1}", error)
                duration_ms = picture.info.get("duration")
                yield shown, float(duration_ms) / 1000 if duration_ms else None

    @contextmanager
    def _open(self, path: Path) -> Iterator[PIL.Image.Image | list[Numbers]]:
        """The picture at `path`; what Pillow cannot read and OpenCV can as arrays, RGB, of more than 8 bits."""
        _register(path.suffix.lower())
        try:
            with warnings.catch_warnings():
                # Pillow warns of damage before it fails, and of bombs above a size of its own; ours is checked below,
                # before the pixels are touched.
                warnings.simplefilter("ignore", UserWarning)
                warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
                try:
                    opened = PIL.Image.open(path)
                except UnidentifiedImageError:
                    pages = _deep_pages(path, self._max_pixels) if _is_tiff(path) else []
                    if not pages:
                        raise
                    yield pages
                    return
                with opened as picture:
                    _refuse_giant(picture, path, self._max_pixels)
                    yield picture
        except PIL.Image.DecompressionBombError:
            raise SourceError(
                f"{path}: far more than {self._max_pixels} pixels (max_pixels); scale it down first"
            ) from None
        except _UNREADABLE as error:
            raise _not_readable(str(path), error) from None

    def _remark_pages(self, path: Path, pages: int) -> None:
        if pages > 1 and not self._pages_said:
            self._pages_said = True
            self._remark(
                "several pictures in one file: the first of each is read; give such a file alone to read them all "
                f"({path.name} holds {pages})"
            )

    def _shown(self, picture: PIL.Image.Image, path: Path) -> Image:
        """RGB [H, W, 3] of the open picture."""
        if picture.mode == "RGB" and _has_16_bits(picture):
            deep = _deep_pages(path, self._max_pixels)
            if deep:
                return _turned(self._eight_bit(deep[0]), picture.getexif().get(ORIENTATION, 1))
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in DEEP_MODES:
            return self._eight_bit(np.asarray(upright))
        if upright.mode in WITH_ALPHA or "transparency" in upright.info:
            rgba = np.asarray(upright.convert("RGBA"))
            if rgba[..., 3].min() < 255:
                self._remark(TRANSPARENT)
            return on_white(rgba)
        if upright.mode in ("CMYK", "LAB"):
            return np.array(self._from_print(upright))
        return np.array(upright.convert("RGB"))

    def _from_print(self, picture: PIL.Image.Image) -> PIL.Image.Image:
        """RGB of CMYK, by the colour profile in the file where there is one, or of LAB."""
        profile = picture.info.get("icc_profile")
        if picture.mode == "CMYK" and not profile:
            self._remark("CMYK without a colour profile: its colours are approximate")
            return picture.convert("RGB")
        try:
            source: Any = io.BytesIO(profile) if profile else ImageCms.createProfile("LAB")
            shown = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError as error:
            raise ValueError(f"its colour profile is not usable: {error}") from None
        self._remark(f"{picture.mode}: its colours are converted to those of a screen")
        assert shown is not None
        return shown

    def _eight_bit(self, values: Numbers) -> Image:
        """RGB [H, W, 3] of `values` [H, W] or [H, W, C]."""
        scaled = self._range.eight_bit(values)
        if scaled.ndim == 2:
            return np.repeat(scaled[..., None], 3, axis=2)
        if scaled.shape[2] == 4:
            self._remark(TRANSPARENT)
            return on_white(scaled)
        return np.ascontiguousarray(scaled[..., :3])


def _pages(picture: PIL.Image.Image) -> Sequence[int]:
    """The numbers of the pictures of a file that are pictures of their own; one that is damaged is the last."""
    if picture.format in ONE_PICTURE:
        return [0]
    if picture.format == "TIFF":
        return _tiff_pages(picture)
    return range(1 if getattr(picture, "default_image", False) else 0, getattr(picture, "n_frames", 1))


def _tiff_pages(picture: PIL.Image.Image) -> list[int]:
    pages, page = [0], 1
    try:
        while True:
            picture.seek(page)
            if not getattr(picture, "tag_v2", {}).get(REDUCED, 0) & 1:
                pages.append(page)
            page += 1
    except EOFError:
        pass
    except _UNREADABLE:
        pages.append(page)
    picture.seek(0)
    return pages


def _has_16_bits(picture: PIL.Image.Image) -> bool:
    """Whether Pillow is about to cut 16 bits a colour to 8."""
    return any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def _deep_pages(path: Path, max_pixels: int) -> list[Numbers]:
    """The pictures at `path` as OpenCV reads them, [H, W] or [H, W, C] of RGB; none where it cannot."""
    data = np.fromfile(path, np.uint8)
    try:
        read, pages = cv2.imdecodemulti(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return []
    if not read or any(page.shape[0] * page.shape[1] > max_pixels for page in pages):
        return []
    return [page if page.ndim == 2 else page[..., [2, 1, 0, *range(3, page.shape[2])]] for page in pages]


def _is_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _turned(image: Image, orientation: int) -> Image:
    """`image` as EXIF's `orientation` says."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(1, 0, 2)
    across = -1 if orientation in (2, 3, 6, 7) else 1
    down = -1 if orientation in (3, 4, 7, 8) else 1
    return np.ascontiguousarray(image[::down, ::across])


@lru_cache(maxsize=8)
def _register(suffix: str) -> None:
    """Lets Pillow read HEIC where a plugin for it is installed."""
    if suffix in (".heic", ".heif"):
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            return
        register_heif_opener()


def _refuse_giant(picture: PIL.Image.Image, path: Path, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise SourceError(
            f"{path}: {picture.width}x{picture.height} pixels, expected at most {max_pixels} (max_pixels); "
            "scale it down first"
        )


_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError, TypeError, KeyError, struct.error)


def _not_readable(where: str, error: Exception) -> SourceError:
    suffix = Path(where).suffix.lower()
    absent = suffix in (".heic", ".heif") or (suffix == ".avif" and not features.check("avif"))
    if absent and isinstance(error, UnidentifiedImageError):
        return SourceError(f"{where}: the Pillow that is installed does not read this format; save it as JPEG or PNG")
    return SourceError(f"{where}: not a readable image ({error}); replace or remove it")
