"""VidEoMT (CVPR 2026, arXiv 2602.17807): EoMT whose queries travel from frame to frame; query i is one object.

The queries of a frame are a linear map of what the frame before made of its own, plus the learned ones. So the state
of a video is [Q, D] numbers. Absence is said by an empty mask, not by the class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visrt.models.eomt import EomtSettings, QueryVit
from visrt.models.mask2former import FrameOutputs
from visrt.models.vit import Grid

__all__ = ["STATE_MODULES", "VideoMt", "VideoMtOutputs", "VideoMtSettings"]

STATE_MODULES = ("query",)
"""Modules that stay in float32 in every precision, as the state does: the recurrence has no norm. The updater does not:
engines for GPUs without FP32 matrix products (TensorRT-RTX on 7.5) must be possible."""


@dataclass(frozen=True, kw_only=True)
class VideoMtSettings(EomtSettings):
    """The architecture. norm_queries: queries pass through the transformer's last norm before they travel, as in the
    published DINOv3 networks of VIPSeg and VSPW only."""

    norm_queries: bool = False


class VideoMtOutputs(NamedTuple):
    """Outputs of a frame, as of any frame network, and `next_queries` [B, Q, D] float32, the state after it."""

    frame: FrameOutputs
    next_queries: Tensor


class VideoMt(QueryVit):
    """VidEoMT: `encoder` of frames in any order, `decoder` of each video's frames one after the other."""

    def __init__(self, settings: VideoMtSettings) -> None:
        super().__init__(settings)
        self.settings = settings
        self.query_updater = nn.Linear(settings.dim, settings.dim)

    def decoder(self, tokens: Tensor, queries: Tensor, grid: Grid) -> VideoMtOutputs:
        """The half with the state, from the encoder's `tokens` and the `queries` [B, Q, D] of the frame before.

        Before the first frame they are the learned ones, `first_queries`.
        """
        x = self.mixed(tokens, queries.to(tokens.dtype), grid)
        return VideoMtOutputs(self.predict(x, grid), self.next_queries(x[:, : queries.shape[1]]))

    def supervised(self, tokens: Tensor, queries: Tensor, grid: Grid) -> tuple[list[FrameOutputs], Tensor]:
        """For training: predictions before each block with queries but the last, and after that; the next queries.

        As released, the heads read the tokens between the blocks without the transformer's last norm, unless the
        network has `norm_queries`.
        """
        count, between = queries.shape[1], self.predict if self.settings.norm_queries else self.outputs
        x = torch.cat((queries.to(tokens.dtype), tokens), dim=1)
        rotation = grid.rotation_after(x.shape[1] - grid.height * grid.width)
        *earlier, last = self.layers[self.encoder_blocks :]
        predictions = []
        for block in earlier:
            predictions.append(between(x, grid))
            x = block(x, rotation)
        x = last(x, rotation)
        return [*predictions, self.predict(x, grid)], self.next_queries(x[:, :count])

    def next_queries(self, queries: Tensor) -> Tensor:
        """The queries of the next frame [B, Q, D], float32, of those that left the last block."""
        passed = self.layernorm(queries) if self.settings.norm_queries else queries
        updated: Tensor = self.query_updater(passed)
        return updated.float() + self.query.weight.float()

    def forward(self, images: Tensor) -> list[VideoMtOutputs]:
        """The frames of one video [T, 3, H, W], in order, from its start."""
        grid = self.grid(*images.shape[2:])
        queries = self.first_queries(1)
        outputs = []
        for tokens in self.encoder(images, grid).split(1):
            outputs.append(self.decoder(tokens, queries, grid))
            queries = outputs[-1].next_queries
        return outputs
