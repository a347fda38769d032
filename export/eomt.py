"""Export of EoMT: graphs `frame` and `masks`, tracked by MinVIS's rule."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from visrt.export.family import Exportable, Graphs
from visrt.export.graphs import FrameGraph, MasksGraph, inside
from visrt.export.onnx_graph import onnx_from_frame_graph, onnx_from_masks_graph
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.eomt import EOMT
from visrt.models.eomt import EomtSettings
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import InputSpec

__all__ = ["EomtExport", "read_eomt"]


class EomtFrameGraph(FrameGraph):
    """As `FrameGraph`, but padding is black before the normalisation, as EoMT was trained."""

    def normalised(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        levels = images.to(torch.float32).permute(0, 3, 1, 2)
        if self.resize is not None:
            levels = self.resize(levels)
        shown = inside(valid_sizes, levels.shape[2], levels.shape[3]).unsqueeze(1).to(torch.float32)
        return (levels * shown - self.pixel_mean) / self.pixel_std


class EomtExport(Exportable[EomtSettings]):
    """An EoMT network."""

    @torch.no_grad()
    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        return self.graph.full_outputs(pixels)

    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        size, dim = (self.spec.height, self.spec.width), self.checkpoint.settings.dim
        return {
            "frame": onnx_from_frame_graph(graphs["frame"], *self.spec.image_size),
            "masks": onnx_from_masks_graph(MasksGraph(), dim, *size, precision),
        }


def read_eomt(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> EomtExport:
    checkpoint = load_checkpoint(path, EOMT)
    network = checkpoint.network()
    network.embeddings.fix_size(spec.height, spec.width)
    return EomtExport(checkpoint, EomtFrameGraph.from_settings(network, checkpoint.settings, spec), spec)
