"""Masks by convolutions whose weights are made for each object (CondInst, Tian et al., ECCV 2020).

The branch gives a few channels for the whole picture at stride 8. To them come two with the place of a pixel relative
to the object; three 1x1 convolutions, their weights made from the object, then give its mask. Published key layout.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["STRIDE", "MaskBranch", "aligned_bilinear", "dynamic_masks", "parameter_count", "placed"]

STRIDE = 8
"""Of the mask features; the masks leave at half of it."""

PLACE = 2
"""Channels of the relative place, x and y, before those of the branch."""

WIDTH = 8
"""Channels between the dynamic convolutions."""


class ConvNormRelu(nn.Sequential):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_uniform_(conv.weight, a=1)
        super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


class MaskBranch(nn.Module):
    """Mask features [B, features, H/8, W/8] of the maps p3, p4, p5 [B, dim, h, w]."""

    def __init__(self, dim: int, channels: int, convolutions: int, features: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList(ConvNormRelu(dim, channels) for _ in range(3))
        tower: list[nn.Module] = [ConvNormRelu(channels, channels) for _ in range(convolutions)]
        self.tower = nn.Sequential(*tower, nn.Conv2d(channels, features, 1))

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.refine[0](maps[0])
        for i in (1, 2):
            x = x + aligned_bilinear(self.refine[i](maps[i]), 2**i)
        out: Tensor = self.tower(x)
        return out


def aligned_bilinear(x: Tensor, factor: int) -> Tensor:
    """`x` [..., h, w] enlarged by a whole `factor`: pixel k of the input becomes pixel factor * k + factor // 2.

    Between these it is bilinear, beyond them constant. One product an axis, whose sizes are known to every engine.
    """
    rows, columns = (torch.tensor(_enlarging(size, factor), dtype=x.dtype, device=x.device) for size in x.shape[-2:])
    return rows @ (x @ columns.transpose(0, 1))


@lru_cache(maxsize=32)
def _enlarging(size: int, factor: int) -> list[list[float]]:
    """Weights [factor * size, size] of `aligned_bilinear` along one axis."""
    weights = [[0.0] * size for _ in range(factor * size)]
    for pixel, line in enumerate(weights):
        place = min(max((pixel - factor // 2) / factor, 0.0), size - 1.0)
        low = min(int(place), size - 1)
        line[low] += 1 - (place - low)
        line[min(low + 1, size - 1)] += place - low
    return weights


def parameter_count(features: int) -> int:
    """Weights and biases of one object's three convolutions: 169 for 8 mask features."""
    return sum(a * b + b for a, b in pairwise(_widths(features)))


def placed(parameters: Tensor, boxes: Tensor, scale_px: float) -> Tensor:
    """`parameters` [..., P] that know where their object is: the centre of its box [..., 4] is in the first bias.

    CondInst feeds (centre - place) / scale to the first convolution. That is linear, so what the centre adds is one
    number a channel, and what remains of the input is the same for all objects. Float32 in every precision.
    """
    parameters = parameters.float()
    features = (parameters.shape[-1] - parameter_count(0)) // WIDTH
    weights, _ = _layers(parameters, features)
    centres = (boxes[..., :2] + boxes[..., 2:]).float() / (2 * scale_px)
    added = (weights[0][..., :PLACE] @ centres.unsqueeze(-1)).squeeze(-1)
    start = sum(a * b for a, b in pairwise(_widths(features)))
    before, bias, after = parameters.split([start, WIDTH, parameters.shape[-1] - start - WIDTH], dim=-1)
    return torch.cat((before, bias + added, after), dim=-1)


def dynamic_masks(parameters: Tensor, features: Tensor, scale_px: float) -> Tensor:
    """Mask logits [..., N, H/4, W/4] of `placed` parameters [..., N, P] in mask features [..., F, H/8, W/8], of one
    picture or of several."""
    height, width = features.shape[-2:]
    places = (_places(height, width, features.device) / -scale_px).expand(*features.shape[:-3], PLACE, height * width)
    (first, second, third), biases = _layers(parameters, features.shape[-3])
    seen = torch.cat((places, features.flatten(-2)), dim=-2)
    # All objects see the same, so the first layer is one product for all of a picture's.
    x = (first.flatten(-3, -2) @ seen).unflatten(-2, (-1, WIDTH))
    x = second @ F.relu(x + biases[0].unsqueeze(-1))
    x = third @ F.relu(x + biases[1].unsqueeze(-1))
    logits = (x + biases[2].unsqueeze(-1)).squeeze(-2)
    return aligned_bilinear(logits.unflatten(-1, (height, width)), STRIDE // 4)


def _widths(features: int) -> tuple[int, ...]:
    """Channels before and after each of the three convolutions."""
    return PLACE + features, WIDTH, WIDTH, 1


def _layers(parameters: Tensor, features: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights [..., out, in] and biases [..., out] in `parameters` [..., P]: first all weights, then all biases."""
    widths = list(pairwise(_widths(features)))
    parts = parameters.split([a * b for a, b in widths] + [b for _, b in widths], dim=-1)
    weights = [part.unflatten(-1, (b, a)) for part, (a, b) in zip(parts, widths, strict=False)]
    return weights, list(parts[len(widths) :])


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """x and y [2, h * w] in pixels of the picture that each pixel of the mask features stands for."""
    y, x = (torch.arange(size, dtype=torch.float32, device=device) * STRIDE + STRIDE // 2 for size in (height, width))
    return torch.stack((x.repeat(height), y.repeat_interleave(width)))
