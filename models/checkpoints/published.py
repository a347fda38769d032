"""The published networks by name: the sizes of the official MinVIS and Mask2Former configurations."""

from __future__ import annotations

from dataclasses import replace

from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.models.genvis import GenVisNetworkSettings
from visrt.models.mask2former import NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.models.swin import SwinSettings

__all__ = ["DATASET_CLASSES", "PUBLISHED", "ctvis", "genvis", "published"]

PUBLISHED: dict[str, NetworkSettings] = {
    "r50": NetworkSettings(classes=40, backbone=ResNetSettings()),
    "r101": NetworkSettings(classes=40, backbone=ResNetSettings(blocks=(3, 4, 23, 3))),
    "swin_t": NetworkSettings(classes=40, backbone=SwinSettings()),
    "swin_s": NetworkSettings(classes=40, backbone=SwinSettings(depths=(2, 2, 18, 2))),
    "swin_b": NetworkSettings(
        classes=40,
        backbone=SwinSettings(embed_dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12),
    ),
    "swin_l": NetworkSettings(
        classes=40,
        queries=200,
        backbone=SwinSettings(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48), window=12),
    ),
}
"""With the 40 classes of YouTube-VIS 2019; `published` gives another number of classes."""


def published(name: str, classes: int) -> NetworkSettings:
    """The published architecture `name` for `classes` classes."""
    return replace(PUBLISHED[name], classes=classes)


def ctvis(settings: NetworkSettings) -> NetworkSettings:
    """CTVIS's network: `settings` with its instance-embedding head, as wide as the queries."""
    return replace(settings, reid_dim=settings.hidden_dim, reid_hidden_dim=settings.hidden_dim)


def genvis(settings: NetworkSettings) -> GenVisNetworkSettings:
    """GenVIS's network on the frame part `settings`: 100 slots however many frame queries there are."""
    return GenVisNetworkSettings(frame=settings)
