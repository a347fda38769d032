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
from visrt.export.graphs import FrameGraph, SlotMasksGraph, valid_slots
from visrt.export.half import Island, halved_network
from visrt.export.onnx_graph import (
    TRACED_WITH,
    onnx_from_frame_graph,
    onnx_from_module,
    onnx_from_slot_masks_graph,
)
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.videomt import VIDEOMT
from visrt.models.videomt import STATE_MODULES, VideoMt, VideoMtSettings
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.methods.videomt import QUERIES

__all__ = ["DecoderGraph", "VideoMtExport", "read_videomt"]

STATE_MAX = 1e4
"""Of each number of the state. FP16, in which the decoder may take it, ends at 6.5e4."""


class DecoderTensors(NamedTuple):
    """Outputs of the `decoder` graph for the Q slots of a frame of each of S streams, float32 but for the features.

    class_logits [S, Q, K + 1], embeddings and mask_embeddings [S, Q, D], mask_features [S, D, H/4, W/4], next_queries
    [S, Q, D].
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
    """Tokens of a frame of each stream and the queries of the frame before in, slots out, for one size of input.

    A slot with NaN or infinity has NaN for its class logits and starts from its learned query in the next frame. So
    does one whose state grew beyond `STATE_MAX`: the recurrence has no norm that would bound it.
    """

    def __init__(self, network: VideoMt, height: int, width: int) -> None:
        super().__init__()
        self.network, self.height, self.width = network, height, width

    def forward(self, tokens: Tensor, queries: Tensor) -> DecoderTensors:
        """`tokens` [S, 1 + registers + N, D], `queries` [S, Q, D] in float32."""
        outputs = self.network.decoder(tokens, queries, self.network.grid(self.height, self.width))
        frame, following = outputs.frame, outputs.next_queries
        logits, masks = frame.class_logits.float(), frame.mask_embeddings.float()
        valid = (valid_slots(logits, masks) & valid_slots(following, largest=STATE_MAX)).unsqueeze(2)
        return DecoderTensors(
            torch.where(valid, logits, torch.nan),
            frame.embeddings.float(),
            torch.where(valid, masks, 0.0),
            frame.mask_features,
            torch.where(valid, following, self.network.query.weight.float()),
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

    @property
    def unread(self) -> frozenset[str]:
        return frozenset({"embeddings"})

    @torch.no_grad()
    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        """The same calls as `runtime.methods.videomt` makes of engines, for the first frame of a video."""
        network = self.network
        tokens = network.encoder(pixels, network.grid(*pixels.shape[2:]))
        tensors = self._decoder(network)(tokens, network.query.weight[None])._asdict()
        slots = torch.arange(len(network.query.weight))[None]
        tensors["mask_logits"] = SlotMasksGraph()(slots, tensors["mask_embeddings"], tensors["mask_features"])[0]
        return {role: tensor[0].numpy() for role, tensor in tensors.items()}

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
            "tokens": torch.zeros(TRACED_WITH, settings.special_tokens + patches, settings.dim, dtype=precision),
            "queries": torch.zeros(TRACED_WITH, settings.queries, settings.dim),
        }
        decoder = onnx_from_module(
            graphs["decoder"],
            examples,
            dict.fromkeys(examples, "streams"),
            dict.fromkeys(DecoderTensors._fields, "streams"),
        )
        features, dtypes = (settings.dim, height // 4, width // 4), (torch.float32, precision)
        return {
            "frame": onnx_from_frame_graph(graphs["frame"], *self.spec.image_size, ("tokens",)),
            "decoder": decoder,
            "masks": onnx_from_slot_masks_graph(SlotMasksGraph(), settings.queries, settings.dim, features, dtypes),
        }

    def _decoder(self, network: VideoMt) -> DecoderGraph:
        return DecoderGraph(network, self.spec.height, self.spec.width).eval()


def read_videomt(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> VideoMtExport:
    checkpoint = load_checkpoint(path, VIDEOMT)
    network = checkpoint.network()
    network.embeddings.fix_size(spec.height, spec.width)
    return VideoMtExport(checkpoint, EncoderGraph.from_settings(network, checkpoint.settings, spec), spec)
