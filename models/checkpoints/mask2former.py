"""Mask2Former in checkpoints, for MinVIS and CTVIS, and where its training starts from one."""

from __future__ import annotations

from pathlib import Path

from visrt.models.checkpoints.architecture import settings_from_weights
from visrt.models.checkpoints.checkpoint import PREDICTOR, NetworkKind, fill, load_checkpoint
from visrt.models.checkpoints.hugging_face import read_hugging_face
from visrt.models.mask2former import Mask2Former, NetworkSettings

__all__ = ["MASK2FORMER", "load_weights"]

MASK2FORMER = NetworkKind(
    expected="a MinVIS, CTVIS or Mask2Former network",
    settings=NetworkSettings,
    build=Mask2Former,
    settings_from_weights=settings_from_weights,
    not_in_weights=("pixel_mean", "pixel_std"),
    read_folder=read_hugging_face,
)

CLASSIFIER = (PREDICTOR + "class_embed.weight", PREDICTOR + "class_embed.bias")


def load_weights(network: Mask2Former, path: Path | str) -> list[str]:
    """Start `network` from the weights at `path`; returns the keys that stay as they are.

    Every key must fit, but for what fine-tuning replaces: the classifier, if the number of classes differs, and an
    instance-embedding head that the file does not have.
    """
    weights, own = load_checkpoint(path, MASK2FORMER).weights, network.state_dict()
    kept = [key for key in CLASSIFIER if key in weights and weights[key].shape != own[key].shape]
    kept += [key for key in own if key.startswith(PREDICTOR + "reid_embed.") and key not in weights]
    fill(network, {**weights, **{key: own[key] for key in kept}}, Path(path))
    return kept
