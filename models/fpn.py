"""A light pixel decoder: feature pyramid (Lin et al., CVPR 2017) with global attention at stride 32.

For small networks, where six layers of deformable attention would cost ten times the backbone. Two transformer
layers on the coarsest map (60 tokens at 192x320) give every pixel the whole picture for nearly nothing.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.layers import Attention, Block, FeedForward, sine_position

__all__ = ["FpnPixelDecoder"]

LEVELS = ("res5", "res4", "res3")


class ConvNorm(nn.Module):
    """Convolution without bias, group norm over 32 groups, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.GroupNorm(32, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class GlobalLayer(Block):
    """Self-attention and feed-forward over all pixels of a small map [B, C, h, w]."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.self_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        placed = tokens + sine_position(height, width, self.dim, x.device).flatten(1).transpose(0, 1).to(x.dtype)
        tokens = self.feedforward(self.norm(tokens + self.self_attn(placed, placed, tokens)))
        out: Tensor = tokens.transpose(1, 2).unflatten(2, (height, width))
        return out


class FpnPixelDecoder(nn.Module):
    """Mask features [B, mask_dim, H/4, W/4] and maps [B, dim, h, w] at strides 32, 16, 8 from res2..res5."""

    def __init__(self, channels: dict[str, int], *, dim: int, mask_dim: int, heads: int, global_layers: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleDict({name: nn.Conv2d(channels[name], dim, 1) for name in (*LEVELS, "res2")})
        self.encoder = nn.ModuleList(GlobalLayer(dim, heads) for _ in range(global_layers))
        self.smooth = nn.ModuleDict({name: ConvNorm(dim, dim, 3) for name in LEVELS})
        self.stride4_depthwise = ConvNorm(dim, dim, 5, groups=dim)
        self.stride4_pointwise = ConvNorm(dim, dim, 1)
        self.mask_features = nn.Conv2d(dim, mask_dim, 1)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        fine, levels = self.maps(features)
        return self.mask_features(fine), levels

    def maps(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The map that gives the mask features, [B, dim, H/4, W/4], and the maps at strides 32, 16, 8."""
        x = self.lateral["res5"](features["res5"])
        for layer in self.encoder:
            x = layer(x)
        levels = [self.smooth["res5"](x)]
        for name in LEVELS[1:]:
            levels.append(self.smooth[name](self._merged(levels[-1], features[name], name)))
        fine = self.stride4_depthwise(self._merged(levels[-1], features["res2"], "res2"))
        return self.stride4_pointwise(fine), levels

    def _merged(self, coarse: Tensor, feature: Tensor, name: str) -> Tensor:
        side: Tensor = self.lateral[name](feature)
        return side + F.interpolate(coarse, size=side.shape[-2:], mode="bilinear", align_corners=False)
