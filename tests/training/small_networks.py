"""The networks that training tests share: a Mask2Former of 3 classes and GenVIS's video part on it, quick on a CPU."""

from __future__ import annotations

from visrt.models.efficientnet import EfficientNetLite0Settings
from visrt.models.mask2former import NetworkSettings
from visrt.training.genvis_settings import GenVisTraining
from visrt.training.losses.mask2former import LossSettings
from visrt.training.losses.targets import MatchSettings

__all__ = ["CLASSES", "FRAME", "POINTS", "VIDEO"]

CLASSES = ("car", "dog", "chair")
FRAME = NetworkSettings(
    classes=3,
    queries=5,
    backbone=EfficientNetLite0Settings(),
    pixel_decoder="fpn",
    conv_dim=32,
    mask_dim=32,
    hidden_dim=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    decoder_feedforward_dim=32,
)
VIDEO = GenVisTraining(instances=6, heads=2, encoder_layers=1, decoder_layers=2, feedforward_dim=32, streams=2)
POINTS = LossSettings(points=64, match=MatchSettings(points=64))
