"""Objects without their surroundings: from PNGs with alpha, or cut from annotated pictures along their masks."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from visrt.runtime.errors import DataError
from visrt.training.data.annotations import load_class_map
from visrt.training.data.frames import AnnotatedFrame
from visrt.training.data.pictures import Picture, halvings
from visrt.training.data.segmentations import area_px, box_px

__all__ = ["Cutout", "CutoutFile", "cut", "cutout_files", "cuttable", "read_cutout", "worth_cutting"]

DISTRACTOR = "distractor"
"""In a cut-out map: an object of no class, pasted as an occluder only."""


@dataclass(frozen=True)
class Cutout:
    """levels: uint8 RGBA [h, w, 4] with straight alpha, each half the size of the one before; a margin of alpha 0 runs
    around. label: target class or NO_TARGET.
    """

    levels: tuple[NDArray[np.uint8], ...]
    label: int

    @property
    def nbytes(self) -> int:
        return sum(level.nbytes for level in self.levels)


@dataclass(frozen=True)
class CutoutFile:
    """A PNG and what it shows: a class name, or DISTRACTOR."""

    path: Path
    class_name: str


def cutout_files(folder: Path, map_path: Path) -> tuple[CutoutFile, ...]:
    """The PNGs of `folder` by the map {"horse*": "animal", "mug*": "distractor", ...}: the first fitting pattern wins.

    A file without a pattern and a pattern without a file are errors: both are spelling mistakes.
    """
    patterns: dict[str, str] = {}
    for pattern, class_name in load_class_map(map_path).items():
        if class_name is None:
            raise DataError(f"{map_path}: pattern {pattern!r} has no class; give one, {DISTRACTOR!r} for none")
        patterns[pattern] = class_name
    files = []
    used = set()
    for path in sorted(folder.glob("*.png")):
        fitting = next((known for known in patterns if fnmatchcase(path.name, known)), None)
        if fitting is None:
            raise DataError(
                f"{map_path}: no pattern fits {path.name}; add one, with class {DISTRACTOR!r} if it has none"
            )
        used.add(fitting)
        files.append(CutoutFile(path, patterns[fitting]))
    idle = [pattern for pattern in patterns if pattern not in used]
    if idle:
        raise DataError(f"{map_path}: pattern {idle[0]!r} fits no PNG of {folder}; correct or remove it")
    return tuple(files)


def read_cutout(file: CutoutFile, label: int) -> Cutout:
    """The cut-out of `file`, cropped to its visible part."""
    image = cv2.imread(str(file.path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3 or image.shape[2] != 4 or image.dtype != np.uint8:
        raise DataError(f"{file.path}: is no 8-bit PNG with alpha; cut-outs need four channels")
    if not (image[..., 3] > 127).any():
        raise DataError(f"{file.path}: is fully transparent")
    rgba = np.asarray(cv2.cvtColor(image, cv2.COLOR_BGRA2RGBA))
    x, y, w, h = cv2.boundingRect((rgba[..., 3] > 8).astype(np.uint8))
    return Cutout(halvings(_margin(_bled(rgba[y : y + h, x : x + w]))), label)


def cuttable(frame: AnnotatedFrame, least_px: int) -> tuple[int, ...]:
    """Indices of the objects of `frame` that are `worth_cutting`."""
    return tuple(
        i
        for i, one in enumerate(frame.objects)
        if worth_cutting(np.array([area_px(one.rle)]), np.array([box_px(one.rle)]), frame.width_px, least_px)[0]
    )


def worth_cutting(
    areas_px: NDArray[Any], boxes_px: NDArray[Any], width_px: int | NDArray[Any], least_px: int
) -> NDArray[np.bool_]:
    """Which [N] of the objects of `areas_px` [N] and `boxes_px` [N, 4] in pictures of `width_px` to cut out.

    At least `least_px` large and not cut by the left, top or right border; people and animals cut below the chest are
    common in real pictures, half faces are not.
    """
    x, y, w, _ = boxes_px.T
    return np.asarray((areas_px >= least_px) & (x > 1) & (y > 1) & (x + w < width_px - 1))


def cut(picture: Picture, track: int, label: int, margin_px: int = 4) -> Cutout | None:
    """The object of `picture` with annotation `track`; None if it would make no recognisable cut-out."""
    if track not in picture.tracks:
        return None
    k = picture.tracks.index(track)
    mask = (picture.ids == k + 1).astype(np.uint8) * 255
    if not mask.any() or not _is_recognisable(picture, mask):
        return None
    x, y, w, h = cv2.boundingRect(mask)
    top, left = max(0, y - margin_px), max(0, x - margin_px)
    window = np.s_[top : y + h + margin_px, left : x + w + margin_px]
    rgba = np.dstack([picture.levels[0][window], mask[window]])
    return Cutout(halvings(_margin(rgba)), label)


def _is_recognisable(picture: Picture, mask: NDArray[np.uint8]) -> bool:
    """In one piece, not black or flat, and not bounded by other objects, which may be what hides half of it.

    The limits come from looking at what they reject.
    """
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    areas = stats[1:, cv2.CC_STAT_AREA]
    grey = cv2.cvtColor(picture.levels[0], cv2.COLOR_RGB2GRAY)
    rim = (np.asarray(cv2.dilate(mask, np.ones((5, 5), np.uint8))) > 0) & (mask == 0)
    touched = float((picture.ids[rim] > 0).mean()) if rim.any() else 0.0
    contrast = float(grey[mask > 0].std())
    return float(areas.max() / areas.sum()) >= 0.85 and contrast >= 14 and touched <= 0.4


def _margin(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Eight pixels of alpha 0 around (one is left three halvings down), with the nearest colour: blending at the edge
    brings in no black.
    """
    wide = np.asarray(cv2.copyMakeBorder(rgba, 8, 8, 8, 8, cv2.BORDER_REPLICATE))
    for edge in (np.s_[:8], np.s_[-8:], np.s_[:, :8], np.s_[:, -8:]):
        wide[(*edge, ..., 3) if isinstance(edge, tuple) else (edge, ..., 3)] = 0
    return wide


def _bled(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`rgba` with the colour of its visible part spread under its transparent part, where files store anything."""
    alpha = rgba[..., 3].astype(np.float32) / 255
    colour = rgba[..., :3] * alpha[..., None]
    spread, weight = cv2.GaussianBlur(colour, (0, 0), 4), cv2.GaussianBlur(alpha, (0, 0), 4)
    filled = spread / np.maximum(weight, 1e-3)[..., None]
    rgb = np.where(rgba[..., 3:] > 127, rgba[..., :3], filled.clip(0, 255).astype(np.uint8))
    return np.dstack([rgb, rgba[..., 3]])
