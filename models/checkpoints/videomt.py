"""VidEoMT in checkpoints: official files, folders of transformers, and visrt's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from visrt.models.checkpoints.architecture import Weights
from visrt.models.checkpoints.checkpoint import FolderContents, NetworkKind
from visrt.models.checkpoints.eomt import UNUSED, folder_contents, vit_values
from visrt.models.checkpoints.eomt_keys import own_weights
from visrt.models.checkpoints.hugging_face import CONFIG, folder_config, folder_weights
from visrt.models.checkpoints.hugging_face_config import check_model
from visrt.models.videomt import VideoMt, VideoMtSettings

__all__ = ["VIDEOMT"]

NORMED_CLASSES = 124
"""Of VIPSeg and VSPW. Published networks with DINOv3 for them norm their queries, which no weight shows."""


def _settings_from_weights(weights: Weights, where: str) -> VideoMtSettings:
    return VideoMtSettings(**vit_values(weights, where))


def _unclear(settings: VideoMtSettings) -> Mapping[str, str]:
    if settings.positions != "rotary" or settings.classes != NORMED_CLASSES:
        return {}
    return {
        "norm_queries": f"VidEoMT with DINOv3 and {NORMED_CLASSES} classes, as of VIPSeg and VSPW, is published with "
        "queries that are normed, which no weight shows; convert it with --set norm_queries=true, or with "
        "norm_queries=false if it was trained without"
    }


def _published(weights: Weights, _: str) -> Weights:
    return own_weights(weights)


def _read_folder(folder: Path) -> FolderContents:
    config = folder_config(folder)
    check_model(config, {"videomt": "VideomtForUniversalSegmentation"}, folder / CONFIG)
    weights = own_weights(folder_weights(folder))
    return folder_contents(folder, _settings_from_weights(weights, str(folder)), weights, config)


VIDEOMT = NetworkKind(
    expected="a VidEoMT network, official or from transformers",
    settings=VideoMtSettings,
    build=VideoMt,
    settings_from_weights=_settings_from_weights,
    published=_published,
    mark="query_updater.weight",
    ignored=UNUSED,
    not_in_weights=("heads", "norm_eps", "norm_queries", "pixel_mean", "pixel_std"),
    unclear=_unclear,
    read_folder=_read_folder,
)
