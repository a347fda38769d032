"""Export of GenVIS: graphs `frame`, `clip` and `masks`, and what the first clip of a video starts from.

The memory read is no graph: its size grows with the video, and softmax over inner products without scaling wants
float32. The clip graph takes what was read as part of its input, and returns in float32 what the next one needs.
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
from visrt.export.half import Island, halved, halved_network
from visrt.export.onnx_graph import onnx_from_clip_graph, onnx_from_frame_graph, onnx_from_masks_graph
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.genvis import STATE_MODULES, FrameQueries, GenVis, GenVisModule, GenVisNetworkSettings
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.methods.genvis import BASE
from visrt.runtime.methods.genvis_outputs import asked_lengths, roles_of_clip

__all__ = ["ClipGraph", "ClipTensors", "GenVisExport", "read_genvis"]

VIDEO_PART = "vita_module."


class ClipTensors(NamedTuple):
    """Outputs of the `clip` graph, float32, of S slots.

    class_logits [S, K + 1], mask_embeddings [S, D], prototypes [S, C]; for the next clip, base and key [S, C]; what is
    remembered of this one, memory_key and memory_value [S, C].
    """

    class_logits: Tensor
    mask_embeddings: Tensor
    prototypes: Tensor
    base: Tensor
    key: Tensor
    memory_key: Tensor
    memory_value: Tensor


class ClipGraph(nn.Module):
    """From the frame queries of a clip and the queries its slots start from to its slots and their state."""

    def __init__(self, vita: GenVisModule, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vita = vita
        self.precision = precision

    def forward(self, frame_queries: Tensor, instance_queries: Tensor) -> ClipTensors:
        """`frame_queries` [T, Q, C] and `instance_queries` [S, C], float32."""
        vita = self.vita
        outputs = vita(frame_queries[None].to(self.precision), instance_queries[None].to(self.precision))
        prototypes = outputs.prototypes[0].float()
        start, (memory_key, memory_value) = vita.next_start(prototypes), vita.memory_entry(prototypes)
        return ClipTensors(
            outputs.class_logits[0].float(),
            outputs.mask_embeddings[0].float(),
            prototypes,
            start.base,
            start.key,
            memory_key,
            memory_value,
        )


@dataclass(frozen=True)
class GenVisExport(Exportable[GenVisNetworkSettings]):
    """A GenVIS network; clip_lengths: of clips it will be used for."""

    clip_lengths: tuple[int, ...]

    @property
    def meanings(self) -> Mapping[str, str]:
        return {
            "frame_queries": "of each frame of a clip: what it holds, for the clip graph to gather into instances",
            "instance_queries": "what the slots of a clip start from: base and what they read from memory",
            "prototypes": "of each slot, as it passes on to the next clip",
            "base": "what each slot of the next clip starts from, before it reads",
            "key": "what each slot of the next clip reads its memory with",
            "memory_key": "by which this clip is found in each slot's memory",
            "memory_value": "what each slot reads of this clip",
        }

    @property
    def states(self) -> Mapping[str, InitialState]:
        return {BASE: InitialState("instance_queries", BASE, self._base().numpy())}

    @torch.no_grad()
    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        """The same calls as `runtime.genvis_outputs` makes of engines."""
        frame: FrameQueries = self.network(pixels)
        clip, base = ClipGraph(self._vita()), self._base()
        roles: dict[str, Array] = {"frame_queries": frame.frame_queries[0].numpy()}
        for length in asked_lengths(self.clip_lengths):
            outputs = clip(frame.frame_queries.expand(length, -1, -1), base)
            if length == 1:
                masks = MasksGraph()(outputs.mask_embeddings, frame.mask_features[0])
            roles |= roles_of_clip({name: value.numpy() for name, value in outputs._asdict().items()}, length)
        return {**roles, "mask_features": frame.mask_features[0].numpy(), "mask_logits": masks.numpy()}

    def float32_graphs(self) -> Graphs:
        return {"frame": self.graph, "clip": ClipGraph(self._vita())}

    @torch.no_grad()
    def halved_graphs(
        self, graphs: Graphs, pixels: Sequence[Tensor], kept: Sequence[str]
    ) -> tuple[Graphs, list[Island]]:
        """In the clip graph, what the memory is made of stays in float32."""
        frame, found = halved(graphs["frame"], pixels, [name for name in kept if not name.startswith(VIDEO_PART)])
        start = self._base()[None]
        batches = [(self.network(one).frame_queries[None], start) for one in pixels]
        inside = [name.removeprefix(VIDEO_PART) for name in kept if name.startswith(VIDEO_PART)]
        vita = self._vita()
        half, found_in_clip = halved_network(vita, batches, inside)
        assert isinstance(half, GenVisModule)
        for name in STATE_MODULES:
            half.set_submodule(name, vita.get_submodule(name))
        found += [
            Island(VIDEO_PART + island.module, island.largest)
            for island in found_in_clip
            if island.module.rpartition(".")[2] not in STATE_MODULES
        ]
        return {"frame": frame, "clip": ClipGraph(half, torch.float16)}, found

    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        settings = self.checkpoint.settings
        sizes = settings.frame.queries, settings.instances, settings.frame.hidden_dim
        size, dim = (self.spec.height, self.spec.width), settings.frame.mask_dim
        return {
            "frame": onnx_from_frame_graph(graphs["frame"], *self.spec.image_size, FrameQueries._fields),
            "clip": onnx_from_clip_graph(graphs["clip"], *sizes, ClipTensors._fields),
            "masks": onnx_from_masks_graph(MasksGraph(), dim, *size, precision),
        }

    def _vita(self) -> GenVisModule:
        assert isinstance(self.network, GenVis)
        return self.network.vita_module

    @torch.no_grad()
    def _base(self) -> Tensor:
        assert isinstance(self.network, GenVis)
        return self.network.first_start().base


def read_genvis(path: Path, spec: InputSpec, association: Mapping[str, Any]) -> GenVisExport:
    """`association`: all settings of the family."""
    checkpoint = load_checkpoint(path, GENVIS)
    graph = FrameGraph.from_settings(checkpoint.network(), checkpoint.settings.frame, spec)
    return GenVisExport(checkpoint, graph, spec, tuple(association["clip_lengths"]))
