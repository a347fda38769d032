"""Mask2Former in checkpoints, for MinVIS and CTVIS."""

from __future__ import annotations

from visrt.models.checkpoints.architecture import settings_from_weights
from visrt.models.checkpoints.checkpoint import NetworkKind
from visrt.models.checkpoints.hugging_face import read_hugging_face
from visrt.models.mask2former import Mask2Former, NetworkSettings

__all__ = ["MASK2FORMER"]

MASK2FORMER = NetworkKind(
    expected="a MinVIS, CTVIS or Mask2Former network",
    settings=NetworkSettings,
    build=Mask2Former,
    settings_from_weights=settings_from_weights,
    not_in_weights=("pixel_mean", "pixel_std"),
    read_folder=read_hugging_face,
)
