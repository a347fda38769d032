"""Small networks of each kind with random weights, and the bundles exported from them.

Tracing takes seconds, so each is exported once for all test files, which a pytest fixture outside a conftest cannot do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from visrt.export.bundle import Export, ExportReport, export_bundle
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.efficientnet import EfficientNetLite0Settings
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.resnet import ResNetSettings

__all__ = ["CLASSES", "HEIGHT", "LIGHT", "PUBLISHED_KIND", "WIDTH", "Exported", "exported", "saved"]

HEIGHT, WIDTH = 64, 96
CLASSES = ("person", "vehicle", "animal")
SMALL: dict[str, Any] = {
    "classes": len(CLASSES),
    "queries": 10,
    "conv_dim": 32,
    "mask_dim": 32,
    "hidden_dim": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 64,
    "decoder_layers": 3,
    "decoder_feedforward_dim": 64,
}
PUBLISHED_KIND = NetworkSettings(backbone=ResNetSettings(blocks=(1, 1, 1, 1), width=8, stem_width=8), **SMALL)
"""Residual network, deformable pixel decoder."""

LIGHT = NetworkSettings(
    backbone=EfficientNetLite0Settings(), pixel_decoder="fpn", reid_dim=16, reid_hidden_dim=24, **SMALL
)
"""The kind the default bundle is made from, with an instance-embedding head."""


@dataclass(frozen=True)
class Exported:
    """A checkpoint and the bundle it was exported to; both are read, never written."""

    checkpoint: Path
    wanted: Export
    report: ExportReport

    @property
    def folder(self) -> Path:
        return self.report.folder


def saved(settings: NetworkSettings, path: Path) -> Path:
    """A checkpoint with random weights at `path`."""
    torch.manual_seed(0)
    save_checkpoint(Mask2Former(settings).eval(), path, CLASSES)
    return path


_DONE: dict[NetworkSettings, Exported] = {}


def exported(settings: NetworkSettings, folders: pytest.TempPathFactory) -> Exported:
    """The bundle of a network of `settings`, exported when it is first asked for."""
    if settings not in _DONE:
        folder = folders.mktemp("exported")
        checkpoint = saved(settings, folder / "model.safetensors")
        wanted = Export(checkpoint, folder / "bundle", HEIGHT, WIDTH)
        _DONE[settings] = Exported(checkpoint, wanted, export_bundle(wanted))
    return _DONE[settings]
