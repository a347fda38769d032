"""The plain vision transformer of DINOv2 (Oquab et al., TMLR 2024) and DINOv3 (Simeoni et al., 2025), piece by piece.

Tokens are a class token, registers and the patches of the image row by row. DINOv2 adds a table of positions to the
patches; DINOv3 rotates their queries and keys in each attention instead. Parameter names are those of transformers'
EoMT, where query, key and value projections stand apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.layers import Block, GeluFeedForward, split_heads

__all__ = ["ROTARY_BASE", "Embeddings", "Grid", "Rotation", "VitBlock", "VitSettings"]

ROTARY_BASE = 100.0
TOKEN_STD = 0.02
"""Of class token, registers and position table before training."""

Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, kw_only=True)
class VitSettings:
    """The transformer. The defaults are ViT-S with DINOv2's positions, trained at 640 x 640.

    patch: side of a patch in pixels. feedforward_dim: hidden channels of the feed-forward networks; with "swiglu", as
    in ViT-g, of the gate too. positions: "table", or "rotary" as in DINOv3. table_side: the table holds the
    positions of a square of so many patches a side; 0 without a table. norm_eps: of the layer norms; 1e-5 in DINOv3.
    """

    dim: Count = 384
    blocks: Count = 12
    heads: Count = 6
    feedforward_dim: Count = 1536
    feedforward: Literal["mlp", "swiglu"] = "mlp"
    patch: Count = 16
    registers: Annotated[int, Field(ge=0)] = 4
    positions: Literal["table", "rotary"] = "table"
    table_side: Annotated[int, Field(ge=0)] = 40
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6

    @property
    def special_tokens(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.registers


class Rotation(NamedTuple):
    """Cosines and sines [S, D / heads] by which queries and keys of S tokens are rotated, halves against halves."""

    cos: Tensor
    sin: Tensor


class Grid(NamedTuple):
    """What the size of an image decides: its height and width in patches, and their positions.

    table [1, N, D] is added to the patches, or `rotation` rotates them; the other is None.
    """

    height: int
    width: int
    table: Tensor | None
    rotation: Rotation | None

    def rotation_after(self, tokens: int) -> Rotation | None:
        """The rotation of a sequence that has so many tokens before the patches, which are not rotated."""
        if self.rotation is None:
            return None
        cos, sin = self.rotation
        return Rotation(F.pad(cos, (0, 0, tokens, 0), value=1.0), F.pad(sin, (0, 0, tokens, 0)))


def _rotation(height: int, width: int, head_dim: int, device: torch.device) -> Rotation:
    """DINOv3's rotation of N = height * width patches by their centres, each axis from -1 to 1, y's angles first."""
    frequency = 1 / ROTARY_BASE ** torch.arange(0, 1, 4 / head_dim, dtype=torch.float32, device=device)
    y, x = (2 * (torch.arange(side, device=device) + 0.5) / side - 1 for side in (height, width))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] * frequency).flatten(1).tile(2)
    return Rotation(angles.cos(), angles.sin())


class PatchEmbeddings(nn.Module):
    """A linear map of each patch, [B, 3, H, W] -> [B, N, D]."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, dim, patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        patches: Tensor = self.projection(images)
        return patches.flatten(2).transpose(1, 2)


class Embeddings(nn.Module):
    """From images to tokens [B, 1 + registers + N, D]."""

    def __init__(self, settings: VitSettings) -> None:
        super().__init__()
        self.settings = settings
        self.cls_token = nn.Parameter(TOKEN_STD * torch.randn(1, 1, settings.dim))
        self.register_tokens = nn.Parameter(TOKEN_STD * torch.randn(1, settings.registers, settings.dim))
        self.patch_embeddings = PatchEmbeddings(settings.dim, settings.patch)
        self.position_embeddings: nn.Embedding | None = None
        self.table_grid = (settings.table_side, settings.table_side)
        if settings.positions == "table":
            self.position_embeddings = nn.Embedding(settings.table_side**2, settings.dim)
            nn.init.normal_(self.position_embeddings.weight, std=TOKEN_STD)

    def grid(self, height: int, width: int) -> Grid:
        """Places of the patches of images of `height` x `width` pixels, multiples of a patch."""
        rows, columns = height // self.settings.patch, width // self.settings.patch
        if self.position_embeddings is None:
            head_dim, device = self.settings.dim // self.settings.heads, self.cls_token.device
            return Grid(rows, columns, None, _rotation(rows, columns, head_dim, device))
        return Grid(rows, columns, self._table(self.position_embeddings.weight, (rows, columns)), None)

    @torch.no_grad()
    def fix_size(self, height: int, width: int) -> None:
        """Resample the table once and for all, for images of `height` x `width` pixels alone, as a graph wants it."""
        table = self.grid(height, width).table
        if table is not None:
            self.table_grid = (height // self.settings.patch, width // self.settings.patch)
            self.position_embeddings = nn.Embedding.from_pretrained(table[0].clone())

    def _table(self, weight: Tensor, grid: tuple[int, int]) -> Tensor:
        """The table [1, N, D]; for other grids than its own it is resampled in float32, bicubic with antialiasing."""
        if grid == self.table_grid:
            return weight[None]
        square = weight.float().T.reshape(1, -1, *self.table_grid)
        resampled = F.interpolate(square, grid, mode="bicubic", antialias=True, align_corners=False)
        return resampled.flatten(2).transpose(1, 2).to(weight.dtype)

    def forward(self, images: Tensor, grid: Grid) -> Tensor:
        patches: Tensor = self.patch_embeddings(images)
        if grid.table is not None:
            patches = patches + grid.table
        special = (self.cls_token, self.register_tokens)
        return torch.cat((*(tokens.expand(images.shape[0], -1, -1) for tokens in special), patches), dim=1)


class SelfAttention(nn.Module):
    """Attention among all tokens; DINOv3's keys have no bias."""

    def __init__(self, settings: VitSettings) -> None:
        super().__init__()
        dim, self.heads = settings.dim, settings.heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim, bias=settings.positions == "table")
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotation: Rotation | None = None, visible: Tensor | None = None) -> Tensor:
        """`x` [B, S, D]; `visible` bool [B, S, S]: whether a token, by row, sees another."""
        q, k, v = (split_heads(projection(x), self.heads) for projection in (self.q_proj, self.k_proj, self.v_proj))
        if rotation is not None:
            q, k = _rotated(q, rotation), _rotated(k, rotation)
        mask = None if visible is None else visible[:, None]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return out


def _rotated(x: Tensor, rotation: Rotation) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * rotation.cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * rotation.sin.to(x.dtype)


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.lambda1


class SwiGlu(nn.Module):
    """Linear, gated by the SiLU of another, linear (Shazeer, 2020)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden_dim)
        self.up_proj = nn.Linear(dim, hidden_dim)
        self.down_proj = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


FEEDFORWARDS: dict[str, type[GeluFeedForward | SwiGlu]] = {"mlp": GeluFeedForward, "swiglu": SwiGlu}


class VitBlock(Block):
    """Attention and feed-forward network, each on normed tokens, scaled and added."""

    def __init__(self, settings: VitSettings) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(settings.dim, settings.norm_eps)
        self.attention = SelfAttention(settings)
        self.layer_scale1 = LayerScale(settings.dim)
        self.norm2 = nn.LayerNorm(settings.dim, settings.norm_eps)
        self.mlp = FEEDFORWARDS[settings.feedforward](settings.dim, settings.feedforward_dim)
        self.layer_scale2 = LayerScale(settings.dim)

    def forward(self, x: Tensor, rotation: Rotation | None = None, visible: Tensor | None = None) -> Tensor:
        x = x + self.layer_scale1(self.attention(self.norm1(x), rotation, visible))
        out: Tensor = x + self.layer_scale2(self.mlp(self.norm2(x)))
        return out
