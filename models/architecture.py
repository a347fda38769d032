"""Reading an architecture off the shapes of its weights, and telling another family's checkpoint from a damaged one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from visrt.models.deformable import POINTS
from visrt.models.genvis import GenVisNetworkSettings
from visrt.models.mask2former import NetworkSettings
from visrt.models.resnet import EXPANSION, ResNetSettings
from visrt.models.swin import SwinSettings
from visrt.runtime.errors import CheckpointError

__all__ = ["genvis_settings_from_weights", "other_family", "settings_from_weights"]

Weights = Mapping[str, Tensor]

PIXEL_DECODER = "sem_seg_head.pixel_decoder."
ENCODER = PIXEL_DECODER + "transformer.encoder.layers."
PREDICTOR = "sem_seg_head.predictor."

# The weights whose shapes say what the network is, and their numbers of axes.
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
VITA = "vita_module."
VITA_WEIGHTS = {
    VITA + "query_feat.weight": 2,
    VITA + "transformer_ffn_layers.0.linear1.weight": 2,
}

# A key that gives the family away, and its name. The first that fits is told.
OTHER_FAMILIES = (
    (r"model\.pixel_level_module\.", "a file of a Hugging Face Mask2Former (give the folder, with its config.json)"),
    (r"(tracker|refiner)\.", "a DVIS checkpoint"),
    (
        r"genvis_|vita_module\.pre_",
        "a GenVIS checkpoint (export it with --family genvis, convert it with --kind genvis)",
    ),
    (r"vita_module\.", "a VITA checkpoint"),
    (r"(head\.)?head_series\.|(.*\.)?controller\.|init_proposal_", "an InsPro or Sparse R-CNN checkpoint"),
    (r"roi_heads\.|proposal_generator\.", "a detectron2 R-CNN checkpoint"),
    (r"(model\.)?model\.\d+\.", "a YOLO checkpoint"),
    (r"detr\.", "a SeqFormer or IDOL checkpoint"),
    (r"(transformer|model)\.(encoder|decoder)\.layers\.|bbox_embed\.", "a DETR checkpoint"),
    (r"layer1\.0\.conv1\.weight|conv1\.weight$", "a torchvision ResNet, a backbone alone"),
    (r"stem\.conv1\.weight|res2\.0\.conv1", "a detectron2 ResNet, a backbone alone"),
    (r"patch_embed\.proj\.weight", "a Swin transformer, a backbone alone"),
    (r"_conv_stem\.weight", "an EfficientNet, a backbone alone"),
)


def other_family(keys: Iterable[str]) -> str | None:
    """What the checkpoint with these `keys` is, if it is known not to be a MinVIS or CTVIS network."""
    listed = list(keys)
    for pattern, name in OTHER_FAMILIES:
        if any(re.match(pattern, key) for key in listed):
            return name
    return None


def settings_from_weights(weights: Weights, where: str) -> NetworkSettings:
    """The architecture of a published-layout network; `where` names the file in errors."""
    swin = "backbone.patch_embed.proj.weight" in weights
    _check(weights, {**(SWIN_WEIGHTS if swin else RESNET_WEIGHTS), **HEAD_WEIGHTS}, where)
    queries, hidden_dim = weights[PREDICTOR + "query_feat.weight"].shape
    return NetworkSettings(
        classes=weights[PREDICTOR + "class_embed.weight"].shape[0] - 1,
        queries=queries,
        backbone=_swin(weights) if swin else _resnet(weights),
        conv_dim=weights[PIXEL_DECODER + "transformer.level_embed"].shape[1],
        mask_dim=weights[PIXEL_DECODER + "mask_features.weight"].shape[0],
        hidden_dim=hidden_dim,
        heads=_heads(weights, where),
        encoder_layers=_count(weights, ENCODER),
        encoder_feedforward_dim=weights[ENCODER + "0.linear1.weight"].shape[0],
        decoder_layers=_count(weights, PREDICTOR + "transformer_ffn_layers."),
        decoder_feedforward_dim=weights[PREDICTOR + "transformer_ffn_layers.0.linear1.weight"].shape[0],
        reid_dim=_rows(weights, REID + "2.weight"),
        reid_hidden_dim=_rows(weights, REID + "0.weight"),
    )


def genvis_settings_from_weights(weights: Weights, where: str) -> GenVisNetworkSettings:
    """The architecture of a GenVIS network in its published layout. Its attention has as many heads everywhere."""
    frame = settings_from_weights(weights, where)
    _check(weights, VITA_WEIGHTS, where)
    return GenVisNetworkSettings(
        frame=frame,
        instances=weights[VITA + "query_feat.weight"].shape[0],
        heads=frame.heads,
        encoder_layers=_count(weights, VITA + "enc_ffn."),
        decoder_layers=_count(weights, VITA + "transformer_ffn_layers."),
        feedforward_dim=weights[VITA + "transformer_ffn_layers.0.linear1.weight"].shape[0],
    )


def _check(weights: Weights, expected: Mapping[str, int], where: str) -> None:
    """Every weight that is read for its shape is there, with its number of axes."""
    missing = [key for key in expected if key not in weights]
    if missing:
        raise CheckpointError(
            f"{where}: {len(missing)} of the {len(expected)} weights that tell the architecture are missing: "
            f"{', '.join(missing)}; expected a MinVIS, CTVIS or GenVIS network in its published key layout"
        )
    for key, axes in expected.items():
        shape = tuple(weights[key].shape)
        if len(shape) != axes or 0 in shape:
            raise CheckpointError(f"{where}: {key} has shape {shape}; expected {axes} axes, none of them empty")


def _heads(weights: Weights, where: str) -> int:
    """Attention heads: each has an x and a y offset for every point on every level. Both decoders have as many."""
    rows, dim = weights[ENCODER + "0.self_attn.sampling_offsets.weight"].shape
    heads = rows // (3 * POINTS * 2)
    if heads * 3 * POINTS * 2 != rows or dim % heads:
        raise CheckpointError(
            f"{where}: {ENCODER}0.self_attn.sampling_offsets.weight has shape {(rows, dim)}; expected "
            f"heads x 3 levels x {POINTS} points x 2 rows, with heads dividing {dim}"
        )
    return heads


def _resnet(weights: Weights) -> ResNetSettings:
    return ResNetSettings(
        blocks=_quadruple(_count(weights, f"backbone.res{i}.") for i in (2, 3, 4, 5)),
        width=weights["backbone.res2.0.conv3.weight"].shape[0] // EXPANSION,
        stem_width=weights["backbone.stem.conv1.weight"].shape[0],
    )


def _swin(weights: Weights) -> SwinSettings:
    tables = [weights[f"backbone.layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(4)]
    hidden_dim, embed_dim = weights["backbone.layers.0.blocks.0.mlp.fc1.weight"].shape
    return SwinSettings(
        embed_dim=embed_dim,
        depths=_quadruple(_count(weights, f"backbone.layers.{i}.blocks.") for i in range(4)),
        heads=_quadruple(table.shape[1] for table in tables),
        window=(math.isqrt(tables[0].shape[0]) + 1) // 2,
        mlp_ratio=hidden_dim // embed_dim,
    )


def _quadruple(values: Iterable[int]) -> tuple[int, int, int, int]:
    a, b, c, d = values
    return a, b, c, d


def _count(weights: Weights, prefix: str) -> int:
    """How many different layers lie below `prefix`; a gap in their numbers shows up as missing keys later."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in weights if key.startswith(prefix)})


def _rows(weights: Weights, key: str) -> int:
    """First size of a weight that need not be there."""
    return weights[key].shape[0] if key in weights and weights[key].dim() else 0
