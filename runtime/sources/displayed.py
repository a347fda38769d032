"""Decoded video frames as a screen shows them: RGB, upright, square pixels, 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from visrt.runtime.sources.high_dynamic_range import TRANSFERS, tone_mapped
from visrt.runtime.sources.source import Image
from visrt.runtime.sources.value_range import ValueRange

__all__ = ["TRANSPARENT", "Displayed", "Remark", "displayed_size", "on_white"]

Remark = Callable[[str], None]

BT2020 = 9

TRANSPARENT = "what is transparent is read as white"


def displayed_size(height: int, width: int, aspect: Fraction | None) -> tuple[int, int]:
    """(height, width) of a picture whose pixels are `aspect` times as wide as high, with square ones. It is enlarged
    along one side, so that nothing is lost."""
    if not aspect or aspect <= 0 or aspect == 1:
        return height, width
    return (height, max(1, round(width * aspect))) if aspect > 1 else (max(1, round(height / aspect)), width)


def on_white(rgba: NDArray[np.uint8]) -> Image:
    """RGB [H, W, 3] of `rgba` [H, W, 4]: what is transparent shows a white page."""
    alpha = rgba[..., 3:].astype(np.uint16)
    blended = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return blended.astype(np.uint8)


@dataclass
class Displayed:
    """Makes pictures of the decoded frames of one file, and says once what it changes.

    aspect: width of a stored pixel over its height, None where the file does not say. value_range: black and white of
    grey frames of 16 bits, None for those of the first.
    """

    aspect: Fraction | None
    remark: Remark
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        # One converter a source: FFmpeg 8's keeps megabytes of state, so one a frame would show in memory.
        self._converter = VideoReformatter()
        self._range = ValueRange(self.value_range, self.remark)
        self._display: tuple[float, NDArray[np.float64] | None] | None = None

    def picture(self, frame: Any) -> Image:
        """`frame` as RGB [H, W, 3]."""
        height, width = displayed_size(frame.height, frame.width, self.aspect)
        if (height, width) != (frame.height, frame.width):
            self.remark(
                f"its pixels are {float(self.aspect or 1):.3g} times as wide as high: frames of {frame.width}x"
                f"{frame.height} are read as {width}x{height} with square pixels, and masks and boxes are of that size"
            )
        if frame.interlaced_frame:
            self.remark("interlaced: both fields are read as one frame, so what moves has combs; deinterlace it first")
        return self._upright(self._rgb(frame, height, width), frame)

    def _rgb(self, frame: Any, height: int, width: int) -> Image:
        """`frame` as RGB [H, W, 3] at that size."""
        to = {"width": width, "height": height}
        transfer = TRANSFERS.get(int(frame.color_trc))
        if transfer is not None:
            self.remark(f"high dynamic range ({transfer.name}): tone-mapped to the range of a screen")
            codes: Any = self._converter.reformat(frame, format="rgb48le", **to).to_ndarray()
            return tone_mapped(codes, transfer)
        if int(frame.color_primaries) == BT2020:
            self.remark("colours of BT.2020 are read as those of BT.709, a little paler than a screen shows them")
        if frame.format.name.startswith("gray16"):
            grey = self._range.eight_bit(self._converter.reformat(frame, format="gray16le", **to).to_ndarray())
            return np.repeat(grey[..., None], 3, axis=2)
        if any(part.is_alpha for part in frame.format.components):
            rgba: Any = self._converter.reformat(frame, format="rgba", **to).to_ndarray()
            if rgba[..., 3].min() < 255:
                self.remark(TRANSPARENT)
            return on_white(rgba)
        return np.asarray(self._converter.reformat(frame, format="rgb24", **to).to_ndarray(), np.uint8)

    def _upright(self, image: Image, frame: Any) -> Image:
        """`image` turned and mirrored as the display matrix of `frame` says."""
        if frame.rotation % 90:
            self.remark(f"turned by {frame.rotation:.0f} degrees: only whole quarter turns are undone")
        if self._display is None or self._display[0] != frame.rotation:
            self._display = frame.rotation, _display_matrix(frame)
        matrix = self._display[1]
        if matrix is not None and np.linalg.det(matrix) < 0:
            return _mirrored(image, matrix)
        quarter_turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def _display_matrix(frame: Any) -> NDArray[np.float64] | None:
    """[2, 2]: a pixel at x, y is shown at (x, y) @ it.

    A frame that was asked for its side data refers to itself, and lives until Python looks for cycles.
    """
    for data in frame.side_data or ():
        if data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(data), "<i4").reshape(3, 3)[:2, :2].astype(float)
    return None


def _mirrored(image: Image, matrix: NDArray[np.float64]) -> Image:
    """`image` as a matrix that mirrors shows it, rounded to whole quarter turns."""
    if abs(matrix[0, 0]) < abs(matrix[0, 1]):
        image, across, down = image.transpose(1, 0, 2), matrix[1, 0], matrix[0, 1]
    else:
        across, down = matrix[0, 0], matrix[1, 1]
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
