"""The multi-scale deformable attention pixel decoder of Mask2Former (attention: Zhu et al., ICLR 2021).

A bilinear sample is a weighted sum of four rows of the flattened map, so a level's samples are one weighted sum of
picked rows: the same as `grid_sample` with zero padding, but it exports without GridSample, which TensorRT 10.13 to
11.1 miscompiles silently inside this layer. Published key layout. Coordinates are float32 in every precision.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.layers import sine_position

__all__ = ["DeformableAttention", "DeformablePixelDecoder"]

LEVELS = ("res5", "res4", "res3")
POINTS = 4

Size = tuple[int, int]


class DeformableAttention(nn.Module):
    """Each token looks at a few points around its own place, on every level: equation 3 of Zhu et al."""

    def __init__(self, dim: int, heads: int, levels: int = 3, points: int = POINTS) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._init()

    def forward(self, query: Tensor, value: Tensor, places: Tensor, sizes: list[Size]) -> Tensor:
        """Attended values [B, S, C] for `query` [B, Q, C].

        `value` [B, S, C]: the levels of `sizes` (height, width), one after another. `places` float32 [Q, 2]: x, y of
        each query in 0..1 of the image.
        """
        offsets = self.sampling_offsets(query).float().unflatten(-1, (self.heads, self.levels, self.points, 2))
        weights = self.attention_weights(query).float().unflatten(-1, (self.heads, -1)).softmax(dim=-1)
        weights = weights.unflatten(-1, (self.levels, self.points))
        maps = self.value_proj(value).split([height * width for height, width in sizes], dim=1)
        samples = []
        for level, (height, width) in enumerate(sizes):
            size = torch.tensor([width, height], dtype=torch.float32, device=query.device)
            points = (places * size - 0.5)[:, None, None] + offsets[:, :, :, level]
            rows = maps[level].unflatten(1, (height, width)).unflatten(-1, (self.heads, -1))
            samples.append(sampled_sum(rows, points, weights[:, :, :, level]))
        out: Tensor = self.output_proj(reduce(torch.add, samples).flatten(2))
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


def sampled_sum(value: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum [B, Q, heads, D] of bilinear samples of one level; zero outside the map.

    `value` [B, H, W, heads, D]; `points` float32 [B, Q, heads, P, 2]: x, y in pixels, pixel centres at whole numbers;
    `weights` float32 [B, Q, heads, P].
    """
    height, width, heads = value.shape[1:4]
    # One zero pixel around the map: whatever lies outside is clamped to it, so no corner needs a mask.
    rows = F.pad(value, (0, 0, 0, 0, 1, 1, 1, 1)).flatten(0, 3)
    corner = points.floor()
    right, down = (points - corner).unbind(-1)
    x, y = corner.to(torch.int64).unbind(-1)
    first = _first_rows(value)[:, None, :, None]
    indices, shares = [], []
    for i, vertical in enumerate((1 - down, down)):
        line = (y + i).clamp(-1, height) + 1
        for j, horizontal in enumerate((1 - right, right)):
            column = (x + j).clamp(-1, width) + 1
            indices.append((line * (width + 2) + column) * heads + first)
            shares.append(weights * vertical * horizontal)
    return weighted_rows(rows, torch.cat(indices, dim=-1), torch.cat(shares, dim=-1).to(value.dtype))


def _first_rows(value: Tensor) -> Tensor:
    """Row of the first padded pixel of each image and head, int64 [B, heads]."""
    batch, height, width, heads = value.shape[:4]
    image = torch.arange(batch, device=value.device)[:, None] * ((height + 2) * (width + 2) * heads)
    return image + torch.arange(heads, device=value.device)


def weighted_rows(rows: Tensor, index: Tensor, share: Tensor) -> Tensor:
    """Sum [..., D] over P of the `rows` [R, D] picked by `index` [..., P], each times its `share` [..., P].

    An embedding bag never forms the picked rows, which makes it five times faster than `grid_sample` on a CPU. ONNX has
    no such operator: a traced graph gathers whole rows (axis 0; `torch.gather` is four times slower) and multiplies.
    Of eight such forms, a level at a time as one product is among the fastest in ONNX Runtime and smallest in
    TensorRT-RTX, at less than half the memory of all levels at once: `visrt.benchmarks.deformable_forms` measures it.
    """
    if torch.compiler.is_compiling():
        picked = rows.index_select(0, index.flatten()).unflatten(0, (-1, index.shape[-1]))
        summed = (share.flatten(0, -2).unsqueeze(1) @ picked).squeeze(1)
    else:
        summed = F.embedding_bag(index.flatten(0, -2), rows, per_sample_weights=share.flatten(0, -2), mode="sum")
    out: Tensor = summed.unflatten(0, index.shape[:-1])
    return out


class EncoderLayer(nn.Module):
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
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        fine, levels = self.maps(features)
        return self.mask_features(fine), levels

    def maps(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What the mask features are made of, [B, dim, H/4, W/4], and the maps at strides 32, 16, 8."""
        projected = [project(features[name]) for project, name in zip(self.input_proj, LEVELS, strict=True)]
        levels = self.transformer(projected)
        side = self.adapter_1(features["res2"])
        fine = side + F.interpolate(levels[-1], size=side.shape[-2:], mode="bilinear", align_corners=False)
        return F.relu(self.layer_1(fine)), levels
