"""Small runs of EoMT and VidEoMT that tests share: a few tokens, three classes, quick on a CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from small_networks import POINTS
from torch import Tensor

from visrt.models.eomt import EomtSettings
from visrt.models.videomt import VideoMtSettings
from visrt.training.data.clips import ClipSettings
from visrt.training.data.motion import CameraSettings
from visrt.training.data.sources import SourceSettings
from visrt.training.settings import DataSettings, LayerRates, OptimSettings
from visrt.training.vit.eomt_settings import EomtTrainSettings
from visrt.training.vit.videomt_settings import VideoMtTrainSettings

__all__ = ["NETWORK", "SIZES", "eomt_run", "objects_in", "videomt_run"]

SIZES: dict[str, Any] = {
    "classes": 3, "queries": 6, "dim": 32, "blocks": 3, "heads": 2, "feedforward_dim": 64, "query_blocks": 2,
    "registers": 1, "table_side": 4,
}  # fmt: skip
NETWORK = VideoMtSettings(**SIZES)


def _parts(folder: Path, frames: int, **optim: Any) -> tuple[DataSettings, OptimSettings]:
    camera = CameraSettings(letterbox=0.0)
    clips = ClipSettings(height_px=64, width_px=96, cache_mb=20, frames=frames, max_objects=6, camera=camera)
    source = SourceSettings("coco", str(folder), held_out=0.4)
    data = DataSettings((source,), clips, workers=0, validation_clips=1, validation_frames=3)
    rates: dict[str, Any] = {"lr": 1e-3, "clip_norm": 0.0, "warmup_steps": 1, "schedule": "polynomial"}
    return data, OptimSettings(**{"steps": 3, "batch": 2, **rates, "layers": LayerRates(warmup_steps=1), **optim})


def eomt_run(folder: Path, **changes: Any) -> EomtTrainSettings:
    """Three steps on the photos in `folder`."""
    data, optim = _parts(folder, 1)
    settings = EomtTrainSettings("eomt", EomtSettings(**SIZES), data, optim, POINTS, save_every=9, validate_every=9)
    return replace(settings, **changes)


def videomt_run(folder: Path, frames: int = 3, **changes: Any) -> VideoMtTrainSettings:
    """Three steps on clips that film the photos in `folder`."""
    data, optim = _parts(folder, frames)
    settings = VideoMtTrainSettings("videomt", NETWORK, data, optim, POINTS, save_every=9, validate_every=9)
    return replace(settings, **changes)


def objects_in(rows: list[list[float]]) -> Tensor:
    """A mask [1, 4, 4] for each row of 4 numbers: those columns of the frame that are 1."""
    return torch.tensor(rows)[:, None, :].expand(-1, 4, -1)
