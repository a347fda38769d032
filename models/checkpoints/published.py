"""The published networks by name: the sizes of the official configurations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.models.eomt import EomtSettings
from visrt.models.genvis import GenVisNetworkSettings
from visrt.models.mask2former import NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.models.swin import SwinSettings
from visrt.models.videomt import VideoMtSettings
from visrt.models.vit import VitSettings

__all__ = [
    "DATASET_CLASSES",
    "PUBLISHED",
    "PUBLISHED_VITS",
    "backbone_in_words",
    "ctvis",
    "eomt",
    "genvis",
    "published",
    "published_backbone",
    "videomt",
]

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


_LARGE: dict[str, Any] = {"dim": 1024, "blocks": 24, "heads": 16, "feedforward_dim": 4096, "query_blocks": 4}

PUBLISHED_VITS: dict[str, dict[str, Any]] = {
    "vit_s": {},
    "vit_b": {"dim": 768, "heads": 12, "feedforward_dim": 3072},
    "vit_l": _LARGE,
    "vit_l_dinov3": {**_LARGE, "positions": "rotary", "table_side": 0, "norm_eps": 1e-5},
}
"""The transformers of EoMT and VidEoMT: settings in which they differ from ViT-S with DINOv2's positions."""


def eomt(name: str, classes: int) -> EomtSettings:
    """The published EoMT on the transformer `name`."""
    return EomtSettings(classes=classes, **PUBLISHED_VITS[name])


def videomt(name: str, classes: int) -> VideoMtSettings:
    """The published VidEoMT on the transformer `name`."""
    return VideoMtSettings(classes=classes, **PUBLISHED_VITS[name])


def backbone_in_words(settings: Any) -> str:
    """Of a network with `settings`: the kind of its backbone, or the size and the positions of its transformer."""
    if isinstance(settings, VitSettings):
        return f"transformer of {settings.blocks} blocks and {settings.dim} channels, {settings.positions} positions"
    return str(getattr(settings, "frame", settings).backbone.kind)


def published_backbone(name: str) -> str:
    """`backbone_in_words` of the published backbone or transformer `name`."""
    return backbone_in_words(eomt(name, 1) if name in PUBLISHED_VITS else PUBLISHED[name])
