"""Pillow's bilinear resize of bytes as matrix products, to the last bit, so that the engine can do it on the device.

Pillow resizes rows, rounds to bytes, then columns, and rounds again. Its weights are integers of 22 bits after the
point. A float32 product of such integers is exact while the sums stay below 2^24, so the weights are split into a high
and a low half of 11 bits, which TF32 holds exactly too, and put together again as integers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from visrt.runtime.errors import UsageError
from visrt.runtime.image import Letterbox

__all__ = ["SHRINK_MAX", "SourceResize", "pillow_weights"]

POINT = 22
HALF_POINT = 11

SHRINK_MAX = 16
"""Beyond it a sum over the pixels of one filter could leave the 24 bits that float32 holds exactly."""


def pillow_weights(size: int, new_size: int) -> NDArray[np.int64]:
    """Weights [new_size, size] of Pillow's triangle filter along one axis, in units of 2^-22; rows sum to about 1.

    In Pillow's order of operations: in the last bit, a division is not the product with the inverse.
    """
    scale = size / new_size
    support = max(scale, 1.0)
    weights = np.zeros((new_size, size))
    for out in range(new_size):
        centre = (out + 0.5) * scale
        first = max(int(centre - support + 0.5), 0)
        last = min(int(centre + support + 0.5), size)
        taps = np.maximum(0.0, 1.0 - np.abs((np.arange(first, last) - centre + 0.5) * (1.0 / support)))
        weights[out, first:last] = taps / sum(taps.tolist())
    return np.floor(weights * 2.0**POINT + 0.5).astype(np.int64)


class SourceResize(nn.Module):
    """Frames of one size, fitted into the network input as `pillow_bilinear` and `network_input` do."""

    def __init__(self, fit: Letterbox) -> None:
        super().__init__()
        for size, new_size in zip(fit.source, fit.valid, strict=True):
            if size > SHRINK_MAX * new_size:
                raise UsageError(
                    f"source {fit.source[0]}x{fit.source[1]} would shrink {size} to {new_size} pixels; at most by "
                    f"{SHRINK_MAX} on the device: choose a larger input, or leave out the source size"
                )
        self.fit = fit
        self.rows = _Pass(fit.source[0], fit.valid[0])
        self.columns = _Pass(fit.source[1], fit.valid[1])

    def forward(self, pixels: Tensor) -> Tensor:
        """Whole grey levels [B, 3, height, width] of the network input from those of the source [B, 3, H, W]."""
        narrow = self.columns(pixels)
        fitted = self.rows(narrow.transpose(2, 3)).transpose(2, 3)
        (height, width), (valid_height, valid_width) = self.fit.network, self.fit.valid
        return nn.functional.pad(fitted, (0, width - valid_width, 0, height - valid_height))


class _Pass(nn.Module):
    """One axis of the resize, the last of the tensor; nothing where the size stays."""

    high: Tensor
    low: Tensor

    def __init__(self, size: int, new_size: int) -> None:
        super().__init__()
        self.same = size == new_size
        weights = torch.from_numpy(pillow_weights(size, new_size).T.copy())
        self.register_buffer("high", (weights >> HALF_POINT).to(torch.float32))
        self.register_buffer("low", (weights & (2**HALF_POINT - 1)).to(torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        if self.same:
            return x
        high, low = (x @ self.high).to(torch.int32), (x @ self.low).to(torch.int32)
        total = high * 2**HALF_POINT + low + 2 ** (POINT - 1)
        return torch.div(total, 2**POINT, rounding_mode="trunc").to(torch.float32)
