"""Swin transformer (Liu et al., ICCV 2021), T to L, in the key layout of the published Mask2Former checkpoints.

Maps are kept as [B, H, W, C]. Height and width are plain numbers while tracing; the batch stays symbolic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.layers import Block, GeluFeedForward

__all__ = ["Swin", "SwinSettings"]

PATCH = 4
HIDDEN = -100.0
"""Added to the attention logits of pixels that only became neighbours by the cyclic shift."""


@dataclass(frozen=True)
class SwinSettings:
    """embed_dim: channels at stride 4, doubled at every stage. window: side of an attention window, in tokens.

    drop_path: stochastic depth, in training only: the share of images that skip a residual branch, growing from 0 in
    the first block to this in the last; published are 0.2 for T, 0.3 for S to L.
    """

    kind: Literal["swin"] = "swin"
    embed_dim: int = 96
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: int = 4
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @property
    def channels(self) -> dict[str, int]:
        return {f"res{i + 2}": self.embed_dim * 2**i for i in range(4)}


class PatchEmbed(nn.Module):
    """Tokens [B, H/4, W/4, C] of 4x4 pixels; images are zero-padded right and bottom to whole patches."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, PATCH)
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        patches = self.proj(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))
        out: Tensor = self.norm(patches.permute(0, 2, 3, 1))
        return out


class WindowAttention(nn.Module):
    """Multi-head attention inside each window, with a learned bias by relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """`windows` [B, N, L, C] of L tokens each; `mask` [N, 1, L, L] is added to the logits."""
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5).unbind(0)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + self._bias()
        if mask is not None:
            logits = logits + mask.to(logits.dtype)
        attended = logits.softmax(dim=-1) @ v
        out: Tensor = self.proj(attended.transpose(2, 3).flatten(3))
        return out

    def _bias(self) -> Tensor:
        """Bias [heads, L, L] of every token pair."""
        tokens = self.relative_position_index.shape[0]
        rows = self.relative_position_bias_table.index_select(0, self.relative_position_index.flatten())
        bias: Tensor = rows.unflatten(0, (tokens, tokens)).permute(2, 0, 1)
        return bias


class SwinBlock(Block):
    """Window attention and feed-forward, pre-norm; every second block shifts its windows by half their side."""

    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: int, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = GeluFeedForward(dim, mlp_ratio * dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """`x` [B, H, W, C]; `mask` is the stage's shift mask, which unshifted blocks do not need."""
        x = x + self._dropped(self._attended(self.norm1(x), mask))
        return x + self._dropped(self.mlp(self.norm2(x)))

    def _dropped(self, branch: Tensor) -> Tensor:
        """In training `branch` [B, H, W, C] with some images' share at zero, the others' larger to the same mean."""
        if not self.training or not self.drop_path:
            return branch
        kept = 1 - self.drop_path
        return branch * branch.new_empty(len(branch), 1, 1, 1).bernoulli_(kept).div_(kept)

    def _attended(self, x: Tensor, mask: Tensor) -> Tensor:
        """Padding comes after the norm: padded tokens are exact zeros, not normalised ones."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        padded_height, padded_width = x.shape[1:3]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(to_windows(x, self.window), mask if self.shift else None)
        x = from_windows(windows, self.window, padded_height, padded_width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Half the resolution, twice the channels: 2x2 neighbours side by side, normalised, projected."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        corners = (x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2])
        out: Tensor = self.reduction(self.norm(torch.cat(corners, dim=-1)))
        return out


class Stage(nn.Module):
    def __init__(self, settings: SwinSettings, index: int) -> None:
        super().__init__()
        dim, window = settings.embed_dim * 2**index, settings.window
        first, blocks = sum(settings.depths[:index]), sum(settings.depths)
        self.window = window
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                settings.heads[index],
                window,
                shift=i % 2 * (window // 2),
                mlp_ratio=settings.mlp_ratio,
                drop_path=settings.drop_path * (first + i) / max(blocks - 1, 1),
            )
            for i in range(settings.depths[index])
        )
        self.downsample = PatchMerging(dim) if index < 3 else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The stage's map [B, H, W, C], not yet normalised, and what the next stage goes on from."""
        height, width = x.shape[1:3]
        mask = shift_mask(height, width, self.window, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x, self.downsample(x)


class Swin(nn.Module):
    """Maps res2..res5 at strides 4, 8, 16, 32 of normalised RGB images [B, 3, H, W], one layer norm for each map."""

    def __init__(self, settings: SwinSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or SwinSettings()
        self.patch_embed = PatchEmbed(self.settings.embed_dim)
        self.layers = nn.ModuleList(Stage(self.settings, i) for i in range(4))
        for i, channels in enumerate(self.settings.channels.values()):
            self.add_module(f"norm{i}", nn.LayerNorm(channels))
        self.apply(_init)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.patch_embed(images)
        maps = {}
        for i, stage in enumerate(self.layers):
            reached, x = stage(x)
            maps[f"res{i + 2}"] = self.get_submodule(f"norm{i}")(reached).permute(0, 3, 1, 2).contiguous()
        return maps


def to_windows(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] -> [B, N, window * window, C], windows and their tokens in row order."""
    split: Tensor = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))
    return split.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """[B, N, window * window, C] -> [B, height, width, C]."""
    x: Tensor = windows.unflatten(2, (window, window)).unflatten(1, (height // window, width // window))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of tokens, int64 [window^2, window^2]."""
    place = torch.arange(window)
    rows, cols = place.repeat_interleave(window), place.repeat(window)
    down = rows[:, None] - rows[None, :] + window - 1
    right = cols[:, None] - cols[None, :] + window - 1
    return down * (2 * window - 1) + right


def shift_mask(height: int, width: int, window: int, device: torch.device) -> Tensor:
    """0 where two tokens of a shifted window were neighbours before the shift, else HIDDEN; [N, 1, L, L].

    The windows are those of the padded map, even if the map is smaller than one window.
    """
    rows = _regions(height + -height % window, window, device)
    cols = _regions(width + -width % window, window, device)
    regions = 3 * rows[:, None] + cols[None, :]
    of_token = to_windows(regions[None, :, :, None], window)[0, :, :, 0]
    apart = of_token[:, None, :] != of_token[:, :, None]
    return torch.where(apart, HIDDEN, 0.0).unsqueeze(1)


def _regions(size: int, window: int, device: torch.device) -> Tensor:
    """0 up to the last window, 1 in its first part, 2 in the part that the shift brought from the other side."""
    place = torch.arange(size, device=device)
    return (place >= size - window).to(torch.int32) + (place >= size - window // 2).to(torch.int32)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
