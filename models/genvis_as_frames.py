"""A new video part that starts as the frame part: slot j sees the frame queries that are like it, at first query j.

Published networks start from VITA, which takes days to train. Where there is only a frame network, this spares the
video part from learning anew what a query is. It is made of two facts: the layers here normalise a sum, so that a
layer that adds nothing passes its input on; and cross-attention with identity weights gives what is most like the
query. So the encoder passes the frame queries on, and each decoder layer adds to a slot the frame query that is like
it in content, the object's own in the next frame, or in place, as long as it has no content. That is MinVIS's
matching, softened; what is learned is to do better.
"""

from __future__ import annotations

import torch
from torch import nn

from visrt.models.decoder import CrossAttentionLayer
from visrt.models.genvis import GenVis
from visrt.models.layers import Attention

__all__ = ["start_as_frame_queries"]

SHARPNESS = 4.0
"""Attention logits are multiplied by it, so that a slot sees one frame query and not the mean of several."""

PLACE = 0.8
"""Size of the position that slot j shares with frame query j, beside contents of size 1."""

NO_CONTENT = 0.02
"""Size of what slots start from in the first clip: next to nothing, so that there places decide."""


@torch.no_grad()
def start_as_frame_queries(network: GenVis) -> None:
    """Set the video part's layers, but for its heads, which are to be the frame part's; as many slots as queries.

    The frame part must have its weights already.
    """
    vita, norm = network.vita_module, network.sem_seg_head.predictor.decoder_norm
    assert isinstance(norm, nn.LayerNorm)
    # Frame queries come scaled and shifted by the frame decoder's last norm; the heads' own norm does that again.
    vita.input_proj_dec.weight.copy_(torch.diag(1 / norm.weight))
    vita.input_proj_dec.bias.copy_(-norm.bias / norm.weight)
    for own in (*vita.enc_self_attn, *vita.transformer_self_attention_layers):
        _zero(own.self_attn.out_proj)
    for feedforward in (*vita.enc_ffn, *vita.transformer_ffn_layers):
        _zero(feedforward.linear2)
    for cross in vita.transformer_cross_attention_layers:
        assert isinstance(cross, CrossAttentionLayer)
        _see_what_is_alike(cross.multihead_attn)
    place = PLACE * torch.randn_like(vita.query_embed.weight)
    vita.query_embed.weight.copy_(place)
    vita.fq_pos.weight.copy_(place)
    vita.query_feat.weight.mul_(NO_CONTENT)
    _zero(vita.pre_query_embed_v)
    _zero(vita.pre_memory_embed_v)


def _see_what_is_alike(attention: Attention) -> None:
    one = torch.eye(attention.in_proj_weight.shape[1])
    attention.in_proj_weight.copy_(torch.cat([SHARPNESS * one, one, one]))
    attention.in_proj_bias.zero_()
    attention.out_proj.weight.copy_(one)
    attention.out_proj.bias.zero_()


def _zero(linear: nn.Linear) -> None:
    linear.weight.zero_()
    linear.bias.zero_()
