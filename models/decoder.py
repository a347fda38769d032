"""The masked-attention transformer decoder of Mask2Former (Cheng et al., CVPR 2022), published key layout.

Each query attends only to the pixels of the mask it predicted one layer before. Attention masks are made from mask
features already resized to the level: a bilinear resize and an inner product over channels commute, so no mask is
ever formed at stride 4 here. Whoever needs masks forms them from `mask_embeddings` and `mask_features`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.layers import MLP, Attention, Block, FeedForward, sine_position

__all__ = ["CrossAttentionLayer", "LayerPrediction", "MaskedAttentionDecoder", "SelfAttentionLayer", "mask_logits"]


class LayerPrediction(NamedTuple):
    """The prediction of one decoder layer for each query.

    class_logits [B, Q, K + 1], the last is "no object"; mask_embeddings [B, Q, D]; queries [B, Q, C], normalised by
    `decoder_norm`: the embeddings that MinVIS associates.
    """

    class_logits: Tensor
    mask_embeddings: Tensor
    queries: Tensor


def mask_logits(mask_embeddings: Tensor, mask_features: Tensor) -> Tensor:
    """Mask logits [B, Q, h, w] of `mask_embeddings` [B, Q, D] over `mask_features` [B, D, h, w]."""
    return torch.einsum("bqd,bdhw->bqhw", mask_embeddings, mask_features)


class SelfAttentionLayer(Block):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        placed = x if position is None else x + position
        out: Tensor = self.norm(x + self.self_attn(placed, placed, x))
        return out


class CrossAttentionLayer(Block):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, key: Tensor, value: Tensor, visible: Tensor | None = None) -> Tensor:
        out: Tensor = self.norm(x + self.multihead_attn(x + position, key, value, visible))
        return out


class MaskedAttentionDecoder(nn.Module):
    """Queries [B, Q, C] from three feature levels and the mask features.

    `reid_dim` above zero adds CTVIS's instance-embedding head (`reid_embed`), applied by the caller.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        dim: int,
        mask_dim: int,
        heads: int,
        feedforward_dim: int,
        layers: int,
        queries: int,
        classes: int,
        reid_dim: int = 0,
        reid_hidden_dim: int = 0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(dim, heads) for _ in range(layers))
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(dim, heads) for _ in range(layers))
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(dim, feedforward_dim) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(queries, dim)
        self.query_embed = nn.Embedding(queries, dim)
        self.level_embed = nn.Embedding(3, dim)
        self.input_proj = nn.ModuleList(nn.Identity() if in_dim == dim else nn.Conv2d(in_dim, dim, 1) for _ in range(3))
        self.class_embed = nn.Linear(dim, classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim)
        self.reid_embed = MLP(dim, reid_hidden_dim or dim, reid_dim) if reid_dim else None

    def forward(self, levels: list[Tensor], mask_features: Tensor) -> list[LayerPrediction]:
        """One prediction from the learned queries and one after each layer.

        `levels` are the pixel decoder's maps at strides 32, 16 and 8, [B, C, h, w]; `mask_features` [B, D, H/4, W/4].
        """
        values, keys = self._memories(levels)
        sizes = [tuple(level.shape[-2:]) for level in levels]
        small_features = [F.interpolate(mask_features, size, mode="bilinear").flatten(2) for size in sizes]
        batch = mask_features.shape[0]
        x = self.query_feat.weight.unsqueeze(0).expand(batch, -1, -1)
        position = self.query_embed.weight.unsqueeze(0)
        predictions = [self.predict(x)]
        for i, (cross, own, feedforward) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = i % 3
            visible = visible_pixels(predictions[-1].mask_embeddings, small_features[level])
            x = cross(x, position, keys[level], values[level], visible)
            x = own(x, position)
            x = feedforward(x)
            predictions.append(self.predict(x))
        return predictions

    def predict(self, x: Tensor) -> LayerPrediction:
        """The heads on the running queries `x` [B, Q, C]; `x` itself goes on without `decoder_norm`."""
        queries = self.decoder_norm(x)
        return LayerPrediction(self.class_embed(queries), self.mask_embed(queries), queries)

    def _memories(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Values and keys [B, h * w, C] of each level; a key is its value plus the sine position."""
        values, keys = [], []
        for i, level in enumerate(levels):
            height, width = level.shape[-2:]
            position = sine_position(height, width, self.dim, level.device).flatten(1).transpose(0, 1)
            value = self.input_proj[i](level).flatten(2).transpose(1, 2) + self.level_embed.weight[i]
            values.append(value)
            keys.append(value + position.to(value.dtype))
        return values, keys


def visible_pixels(mask_embeddings: Tensor, small_features: Tensor) -> Tensor:
    """Pixels each query attends to, bool [B, Q, S]: its mask one layer before; all if that mask is empty."""
    with torch.no_grad():
        inside = torch.bmm(mask_embeddings, small_features) >= 0
        empty = ~inside.any(dim=-1, keepdim=True)
        return inside | empty
