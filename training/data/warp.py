"""Pictures and cut-outs warped straight to the output frame, from the half-size copy that does not alias."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from visrt.training.data.motion import Affine, Wave

__all__ = ["blank_beyond", "warp_cutout", "warp_ids", "warp_picture"]

Image = NDArray[np.uint8]


def warp_picture(levels: Sequence[Image], to_frame: Affine, size: tuple[int, int]) -> Image:
    """uint8 [h, w, 3] of `size`; outside the picture its border colour goes on."""
    level, matrix = _level(levels, to_frame)
    return np.asarray(
        cv2.warpAffine(level, matrix, size[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )


def warp_ids(ids: Image, to_frame: Affine, size: tuple[int, int]) -> Image:
    """uint8 [h, w] of `size`; outside the picture there is no object."""
    return np.asarray(cv2.warpAffine(ids, to_frame, size[::-1], flags=cv2.INTER_NEAREST))


def blank_beyond(rgb: Image, ids: Image, turn: Affine) -> None:
    """Black and nobody's, in place: what `turn` brought from beyond into a frame [h, w, 3] with `ids` [L, h, w]."""
    outside = cv2.warpAffine(np.ones_like(ids[0]), turn, rgb.shape[1::-1], flags=cv2.INTER_NEAREST) == 0
    rgb[outside] = 0
    ids[:, outside] = 0


def warp_cutout(
    levels: Sequence[Image], to_frame: Affine, wave: Wave | None, time: float, size: tuple[int, int]
) -> tuple[int, int, Image] | None:
    """(top, left, uint8 RGBA of the part inside a frame of `size`); None if all of it lies outside."""
    level, matrix = _level(levels, to_frame)
    h, w = level.shape[:2]
    corners = matrix @ np.array([[0, w, w, 0], [0, 0, h, h], [1, 1, 1, 1]])
    margin = max(wave.amplitude_px) if wave else 0.0
    left, top = np.maximum(np.floor(corners.min(1) - margin), 0).astype(int)
    right, bottom = np.minimum(np.ceil(corners.max(1) + margin) + 1, [size[1], size[0]]).astype(int)
    if right <= left or bottom <= top:
        return None
    matrix = matrix - np.array([[0, 0, left], [0, 0, top]])
    shape = (int(bottom - top), int(right - left))
    rgba = _affine(level, matrix, shape) if wave is None else _swayed(level, matrix, shape, wave, time)
    return int(top), int(left), rgba


def _affine(level: Image, matrix: Affine, shape: tuple[int, int]) -> Image:
    return np.asarray(
        cv2.warpAffine(level, matrix, shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )


def _swayed(level: Image, matrix: Affine, shape: tuple[int, int], wave: Wave, time: float) -> Image:
    inverse = cv2.invertAffineTransform(matrix).astype(np.float32)
    rows, columns = np.arange(shape[0], dtype=np.float32), np.arange(shape[1], dtype=np.float32)
    turn = 2 * np.pi * wave.turns * time
    dx = np.float32(wave.amplitude_px[0]) * np.sin(
        2 * np.pi * rows / np.float32(wave.length_px[0]) + wave.phase[0] + turn
    )
    dy = np.float32(wave.amplitude_px[1]) * np.sin(
        2 * np.pi * columns / np.float32(wave.length_px[1]) + wave.phase[1] + turn
    )
    # x + dx depends on both, but the inverse is linear: source = columns part [w] + rows part [h] for each coordinate.
    to_x, to_y = (
        ((a * columns + b * dy)[None] + (a * dx + b * rows + c)[:, None]).astype(np.float32) for a, b, c in inverse
    )
    return np.asarray(cv2.remap(level, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _level(levels: Sequence[Image], to_frame: Affine) -> tuple[Image, Affine]:
    """The copy that is shrunk to no less than 0.6, and its matrix."""
    scale = np.sqrt(abs(np.linalg.det(to_frame[:, :2])))
    number = 0
    while number + 1 < len(levels) and scale * 2**number < 0.6:
        number += 1
    h, w = levels[0].shape[:2]
    fy, fx = h / levels[number].shape[0], w / levels[number].shape[1]
    from_level = np.array([[fx, 0, fx / 2 - 0.5], [0, fy, fy / 2 - 0.5], [0, 0, 1]])
    return levels[number], to_frame @ from_level
