"""Weights of a Hugging Face Mask2Former under their published names.

transformers keeps the published network and renames nearly all of it; it also splits the query, key and value
projections of Swin's attention and of the decoder's self-attention, which are one matrix in the published layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from visrt.runtime.errors import CheckpointError

__all__ = ["published_key", "published_weights", "unknown_keys"]

QKV = ("q", "k", "v")

# Of no effect in inference on frames: the loss, counters of batch norms, Swin's computed indices, and the layer norm
# of a classifier that this network does not have.
UNUSED = re.compile(
    r"criterion\..*|.*\.num_batches_tracked|.*\.relative_position_index"
    r"|model\.pixel_level_module\.encoder\.(swin\.)?layernorm\.(weight|bias)"
)

Rename = str | Callable[[re.Match[str]], str]

LEAF = r"(weight|bias)"
SWIN = r"model\.pixel_level_module\.encoder\.(?:swin\.)?"
BLOCK = SWIN + r"encoder\.layers\.(\d+)\.blocks\.(\d+)\."
RESNET = r"model\.pixel_level_module\.encoder\."
BOTTLENECK = RESNET + r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
NORM_LEAF = r"(weight|bias|running_mean|running_var)"
PIXEL_DECODER = r"model\.pixel_level_module\.decoder\."
ENCODER_LAYER = PIXEL_DECODER + r"encoder\.layers\.(\d+)\."
TRANSFORMER = r"model\.transformer_module\."
DECODER_LAYER = TRANSFORMER + r"decoder\.layers\.(\d+)\."

PUBLISHED_BLOCK = r"backbone.layers.\1.blocks.\2."
PUBLISHED_PIXELS = "sem_seg_head.pixel_decoder."
PUBLISHED_ENCODER = PUBLISHED_PIXELS + r"transformer.encoder.layers.\1."
PREDICTOR = "sem_seg_head.predictor."


def _stage(tail: Callable[[re.Match[str]], str]) -> Callable[[re.Match[str]], str]:
    """A bottleneck's key: stage 0 is res2."""
    return lambda found: f"backbone.res{int(found[1]) + 2}.{found[2]}.{tail(found)}"


# Swin's names before and in transformers 5; both are written to files.
SWIN_NAMES: dict[str, Rename] = {
    SWIN + r"embeddings\.patch_embeddings\.projection\." + LEAF: r"backbone.patch_embed.proj.\1",
    SWIN + r"embeddings\.norm\." + LEAF: r"backbone.patch_embed.norm.\1",
    BLOCK + r"layernorm_before\." + LEAF: PUBLISHED_BLOCK + r"norm1.\3",
    BLOCK + r"layernorm_after\." + LEAF: PUBLISHED_BLOCK + r"norm2.\3",
    BLOCK + r"attention\.(?:self\.|relative_position_bias\.)relative_position_bias_table": (
        PUBLISHED_BLOCK + "attn.relative_position_bias_table"
    ),
    BLOCK + r"attention\.(?:self\.query|q_proj)\." + LEAF: PUBLISHED_BLOCK + r"attn.qkv.\3 q",
    BLOCK + r"attention\.(?:self\.key|k_proj)\." + LEAF: PUBLISHED_BLOCK + r"attn.qkv.\3 k",
    BLOCK + r"attention\.(?:self\.value|v_proj)\." + LEAF: PUBLISHED_BLOCK + r"attn.qkv.\3 v",
    BLOCK + r"attention\.(?:output\.dense|o_proj)\." + LEAF: PUBLISHED_BLOCK + r"attn.proj.\3",
    BLOCK + r"(?:intermediate\.dense|mlp\.fc1)\." + LEAF: PUBLISHED_BLOCK + r"mlp.fc1.\3",
    BLOCK + r"(?:output\.dense|mlp\.fc2)\." + LEAF: PUBLISHED_BLOCK + r"mlp.fc2.\3",
    SWIN + r"encoder\.layers\.(\d+)\.downsample\.(norm|reduction)\." + LEAF: r"backbone.layers.\1.downsample.\2.\3",
    SWIN + r"hidden_states_norms\.stage(\d)\." + LEAF: lambda found: f"backbone.norm{int(found[1]) - 1}.{found[2]}",
}

RESNET_NAMES: dict[str, Rename] = {
    RESNET + r"embedder\.embedder\.convolution\.weight": "backbone.stem.conv1.weight",
    RESNET + r"embedder\.embedder\.normalization\." + NORM_LEAF: r"backbone.stem.conv1.norm.\1",
    BOTTLENECK + r"layer\.(\d)\.convolution\.weight": _stage(lambda found: f"conv{int(found[3]) + 1}.weight"),
    BOTTLENECK + r"layer\.(\d)\.normalization\." + NORM_LEAF: _stage(
        lambda found: f"conv{int(found[3]) + 1}.norm.{found[4]}"
    ),
    BOTTLENECK + r"shortcut\.convolution\.weight": _stage(lambda _: "shortcut.weight"),
    BOTTLENECK + r"shortcut\.normalization\." + NORM_LEAF: _stage(lambda found: f"shortcut.norm.{found[3]}"),
}

PIXEL_DECODER_NAMES: dict[str, Rename] = {
    PIXEL_DECODER + r"input_projections\.(\d)\.([01])\." + LEAF: PUBLISHED_PIXELS + r"input_proj.\1.\2.\3",
    PIXEL_DECODER + "level_embed": PUBLISHED_PIXELS + "transformer.level_embed",
    ENCODER_LAYER
    + r"self_attn\.(sampling_offsets|attention_weights|value_proj|output_proj)\."
    + LEAF: PUBLISHED_ENCODER + r"self_attn.\2.\3",
    ENCODER_LAYER + r"self_attn_layer_norm\." + LEAF: PUBLISHED_ENCODER + r"norm1.\2",
    ENCODER_LAYER + r"fc([12])\." + LEAF: PUBLISHED_ENCODER + r"linear\2.\3",
    ENCODER_LAYER + r"final_layer_norm\." + LEAF: PUBLISHED_ENCODER + r"norm2.\2",
    PIXEL_DECODER + r"(adapter_1|layer_1)\.0\.weight": PUBLISHED_PIXELS + r"\1.weight",
    PIXEL_DECODER + r"(adapter_1|layer_1)\.1\." + LEAF: PUBLISHED_PIXELS + r"\1.norm.\2",
    PIXEL_DECODER + r"mask_projection\." + LEAF: PUBLISHED_PIXELS + r"mask_features.\1",
}

SELF_ATTENTION = PREDICTOR + r"transformer_self_attention_layers.\1."
CROSS_ATTENTION = PREDICTOR + r"transformer_cross_attention_layers.\1."
FEED_FORWARD = PREDICTOR + r"transformer_ffn_layers.\1."

DECODER_NAMES: dict[str, Rename] = {
    TRANSFORMER + r"queries_embedder\.weight": PREDICTOR + "query_embed.weight",
    TRANSFORMER + r"queries_features\.weight": PREDICTOR + "query_feat.weight",
    TRANSFORMER + r"level_embed\.weight": PREDICTOR + "level_embed.weight",
    TRANSFORMER + r"input_projections\.(\d)\." + LEAF: PREDICTOR + r"input_proj.\1.\2",
    TRANSFORMER + r"decoder\.layernorm\." + LEAF: PREDICTOR + r"decoder_norm.\1",
    DECODER_LAYER + r"self_attn\.([qkv])_proj\." + LEAF: SELF_ATTENTION + r"self_attn.in_proj_\3 \2",
    DECODER_LAYER + r"self_attn\.out_proj\." + LEAF: SELF_ATTENTION + r"self_attn.out_proj.\2",
    DECODER_LAYER + r"self_attn_layer_norm\." + LEAF: SELF_ATTENTION + r"norm.\2",
    DECODER_LAYER + r"cross_attn\.(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias)": (
        CROSS_ATTENTION + r"multihead_attn.\2"
    ),
    DECODER_LAYER + r"cross_attn_layer_norm\." + LEAF: CROSS_ATTENTION + r"norm.\2",
    DECODER_LAYER + r"fc([12])\." + LEAF: FEED_FORWARD + r"linear\2.\3",
    DECODER_LAYER + r"final_layer_norm\." + LEAF: FEED_FORWARD + r"norm.\2",
    TRANSFORMER + r"decoder\.mask_predictor\.mask_embedder\.(\d)\.0\." + LEAF: PREDICTOR + r"mask_embed.layers.\1.\2",
    r"class_predictor\." + LEAF: PREDICTOR + r"class_embed.\1",
}

NAMES = [
    (re.compile(pattern), renamed)
    for table in (SWIN_NAMES, RESNET_NAMES, PIXEL_DECODER_NAMES, DECODER_NAMES)
    for pattern, renamed in table.items()
]


def published_key(key: str) -> str | None:
    """The published name of transformers' `key`; None if there is none.

    A part of a projection that is one matrix in the published layout has a space and q, k or v at the end.
    """
    for pattern, renamed in NAMES:
        if found := pattern.fullmatch(key):
            return renamed(found) if callable(renamed) else found.expand(renamed)
    return None


def unknown_keys(keys: Iterable[str]) -> list[str]:
    """Those of `keys` that are no part of the published network, nor known to have no effect."""
    return [key for key in keys if not UNUSED.fullmatch(key) and published_key(key) is None]


def published_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` by their published names, projections put together; what has no effect is left out.

    A projection without one of its parts is left out too, and is missing when a network is filled.
    """
    renamed = {name: weight for key, weight in weights.items() if (name := published_key(key)) is not None}
    whole = {name: weight for name, weight in renamed.items() if " " not in name}
    for name in dict.fromkeys(part.split(" ")[0] for part in renamed if " " in part):
        parts = [renamed[f"{name} {letter}"] for letter in QKV if f"{name} {letter}" in renamed]
        if len(parts) == len(QKV):
            whole[name] = _joined(parts, name)
    return whole


def _joined(parts: list[Tensor], name: str) -> Tensor:
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) != 1 or not parts[0].dim():
        raise CheckpointError(f"{name}: its query, key and value have shapes {sorted(shapes)}; expected one shape")
    return torch.cat(parts)
