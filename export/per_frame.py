"""Export of the families whose network looks at one frame at a time: graphs `frame` and `masks`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from visrt.export.family import PRECISIONS, InitialState, Traced
from visrt.export.frames import Frames
from visrt.export.graphs import FrameGraph, MasksGraph, frame_graph
from visrt.export.half import Island, halved
from visrt.export.onnx_graph import onnx_from_frame_graph, onnx_from_masks_graph
from visrt.models.checkpoints import Checkpoint, load_checkpoint
from visrt.models.mask2former_checkpoints import MASK2FORMER
from visrt.runtime.engine import Array
from visrt.runtime.manifest import InputSpec

__all__ = ["PerFrame", "read_per_frame"]


@dataclass(frozen=True)
class PerFrame:
    """A Mask2Former, for MinVIS or CTVIS."""

    checkpoint: Checkpoint
    graph: FrameGraph
    spec: InputSpec

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.checkpoint.classes

    @property
    def class_count(self) -> int:
        return self.checkpoint.settings.classes

    @property
    def network(self) -> nn.Module:
        return self.graph.network

    @property
    def states(self) -> Mapping[str, InitialState]:
        return {}

    def normalised(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        return self.graph.normalised(images, valid_sizes)

    def answers(self, pixels: Tensor) -> dict[str, Array]:
        return self.graph.answers(pixels)

    def traced(self, precision: str, frames: Frames, kept: Sequence[str]) -> Traced:
        graph, found = self.graph, list[Island]()
        if precision == "fp16":
            graph, found = halved(graph, frames, kept)
        size, dim = (self.spec.height, self.spec.width), self.checkpoint.settings.mask_dim
        models = {
            "frame": onnx_from_frame_graph(graph, *self.spec.image_size),
            "masks": onnx_from_masks_graph(MasksGraph(), dim, *size, PRECISIONS[precision]),
        }
        return Traced(models, tuple(kept), tuple(found))


def read_per_frame(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> PerFrame:
    checkpoint = load_checkpoint(path, MASK2FORMER)
    return PerFrame(checkpoint, frame_graph(checkpoint, spec), spec)
