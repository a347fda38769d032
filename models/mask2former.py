"""Mask2Former, the frame network of every family here: backbone, pixel decoder, masked-attention decoder.

Applied frame by frame it is MinVIS (Huang et al., NeurIPS 2022); with `reid_dim` above zero it is CTVIS's network.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from visrt.models.decoder import LayerPrediction, MaskedAttentionDecoder
from visrt.models.deformable import DeformablePixelDecoder
from visrt.models.efficientnet import EfficientNetLite0, EfficientNetLite0Settings
from visrt.models.fpn import FpnPixelDecoder
from visrt.models.resnet import ResNet, ResNetSettings
from visrt.models.swin import Swin, SwinSettings

__all__ = ["FrameOutputs", "Mask2Former", "NetworkSettings"]

BackboneSettings = EfficientNetLite0Settings | ResNetSettings | SwinSettings

BACKBONES: dict[str, tuple[type[Any], Callable[[Any], nn.Module]]] = {
    "efficientnet_lite0": (EfficientNetLite0Settings, EfficientNetLite0),
    "resnet": (ResNetSettings, ResNet),
    "swin": (SwinSettings, Swin),
}

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class NetworkSettings:
    """The architecture. The defaults are those of the published R50 networks.

    pixel_mean, pixel_std: RGB, in 0..255 units. pixel_decoder: "deformable" or "fpn". encoder_layers: deformable
    attention layers, or global attention layers of the light FPN. reid_dim: 0 = MinVIS, no instance-embedding head.
    """

    classes: int
    queries: int = 100
    backbone: BackboneSettings = field(default_factory=ResNetSettings)
    pixel_decoder: str = "deformable"
    conv_dim: int = 256
    mask_dim: int = 256
    hidden_dim: int = 256
    heads: int = 8
    encoder_layers: int = 6
    encoder_feedforward_dim: int = 1024
    decoder_layers: int = 9
    decoder_feedforward_dim: int = 2048
    reid_dim: int = 0
    reid_hidden_dim: int = 0
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD


class FrameOutputs(NamedTuple):
    """Outputs of the frame network, those of its last layer, and of the `frame` graph of a bundle.

    class_logits [B, Q, K + 1], embeddings [B, Q, C], mask_embeddings [B, Q, D], mask_features [B, D, H/4, W/4].
    """

    class_logits: Tensor
    embeddings: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor


def _deformable(settings: NetworkSettings) -> DeformablePixelDecoder:
    return DeformablePixelDecoder(
        settings.backbone.channels,
        dim=settings.conv_dim,
        mask_dim=settings.mask_dim,
        heads=settings.heads,
        layers=settings.encoder_layers,
        feedforward_dim=settings.encoder_feedforward_dim,
    )


def _fpn(settings: NetworkSettings) -> FpnPixelDecoder:
    return FpnPixelDecoder(
        settings.backbone.channels,
        dim=settings.conv_dim,
        mask_dim=settings.mask_dim,
        heads=settings.heads,
        global_layers=settings.encoder_layers,
    )


PIXEL_DECODERS: dict[str, Callable[[NetworkSettings], DeformablePixelDecoder | FpnPixelDecoder]] = {
    "deformable": _deformable,
    "fpn": _fpn,
}


class Head(nn.Module):
    """Pixel decoder and predictor, under the name the published checkpoints give the pair."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.pixel_decoder = PIXEL_DECODERS[settings.pixel_decoder](settings)
        self.predictor = MaskedAttentionDecoder(
            in_dim=settings.conv_dim,
            dim=settings.hidden_dim,
            mask_dim=settings.mask_dim,
            heads=settings.heads,
            feedforward_dim=settings.decoder_feedforward_dim,
            layers=settings.decoder_layers,
            queries=settings.queries,
            classes=settings.classes,
            reid_dim=settings.reid_dim,
            reid_hidden_dim=settings.reid_hidden_dim,
        )


class Mask2Former(nn.Module):
    """Images in, queries out. Images are normalised RGB [B, 3, H, W], H and W divisible by 32."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = BACKBONES[settings.backbone.kind][1](settings.backbone)
        self.sem_seg_head = Head(settings)

    def layers(self, images: Tensor) -> tuple[list[LayerPrediction], Tensor]:
        """Predictions of every layer, for deep supervision, and the mask features [B, D, H/4, W/4]."""
        mask_features, levels = self.sem_seg_head.pixel_decoder(self.backbone(images))
        return self.sem_seg_head.predictor(levels, mask_features), mask_features

    def embeddings(self, queries: Tensor) -> Tensor:
        """Embeddings for association: the instance-embedding head's output, or without that head the queries."""
        reid = self.sem_seg_head.predictor.reid_embed
        return queries if reid is None else reid(queries)

    def forward(self, images: Tensor) -> FrameOutputs:
        predictions, mask_features = self.layers(images)
        last = predictions[-1]
        return FrameOutputs(last.class_logits, self.embeddings(last.queries), last.mask_embeddings, mask_features)
