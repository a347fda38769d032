"""A small GenVIS network with random weights, and the bundles exported from it, each once for all test files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import CLASSES, HEIGHT, PUBLISHED_KIND, WIDTH

from visrt.export.bundle import Export, ExportReport, export_bundle
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.genvis import GenVis, GenVisNetworkSettings

__all__ = ["LENGTHS", "SETTINGS", "exported_genvis", "wanted_genvis"]

SETTINGS = GenVisNetworkSettings(
    # The light pixel decoder: tracing takes time by the node, and the deformable one is traced for MinVIS.
    frame=replace(PUBLISHED_KIND, pixel_decoder="fpn", decoder_layers=1),
    instances=7,
    heads=4,
    encoder_layers=2,
    decoder_layers=1,
    feedforward_dim=64,
)
LENGTHS = (1, 3)

_DONE: dict[str, ExportReport] = {}


def wanted_genvis(folder: Path, precision: str = "fp32") -> Export:
    """An export of a network with random weights to `folder`, not yet done."""
    torch.manual_seed(0)
    checkpoint = folder / "model.safetensors"
    save_checkpoint(GenVis(SETTINGS).eval(), checkpoint, CLASSES)
    association = {"clip_frames": 3, "clip_lengths": LENGTHS, "birth_score": 0.0, "keep_score": 0.0}
    kept = None if precision == "fp32" else ()
    return Export(
        checkpoint,
        folder / "bundle",
        HEIGHT,
        WIDTH,
        family="genvis",
        association=association,
        precision=precision,
        keep_fp32=kept,
    )


def exported_genvis(folders: pytest.TempPathFactory, precision: str = "fp32") -> ExportReport:
    """The bundle in `precision`, exported when it is first asked for."""
    if precision not in _DONE:
        _DONE[precision] = export_bundle(wanted_genvis(folders.mktemp("genvis"), precision))
    return _DONE[precision]
