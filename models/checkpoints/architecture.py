"""Reads an architecture from the shapes of its weights, and names checkpoints of other families."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor

from visrt.models.deformable import POINTS
from visrt.models.mask2former import NetworkSettings
from visrt.models.resnet import EXPANSION, ResNetSettings
from visrt.models.swin import SwinSettings
from visrt.runtime.errors import CheckpointError

__all__ = [
    "NETWORKS",
    "Weights",
    "check_shapes",
    "layer_count",
    "other_family",
    "resnet_from_weights",
    "settings_from_weights",
    "trainers_prefix",
]

Weights = Mapping[str, Tensor]
"""The weights of a network by published key."""

PIXEL_DECODER = "sem_seg_head.pixel_decoder."
ENCODER = PIXEL_DECODER + "transformer.encoder.layers."
PREDICTOR = "sem_seg_head.predictor."

# The weights whose shapes give the architecture, and their numbers of axes.
HEAD_WEIGHTS = {
    PIXEL_DECODER + "transformer.level_embed": 2,
    PIXEL_DECODER + "mask_features.weight": 4,
    ENCODER + "0.self_attn.sampling_offsets.weight": 2,
    ENCODER + "0.linear1.weight": 2,
    PREDICTOR + "query_feat.weight": 2,
    PREDICTOR + "class_embed.weight": 2,
    PREDICTOR + "transformer_ffn_layers.0.linear1.weight": 2,
}
RESNET_WEIGHTS = {
    "backbone.stem.conv1.weight": 4,
    "backbone.res2.0.conv1.weight": 4,
    **{f"backbone.res{i}.0.conv3.weight": 4 for i in (2, 3, 4, 5)},
}
SWIN_WEIGHTS = {
    "backbone.patch_embed.proj.weight": 4,
    "backbone.layers.0.blocks.0.mlp.fc1.weight": 2,
    **{f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table": 2 for i in range(4)},
}
REID = PREDICTOR + "reid_embed.layers."

NETWORKS = "a MinVIS, CTVIS or GenVIS network in its published key layout"

# A pattern of a key that only this family has, and the family's name. The first match counts.
OTHER_FAMILIES = (
    (r"model\.pixel_level_module\.", "a file of a Hugging Face Mask2Former (give the folder, with its config.json)"),
    (r"(backbone\.)?query_updater\.", "a VidEoMT checkpoint (export it with --family videomt)"),
    (r"(network\.|backbone\.)?upscale(_block\.block)?\.0\.", "an EoMT checkpoint (export it with --family eomt)"),
    (r"(tracker|refiner)\.", "a DVIS checkpoint"),
    (
        r"genvis_|vita_module\.pre_",
        "a GenVIS checkpoint (export it with --family genvis, convert it with --kind genvis)",
    ),
    (r"vita_module\.", "a VITA checkpoint, which has no memory"),
    (r"(head\.)?head_series\.|(.*\.)?controller\.|init_proposal_", "an InsPro or Sparse R-CNN checkpoint"),
    (r"roi_heads\.|proposal_generator\.", "a detectron2 R-CNN checkpoint"),
    (
        r"(panoptic_head|panoptic_fusion_head|decode_head|bbox_head|rpn_head|roi_head|track_head|data_preprocessor)\.",
        "an mmdetection checkpoint, whose keys and layers are others (give weights of detectron2's Mask2Former, or a "
        "Hugging Face folder)",
    ),
    (r"(model\.)?model\.\d+\.", "a YOLO checkpoint"),
    (r"detr\.", "a SeqFormer or IDOL checkpoint"),
    (r"(transformer|model)\.(encoder|decoder)\.layers\.|bbox_embed\.", "a DETR checkpoint"),
    (r"layer1\.0\.conv1\.weight|conv1\.weight$", "a torchvision ResNet, a backbone alone"),
    (r"stem\.conv1\.weight|res2\.0\.conv1", "a detectron2 ResNet, a backbone alone"),
    (r"patch_embed\.proj\.weight", "a Swin transformer, a backbone alone"),
    (r"_conv_stem\.weight", "an EfficientNet, a backbone alone"),
)


def other_family(keys: Iterable[str]) -> str | None:
    """The family of a checkpoint with these `keys`; None if it is unknown, or that of MinVIS and CTVIS."""
    listed = list(keys)
    return next((name for pattern, name in OTHER_FAMILIES if any(re.match(pattern, key) for key in listed)), None)


def settings_from_weights(weights: Weights, where: str) -> NetworkSettings:
    """The architecture of a published-layout network; `where` names the file in errors."""
    swin = "backbone.patch_embed.proj.weight" in weights
    check_shapes(weights, {**(SWIN_WEIGHTS if swin else RESNET_WEIGHTS), **HEAD_WEIGHTS}, where, NETWORKS)
    queries, hidden_dim = weights[PREDICTOR + "query_feat.weight"].shape
    return NetworkSettings(
        classes=weights[PREDICTOR + "class_embed.weight"].shape[0] - 1,
        queries=queries,
        backbone=_swin(weights) if swin else resnet_from_weights(weights, "backbone."),
        conv_dim=weights[PIXEL_DECODER + "transformer.level_embed"].shape[1],
        mask_dim=weights[PIXEL_DECODER + "mask_features.weight"].shape[0],
        hidden_dim=hidden_dim,
        heads=_heads(weights, where),
        encoder_layers=layer_count(weights, ENCODER),
        encoder_feedforward_dim=weights[ENCODER + "0.linear1.weight"].shape[0],
        decoder_layers=layer_count(weights, PREDICTOR + "transformer_ffn_layers."),
        decoder_feedforward_dim=weights[PREDICTOR + "transformer_ffn_layers.0.linear1.weight"].shape[0],
        reid_dim=_rows(weights, REID + "2.weight"),
        reid_hidden_dim=_rows(weights, REID + "0.weight"),
    )


def check_shapes(weights: Weights, axes: Mapping[str, int], where: str, expected: str) -> None:
    """Refuse weights in which a key of `axes` is missing, is empty or has another number of axes.

    `where` and `expected`, the networks that can be read, go into the message.
    """
    missing = [key for key in axes if key not in weights]
    if 1 < len(missing) == len(axes):
        raise CheckpointError(
            f"{where}: holds none of the {len(axes)} weights that tell the architecture, such as {missing[-1]}; its "
            f"keys begin with {', '.join(_beginnings(weights))}; expected {expected}"
        )
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} of the {len(axes)} weights that tell the architecture are missing: "
            f"{', '.join(missing)}; expected {expected}"
        )
    for key, count in axes.items():
        shape = tuple(weights[key].shape)
        if len(shape) != count or 0 in shape:
            raise CheckpointError(f"{where}: {key} has shape {shape}; expected {count} axes, none of them empty")


def _beginnings(weights: Weights, most: int = 6) -> list[str]:
    """The first parts of the keys, and how many have each."""
    counts = Counter(key.partition(".")[0] for key in weights)
    named = [f"{part}. ({count})" for part, count in counts.most_common(most)]
    return [*named, "..."] if len(counts) > most else named


BEGINNINGS = (
    "backbone.",
    "sem_seg_head.",
    "vita_module.",
    "genvis_",
    "head.",
    "init_proposal_",
    "query_updater.",
    "network.",
    "class_predictor.",
    "model.pixel_level_module.",
    "embeddings.",
    "patch_embed.",
    "upscale_block.",
    "stem.",
    "conv1.",
    "_conv_stem.",
)
"""How keys of known networks begin. What stands before all of them in a file is a trainer's."""
MOST_WRAPPERS = 4


def trainers_prefix(keys: Iterable[str]) -> str:
    """What a trainer put before the keys of a network: "module.", "model.", "_orig_mod." or several; "" for nothing.

    Keys of something else may stand beside, such as a metric's; not another network, for which of two is meant?
    """
    listed = list(keys)
    prefix = ""
    for _ in range(MOST_WRAPPERS):
        inner = [key.removeprefix(prefix) for key in listed if key.startswith(prefix)]
        if any(key.startswith(BEGINNINGS) for key in inner):
            return prefix
        groups = {key.partition(".")[0] + "." for key in inner if "." in key}
        networks = [one for one in sorted(groups) if _has_network([key for key in inner if key.startswith(one)], one)]
        if len(networks) != 1:
            return ""
        prefix += networks[0]
    return ""


def _has_network(keys: Iterable[str], prefix: str) -> bool:
    """Whether a known network's keys lie behind `prefix`, or behind some more that a trainer put there."""
    inner = [key.removeprefix(prefix) for key in keys]
    for _ in range(MOST_WRAPPERS):
        if any(key.startswith(BEGINNINGS) for key in inner):
            return True
        first = inner[0].partition(".")[0] + "."
        if not all(key.startswith(first) and key != first for key in inner):
            return False
        inner = [key.removeprefix(first) for key in inner]
    return False


def _heads(weights: Weights, where: str) -> int:
    """Number of attention heads: each has an x and a y offset for every point on every level. Both decoders have as
    many."""
    rows, dim = weights[ENCODER + "0.self_attn.sampling_offsets.weight"].shape
    heads = rows // (3 * POINTS * 2)
    if heads * 3 * POINTS * 2 != rows or dim % heads:
        raise CheckpointError(
            f"{where}: {ENCODER}0.self_attn.sampling_offsets.weight has shape {(rows, dim)}; expected "
            f"heads x 3 levels x {POINTS} points x 2 rows, with heads dividing {dim}"
        )
    return heads


def resnet_from_weights(weights: Weights, prefix: str) -> ResNetSettings:
    """The residual backbone whose keys begin with `prefix`."""
    return ResNetSettings(
        blocks=_quadruple(layer_count(weights, f"{prefix}res{i}.") for i in (2, 3, 4, 5)),
        width=weights[prefix + "res2.0.conv3.weight"].shape[0] // EXPANSION,
        stem_width=weights[prefix + "stem.conv1.weight"].shape[0],
    )


def _swin(weights: Weights) -> SwinSettings:
    tables = [weights[f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(4)]
    hidden_dim, embed_dim = weights["backbone.layers.0.blocks.0.mlp.fc1.weight"].shape
    return SwinSettings(
        embed_dim=embed_dim,
        depths=_quadruple(layer_count(weights, f"backbone.layers.{i}.blocks.") for i in range(4)),
        heads=_quadruple(table.shape[1] for table in tables),
        window=(math.isqrt(tables[0].shape[0]) + 1) // 2,
        mlp_ratio=hidden_dim // embed_dim,
    )


def _quadruple(values: Iterable[int]) -> tuple[int, int, int, int]:
    a, b, c, d = values
    return a, b, c, d


def layer_count(weights: Weights, prefix: str) -> int:
    """Number of modules with weights below `prefix`; a gap in their numbers shows up as missing keys later."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in weights if key.startswith(prefix)})


def _rows(weights: Weights, key: str) -> int:
    """First size of a weight, 0 if the file does not have it."""
    return weights[key].shape[0] if key in weights and weights[key].dim() else 0
