"""Numbers of more than 8 bits as a screen shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Numbers", "ValueRange"]

Numbers = NDArray[Any]


class ValueRange:
    """What is black and white in the pictures of one source: the range that is given, or that of the first picture.

    `remark` is called once, with the range and what was made of it.
    """

    def __init__(self, given: tuple[float, float] | None, remark: Callable[[str], None]) -> None:
        self._range, self._remark, self._said = given, remark, False

    def eight_bit(self, values: Numbers) -> NDArray[np.uint8]:
        """`values` of any shape from black, 0, to white, 255. What is NaN or infinite is black."""
        if values.dtype == np.uint8:
            return values
        found = np.where(np.isfinite(values), values, 0) if values.dtype.kind == "f" else values
        if self._range is None:
            self._range = _range_of(found)
        low, high = self._range
        if not self._said:
            self._said = True
            self._remark(
                f"values of {values.dtype.name}, {found.min():g} to {found.max():g} in the first picture: {low:g} is "
                f"read as black, {high:g} as white; a value range that is given takes the place of this"
            )
        scaled = (found.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        return (scaled.clip(0, 255) + np.float32(0.5)).astype(np.uint8)


def _range_of(values: Numbers) -> tuple[float, float]:
    """What is black and white. Whole numbers: 0 and the most that 8, 10, 12, 14 or 16 bits hold, what fits; floats: 0
    and 1, or 0 and 255. Where the values lie outside, or fill less than a tenth of it, their own range."""
    least, most = float(values.min()), float(values.max())
    ends = (1, 255) if values.dtype.kind == "f" else tuple(2**bits - 1 for bits in (8, 10, 12, 14, 16))
    high = next((float(end) for end in ends if most <= end), None)
    if high is not None and least >= 0 and (most - least > high / 10 or most == least):
        return 0.0, high
    return (least, most) if most > least else (least, least + 1)
