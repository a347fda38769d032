"""InsPro and InsPro-lite in checkpoints: the natural Sparse R-CNN and CondInst key layout, and visrt's own files.

The keys of the published files are not known.
"""

from __future__ import annotations

from typing import Any

from visrt.models.checkpoints.architecture import Weights, check_shapes, layer_count, resnet_from_weights
from visrt.models.checkpoints.checkpoint import NetworkKind
from visrt.models.condinst import parameter_count
from visrt.models.inspro import InsPro, InsProSettings
from visrt.runtime.errors import CheckpointError

__all__ = ["INSPRO"]

BACKBONE = "backbone.bottom_up."
STAGES = "head.head_series."
FIRST = STAGES + "0."
LITE = "lite_head.head_series."
TOWER = "mask_branch.tower."

# The weights whose shapes give the architecture, and their numbers of axes.
NEEDED = {
    BACKBONE + "stem.conv1.weight": 4,
    BACKBONE + "res2.0.conv3.weight": 4,
    "init_proposal_features.weight": 2,
    FIRST + "class_logits.weight": 2,
    FIRST + "linear1.weight": 2,
    FIRST + "inst_interact.norm1.weight": 1,
}
MASK_WEIGHTS = {"controller.weight": 2, "mask_branch.refine.0.0.weight": 4}

NETWORKS = "an InsPro network on a residual backbone, or one that visrt wrote"


def _settings_from_weights(weights: Weights, where: str) -> InsProSettings:
    """The architecture of an InsPro network, with defaults for what the weights do not show."""
    check_shapes(weights, NEEDED, where, NETWORKS)
    queries, dim = weights["init_proposal_features.weight"].shape
    return InsProSettings(
        classes=weights[FIRST + "class_logits.weight"].shape[0],
        queries=queries,
        backbone=resnet_from_weights(weights, BACKBONE),
        dim=dim,
        stages=layer_count(weights, STAGES),
        feedforward_dim=weights[FIRST + "linear1.weight"].shape[0],
        dynamic_dim=weights[FIRST + "inst_interact.norm1.weight"].shape[0],
        # A layer is a linear one, a norm and a ReLU, of which the last has no weights.
        class_layers=layer_count(weights, FIRST + "cls_module.") // 2,
        box_layers=layer_count(weights, FIRST + "reg_module.") // 2,
        lite_stages=layer_count(weights, LITE),
        **_masks(weights, where),
        **_attention(weights),
    )


def _masks(weights: Weights, where: str) -> dict[str, Any]:
    if "controller.weight" not in weights:
        return {"outputs": "boxes"}
    check_shapes(weights, MASK_WEIGHTS, where, NETWORKS)
    convolutions = layer_count(weights, TOWER) - 1
    last = f"{TOWER}{convolutions}.weight"
    check_shapes(weights, {last: 4}, where, NETWORKS)
    features = weights[last].shape[0]
    numbers = len(weights["controller.weight"])
    if numbers != parameter_count(features):
        raise CheckpointError(
            f"{where}: controller.weight gives {numbers} numbers a mask; expected {parameter_count(features)}, for "
            f"three dynamic convolutions over {features} mask features and 2 relative places"
        )
    return {
        "mask_channels": weights["mask_branch.refine.0.0.weight"].shape[0],
        "mask_convolutions": convolutions,
        "mask_features": features,
        "lite_masks": "own" if "lite_controller.weight" in weights else "shared",
    }


def _attention(weights: Weights) -> dict[str, Any]:
    """Intra-query attention: absent, or with one number a frame, or with one a channel."""
    if "intra_query_eps.weight" not in weights:
        return {"bank_frames": 1}
    return {"importance": "scalar" if len(weights["intra_query_eps.weight"]) == 1 else "channel"}


INSPRO = NetworkKind(
    expected="an InsPro network",
    settings=InsProSettings,
    build=InsPro,
    settings_from_weights=_settings_from_weights,
    mark="init_proposal_features.weight",
    ignored=("mask_head.",),  # CondInst's mask head has buffers that belong to training
    not_in_weights=(
        "heads",
        "propagation",
        "bank_frames",
        "mask_scale_px",
        "outside",
        "proposal_clip",
        "pixel_mean",
        "pixel_std",
    ),
)
