"""Feature pyramid (Lin et al., CVPR 2017) on any backbone, in detectron2's key layout."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["STRIDES", "FeaturePyramid", "PyramidRows", "pyramid_rows", "pyramid_sizes"]

STRIDES = (4, 8, 16, 32)
"""Of p2, p3, p4, p5."""

Size = tuple[int, int]


class PyramidRows(NamedTuple):
    """A pyramid as a table: rows [B, S, C], pixel by pixel, level by level; sizes: height and width of each level."""

    rows: Tensor
    sizes: tuple[Size, ...]


class FeaturePyramid(nn.Module):
    """Maps p2..p5 [B, dim, h, w] at strides 4, 8, 16, 32 of normalised RGB images [B, 3, H, W]."""

    def __init__(self, bottom_up: nn.Module, channels: dict[str, int], dim: int) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        for level in range(2, 6):
            self.add_module(f"fpn_lateral{level}", _conv(channels[f"res{level}"], dim, 1))
            self.add_module(f"fpn_output{level}", _conv(dim, dim, 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.top_down(self.bottom_up(images))

    def top_down(self, features: dict[str, Tensor]) -> list[Tensor]:
        """p2..p5 of the backbone's maps: each level adds what the next coarser one saw, its pixels doubled."""
        maps: list[Tensor] = []
        coarser: Tensor | None = None
        for level in range(5, 1, -1):
            x = self.get_submodule(f"fpn_lateral{level}")(features[f"res{level}"])
            if coarser is not None:
                x = x + F.interpolate(coarser, size=x.shape[-2:], mode="nearest")
            coarser = x
            maps.insert(0, self.get_submodule(f"fpn_output{level}")(x))
        return maps


def pyramid_rows(maps: list[Tensor]) -> PyramidRows:
    """The table of p2..p5, each [B, C, h, w]."""
    rows = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
    return PyramidRows(rows, tuple((level.shape[2], level.shape[3]) for level in maps))


def pyramid_sizes(height: int, width: int) -> tuple[Size, ...]:
    """Heights and widths of p2..p5 for an input of height x width, both divisible by 32."""
    return tuple((height // stride, width // stride) for stride in STRIDES)


def _conv(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
