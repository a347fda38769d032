"""Colour, sharpness and noise: how a camera and a codec change what the pictures look like."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["ColourChange", "LookSettings", "Wear", "colour_change", "wear"]

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class LookSettings:
    """Ranges are +- around no change. brightness: fraction of full scale; contrast, saturation, gamma: log factors;
    hue_deg: rotation of the colour circle; tint: log factor of each channel. flicker: fraction of the clip's
    brightness range by which single frames differ. The rest are probabilities for a clip: grey; blurred (Gaussian,
    sigma up to blur_px); motion_blur (up to motion_blur_px long); coarse (shrunk up to 2.5 times and enlarged
    again); noisy (sigma up to noise of 255); jpeg (quality 25..80).
    """

    brightness: float = 0.1
    contrast: float = 0.2
    saturation: float = 0.35
    gamma: float = 0.25
    hue_deg: float = 10.0
    tint: float = 0.06
    flicker: float = 0.15
    grey: float = 0.03
    blurred: float = 0.15
    blur_px: float = 1.2
    motion_blur: float = 0.1
    motion_blur_px: float = 7.0
    coarse: float = 0.15
    noisy: float = 0.15
    noise: float = 10.0
    jpeg: float = 0.25


@dataclass(frozen=True)
class ColourChange:
    """table: uint8 [256, 3] for each channel; mixing: float32 [3, 3] applied before it, or nothing."""

    table: NDArray[np.uint8]
    mixing: NDArray[np.float32]

    def __call__(self, rgb: Image) -> Image:
        if np.array_equal(self.mixing, np.eye(3)) and np.array_equal(self.table, np.tile(np.arange(256)[:, None], 3)):
            return rgb
        return np.asarray(cv2.LUT(np.asarray(cv2.transform(rgb, self.mixing)), self.table[None]))


def colour_change(settings: LookSettings, strength: float, rng: np.random.Generator) -> ColourChange:
    """A random change, `strength` times the ranges of `settings`."""
    draw = rng.uniform(-strength, strength, 8)
    gains = np.exp(draw[3:6] * settings.tint + draw[1] * settings.contrast)
    level = np.linspace(0, 1, 256)[:, None] ** np.exp(draw[2] * settings.gamma)
    table = ((level - 0.5) * gains + 0.5 + draw[0] * settings.brightness) * 255
    mixing = _saturation_and_hue(np.exp(draw[6] * settings.saturation), draw[7] * settings.hue_deg)
    return ColourChange(table.clip(0, 255).round().astype(np.uint8), mixing)


GREY = np.array([0.299, 0.587, 0.114])


def _saturation_and_hue(saturation: float, hue_deg: float) -> NDArray[np.float32]:
    """Scale and turn the colour part around the grey axis."""
    c, s = np.cos(np.radians(hue_deg)), np.sin(np.radians(hue_deg))
    axis = np.ones(3) / np.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    turn = c * np.eye(3) + s * cross + (1 - c) * np.outer(axis, axis)
    luma = np.tile(GREY, (3, 1))
    return np.asarray(luma + saturation * (turn - luma @ turn), np.float32)


@dataclass(frozen=True)
class Wear:
    """The degradations of one clip; zeros mean none. seed: of the noise. flicker: brightness factor of each frame."""

    grey: bool
    blur_px: float
    kernel: NDArray[np.float32] | None
    shrink: float
    noise: float
    jpeg_quality: int
    flicker: NDArray[np.float64]
    seed: int

    def __call__(self, rgb: Image, t: int) -> Image:
        """Frame number `t` as the viewer gets it."""
        if self.grey:
            rgb = np.asarray(cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB))
        if self.shrink:
            small = cv2.resize(rgb, None, fx=1 / self.shrink, fy=1 / self.shrink, interpolation=cv2.INTER_AREA)
            rgb = np.asarray(cv2.resize(small, rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR))
        if self.blur_px:
            rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), self.blur_px))
        if self.kernel is not None:
            rgb = np.asarray(cv2.filter2D(rgb, -1, self.kernel))
        rgb = np.asarray(cv2.convertScaleAbs(rgb, alpha=float(self.flicker[t])))
        if self.noise:
            rng = np.random.default_rng([self.seed, t])
            grain = rng.standard_normal(rgb.shape, dtype=np.float32) * np.float32(self.noise)
            rgb = (rgb + grain).clip(0, 255).astype(np.uint8)
        if self.jpeg_quality:
            rgb = _jpeg(rgb, self.jpeg_quality)
        return rgb


def wear(frames: int, settings: LookSettings, rng: np.random.Generator) -> Wear:
    """Draws the degradations of a clip of `frames` frames."""
    happens = rng.random(6)
    return Wear(
        grey=bool(happens[0] < settings.grey),
        blur_px=float(rng.uniform(0.4, settings.blur_px)) if happens[1] < settings.blurred else 0.0,
        kernel=_streak(settings.motion_blur_px, rng) if happens[2] < settings.motion_blur else None,
        shrink=float(rng.uniform(1.3, 2.5)) if happens[3] < settings.coarse else 0.0,
        noise=float(rng.uniform(1, settings.noise)) if happens[4] < settings.noisy else 0.0,
        jpeg_quality=int(rng.integers(25, 81)) if happens[5] < settings.jpeg else 0,
        flicker=np.exp(rng.uniform(-1, 1, frames) * settings.flicker * settings.brightness),
        seed=int(rng.integers(2**31)),
    )


def _streak(longest_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A line through the centre of an odd kernel, sum 1."""
    length, angle = rng.uniform(2, longest_px), rng.uniform(0, np.pi)
    side = int(np.ceil(length)) | 1
    kernel = np.zeros((side, side), np.float32)
    reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
    ends = (side // 2 + np.stack([-reach, reach])).round().astype(int)
    cv2.line(kernel, [int(n) for n in ends[0]], [int(n) for n in ends[1]], 1.0)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _jpeg(rgb: Image, quality: int) -> Image:
    """Encoded and decoded again; the channel order does not matter for the kind of damage."""
    _, code = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
