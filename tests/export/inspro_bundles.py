"""A small InsPro-lite network with random weights, and the bundles exported from it, each once for all test files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import CLASSES, HEIGHT, WIDTH

from visrt.export.bundle import Export, ExportReport, export_bundle
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.inspro import InsPro, InsProSettings
from visrt.models.interaction import InteractionStage
from visrt.models.resnet import ResNetSettings

__all__ = ["SETTINGS", "exported_inspro", "saved_inspro", "wanted_inspro"]

SETTINGS = InsProSettings(
    classes=len(CLASSES),
    queries=6,
    backbone=ResNetSettings(blocks=(1, 1, 1, 1), width=4, stem_width=6),
    dim=32,
    heads=4,
    stages=1,
    feedforward_dim=40,
    dynamic_dim=8,
    box_layers=1,
    mask_channels=12,
    mask_convolutions=1,
    bank_frames=4,
    lite_stages=1,
)

_DONE: dict[tuple[str, str], ExportReport] = {}


def saved_inspro(path: Path, settings: InsProSettings = SETTINGS, classes: tuple[str, ...] = CLASSES) -> Path:
    """A checkpoint whose boxes differ from the start and move little, as those of a trained network do."""
    torch.manual_seed(0)
    network = InsPro(settings).eval()
    with torch.no_grad():
        parts = torch.rand(settings.queries, 2), 0.2 + 0.6 * torch.rand(settings.queries, 2)
        network.init_proposal_boxes.weight.copy_(torch.cat(parts, dim=-1))
        for stage in (module for module in network.modules() if isinstance(module, InteractionStage)):
            stage.bboxes_delta.weight.mul_(0.1)
    save_checkpoint(network, path, classes)
    return path


def wanted_inspro(folder: Path, family: str, precision: str = "fp32", settings: InsProSettings = SETTINGS) -> Export:
    """An export to `folder`, not yet done. Every slot is an object, as the network was never trained."""
    association = {"birth_score": 0.0, "keep_score": 0.0}
    return Export(
        saved_inspro(folder / "model.safetensors", settings),
        folder / "bundle",
        HEIGHT,
        WIDTH,
        family=family,
        association=association,
        precision=precision,
        keep_fp32=None if precision == "fp32" else (),
    )


def exported_inspro(folders: pytest.TempPathFactory, family: str, precision: str = "fp32") -> ExportReport:
    """The bundle of `family` in `precision`, exported when it is first asked for."""
    wanted = (family, precision)
    if wanted not in _DONE:
        _DONE[wanted] = export_bundle(wanted_inspro(folders.mktemp("inspro"), family, precision))
    return _DONE[wanted]


WITHOUT_LITE = replace(SETTINGS, lite_stages=0)
