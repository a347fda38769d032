"""How the published recipes see a picture: resizes, crops, flips and turns, as one affine map from picture to frame.

Released loaders resample at every step; here a frame is resampled once, so that a crop that is enlarged stays sharp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from visrt.runtime.errors import SettingsError
from visrt.training.data.motion import Affine

__all__ = [
    "CropSettings",
    "JitterView",
    "ShortSideView",
    "Shot",
    "check_view",
    "jitter_shot",
    "kept_size",
    "short_side_shot",
    "short_side_size",
]

Size = tuple[int, int]
"""Height and width in pixels."""
Chance = Annotated[float, Field(ge=0, le=1)]
Side = Annotated[int, Field(ge=1)]

LONGEST_BEFORE_CROP_PX = 1333
RELEASED_PAD_RGB = (128, 128, 128)
"""What Mask2Former's large-scale jitter pads with."""


@dataclass(frozen=True)
class CropSettings:
    """A crop before the resize, as released: with a `chance`, the picture's short side is resized to one of
    `short_sides_px` (none: the picture stays as large as it is stored), then height and width of a window are each
    drawn from `window_px`, at most the picture's. slides: the window moves, which only pseudo-videos may do.
    """

    chance: Chance = 0.5
    short_sides_px: tuple[Side, ...] = (400, 500, 600)
    window_px: tuple[Side, Side] = (384, 600)
    slides: bool = False


@dataclass(frozen=True)
class ShortSideView:
    """Frames as the released loaders make them: the whole picture, its aspect kept, one size for a clip.

    The short side is drawn from `short_sides_px`; the long side is at most `longest_px`. flip: probability for a clip.
    crop, pseudo_crop: of real videos and photos, and of pseudo-videos (one picture filmed for several frames).
    rotation_deg: frames of a pseudo-video turn within +- this around one point; real videos never do.
    """

    kind: Literal["short_side"]
    short_sides_px: Annotated[tuple[Side, ...], Field(min_length=1)]
    longest_px: Side = 1333
    flip: Chance = 0.5
    crop: CropSettings | None = None
    pseudo_crop: CropSettings | None = None
    rotation_deg: Annotated[float, Field(ge=0, le=180)] = 0.0


@dataclass(frozen=True)
class JitterView:
    """Large-scale jitter, as Mask2Former trains on COCO: the picture is fitted into a square of `side_px` times a scale
    from `scales`, then a square of `side_px` is cut from it, padded right and below with `pad_rgb`."""

    kind: Literal["jitter"]
    side_px: Side = 1024
    scales: tuple[float, float] = (0.1, 2.0)
    flip: Chance = 0.5
    pad_rgb: tuple[int, int, int] = RELEASED_PAD_RGB


@dataclass(frozen=True)
class Shot:
    """How the frames of a clip see their pictures.

    shown: the size of the upper left part of the frames that shows the scene; the rest is `pad_rgb`. to_frames: for
    each frame the map from its picture to the shown part. ends: the map at time 0 and 1. turns: for each frame the
    rotation of the shown part with which `to_frames` ends, none in a shot without.
    """

    frame_size: Size
    shown: Size
    pad_rgb: tuple[int, int, int]
    to_frames: tuple[Affine, ...]
    ends: tuple[Affine, Affine]
    turns: tuple[Affine, ...] = ()


def check_view(view: ShortSideView | JitterView | None) -> None:
    """Refuse ranges that are upside down, and real videos that slide. Raises SettingsError."""
    if isinstance(view, JitterView):
        _check_range("scales", view.scales)
    elif view is not None:
        for name, crop in (("crop", view.crop), ("pseudo_crop", view.pseudo_crop)):
            if crop is not None:
                _check_range(f"{name}.window_px", crop.window_px)
        if view.crop is not None and view.crop.slides:
            raise SettingsError(
                "data.clips.view.crop.slides is true, but the crop of a real video stays where it is; switch it off, "
                "and let view.pseudo_crop slide"
            )


def _check_range(name: str, ends: tuple[float, float]) -> None:
    if not 0 < ends[0] <= ends[1]:
        raise SettingsError(
            f"data.clips.view.{name} is {ends[0]} to {ends[1]}; expected two positive numbers, the smaller one first"
        )


def short_side_size(picture: Size, short_px: int, longest_px: int) -> Size:
    """The size of `picture` with a short side of `short_px`, its aspect kept, or less where the long side would exceed
    `longest_px`; rounded as released.
    """
    height, width = picture
    sides = (short_px, short_px / height * width) if height < width else (short_px / width * height, short_px)
    shrunk = min(1.0, longest_px / max(sides))
    return max(1, int(sides[0] * shrunk + 0.5)), max(1, int(sides[1] * shrunk + 0.5))


def kept_size(view: ShortSideView | JitterView, stored: Size) -> Size:
    """The size at which a picture of size `stored` is kept: as large as any frame of `view` shows it, but for those
    that enlarge it.
    """
    if isinstance(view, JitterView):
        scale = view.scales[1] * view.side_px / max(stored)
    else:
        scale = min(max(view.short_sides_px) / min(stored), view.longest_px / max(stored))
        crops = [crop for crop in (view.crop, view.pseudo_crop) if crop is not None]
        scale = max([scale, *(_largest_in_crop(crop, max(view.short_sides_px), stored) for crop in crops)])
    height, width = (max(1, int(side * min(1.0, scale) + 0.5)) for side in stored)
    return height, width


def _largest_in_crop(crop: CropSettings, short_px: int, stored: Size) -> float:
    """The scale of a picture of size `stored` where its smallest window gets a short side of `short_px`."""
    resized = [short_side_size(stored, short, LONGEST_BEFORE_CROP_PX) for short in crop.short_sides_px] or [stored]
    return max(min(size) / min(stored) * short_px / min(crop.window_px[0], *size) for size in resized)


Scene = Literal["pseudo", "real"]
"""A "pseudo" video shows one picture in several frames."""


def short_side_shot(
    stored: Size, kept: Size, times: NDArray[np.float64], scene: Scene, view: ShortSideView, rng: np.random.Generator
) -> Shot:
    """A shot at `times` of pictures that have size `stored` on disk and `kept` in memory."""
    short_px = int(rng.choice(view.short_sides_px))
    cut = _cut(stored, times, view.pseudo_crop if scene == "pseudo" else view.crop, rng)
    size = short_side_size(cut.window, short_px, view.longest_px)
    resized = _scaled(kept, cut.resized)
    onward = _mirrored(size[1], view.flip, rng) @ _scaled(cut.window, size)
    maps = [onward @ _moved(-corner) @ resized for corner in cut.corners]
    turns = _turns(size, len(times), view.rotation_deg, rng) if scene == "pseudo" else []
    if turns:
        maps = [turn @ still for turn, still in zip(turns, maps, strict=True)]
    to_frames = tuple(_on_indices(one) for one in maps)
    ends = (to_frames[int(np.argmin(times))], to_frames[int(np.argmax(times))])
    return Shot(size, size, (0, 0, 0), to_frames, ends, tuple(_on_indices(turn) for turn in turns))


def jitter_shot(stored: Size, kept: Size, frames: int, view: JitterView, rng: np.random.Generator) -> Shot:
    """A shot, the same in all of `frames`, of pictures that have size `stored` on disk and `kept` in memory."""
    side = view.side_px
    scale = rng.uniform(*view.scales) * side / max(stored)
    height, width = (max(1, round(length * scale)) for length in stored)
    # As released one number places the square in both directions.
    corner = np.round(rng.uniform() * np.maximum([width - side, height - side], 0))
    seen = _moved(-corner) @ _mirrored(width, view.flip, rng) @ _scaled(kept, (height, width))
    to_frame = _on_indices(seen)
    shown = (min(side, height), min(side, width))
    return Shot((side, side), shown, view.pad_rgb, (to_frame,) * frames, (to_frame, to_frame))


@dataclass(frozen=True)
class _Cut:
    """The picture at size `resized`, of which each frame shows a `window` at one of `corners` [T, 2], x and y."""

    resized: Size
    window: Size
    corners: NDArray[np.float64]


def _cut(picture: Size, times: NDArray[np.float64], crop: CropSettings | None, rng: np.random.Generator) -> _Cut:
    """The crop of a clip, or all of the picture."""
    if crop is None or rng.random() >= crop.chance:
        return _Cut(picture, picture, np.zeros((len(times), 2)))
    resized = picture
    if crop.short_sides_px:
        resized = short_side_size(picture, int(rng.choice(crop.short_sides_px)), LONGEST_BEFORE_CROP_PX)
    least, most = (np.minimum(resized, side) for side in crop.window_px)
    height, width = (int(side) for side in rng.integers(least, most + 1))
    room = np.array([resized[1] - width, resized[0] - height])
    first = rng.integers(0, room + 1)
    # As released the second place is to the lower right of the first; half the clips go the other way.
    last = rng.integers(first, room + 1)
    if rng.random() < 0.5:
        first, last = last, first
    moving = times if crop.slides else np.zeros(len(times))
    return _Cut(resized, (height, width), np.round(first + (last - first) * moving[:, None]))


def _turns(size: Size, frames: int, most_deg: float, rng: np.random.Generator) -> list[NDArray[np.float64]]:
    """Rotations of a frame of `size` around one point near its middle, one way or the other through the clip."""
    if not most_deg:
        return []
    angles = np.sort(rng.uniform(-most_deg, most_deg, frames))
    if rng.random() < 0.5:
        angles = angles[::-1]
    centre = rng.uniform(0.4, 0.6, 2) * (size[1], size[0])
    return [_moved(centre) @ _turned(angle) @ _moved(-centre) for angle in angles]


def _turned(angle_deg: float) -> NDArray[np.float64]:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])


def _moved(by: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([[1, 0, by[0]], [0, 1, by[1]], [0, 0, 1]])


def _scaled(size: Size, to: Size) -> NDArray[np.float64]:
    return np.diag([to[1] / size[1], to[0] / size[0], 1.0])


def _mirrored(width: int, chance: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Left and right of a frame of `width` change places with a `chance`."""
    return np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) if rng.random() < chance else np.eye(3)


def _on_indices(corners: NDArray[np.float64]) -> Affine:
    """The map `corners` [3, 3] of points measured from the corner, as one of pixel indices [2, 3]."""
    half = np.array([0.5, 0.5])
    return (_moved(-half) @ corners @ _moved(half))[:2]
