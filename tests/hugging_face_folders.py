"""Tiny Hugging Face Mask2Formers with random weights, as transformers itself builds, runs and saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

__all__ = ["CLASSES", "TINY", "hugging_face_model", "randomised", "save_folder", "transformers_or_skip"]

CLASSES = ("person", "vehicle", "animal")
STAGES = ["stage1", "stage2", "stage3", "stage4"]

BACKBONES: dict[str, dict[str, Any]] = {
    "swin": {
        "embed_dim": 8, "depths": [2, 1, 1, 2], "num_heads": [1, 2, 4, 2], "window_size": 3, "mlp_ratio": 2.0,
    },
    "resnet": {"embedding_size": 6, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 2, 1, 1]},
}  # fmt: skip

TINY: dict[str, Any] = {
    "num_queries": 6,
    "feature_size": 32,
    "mask_feature_size": 24,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 48,
    "dim_feedforward": 40,
    "encoder_layers": 2,
    "decoder_layers": 5,
    "num_attention_heads": 4,
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {name: number for number, name in enumerate(CLASSES)},
}


def transformers_or_skip() -> Any:
    """The module; a test that needs it is skipped where it is not installed."""
    return pytest.importorskip("transformers", reason="transformers is not installed; pip install '.[dev]'")


def hugging_face_model(backbone: str, *, backbone_options: dict[str, Any] | None = None, **options: Any) -> Any:
    """A Mask2FormerForUniversalSegmentation in eval mode, tiny but for `options`, with random weights."""
    transformers = transformers_or_skip()
    torch.manual_seed(0)
    kind = {"swin": transformers.SwinConfig, "resnet": transformers.ResNetConfig}[backbone]
    config = kind(out_features=STAGES, **{**BACKBONES[backbone], **(backbone_options or {})})
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=config, **{**TINY, **options})
    )
    return randomised(model).eval()


def randomised(model: nn.Module) -> nn.Module:
    """`model` without a weight that is zero or one by its initialisation: what is taken for another then shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return model


def save_folder(folder: Path, backbone: str = "resnet", **options: Any) -> Path:
    """A folder as `save_pretrained` writes it."""
    hugging_face_model(backbone, **options).save_pretrained(folder)
    return folder
