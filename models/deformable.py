"""The multi-scale deformable attention pixel decoder of Mask2Former (attention: Zhu et al., ICLR 2021).

A bilinear sample is a weighted sum of four rows of the flattened map, so a level's samples are one weighted sum of
picked rows: the same as `grid_sample` with zero padding, but it exports without GridSample, which TensorRT 10.13 to
11.1 miscompiles silently inside this layer. Published key layout. Coordinates are float32 in every precision, and in
training under autocast all of the decoder is, as in the official code.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.layers import Block, in_float32, sine_position

__all__ = ["DeformableAttention", "DeformablePixelDecoder"]

LEVELS = ("res5", "res4", "res3")
POINTS = 4
RIM = 2

Size = tuple[int, int]


class OffsetPlanes(nn.Linear):
    """Offsets [..., 2 * levels * heads * points] of [..., C]: all x, then all y, by level, head and point.

    The weights are kept in the published order (heads, levels, points, 2) and turned at each call: a traced graph folds
    that, and the offsets are many times as large.
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__(dim, heads * levels * points * 2)
        self.order = (heads, levels, points, 2)

    def forward(self, query: Tensor) -> Tensor:
        weight = self.weight.unflatten(0, self.order).permute(3, 1, 0, 2, 4).flatten(0, 3)
        bias = self.bias.unflatten(0, self.order).permute(3, 1, 0, 2).flatten()
        return F.linear(query, weight, bias)


class DeformableAttention(nn.Module):
    """Each token looks at a few points around its own place, on every level: equation 3 of Zhu et al."""

    def __init__(self, dim: int, heads: int, levels: int = 3, points: int = POINTS) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = OffsetPlanes(dim, heads, levels, points)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init()

    def forward(self, query: Tensor, value: Tensor, places: Tensor, sizes: list[Size]) -> Tensor:
        """Attended values [B, S, C] for `query` [B, Q, C].

        `value` [B, S, C]: the levels of `sizes` (height, width), one after another. `places` float32 [Q, 2]: x, y of
        each query in 0..1 of the image.
        """
        maps = self.value_proj(value).split([height * width for height, width in sizes], dim=1)
        samples = []
        for size, level, x, y, weights in zip(
            sizes, maps, *self._offsets(query), self._weights(query).unbind(0), strict=True
        ):
            rows = level.unflatten(1, size).unflatten(-1, (self.heads, -1))
            column, line = (places * torch.tensor(size[::-1], device=query.device) - 0.5)[:, :, None, None].unbind(1)
            samples.append(sampled_sum(rows, column + x, line + y, weights))
        out: Tensor = self.output_proj(reduce(torch.add, samples).flatten(2))
        return out

    def _offsets(self, query: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Of each level, float32 [B, Q, heads, points] in pixels: along x, along y."""
        each = self.sampling_offsets(query).float().chunk(2 * self.levels, dim=-1)
        planes = [plane.unflatten(-1, (self.heads, self.points)) for plane in each]
        return tuple(planes[: self.levels]), tuple(planes[self.levels :])

    def _weights(self, query: Tensor) -> Tensor:
        """Float32 [levels, B, Q, heads, points]: of each head they add up to one."""
        weights = self.attention_weights(query).float().unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        out: Tensor = weights.unflatten(-1, (self.levels, self.points)).permute(3, 0, 1, 2, 4)
        return out

    def _init(self) -> None:
        """Heads look in different directions, points at growing distance, all alike at first."""
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angle.cos(), angle.sin()), dim=-1)
        direction = direction / direction.abs().amax(dim=-1, keepdim=True)
        distance = torch.arange(1, self.points + 1)
        offsets = direction[:, None, None] * distance[:, None].expand(self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())


def sampled_sum(value: Tensor, x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum [B, Q, heads, D] of bilinear samples of one level; zero outside the map.

    `value` [B, H, W, heads, D]; `x`, `y` float32 [B, Q, heads, P] in pixels, pixel centres at whole numbers; `weights`
    float32 [B, Q, heads, P].
    """
    height, width, heads = value.shape[1:4]
    # Two zero pixels around the map: a point outside is moved onto them, so that no corner needs a mask.
    rows = F.pad(value, (0, 0, 0, 0, *[RIM] * 4)).flatten(0, 3)
    line = (width + 2 * RIM) * heads
    left, top = x.floor(), y.floor()
    # Whole numbers are clamped, as these survive what is not finite.
    column, row = left.to(torch.int32).clamp(-RIM, width), top.to(torch.int32).clamp(-RIM, height)
    first = column * heads + row * line + _first_rows(value, x.shape[-1])
    lower = weights * (y - top)
    upper = weights - lower
    lower_right, upper_right = lower * (x - left), upper * (x - left)
    index = _side_by_side(first, first + heads, first + line, first + (line + heads))
    share = _side_by_side(upper - upper_right, upper_right, lower - lower_right, lower_right)
    return weighted_rows(rows, index, share.to(value.dtype))


def _first_rows(value: Tensor, points: int) -> Tensor:
    """Row of the first pixel of each image and head, int32 [B, 1, heads, points], counted with the rim.

    Repeated for each point, as adding it spread over the last axis would take ten times as long in ONNX Runtime.
    """
    batch, height, width, heads = value.shape[:4]
    image = torch.arange(batch, dtype=torch.int32, device=value.device)
    start = RIM * (width + 2 * RIM + 1) * heads
    head = torch.arange(heads, dtype=torch.int32, device=value.device) + start
    first = image[:, None] * ((height + 2 * RIM) * (width + 2 * RIM) * heads) + head
    return first[:, None, :, None].repeat(1, 1, 1, points)


def _side_by_side(*corners: Tensor) -> Tensor:
    """[..., P] each -> [..., 4 P]: the corners of the first point, of the second... As a transpose, which ONNX Runtime
    does far faster than joining short rows."""
    shape = corners[0].shape
    out: Tensor = torch.stack(corners).flatten(1).transpose(0, 1).reshape(*shape[:-1], len(corners) * shape[-1])
    return out


def weighted_rows(rows: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """Sum [..., D] over P of the `rows` [R, D] picked by `index` [..., P], each times its `share` [..., P].

    An embedding bag never forms the picked rows, which makes it five times faster than `grid_sample` on a CPU. ONNX has
    no such operator: a traced graph gathers whole rows (axis 0; `torch.gather` is four times slower) and multiplies.
    A level at a time as one product, x and y apart, is the fastest of nine such forms in ONNX Runtime and among the
    smallest in TensorRT-RTX, at half the memory of all levels at once: measured by
    `visrt.benchmarks.experiments.deformable_forms`.
    """
    if torch.compiler.is_compiling():
        picked = rows.index_select(0, index.flatten()).unflatten(0, (-1, index.shape[-1]))
        summed = (share.flatten(0, -2).unsqueeze(1) @ picked).squeeze(1)
    else:
        summed = F.embedding_bag(index.flatten(0, -2), rows, per_sample_weights=share.flatten(0, -2), mode="sum")
    out: Tensor = summed.unflatten(0, index.shape[:-1])
    return out


class EncoderLayer(Block):
    """Deformable attention and feed-forward over the tokens of all levels, post-norm."""

    def __init__(self, dim: int, heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(dim, heads)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, places: Tensor, sizes: list[Size]) -> Tensor:
        x = self.norm1(x + self.self_attn(x + position, x, places, sizes))
        out: Tensor = self.norm2(x + self.linear2(F.relu(self.linear1(x))))
        return out


class Encoder(nn.Module):
    def __init__(self, layers: int, dim: int, heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, feedforward_dim) for _ in range(layers))


class MultiScaleTransformer(nn.Module):
    """Exchange between three maps: each token sees a few points of every level."""

    def __init__(self, layers: int, dim: int, heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.randn(3, dim))
        self.encoder = Encoder(layers, dim, heads, feedforward_dim)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps [B, C, h, w] of the same sizes as `maps`."""
        sizes: list[Size] = [(level.shape[2], level.shape[3]) for level in maps]
        x = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        position = torch.cat([self._position(i, size) for i, size in enumerate(sizes)])
        places = torch.cat([pixel_centres(size, x.device) for size in sizes])
        for layer in self.encoder.layers:
            x = layer(x, position, places, sizes)
        levels = x.split([height * width for height, width in sizes], dim=1)
        return [level.transpose(1, 2).unflatten(2, size) for level, size in zip(levels, sizes, strict=True)]

    def _position(self, level: int, size: Size) -> Tensor:
        """Sine position plus level embedding [h * w, C]."""
        embed = self.level_embed[level]
        sine = sine_position(*size, embed.shape[0], embed.device).flatten(1).transpose(0, 1)
        return sine.to(embed.dtype) + embed


def pixel_centres(size: Size, device: torch.device) -> Tensor:
    """x, y of every pixel centre in 0..1, float32 [h * w, 2], row by row."""
    height, width = size
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
    return torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=-1)


class ConvNorm(nn.Conv2d):
    """Convolution without bias, then group norm, no activation. The norm's keys lie below the convolution's."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.GroupNorm(32, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(super().forward(x))
        return out


class Float32Conv(nn.Conv2d):
    """A convolution in float32, also under autocast."""

    forward = in_float32(nn.Conv2d.forward)


class DeformablePixelDecoder(nn.Module):
    """Mask features [B, mask_dim, H/4, W/4] and maps [B, dim, h, w] at strides 32, 16, 8 from res2..res5."""

    def __init__(
        self, channels: dict[str, int], *, dim: int, mask_dim: int, heads: int, layers: int, feedforward_dim: int
    ) -> None:
        super().__init__()
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[name], dim, 1), nn.GroupNorm(32, dim)) for name in LEVELS
        )
        self.transformer = MultiScaleTransformer(layers, dim, heads, feedforward_dim)
        self.adapter_1 = ConvNorm(channels["res2"], dim, 1)
        self.layer_1 = ConvNorm(dim, dim, 3)
        self.mask_features = Float32Conv(dim, mask_dim, 1)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        fine, levels = self.maps(features)
        return self.mask_features(fine), levels

    @in_float32
    def maps(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The map that mask features are made of, [B, dim, H/4, W/4], and the maps at strides 32, 16, 8."""
        projected = [project(features[name]) for project, name in zip(self.input_proj, LEVELS, strict=True)]
        levels = self.transformer(projected)
        side = self.adapter_1(features["res2"])
        fine = side + F.interpolate(levels[-1], size=side.shape[-2:], mode="bilinear", align_corners=False)
        return F.relu(self.layer_1(fine)), levels
