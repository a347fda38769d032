"""Export of the families whose network looks at one frame at a time: graphs `frame` and `masks`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from visrt.export.family import Exportable, Graphs
from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.export.onnx_graph import onnx_from_frame_graph, onnx_from_masks_graph
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import InputSpec

__all__ = ["PerFrame", "read_per_frame"]


class PerFrame(Exportable[NetworkSettings]):
    """A Mask2Former, for MinVIS or CTVIS."""

    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        return self.graph.full_outputs(pixels)

    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        size, dim = (self.spec.height, self.spec.width), self.checkpoint.settings.mask_dim
        return {
            "frame": onnx_from_frame_graph(graphs["frame"], *self.spec.image_size),
            "masks": onnx_from_masks_graph(MasksGraph(), dim, *size, precision),
        }


def read_per_frame(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> PerFrame:
    checkpoint = load_checkpoint(path, MASK2FORMER)
    graph = FrameGraph.from_settings(checkpoint.network(), checkpoint.settings, spec)
    return PerFrame(checkpoint, graph, spec)
