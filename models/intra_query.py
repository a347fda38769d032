"""Attention of each query over its own past (InsPro, He et al., NeurIPS 2022, equation 1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["IntraQueryAttention"]


class IntraQueryAttention(nn.Linear):
    """Adds to a query a weighted mean of what it was in the last frames, this one included.

    The layer itself says how much each of them counts, with one number or with one a channel. Float32 in every
    precision, as what leaves here goes on for a whole video.
    """

    def forward(self, now: Tensor, past: Tensor, fill: Tensor) -> Tensor:  # type: ignore[override]
        """Queries [B, N, C] for the next frame from object features `now` [B, N, C], `past` [B, T, N, C], the newest
        last, and `fill` int32 [B, N]: how many of the newest count for each query, none in its first frame."""
        entries = torch.cat((past.float(), now.float().unsqueeze(1)), dim=1)
        out: Tensor = (self.weights(entries, fill) * entries).sum(dim=1) + now.float()
        return out

    def weights(self, entries: Tensor, fill: Tensor) -> Tensor:
        """How much each of `entries` [B, T + 1, N, C] counts, [B, T + 1, N, 1 or C]; 0 before the newest `fill` + 1."""
        length = entries.shape[1]
        importance = nn.functional.linear(entries, self.weight.float(), self.bias.float())
        age = torch.arange(length - 1, -1, -1, dtype=fill.dtype, device=fill.device)
        known = age[:, None] <= fill.unsqueeze(1)
        return importance.masked_fill(~known.unsqueeze(-1), float("-inf")).softmax(dim=1)
