"""Networks with random weights, in files as the published ones: their names, layouts and numbers of classes.

They are small but for VidEoMT, of which the smallest is taken: its size is looked at.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from inspro_bundles import SETTINGS, saved_inspro
from torch import Tensor

from visrt.models.checkpoints.published import videomt
from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.models.genvis import GenVis, GenVisNetworkSettings
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.models.resnet import ResNetSettings
from visrt.models.videomt import VideoMt

__all__ = ["save_small_weights"]

TINY: dict[str, Any] = {
    "queries": 6,
    "conv_dim": 32,
    "mask_dim": 32,
    "hidden_dim": 32,
    "heads": 4,
    "encoder_layers": 1,
    "encoder_feedforward_dim": 48,
    "decoder_layers": 1,
    "decoder_feedforward_dim": 40,
    "backbone": ResNetSettings(blocks=(1, 1, 1, 1), width=4, stem_width=6),
}


def save_small_weights(path: Path, family: str, classes: str) -> None:
    """A network of `family` for the classes of a data set, at `path`: .pth as released, .safetensors as trained."""
    names = DATASET_CLASSES[classes]
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if path.suffix == ".safetensors":
        saved_inspro(path, replace(SETTINGS, classes=len(names)), names)
    else:
        torch.save({"model": NETWORKS[family](len(names)), "iteration": 5999}, path)


def _minvis(classes: int) -> dict[str, Tensor]:
    return Mask2Former(NetworkSettings(classes=classes, **TINY)).state_dict()


def _ctvis(classes: int) -> dict[str, Tensor]:
    return Mask2Former(NetworkSettings(classes=classes, reid_dim=32, reid_hidden_dim=32, **TINY)).state_dict()


def _genvis(classes: int) -> dict[str, Tensor]:
    frame = NetworkSettings(classes=classes, **TINY)
    return GenVis(GenVisNetworkSettings(frame, instances=5, heads=4, encoder_layers=1, decoder_layers=1)).state_dict()


def _videomt(classes: int) -> dict[str, Tensor]:
    settings = videomt("vit_s", classes)
    return {**VideoMt(settings).state_dict(), "attn_mask_probs": torch.zeros(settings.query_blocks)}


NETWORKS = {"minvis": _minvis, "ctvis": _ctvis, "genvis": _genvis, "videomt": _videomt}
