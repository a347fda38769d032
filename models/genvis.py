"""GenVIS (Heo et al., CVPR 2023): instances as prototypes that pass from clip to clip, published key layout.

Frame by frame, Mask2Former gives frame queries. Clip by clip, VITA's encoder and decoder (Heo et al., NeurIPS 2022)
turn them into instances: slot j of the decoder is the same object throughout the video. What it starts from is made
of its own output in the clip before, the prototype, and of its own memory of all earlier clips. The memory itself is
no part of the network, as it grows: the caller keeps it and reads it (`read_memory` in training, numpy in
runtime/methods/genvis). Where the paper and the published code differ, this is the code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from visrt.models.decoder import CrossAttentionLayer, SelfAttentionLayer
from visrt.models.layers import MLP, FeedForward
from visrt.models.mask2former import BACKBONES, Head, NetworkSettings

__all__ = [
    "STATE_MODULES",
    "ClipOutputs",
    "FrameQueries",
    "GenVis",
    "GenVisModule",
    "GenVisNetworkSettings",
    "NextStart",
    "Vita",
    "VitaModule",
    "read_memory",
]


@dataclass(frozen=True)
class GenVisNetworkSettings:
    """The architecture. The defaults of the video part are those of all published networks.

    frame: the Mask2Former. instances: slots, the most objects of a video. Channels are those of the frame part.
    """

    frame: NetworkSettings
    instances: int = 100
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 3
    feedforward_dim: int = 2048

    @property
    def classes(self) -> int:
        return self.frame.classes


class FrameQueries(NamedTuple):
    """Outputs of the frame part for each frame: frame_queries [B, Q, C], mask_features [B, D, H/4, W/4]."""

    frame_queries: Tensor
    mask_features: Tensor


class ClipOutputs(NamedTuple):
    """Outputs of the video part for the S slots of each of N clips.

    class_logits [N, S, K + 1], the last is "no object"; mask_embeddings [N, S, D], the same for all frames of the clip;
    prototypes [N, S, C], before the last norm, as they pass on; layers: prototypes after each decoder layer.
    """

    class_logits: Tensor
    mask_embeddings: Tensor
    prototypes: Tensor
    layers: list[Tensor]


class NextStart(NamedTuple):
    """The start of the next clip's slots, each [..., S, C]: `base` plus what `key` reads from the memory."""

    base: Tensor
    key: Tensor


STATE_MODULES = (
    "decoder_norm",
    "pre_memory_embed_k",
    "pre_memory_embed_v",
    "pre_query_embed_k",
    "pre_query_embed_v",
)
"""Modules of the video part that compute in float32 in every precision: the memory is read by softmax over unscaled
inner products of 256 numbers, so that what rounding does to a key comes out exponentiated."""


class VitaModule(nn.Module):
    """VITA's part: object encoder, object decoder and heads."""

    def __init__(self, settings: GenVisNetworkSettings) -> None:
        super().__init__()
        dim, heads, hidden = settings.frame.hidden_dim, settings.heads, settings.feedforward_dim
        encoder, decoder = range(settings.encoder_layers), range(settings.decoder_layers)
        self.enc_self_attn = nn.ModuleList(SelfAttentionLayer(dim, heads) for _ in encoder)
        self.enc_ffn = nn.ModuleList(FeedForward(dim, hidden) for _ in encoder)
        self.transformer_cross_attention_layers = nn.ModuleList(CrossAttentionLayer(dim, heads) for _ in decoder)
        self.transformer_self_attention_layers = nn.ModuleList(SelfAttentionLayer(dim, heads) for _ in decoder)
        self.transformer_ffn_layers = nn.ModuleList(FeedForward(dim, hidden) for _ in decoder)
        self.decoder_norm = nn.LayerNorm(dim)
        self.query_feat = nn.Embedding(settings.instances, dim)
        self.query_embed = nn.Embedding(settings.instances, dim)
        self.fq_pos = nn.Embedding(settings.frame.queries, dim)
        self.input_proj_dec = nn.Linear(dim, dim)
        self.vita_mask_features = nn.Conv2d(settings.frame.conv_dim, settings.frame.mask_dim, 1)
        self.class_embed = nn.Linear(dim, settings.classes + 1)
        self.mask_embed = MLP(dim, dim, settings.frame.mask_dim)
        self.sim_embed_frame = nn.Linear(dim, dim)
        self.sim_embed_clip = nn.Linear(dim, dim)

    def encode(self, frame_queries: Tensor) -> Tensor:
        """Tokens [N, T * Q, C] of clips [N, T, Q, C], frame by frame; each sees all of its clip, without positions."""
        x: Tensor = self.input_proj_dec(frame_queries).flatten(1, 2)
        for attention, feedforward in zip(self.enc_self_attn, self.enc_ffn, strict=True):
            x = feedforward(attention(x))
        return x

    def forward(self, frame_queries: Tensor, start: Tensor) -> ClipOutputs:
        """The slots of clips of T frames [N, T, Q, C], from `start` [N, S, C]."""
        return self.decode(self.encode(frame_queries), start)

    def decode(self, tokens: Tensor, start: Tensor) -> ClipOutputs:
        """The slots of clips with `tokens` [N, T * Q, C], from `start` [N, S, C]."""
        frame_position = self.fq_pos.weight
        keys = (tokens.unflatten(1, (-1, len(frame_position))) + frame_position).flatten(1, 2)
        position = self.query_embed.weight
        x, layers = start, []
        for cross, own, feedforward in zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        ):
            x = feedforward(own(cross(x, position, keys, tokens), position))
            layers.append(x)
        class_logits, mask_embeddings = self.predict(x)
        return ClipOutputs(class_logits, mask_embeddings, x, layers)

    def predict(self, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and mask embeddings of `prototypes` [..., S, C]."""
        normed = self.decoder_norm(prototypes.float()).to(prototypes.dtype)
        return self.class_embed(normed), self.mask_embed(normed)


class GenVisModule(VitaModule):
    """The video part: VITA's, and the four projections by which GenVIS passes instances from clip to clip."""

    def __init__(self, settings: GenVisNetworkSettings) -> None:
        super().__init__(settings)
        dim = settings.frame.hidden_dim
        self.pre_memory_embed_k = nn.Linear(dim, dim)
        self.pre_memory_embed_v = nn.Linear(dim, dim)
        self.pre_query_embed_k = nn.Linear(dim, dim)
        self.pre_query_embed_v = nn.Linear(dim, dim)

    def next_start(self, prototypes: Tensor) -> NextStart:
        """From `prototypes` [..., S, C], or before the first clip from the learned queries; in float32."""
        prototypes = prototypes.float()
        return NextStart(prototypes + self.pre_query_embed_v(prototypes), self.pre_query_embed_k(prototypes))

    def memory_entry(self, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Key and value, each [..., S, C], by which the clip that gave `prototypes` is remembered; in float32."""
        normed = self.decoder_norm(prototypes.float())
        return self.pre_memory_embed_k(normed), self.pre_memory_embed_v(normed)


def read_memory(key: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """The memory read of each slot, [N, S, C]: attention of each slot's `key` [N, S, C] over its own past clips.

    `keys` and `values` hold a [N, S, C] for each of them. One head, no scaling; nothing to read gives zeros.
    """
    if not keys:
        return torch.zeros_like(key)
    similarity = torch.einsum("nsc,mnsc->mns", key, torch.stack(keys))
    return torch.einsum("mns,mnsc->nsc", similarity.softmax(dim=0), torch.stack(values))


class Vita(nn.Module):
    """Images in, frame queries out; a whole clip of frame queries in, instances out, without memory: GenVIS's start.

    Images are normalised RGB [B, 3, H, W], H and W divisible by 32.
    """

    part: type[VitaModule] = VitaModule

    def __init__(self, settings: GenVisNetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = BACKBONES[settings.frame.backbone.kind][1](settings.frame.backbone)
        self.sem_seg_head = Head(settings.frame)
        self.vita_module = self.part(settings)

    def forward(self, images: Tensor) -> FrameQueries:
        """The frame part. The last layer's queries are used; its classes and masks are not computed."""
        decoder = self.sem_seg_head.pixel_decoder
        fine, levels = decoder.maps(self.backbone(images))
        queries = self.sem_seg_head.predictor(levels, decoder.mask_features(fine))[-1].queries
        return FrameQueries(queries, self.vita_module.vita_mask_features(fine))

    def clips(self, frame_queries: Tensor, start: Tensor) -> ClipOutputs:
        """The video part, for clips of T frames [N, T, Q, C], from `start` [N, S, C]."""
        outputs: ClipOutputs = self.vita_module(frame_queries, start)
        return outputs


class GenVis(Vita):
    """As `Vita`, with a memory: clips follow each other, and each starts from what the ones before gave."""

    part = GenVisModule
    vita_module: GenVisModule

    def first_start(self) -> NextStart:
        """The start of a video's first clip, each [S, C]; its memory is empty."""
        return self.vita_module.next_start(self.vita_module.query_feat.weight)
