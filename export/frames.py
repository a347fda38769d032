"""Frames to check an export on: smooth synthetic scenes by seed, or the user's own pictures and videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.errors import SourceError
from visrt.runtime.image import letterbox_into, pillow_bilinear
from visrt.runtime.parity.frames import Frames, clip_frames

__all__ = ["frames_from_sources", "synthetic_frames"]

# Valid areas as fractions of the input: a frame that fills it, one padded on the right, one at the bottom.
FITS = ((1.0, 1.0), (1.0, 0.72), (0.8, 1.0))
OBJECTS = 5

PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

CLIP_FRAMES = 8
CLIP_STEP = 2
"""Of a video, CLIP_FRAMES frames are taken, every CLIP_STEP-th."""


def synthetic_frames(count: int, height: int, width: int, seed: int = 0) -> Frames:
    """`count` scenes with soft light and a few smooth objects, padded right or at the bottom in turn.

    As smooth as photographs: the networks never saw noise, and mask logits lie nearer to 0 on it, where masked
    attention jumps.
    """
    random = np.random.default_rng(seed)
    images = np.zeros((count, height, width, 3), np.uint8)
    sizes = np.zeros((count, 2), np.int32)
    for i in range(count):
        down, across = FITS[i % len(FITS)]
        sizes[i] = max(1, round(height * down)), max(1, round(width * across))
        images[i, : sizes[i, 0], : sizes[i, 1]] = _scene(sizes[i, 0], sizes[i, 1], random)
    return Frames(images, sizes)


def _scene(height: int, width: int, random: np.random.Generator) -> NDArray[np.uint8]:
    """One picture [height, width, 3]: a colour gradient with a few soft-edged, shaded ellipses on it."""
    scene = _gradient(height, width, random)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    for _ in range(OBJECTS):
        centre = random.uniform(0.1, 0.9, 2) * (height, width)
        radii = random.uniform(0.08, 0.3, 2) * (height, width)
        distance = ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2
        cover = 1 / (1 + np.exp(np.clip(8 * (distance - 1), -30, 30)))[..., None]
        scene = scene * (1 - cover) + _gradient(height, width, random) * cover
    return np.clip(scene, 0, 255).astype(np.uint8)


def _gradient(height: int, width: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Random colours [3, 4] spread smoothly over [height, width, 3]."""
    colours = random.uniform(10, 245, (3, 4, 3)).astype(np.float32)
    spread: NDArray[np.float32] = np.asarray(cv2.resize(colours, (width, height), interpolation=cv2.INTER_CUBIC))
    return spread.reshape(height, width, 3)


def frames_from_sources(paths: Sequence[Path], spec: InputSpec) -> Frames:
    """The pictures at `paths`, and of each video some frames, as the runtime gives them to the frame graph."""
    parts = [_clip(path, spec) if is_video(path) else _still(path, spec) for path in paths]
    return Frames(np.concatenate([p.images for p in parts]), np.concatenate([p.valid_sizes for p in parts]))


def is_video(path: Path) -> bool:
    return path.suffix.lower() not in PICTURES


def _clip(path: Path, spec: InputSpec) -> Frames:
    """A few frames of a video, near enough to each other that objects go on from one to the next."""
    clip = clip_frames(path, spec, CLIP_FRAMES * CLIP_STEP)
    return Frames(clip.images[::CLIP_STEP], clip.valid_sizes[::CLIP_STEP])


def _still(path: Path, spec: InputSpec) -> Frames:
    image = np.zeros((1, *spec.image_size, 3), np.uint8)
    fit = letterbox_into(image[0], _picture(path), spec, pillow_bilinear)
    return Frames(image, np.array([fit.valid], np.int32))


def _picture(path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise SourceError(f"{path}: no such image; give the path of a picture to --reference") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: not a readable image ({error}); give a JPEG or PNG file to --reference") from None
