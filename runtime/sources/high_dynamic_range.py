"""High dynamic range on a screen of standard range: PQ and HLG of BT.2100 to 8-bit BT.709, by tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.sources.source import Image

__all__ = ["TRANSFERS", "Transfer", "tone_mapped"]

Floats = NDArray[np.float32]

WHITE_NITS = 203.0
"""Diffuse white of BT.2408: what becomes white of a screen, before the curve."""

PEAK_NITS = 1000.0
"""What becomes the brightest: the peak that most of what is published is made for."""

KNEE = 0.6
"""Share of white below which light stays as it is."""

STEPS = 4096
"""Entries of the tables; 12 bits are what PQ is made for."""

BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
"""Of linear light, BT.2087."""


@dataclass(frozen=True)
class Transfer:
    """linear: light, 1 being diffuse white, of code values 0..1. system_gamma: exponent on the luminance of the scene
    that a display adds."""

    name: str
    linear: Callable[[Any], Any]
    system_gamma: float = 1.0


def pq(code: Any) -> Any:
    """SMPTE ST 2084: absolute, up to 10,000 nits."""
    root = np.power(code, 1 / 78.84375)
    nits = 10_000 * np.power(np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root), 1 / 0.1593017578125)
    return nits / WHITE_NITS


def hlg(code: Any) -> Any:
    """ARIB STD-B67: light of the scene, 1 at the peak of the display."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)


TRANSFERS = {16: Transfer("PQ", pq), 18: Transfer("HLG", hlg, system_gamma=1.2)}
"""By FFmpeg's number of the transfer characteristic."""


def tone_mapped(codes: NDArray[np.uint16], transfer: Transfer) -> Image:
    """8-bit RGB [H, W, 3] of BT.709 from 16-bit RGB `codes` [H, W, 3] of BT.2020.

    Light up to KNEE of white stays as it is, what is brighter is compressed, the brightest channel leading, so that
    hues stay. Channel by channel, which takes a quarter of the time.
    """
    linear = _linear(transfer.name)
    red, green, blue = (linear.take(codes[..., channel] >> 4) for channel in range(3))
    if transfer.system_gamma != 1:
        luminance = np.float32(0.2627) * red + np.float32(0.678) * green + np.float32(0.0593) * blue
        gain = np.power(np.maximum(luminance, 1e-6), transfer.system_gamma - 1) * np.float32(PEAK_NITS / WHITE_NITS)
        red, green, blue = red * gain, green * gain, blue * gain
    light = [of_red * red + of_green * green + of_blue * blue for of_red, of_green, of_blue in BT2020_TO_BT709]
    brightest = np.maximum(np.maximum(light[0], light[1]), light[2])
    index = np.minimum(brightest * np.float32(STEPS / MOST_LIGHT), STEPS - 1).clip(0).astype(np.uint16)
    scale = _compression().take(index) * np.float32(STEPS - 1)
    shown = np.empty(codes.shape, np.uint8)
    for channel, values in enumerate(light):
        values *= scale
        shown[..., channel] = _gamma().take(np.clip(values, 0, STEPS - 1).astype(np.uint16))
    return shown


MOST_LIGHT = 10_000 / WHITE_NITS
"""Light that a code can mean at most, in diffuse whites."""


@lru_cache(maxsize=1)
def _compression() -> Floats:
    """Light after the curve over light before it, by light from 0 to MOST_LIGHT. Slope one at the knee, one at the
    peak."""
    light = (np.arange(STEPS) + 0.5) * (MOST_LIGHT / STEPS)
    over = np.maximum(light - KNEE, 0) / (1 - KNEE)
    most = (PEAK_NITS / WHITE_NITS - KNEE) / (1 - KNEE)
    curved = KNEE + (1 - KNEE) * over * (1 + over / most**2) / (1 + over)
    table: Floats = (np.where(light > KNEE, curved, light) / light).astype(np.float32)
    return table


@lru_cache(maxsize=2)
def _linear(name: str) -> Floats:
    [transfer] = [one for one in TRANSFERS.values() if one.name == name]
    table: Floats = transfer.linear(np.linspace(0, 1, STEPS)).astype(np.float32)
    return table


@lru_cache(maxsize=1)
def _gamma() -> NDArray[np.uint8]:
    """8-bit sRGB of linear light 0..1."""
    light = np.linspace(0, 1, STEPS)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table: NDArray[np.uint8] = np.rint(255 * curve).astype(np.uint8)
    return table
