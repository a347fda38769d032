"""Folders and lists of images as a source, and files that hold several pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from visrt.runtime.errors import SourceError, UsageError
from visrt.runtime.sources.cuts import CutDetector
from visrt.runtime.sources.pictures import PictureReader, read_image
from visrt.runtime.sources.source import (
    Image,
    ReportedSource,
    Selector,
    SourceInfo,
    SourceReport,
    VideoFrame,
    VideoSettings,
)

__all__ = ["IMAGE_SUFFIXES", "ImageSource", "images_in", "natural_order", "read_image"]

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
        *(".jp2", ".heic", ".heif", ".avif"),
    }
)


def natural_order(path: Path) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def images_in(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder, by suffix, in natural order; hidden files are left out."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return tuple(sorted(found, key=natural_order))


class ImageSource(ReportedSource):
    """Images in the order given, at a steady rate. An unreadable image is skipped and counted; sizes may differ.

    Of a file given alone all pictures are frames, with the durations that it names.
    """

    def __init__(self, name: str, paths: Sequence[Path], settings: VideoSettings, remarks: Sequence[str] = ()) -> None:
        """`remarks`: what is to be said of how the images were found."""
        self._paths, self._settings = paths, settings
        self._report = SourceReport()
        self._first_fault = ""
        self._pictures = PictureReader(settings.max_pixels, settings.value_range, self._remark_of_a_part())
        self._count = self._pictures.count(paths[0]) if len(paths) == 1 else len(paths)
        fps = settings.image_fps
        self._info = SourceInfo(name, "images", frames=self._count, fps=fps, duration_s=self._count / fps)
        for remark in remarks:
            self._remark(remark)

    def close(self) -> None:
        pass

    def __iter__(self) -> Iterator[VideoFrame]:
        """A skipped image leaves a gap in time, as its frame would have been shown then."""
        selector, cuts, index = Selector(self._settings), CutDetector(self._settings), 0
        for found, time_s in self._found(selector):
            if isinstance(found, SourceError):
                self._first_fault = self._first_fault or str(found)
                self._report = replace(self._report, skipped=self._report.skipped + 1)
                continue
            if found is not None:
                self._report = replace(self._report, decoded=self._report.decoded + 1)
                yield VideoFrame(index, time_s, found, cut=cuts.cuts(found))
            index += 1
        self._end(selector)

    def _found(self, selector: Selector) -> Iterator[tuple[Image | SourceError | None, float]]:
        """Each image, or why it cannot be read, or None where it is not to be given, and its time."""
        if self._count > 1 and len(self._paths) == 1:
            now_s = 0.0
            for position, (image, duration_s) in enumerate(self._pictures.all(self._paths[0])):
                yield image if selector.takes(position, now_s) else None, now_s
                now_s += duration_s or 1 / self._settings.image_fps
                if selector.over:
                    return
            return
        for position, path in enumerate(self._paths):
            now_s = position / self._settings.image_fps
            if selector.takes(position, now_s):
                yield self._read(path), now_s
            elif selector.over:
                return
            else:
                yield None, now_s

    def _read(self, path: Path) -> Image | SourceError:
        try:
            return self._pictures.first(path)
        except SourceError as fault:
            return fault

    def _end(self, selector: Selector) -> None:
        skipped = self._report.skipped
        if not self._report.decoded and not skipped:
            raise UsageError(
                f"{self._info.name}: it ends after {self._count} images at {self._settings.image_fps:g} a second, "
                f"before the start, {self._settings.start}; give an earlier one"
            )
        if not self._report.decoded:
            raise SourceError(f"{self._info.name}: none of {self._count} images could be read; {self._first_fault}")
        reason = f"{skipped} of {self._count} images skipped, first {self._first_fault}" if skipped else ""
        self._report = replace(self._report, end="partial" if skipped else "complete", reason=reason)
