"""Results as files that other tools read: a PNG of ids a frame, crops, rows in MOTChallenge's form."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from visrt.runtime.masks import decode_region
from visrt.runtime.results import FrameResult
from visrt.runtime.sinks.line_count import REMEMBERED
from visrt.runtime.sinks.output import cannot_write
from visrt.runtime.sinks.overlay import colour_of
from visrt.runtime.sources.source import Image

__all__ = ["Crops", "MaskPictures", "MotRows"]

INDEXED_MOST = 255
"""Ids that a PNG of 8 bits holds beside the background."""


class MaskPictures:
    """A sink that writes masks/000012.png for frame 12: 0 where nothing is, else the id plus one, in the colours of the
    overlay. Frames with an id above 254 are of 16 bits and grey. Where objects overlap the one of the higher score
    shows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._palette = [0, 0, 0, *(channel for identity in range(INDEXED_MOST) for channel in colour_of(identity))]
        _make(folder)

    def write(self, result: FrameResult, image: Image) -> None:
        path = self._folder / f"{result.index:06}.png"
        picture = PillowImage.fromarray(_ids(result))
        if picture.mode == "L":
            picture.putpalette(self._palette)
        _save(picture, path)

    def close(self) -> None:
        pass


def _ids(result: FrameResult) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Ids plus one [H, W] of the objects of a frame, 0 elsewhere."""
    large = any(shown.id >= INDEXED_MOST for shown in result.objects)
    ids = np.zeros(result.size, dtype=np.uint16 if large else np.uint8)
    for shown in sorted(result.objects, key=lambda one: one.score):
        if shown.rle is not None:
            x, y, width, height = shown.box
            region = ids[y : y + height, x : x + width]
            region[decode_region(shown.rle, shown.box) > 0] = min(shown.id + 1, 2**16 - 1)
    return ids


class Crops:
    """A sink that writes crops/3-person/000012.jpg: the box of object 3 in frame 12."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[int, Path] = {}
        _make(folder)

    def write(self, result: FrameResult, image: Image) -> None:
        for shown in result.objects:
            left, top, right, bottom = shown.xyxy
            folder = self._made.pop(shown.id, None)
            if folder is None:
                # By the class of its first frame: an object whose label changes stays in one folder.
                name = re.sub(r"[^\w-]+", "_", shown.name or str(shown.label))
                folder = self._folder / f"{shown.id}-{name}"
                _make(folder)
            self._made[shown.id] = folder
            crop = PillowImage.fromarray(np.ascontiguousarray(image[top:bottom, left:right]))
            _save(crop, folder / f"{result.index:06}.jpg")
        while len(self._made) > REMEMBERED:
            del self._made[next(iter(self._made))]

    def close(self) -> None:
        pass


class MotRows:
    """A sink that writes mot.txt: frame, id, left, top, width, height, score, -1, -1, -1 a row.

    Frames and ids count from 1 there. MOTChallenge's form holds no class and no mask.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("w", encoding="ascii", newline="\n")
        except OSError as error:
            raise cannot_write(path, error) from None

    def write(self, result: FrameResult, image: Image) -> None:
        rows = (
            f"{result.index + 1},{one.id + 1},{','.join(map(str, one.box))},{one.score:.6g},-1,-1,-1\n"
            for one in result.objects
        )
        try:
            self._file.writelines(rows)
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from None

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise cannot_write(self._path, error) from None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None


def _save(picture: PillowImage.Image, path: Path) -> None:
    try:
        picture.save(path, quality=92) if path.suffix == ".jpg" else picture.save(path)
    except OSError as error:
        raise cannot_write(path, error) from None
