"""ResNet-50 and ResNet-101 (He et al., CVPR 2016) in the key layout of the published Mask2Former checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from visrt.models.layers import Block, FrozenBatchNorm2d

__all__ = ["ResNet", "ResNetSettings"]

EXPANSION = 4


@dataclass(frozen=True)
class ResNetSettings:
    """blocks: bottlenecks of res2..res5. width: channels of res2's 3x3 convolutions, doubled at every stage."""

    kind: Literal["resnet"] = "resnet"
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    stem_width: int = 64

    @property
    def channels(self) -> dict[str, int]:
        return {f"res{i + 2}": EXPANSION * self.width * 2**i for i in range(4)}


class ConvNorm(nn.Conv2d):
    """Convolution without bias, then frozen batch norm, no activation. The norm's keys lie below the convolution's."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.norm = FrozenBatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(super().forward(x))
        return out


class Stem(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, width, 7, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(self.conv1(images)), kernel_size=3, stride=2, padding=1)


class Bottleneck(Block):
    """1x1, 3x3, 1x1 and a shortcut. The stride is on the 3x3, as the published networks have it."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.shortcut = ConvNorm(in_channels, out_channels, 1, stride) if in_channels != out_channels else None
        self.conv1 = ConvNorm(in_channels, width, 1)
        self.conv2 = ConvNorm(width, width, 3, stride)
        self.conv3 = ConvNorm(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nn.Module):
    """Maps res2..res5 at strides 4, 8, 16, 32 of normalised RGB images [B, 3, H, W]."""

    def __init__(self, settings: ResNetSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or ResNetSettings()
        self.stem = Stem(self.settings.stem_width)
        stages = [_stage(self.settings, i) for i in range(4)]
        self.res2, self.res3, self.res4, self.res5 = stages

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        res2 = self.res2(self.stem(images))
        res3 = self.res3(res2)
        res4 = self.res4(res3)
        return {"res2": res2, "res3": res3, "res4": res4, "res5": self.res5(res4)}


def _stage(settings: ResNetSettings, index: int) -> nn.Sequential:
    """Stage res{index + 2}; its first block has a shortcut and, from res3 on, stride 2."""
    width = settings.width * 2**index
    in_channels = settings.stem_width if index == 0 else EXPANSION * width // 2
    first = Bottleneck(in_channels, width, stride=1 if index == 0 else 2)
    others = (Bottleneck(EXPANSION * width, width, stride=1) for _ in range(settings.blocks[index] - 1))
    return nn.Sequential(first, *others)
