"""The start of GenVIS's and VITA's training: the frame part of a Mask2Former, or all of a VITA or GenVIS network.

A video part that no checkpoint has can start as the frame part: slot j attends to the frame queries that are similar to
it, at first to query j. Published networks start from VITA, which takes days to train; with a frame network alone this
saves the video part from learning again what a query is. It rests on two facts: the layers here normalise a sum, so
that a layer that adds nothing passes its input on; and cross-attention with identity weights returns what is most
similar to the query. So the encoder passes the frame queries on, and each decoder layer adds to a slot the frame query
that is similar to it in content, the object's own in the next frame, or in position, as long as it has no content. That
is MinVIS's matching, softened; training improves it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from visrt.models.checkpoints.checkpoint import PREDICTOR
from visrt.models.checkpoints.start import Start, Takes, read_start, start_from_init, take
from visrt.models.decoder import CrossAttentionLayer
from visrt.models.genvis import GenVis, Vita
from visrt.models.layers import Attention

__all__ = ["NewPart", "start_from", "start_vita"]

VIDEO_PART = "vita_module."
FRAME_PART = ("backbone.", "sem_seg_head.")
CLASSIFIER = (PREDICTOR + "class_embed.weight", PREDICTOR + "class_embed.bias")

HEADS = {
    PREDICTOR + "decoder_norm.": VIDEO_PART + "decoder_norm.",
    PREDICTOR + "class_embed.": VIDEO_PART + "class_embed.",
    PREDICTOR + "mask_embed.": VIDEO_PART + "mask_embed.",
    "sem_seg_head.pixel_decoder.mask_features.": VIDEO_PART + "vita_mask_features.",
}
"""Modules of the frame part and those of the video part that do the same for a whole clip."""

SHARPNESS = 4.0
"""Attention logits are multiplied by it, so that a slot sees one frame query and not the mean of several."""

PLACE = 0.8
"""Size of the position that slot j shares with frame query j, next to contents of size 1."""

NO_CONTENT = 0.02
"""Size of what slots start from in the first clip: next to nothing, so that there places decide."""

NewPart = Literal["frame_heads", "frame_queries", "random"]


def start_from(network: GenVis, path: Path | str, new_part: NewPart = "frame_heads") -> Start:
    """Start `network` from the checkpoint at `path`.

    The frame part must be in it but for its classifier. Of a video part that is not, `new_part` chooses what starts as
    the frame part: its heads, or all of it (see above), or nothing.
    """
    start, is_new = _take(network, path, new_part)
    start.require(FRAME_PART, "under genvis the frame network stays as it is", but=CLASSIFIER)
    if is_new and new_part == "frame_queries":
        _start_as_frame_queries(network)
    return start


def start_vita(network: Vita, init: str | None, takes: Takes, new_part: NewPart) -> Start | None:
    """As `start_from_init`. The heads of a video part that the file lacks may start as the frame part's."""
    if not init or init == "imagenet" or takes == "backbone":
        return start_from_init(network, init, takes)
    start, _ = _take(network, init, new_part)
    return start


def _take(network: Vita, path: Path | str, new_part: NewPart) -> tuple[Start, bool]:
    """What was taken, and whether the file has no video part; if so its heads start as those of frames."""
    weights, remarks = read_start(path, network)
    is_new = not any(key.startswith(VIDEO_PART) for key in weights)
    if is_new and new_part != "random":
        weights |= _heads_of_frames(weights, network.state_dict())
    return replace(take(network, weights, path), remarks=remarks), is_new


def _heads_of_frames(weights: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for the video part's heads, of those heads of the frame part that have their shape."""
    heads = {
        theirs + key.removeprefix(ours): value
        for ours, theirs in HEADS.items()
        for key, value in weights.items()
        if key.startswith(ours)
    }
    return {key: value for key, value in heads.items() if key in own and own[key].shape == value.shape}


@torch.no_grad()
def _start_as_frame_queries(network: GenVis) -> None:
    """Set the video part's layers, but for its heads, which are the frame part's; as many slots as queries.

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
        _attend_to_similar(cross.multihead_attn)
    place = PLACE * torch.randn_like(vita.query_embed.weight)
    vita.query_embed.weight.copy_(place)
    vita.fq_pos.weight.copy_(place)
    vita.query_feat.weight.mul_(NO_CONTENT)
    _zero(vita.pre_query_embed_v)
    _zero(vita.pre_memory_embed_v)


def _attend_to_similar(attention: Attention) -> None:
    one = torch.eye(attention.in_proj_weight.shape[1])
    attention.in_proj_weight.copy_(torch.cat([SHARPNESS * one, one, one]))
    attention.in_proj_bias.zero_()
    attention.out_proj.weight.copy_(one)
    attention.out_proj.bias.zero_()


def _zero(linear: nn.Linear) -> None:
    linear.weight.zero_()
    linear.bias.zero_()
