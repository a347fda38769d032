"""EoMT (Kerssies et al., CVPR 2025): a plain vision transformer whose last blocks see the queries among their tokens.

There is no pixel decoder and no transformer decoder: masks are inner products of queries with upscaled patches. The
encoder, the blocks before the queries, does not depend on them; the decoder is the rest. Masked attention belongs to
training: it fades out while the network is trained, and published networks run without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.decoder import mask_logits
from visrt.models.mask2former import IMAGENET_MEAN, IMAGENET_STD, FrameOutputs
from visrt.models.vit import Embeddings, Grid, VitBlock, VitSettings

__all__ = ["Eomt", "EomtSettings", "QueryVit"]

MASK_STRIDE = 4
UPSCALE_NORM_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class EomtSettings(VitSettings):
    """The architecture: that of the transformer, and what is particular to EoMT. The defaults are the published ViT-S.

    query_blocks: the last blocks of the transformer, which see the queries. pixel_mean, pixel_std: RGB, in 0..255
    units.
    """

    classes: int
    queries: int = 200
    query_blocks: Annotated[int, Field(ge=1)] = 3
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD


class UpscaleLayer(nn.Module):
    """Twice the resolution of a map [B, D, h, w]."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(dim, dim, 2, stride=2)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.layernorm2d = nn.LayerNorm(dim, UPSCALE_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(F.gelu(self.conv1(x)))
        normed: Tensor = self.layernorm2d(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class UpscaleBlock(nn.Module):
    """From stride `patch` to the stride of masks, but once at least."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        layers = max(1, int(math.log2(patch / MASK_STRIDE)))
        self.block = nn.Sequential(*(UpscaleLayer(dim) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)
        return out


class MaskHead(nn.Module):
    """Three linear layers with exact GELU between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, dim)
        self.fc2 = nn.Linear(dim, dim)
        self.fc3 = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))
        return out


class QueryVit(nn.Module):
    """What EoMT and VidEoMT share. Images are normalised RGB [B, 3, H, W], H and W divisible by a patch.

    Attributes: encoder_blocks, how many blocks come before the queries.
    """

    def __init__(self, settings: EomtSettings) -> None:
        super().__init__()
        dim, heads, self.encoder_blocks = settings.dim, settings.heads, settings.blocks - settings.query_blocks
        if not heads or dim % heads:
            raise ValueError(f"{dim} channels in {heads or 'an unknown number of'} heads; set heads to one that fits")
        if self.encoder_blocks < 0:
            raise ValueError(f"{settings.query_blocks} blocks with queries of {settings.blocks}")
        self.embeddings = Embeddings(settings)
        self.layers = nn.ModuleList(VitBlock(settings) for _ in range(settings.blocks))
        self.layernorm = nn.LayerNorm(dim, settings.norm_eps)
        self.query = nn.Embedding(settings.queries, dim)
        self.upscale_block = UpscaleBlock(dim, settings.patch)
        self.mask_head = MaskHead(dim)
        self.class_predictor = nn.Linear(dim, settings.classes + 1)

    def grid(self, height: int, width: int) -> Grid:
        """What the size of the images, in pixels, decides; both halves take it."""
        return self.embeddings.grid(height, width)

    def first_queries(self, count: int) -> Tensor:
        """The learned queries, the same [Q, D] for each of `count` images."""
        return self.query.weight.expand(count, -1, -1)

    def encoder(self, images: Tensor, grid: Grid) -> Tensor:
        """The half that sees no query: tokens [B, 1 + registers + N, D]."""
        tokens: Tensor = self.embeddings(images, grid)
        rotation = grid.rotation_after(self.embeddings.settings.special_tokens)
        for block in self.layers[: self.encoder_blocks]:
            tokens = block(tokens, rotation)
        return tokens

    def mixed(self, tokens: Tensor, queries: Tensor, grid: Grid) -> Tensor:
        """All tokens after the last block, [B, Q + 1 + registers + N, D], `queries` [B, Q, D] in front; not normed."""
        x = torch.cat((queries, tokens), dim=1)
        rotation = grid.rotation_after(x.shape[1] - grid.height * grid.width)
        for block in self.layers[self.encoder_blocks :]:
            x = block(x, rotation)
        return x

    def predict(self, x: Tensor, grid: Grid) -> FrameOutputs:
        """The outputs of tokens `x`, queries in front; a query's embedding is what classes and masks are made of."""
        return self.outputs(self.layernorm(x), grid)

    def outputs(self, tokens: Tensor, grid: Grid) -> FrameOutputs:
        """What the heads make of `tokens` as they are."""
        queries = tokens[:, : self.query.num_embeddings]
        patches = tokens[:, tokens.shape[1] - grid.height * grid.width :]
        features = patches.transpose(1, 2).unflatten(2, (grid.height, grid.width))
        return FrameOutputs(
            self.class_predictor(queries), queries, self.mask_head(queries), self.upscale_block(features)
        )


class Eomt(QueryVit):
    """EoMT: every image alone."""

    def __init__(self, settings: EomtSettings) -> None:
        super().__init__(settings)
        self.settings = settings

    def decoder(self, tokens: Tensor, grid: Grid) -> FrameOutputs:
        """The half with the queries, from the encoder's tokens."""
        return self.predict(self.mixed(tokens, self.first_queries(tokens.shape[0]), grid), grid)

    def forward(self, images: Tensor) -> FrameOutputs:
        grid = self.grid(*images.shape[2:])
        return self.decoder(self.encoder(images, grid), grid)

    def masked_layers(self, tokens: Tensor, grid: Grid, probabilities: Sequence[float]) -> list[FrameOutputs]:
        """For training: predictions before each block with queries and after the last.

        With its block's one of the `probabilities`, a query sees of the patches only those in the mask predicted just
        before; it sees the other tokens always.
        """
        x = torch.cat((self.first_queries(tokens.shape[0]), tokens), dim=1)
        rotation = grid.rotation_after(x.shape[1] - grid.height * grid.width)
        predictions = [self.predict(x, grid)]
        for block, probability in zip(self.layers[self.encoder_blocks :], probabilities, strict=True):
            visible = self._visible(predictions[-1], x.shape[1], grid, probability) if probability else None
            x = block(x, rotation, visible)
            predictions.append(self.predict(x, grid))
        return predictions

    @torch.no_grad()
    def _visible(self, prediction: FrameOutputs, length: int, grid: Grid, probability: float) -> Tensor:
        """Whether a token sees another, bool [B, S, S]."""
        masks = mask_logits(prediction.mask_embeddings, prediction.mask_features)
        inside = F.interpolate(masks, (grid.height, grid.width), mode="bilinear").flatten(2) > 0
        count, queries = masks.shape[:2]
        everything = torch.rand(count, queries, 1, device=masks.device) >= probability
        visible = torch.ones(count, length, length, dtype=torch.bool, device=masks.device)
        visible[:, :queries, length - grid.height * grid.width :] = inside | everything
        return visible
