"""Small InsPro networks with random weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from visrt.models.inspro import InsPro, InsProSettings
from visrt.models.resnet import ResNetSettings

__all__ = ["CLASSES", "SMALL", "SMALL_LITE", "small"]

CLASSES = ("person", "vehicle", "animal")
SMALL = InsProSettings(
    classes=len(CLASSES),
    queries=5,
    backbone=ResNetSettings(blocks=(1, 1, 1, 1), width=4, stem_width=6),
    dim=32,
    heads=4,
    stages=3,
    feedforward_dim=40,
    dynamic_dim=8,
    box_layers=2,
    mask_channels=12,
    mask_convolutions=2,
    bank_frames=4,
)
SMALL_LITE = replace(SMALL, lite_stages=1)


def small(settings: InsProSettings = SMALL, **changes: Any) -> InsPro:
    """A network whose pairs differ from the start, as those of a trained one."""
    torch.manual_seed(0)
    network = InsPro(replace(settings, **changes)).eval()
    with torch.no_grad():
        centres = torch.rand(network.settings.queries, 2)
        sizes = 0.2 + 0.6 * torch.rand(network.settings.queries, 2)
        network.init_proposal_boxes.weight.copy_(torch.cat((centres, sizes), dim=-1))
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.get_buffer("running_mean").normal_(std=0.1)
                layer.get_buffer("running_var").uniform_(0.5, 1.5)
    return network
