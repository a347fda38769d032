"""Reading InsPro's architecture off the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visrt.models.condinst import parameter_count
from visrt.models.inspro import InsProSettings
from visrt.models.resnet import EXPANSION, ResNetSettings
from visrt.runtime.errors import CheckpointError

__all__ = ["UNTOLD", "inspro_settings_from_weights"]

Weights = Mapping[str, Tensor]

BACKBONE = "backbone.bottom_up."
STAGES = "head.head_series."
FIRST = STAGES + "0."
LITE = "lite_head.head_series."
TOWER = "mask_branch.tower."

# The weights whose shapes say what the network is, and their numbers of axes.
NEEDED = {
    BACKBONE + "stem.conv1.weight": 4,
    BACKBONE + "res2.0.conv3.weight": 4,
    "init_proposal_features.weight": 2,
    FIRST + "class_logits.weight": 2,
    FIRST + "linear1.weight": 2,
    FIRST + "inst_interact.norm1.weight": 1,
}
MASK_WEIGHTS = {"controller.weight": 2, "mask_branch.refine.0.0.weight": 4}

UNTOLD = ("heads", "bank_frames", "mask_scale_px", "outside", "proposal_clip", "pixel_mean", "pixel_std")
"""Settings that no weight tells."""


def inspro_settings_from_weights(weights: Weights, where: str) -> InsProSettings:
    """The architecture of an InsPro network, with defaults for what is `UNTOLD`; `where` names the file in errors."""
    _check(weights, NEEDED, where)
    queries, dim = weights["init_proposal_features.weight"].shape
    return InsProSettings(
        classes=weights[FIRST + "class_logits.weight"].shape[0],
        queries=queries,
        backbone=_resnet(weights),
        dim=dim,
        stages=_count(weights, STAGES),
        feedforward_dim=weights[FIRST + "linear1.weight"].shape[0],
        dynamic_dim=weights[FIRST + "inst_interact.norm1.weight"].shape[0],
        # A layer is a linear one, a norm and a ReLU, of which the last has no weights.
        class_layers=_count(weights, FIRST + "cls_module.") // 2,
        box_layers=_count(weights, FIRST + "reg_module.") // 2,
        lite_stages=_count(weights, LITE),
        **_masks(weights, where),
        **_attention(weights),
    )


def _masks(weights: Weights, where: str) -> dict[str, Any]:
    if "controller.weight" not in weights:
        return {"outputs": "boxes"}
    _check(weights, MASK_WEIGHTS, where)
    convolutions = _count(weights, TOWER) - 1
    last = f"{TOWER}{convolutions}.weight"
    _check(weights, {last: 4}, where)
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


def _check(weights: Weights, expected: Mapping[str, int], where: str) -> None:
    """Every weight that is read for its shape is there, with its number of axes."""
    missing = [key for key in expected if key not in weights]
    if missing:
        raise CheckpointError(
            f"{where}: weights that tell the architecture are missing: {', '.join(missing)}; expected an InsPro "
            "network on a residual backbone, or one that visrt wrote"
        )
    for key, axes in expected.items():
        shape = tuple(weights[key].shape)
        if len(shape) != axes or 0 in shape:
            raise CheckpointError(f"{where}: {key} has shape {shape}; expected {axes} axes, none of them empty")


def _resnet(weights: Weights) -> ResNetSettings:
    a, b, c, d = (_count(weights, f"{BACKBONE}res{stage}.") for stage in (2, 3, 4, 5))
    return ResNetSettings(
        blocks=(a, b, c, d),
        width=weights[BACKBONE + "res2.0.conv3.weight"].shape[0] // EXPANSION,
        stem_width=weights[BACKBONE + "stem.conv1.weight"].shape[0],
    )


def _count(weights: Weights, prefix: str) -> int:
    """How many different modules with weights lie below `prefix`."""
    return len({key[len(prefix) :].split(".", 1)[0] for key in weights if key.startswith(prefix)})
