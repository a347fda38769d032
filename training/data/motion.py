"""Smooth motion: the camera over a still picture, and pasted objects over the frame. Time runs from 0 to 1 in a clip.

Affine matrices are float64 [2, 3] and act on pixel indices (the centre of the first pixel is 0, 0).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["CameraPath", "CameraSettings", "ObjectPath", "Wave", "camera_path", "clip_times", "object_pose"]

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class CameraSettings:
    """The camera over the scene, after CTVIS's pseudo-videos: rotation, sliding and zooming crop, flip.

    whole: probability that the clip starts from the largest window that fits the picture; else its width is drawn
    log-uniformly from `smallest_window` to 1 times that. focus: probability that the window is centred near an object.
    zoom_change: the window grows or shrinks by up to this fraction over the clip; slide: it moves by up to this
    fraction of its width. rotate: probability of turning within +-`rotation_deg`; else within +-`tremble_deg`.
    stretch: aspect ratios change by up to this fraction. letterbox: probability that the frame is padded right or
    below, as the runtime pads pictures of another shape.
    """

    whole: float = 0.3
    smallest_window: float = 0.4
    focus: float = 0.7
    zoom_change: float = 0.25
    slide: float = 0.3
    rotate: float = 0.4
    rotation_deg: float = 15.0
    tremble_deg: float = 2.0
    stretch: float = 0.15
    letterbox: float = 0.25
    flip: float = 0.5


@dataclass(frozen=True)
class CameraPath:
    """Window centre (x, y), width and height in picture pixels and angle in degrees, at time 0 and time 1."""

    centres: NDArray[np.float64]
    sizes: NDArray[np.float64]
    angles_deg: NDArray[np.float64]
    mirrored: float

    def at(self, time: float, out_size: tuple[int, int]) -> Affine:
        """Picture to output frame of `out_size` (height, width)."""
        centre, size = _between(self.centres, time), _between(self.sizes, time)
        turn = _rotation(float(_between(self.angles_deg, time)))
        scale = np.diag([self.mirrored * out_size[1] / size[0], out_size[0] / size[1]])
        return _about(scale @ turn, centre, (out_size[1] / 2, out_size[0] / 2))


def clip_times(frames: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Sorted random times of `frames` frames: monotone motion in uneven steps, as CTVIS draws them."""
    return np.sort(rng.uniform(0, 1, frames))


def camera_path(
    size: tuple[int, int],
    out_size: tuple[int, int],
    focus: tuple[float, float] | None,
    settings: CameraSettings,
    rng: np.random.Generator,
) -> CameraPath:
    """A path over a picture of `size` for frames of `out_size` (height, width); `focus` (x, y): what to look at."""
    aspect = out_size[1] / out_size[0] * np.exp(rng.uniform(-1, 1) * settings.stretch)
    largest = min(size[1], size[0] * aspect)
    fraction = 1.0 if rng.random() < settings.whole else np.exp(rng.uniform(np.log(settings.smallest_window), 0))
    zoom = np.exp(rng.uniform(-1, 1) * settings.zoom_change * np.array([-0.5, 0.5]))
    widths = np.minimum(largest * fraction * zoom, largest)
    sizes = np.stack([widths, widths / aspect], 1)
    if focus is None:
        focus = (rng.uniform(0, size[1]), rng.uniform(0, size[0]))
    middle = np.array(focus) + rng.normal(0, 0.2, 2) * sizes[0]
    heading = rng.uniform(-1, 1, 2) * settings.slide * sizes[0] / 2
    centres = np.stack([middle - heading, middle + heading])
    centres = np.clip(centres, sizes / 2, np.array([size[1], size[0]]) - sizes / 2)
    reach = settings.rotation_deg if rng.random() < settings.rotate else settings.tremble_deg
    return CameraPath(centres, sizes, rng.uniform(-reach, reach, 2), -1.0 if rng.random() < settings.flip else 1.0)


@dataclass(frozen=True)
class Wave:
    """A non-rigid sway: rows shift sideways and columns up and down by a sine, as legs and necks do.

    amplitude_px and length_px in output pixels; phase turns by `turns` full turns over the clip.
    """

    amplitude_px: tuple[float, float]
    length_px: tuple[float, float]
    phase: tuple[float, float]
    turns: float


@dataclass(frozen=True)
class ObjectPath:
    """A pasted object: position (x, y) at time `meeting`, velocity and acceleration in pixels per clip and its square;
    long side in pixels at time 0 and 1, angle and shear likewise; `mirrored` is -1 or 1.
    """

    position: NDArray[np.float64]
    velocity: NDArray[np.float64]
    acceleration: NDArray[np.float64]
    meeting: float
    long_px: NDArray[np.float64]
    angles_deg: NDArray[np.float64]
    shears: NDArray[np.float64]
    stretch: float
    mirrored: float
    wave: Wave | None

    def centre(self, time: float) -> NDArray[np.float64]:
        since = time - self.meeting
        return np.asarray(self.position + self.velocity * since + self.acceleration * since**2 / 2)


def object_pose(path: ObjectPath, size: tuple[int, int], time: float) -> Affine:
    """Cut-out of `size` (height, width) to output frame."""
    scale = float(_between(path.long_px, time)) / max(size)
    shear = np.array([[1.0, float(_between(path.shears, time))], [0.0, 1.0]])
    stretch = np.diag([path.mirrored * scale * path.stretch, scale / path.stretch])
    linear = _rotation(float(_between(path.angles_deg, time))) @ shear @ stretch
    return _about(linear, np.array([size[1] / 2, size[0] / 2]), path.centre(time))


def _between(ends: NDArray[np.float64], time: float) -> NDArray[np.float64]:
    return np.asarray(ends[0] + (ends[1] - ends[0]) * time)


def _rotation(angle_deg: float) -> NDArray[np.float64]:
    c, s = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.array([[c, -s], [s, c]])


def _about(linear: NDArray[np.float64], source: object, target: object) -> Affine:
    """The affine map with `linear` part that takes the point `source` to `target`, both measured from the corner."""
    source, target = np.asarray(source) - 0.5, np.asarray(target) - 0.5
    return np.column_stack([linear, target - linear @ source])
