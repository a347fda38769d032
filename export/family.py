"""What export needs to know of a family: its network, what that answers in torch, and its graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import onnx
import torch
from torch import Tensor, nn

from visrt.export.frames import Frames
from visrt.export.half import Island
from visrt.runtime.engine import Array
from visrt.runtime.family import Floats

__all__ = ["PRECISIONS", "Exportable", "InitialState", "Traced"]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True)
class Traced:
    """The graphs by name, and what in them computes in float32 although FP16 was asked for: `kept` by choice, `found`
    because its values leave FP16's range."""

    models: Mapping[str, onnx.ModelProto]
    kept: tuple[str, ...] = ()
    found: tuple[Island, ...] = ()


@dataclass(frozen=True)
class InitialState:
    """A state tensor: the graph input it feeds, the output that renews it, and its value before the first frame."""

    input: str
    output: str
    values: Floats


class Exportable(Protocol):
    """A checkpoint that was read, as its family exports it."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class names in the checkpoint, if it holds any."""
        ...

    @property
    def class_count(self) -> int: ...

    @property
    def network(self) -> nn.Module:
        """What modules that stay in float32 are named in."""
        ...

    def normalised(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        """Network input [B, 3, H, W] of `images`, the frame graph's input."""
        ...

    def answers(self, pixels: Tensor) -> dict[str, Array]:
        """What torch says of one frame, by the roles that parity compares; `pixels` [1, 3, H, W]."""
        ...

    def traced(self, precision: str, frames: Frames, kept: Sequence[str]) -> Traced:
        """The graphs in `precision`; `kept` names modules of the network that stay in float32."""
        ...

    @property
    def states(self) -> Mapping[str, InitialState]: ...
