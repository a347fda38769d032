"""Folders and lists of images as a source."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
from PIL import ImageOps, UnidentifiedImageError

from visrt.runtime.errors import SourceError
from visrt.runtime.sources.source import Image, ReportedSource, SourceInfo, SourceReport, VideoFrame, VideoSettings

__all__ = ["IMAGE_SUFFIXES", "ImageSource", "images_in", "natural_order", "read_image"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def natural_order(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder, by suffix, in natural order; hidden files are left out."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return tuple(sorted(found, key=natural_order))


class ImageSource(ReportedSource):
    """Images in the order given, at a steady rate. An unreadable image is skipped and counted; sizes may differ."""

    def __init__(self, name: str, paths: Sequence[Path], settings: VideoSettings) -> None:
        self._paths, self._settings = paths, settings
        duration_s = len(paths) / settings.image_fps
        self._info = SourceInfo(name, "images", frames=len(paths), fps=settings.image_fps, duration_s=duration_s)
        self._report = SourceReport()
        self._first_fault = ""

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[VideoFrame]:
        """A skipped image leaves a gap in time, as its frame would have been shown then."""
        for position, path in enumerate(self._paths):
            try:
                image = read_image(path, self._settings.max_pixels)
            except SourceError as fault:
                self._first_fault = self._first_fault or str(fault)
                self._report = replace(self._report, skipped=self._report.skipped + 1)
                continue
            index = self._report.decoded
            self._report = replace(self._report, decoded=index + 1)
            yield VideoFrame(index, position / self._settings.image_fps, image)
        self._end()

    def _end(self) -> None:
        skipped = self._report.skipped
        if not self._report.decoded:
            raise SourceError(
                f"{self._info.name}: none of {len(self._paths)} images could be read; {self._first_fault}"
            )
        reason = f"{skipped} of {len(self._paths)} images skipped, first {self._first_fault}" if skipped else ""
        self._report = replace(self._report, end="partial" if skipped else "complete", reason=reason)


def read_image(path: Path, max_pixels: int) -> Image:
    """The image at `path`, RGB [H, W, 3], upright by its EXIF orientation. Its size is checked before it is decoded."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of bombs above a size of its own; ours is checked below, before the pixels are touched.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            with PIL.Image.open(path) as picture:
                _refuse_giant(picture, path, max_pixels)
                return _rgb(ImageOps.exif_transpose(picture))
    except PIL.Image.DecompressionBombError:
        raise SourceError(f"{path}: far more than {max_pixels} pixels (max_pixels); scale it down first") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, EOFError) as error:
        raise SourceError(f"{path}: not a readable image ({error}); replace or remove it") from None


def _refuse_giant(picture: PIL.Image.Image, path: Path, max_pixels: int) -> None:
    if picture.width * picture.height > max_pixels:
        raise SourceError(
            f"{path}: {picture.width}x{picture.height} pixels, expected at most {max_pixels} (max_pixels); "
            "scale it down first"
        )


def _rgb(picture: PIL.Image.Image) -> Image:
    """RGB [H, W, 3]. 16-bit grey is scaled: Pillow's own conversion would clip it to white."""
    if picture.mode.startswith("I"):
        grey = (np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.array(picture.convert("RGB"))
