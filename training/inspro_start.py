"""The start of an InsPro run: from nothing, from a trained backbone, or from an InsPro checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from visrt.models.checkpoints.checkpoint import load_checkpoint, read_weights
from visrt.models.checkpoints.inspro import INSPRO
from visrt.models.efficientnet import imagenet_weights
from visrt.models.inspro import InsPro
from visrt.runtime.errors import CheckpointError, SettingsError
from visrt.training.inspro_settings import InsProTrainSettings

__all__ = ["first_network"]

LITE = ("lite_head.", "lite_controller.")
ATTENTION = "intra_query_eps."
CLASSIFIER = ".class_logits."
BACKBONES = ("backbone.bottom_up.", "backbone.")
"""The prefixes of backbone keys in files of InsPro and of the Mask2Former family, the longer first."""


def first_network(settings: InsProTrainSettings) -> InsPro:
    """A fresh network with the weights that `settings.init` names.

    Raises SettingsError or CheckpointError where they do not fit.
    """
    network = InsPro(settings.network)
    if settings.first_boxes == "grid":
        _spread_boxes(network)
    if settings.init == "imagenet":
        _take_imagenet(network)
    elif settings.init and settings.init_takes == "backbone":
        _take_backbone(network, Path(settings.init))
    elif settings.init:
        fresh = _take_network(network, Path(settings.init))
        if settings.first_lite == "last" and any(key.startswith("lite_head.") for key in fresh):
            _take_last_stages(network)
    return network


@torch.no_grad()
def _spread_boxes(network: InsPro) -> None:
    """Proposals twice as large as the cells of a grid of about square cells in a picture of 16:9, one in each."""
    count = network.settings.queries
    rows = max(1, round(math.sqrt(count * 9 / 16)))
    columns = math.ceil(count / rows)
    places = torch.arange(count)
    centres = torch.stack(((places % columns + 0.5) / columns, (places // columns + 0.5) / rows), dim=-1)
    sizes = torch.tensor([2 / columns, 2 / rows]).expand(count, 2)
    network.init_proposal_boxes.weight.copy_(torch.cat((centres, sizes), dim=-1))


def _take_imagenet(network: InsPro) -> None:
    kind = network.settings.backbone.kind
    if kind != "efficientnet_lite0":
        raise SettingsError(
            f"init is 'imagenet' but the backbone is {kind}: ImageNet weights come with EfficientNet-Lite0 only; give "
            "the path of a checkpoint"
        )
    network.backbone.bottom_up.load_state_dict(imagenet_weights())


def _take_backbone(network: InsPro, path: Path) -> None:
    """Every weight of the backbone must be in the file; what else it holds is left."""
    weights, _ = read_weights(path)
    own = network.backbone.bottom_up.state_dict()
    root = next(root for root in BACKBONES if any(key.startswith(root) for key in weights) or root == BACKBONES[-1])
    found = {key: weights[root + key] for key in own if root + key in weights}
    wrong = [key for key in own if key not in found or found[key].shape != own[key].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} of the backbone's {len(own)} weights are not in it or have another shape, the first "
            f"{root + wrong[0]}; expected a checkpoint with a {network.settings.backbone.kind} backbone"
        )
    network.backbone.bottom_up.load_state_dict(found)


def _take_network(network: InsPro, path: Path) -> list[str]:
    """Every weight must fit, but for what a later phase adds or fine-tuning replaces: the keys of that."""
    checkpoint = load_checkpoint(path, INSPRO)
    own, weights = network.state_dict(), checkpoint.weights
    fresh = [key for key in own if _may_be_fresh(key, own, weights)]
    wrong = [key for key in own if key not in fresh and (key not in weights or weights[key].shape != own[key].shape)]
    left = [key for key in weights if key not in own]
    if wrong or left:
        raise CheckpointError(
            f"{path}: does not fit the network of the settings; {len(wrong)} weights missing or misshapen: "
            f"{', '.join(wrong[:3])}; {len(left)} too many: {left[:3]}; make `network` agree with it"
        )
    network.load_state_dict({key: own[key] if key in fresh else weights[key] for key in own})
    return fresh


def _take_last_stages(network: InsPro) -> None:
    """The lite head as a copy of as many last stages."""
    last = list(network.head.head_series)[-network.settings.lite_stages :]
    for lite, stage in zip(network.lite_head.head_series, last, strict=True):
        lite.load_state_dict(stage.state_dict())
    if hasattr(network, "lite_controller"):
        network.lite_controller.load_state_dict(network.controller.state_dict())


def _may_be_fresh(key: str, own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> bool:
    """The lite head and intra-query attention, if the file has none; classifiers of another number of classes."""
    if key not in weights:
        return key.startswith((*LITE, ATTENTION))
    return CLASSIFIER in key and weights[key].shape != own[key].shape
