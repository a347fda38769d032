"""Export of VidEoMT: graphs `frame`, the encoder without state, `decoder` with the state, and `masks`.

The state, the queries of the next frame, stays in float32 in every precision and is carried by the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import torch
from torch import Tensor, nn

from visrt.export.family import Exportable, Graphs, InitialState
from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.export.half import Island, halved_network
from visrt.export.onnx_graph import onnx_from_frame_graph, onnx_from_masks_graph, onnx_from_module
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.videomt import VIDEOMT
from visrt.models.videomt import STATE_MODULES, VideoMt, VideoMtSettings
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.methods.videomt import QUERIES

__all__ = ["VideoMtExport", "read_videomt"]


class DecoderTensors(NamedTuple):
    """Outputs of the `decoder` graph for the Q slots of one frame, float32 but for the mask features.

    class_logits [Q, K + 1], embeddings and mask_embeddings [Q, D], mask_features [D, H/4, W/4], next_queries [Q, D].
    """

    class_logits: Tensor
    embeddings: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor
    next_queries: Tensor


class EncoderGraph(FrameGraph):
    """Raw frames in, tokens [B, 1 + registers + N, D] out, in the precision of the network."""

    def forward(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        pixels = self.normalised(images, valid_sizes).to(self.precision)
        network: Any = self.network
        tokens: Tensor = network.encoder(pixels, network.grid(*pixels.shape[2:]))
        return tokens


class DecoderGraph(nn.Module):
    """One frame's tokens and the queries of the frame before in, its slots out, for inputs of `height` x `width`."""

    def __init__(self, network: VideoMt, height: int, width: int) -> None:
        super().__init__()
        self.network, self.height, self.width = network, height, width

    def forward(self, tokens: Tensor, queries: Tensor) -> DecoderTensors:
        """`tokens` [1 + registers + N, D], `queries` [Q, D] in float32."""
        outputs = self.network.decoder(tokens[None], queries[None], self.network.grid(self.height, self.width))
        frame = outputs.frame
        return DecoderTensors(
            frame.class_logits[0].float(),
            frame.embeddings[0].float(),
            frame.mask_embeddings[0].float(),
            frame.mask_features[0],
            outputs.next_queries[0],
        )


@dataclass(frozen=True)
class VideoMtExport(Exportable[VideoMtSettings]):
    """A VidEoMT network for one size of input."""

    @property
    def network(self) -> VideoMt:
        network = self.graph.network
        assert isinstance(network, VideoMt)
        return network

    @property
    def meanings(self) -> Mapping[str, str]:
        return {
            "tokens": "of each frame, for the decoder",
            "queries": "of each slot, as the frame before left them",
            "next_queries": "of each slot, for the next frame",
        }

    @property
    def states(self) -> Mapping[str, InitialState]:
        first = self.network.query.weight.detach().numpy()
        return {QUERIES: InitialState("queries", "next_queries", first, device="engine")}

    @torch.no_grad()
    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        """The same calls as `runtime.methods.videomt` makes of engines, for the first frame of a video."""
        network = self.network
        tokens = network.encoder(pixels, network.grid(*pixels.shape[2:]))
        tensors = self._decoder(network)(tokens[0], network.query.weight)._asdict()
        tensors["mask_logits"] = MasksGraph()(tensors["mask_embeddings"], tensors["mask_features"])
        return {role: tensor.numpy() for role, tensor in tensors.items()}

    def float32_graphs(self) -> Graphs:
        return {"frame": self.graph, "decoder": self._decoder(self.network)}

    @torch.no_grad()
    def halved_graphs(
        self, graphs: Graphs, pixels: Sequence[Tensor], kept: Sequence[str]
    ) -> tuple[Graphs, list[Island]]:
        """The frames at hand are watched as one video, so that the state is seen too."""
        half, found = halved_network(self.network, [(torch.cat(list(pixels)),)], kept)
        assert isinstance(half, VideoMt)
        for name in STATE_MODULES:
            half.set_submodule(name, self.network.get_submodule(name))
        return {"frame": self.graph.with_network(half, torch.float16), "decoder": self._decoder(half)}, found

    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        settings, (height, width) = self.checkpoint.settings, (self.spec.height, self.spec.width)
        patches = (height // settings.patch) * (width // settings.patch)
        examples = {
            "tokens": torch.zeros(settings.special_tokens + patches, settings.dim, dtype=precision),
            "queries": torch.zeros(settings.queries, settings.dim),
        }
        return {
            "frame": onnx_from_frame_graph(graphs["frame"], *self.spec.image_size, ("tokens",)),
            "decoder": onnx_from_module(graphs["decoder"], examples, {}, dict.fromkeys(DecoderTensors._fields)),
            "masks": onnx_from_masks_graph(MasksGraph(), settings.dim, height, width, precision),
        }

    def _decoder(self, network: VideoMt) -> DecoderGraph:
        return DecoderGraph(network, self.spec.height, self.spec.width).eval()


def read_videomt(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> VideoMtExport:
    checkpoint = load_checkpoint(path, VIDEOMT)
    network = checkpoint.network()
    network.embeddings.fix_size(spec.height, spec.width)
    return VideoMtExport(checkpoint, EncoderGraph.from_settings(network, checkpoint.settings, spec), spec)
