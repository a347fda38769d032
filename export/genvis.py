"""Export of GenVIS: graphs `frame`, `memory`, `clip` and `masks`, and what the first clip of a video starts from.

What passes from clip to clip and what is remembered stays in float32 in every precision, as does the memory read:
softmax over inner products without scaling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from visrt.export.family import Exportable, Graphs, InitialState
from visrt.export.graphs import FrameGraph, SlotMasksGraph, valid_slots
from visrt.export.half import Island, halved, halved_network
from visrt.export.onnx_graph import TRACED_WITH, onnx_from_frame_graph, onnx_from_module, onnx_from_slot_masks_graph
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.genvis import GENVIS
from visrt.models.genvis import STATE_MODULES, FrameQueries, GenVis, GenVisModule, GenVisNetworkSettings, NextStart
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.methods.genvis_outputs import after_a_clip, compared_lengths, roles_of_clip

__all__ = [
    "ClipGraph",
    "ClipTensors",
    "GenVisExport",
    "MemoryGraph",
    "onnx_from_clip_graph",
    "onnx_from_memory_graph",
    "read_genvis",
]

VIDEO_PART = "vita_module."


class ClipTensors(NamedTuple):
    """Outputs of the `clip` graph, float32, of Q slots in a clip of each of S streams.

    class_logits [S, Q, K + 1], mask_embeddings [S, Q, D], prototypes [S, Q, C]; for the next clip, base and key [S, Q,
    C]; what is remembered of this one, memory_key and memory_value [S, Q, C].
    """

    class_logits: Tensor
    mask_embeddings: Tensor
    prototypes: Tensor
    base: Tensor
    key: Tensor
    memory_key: Tensor
    memory_value: Tensor


class MemoryGraph(nn.Module):
    """What the slots of a stream's next clip start from: its base and what each reads from its own past.

    The read of `models.genvis.read_memory`, over the entries of a ring in any order.
    """

    def forward(
        self, base: Tensor, key: Tensor, memory_keys: Tensor, memory_values: Tensor, clips: Tensor, since: Tensor
    ) -> Tensor:
        """Queries [Q, C] from `base` and `key` [Q, C], and `memory_keys` and `memory_values` [Q, M, C].

        `clips` int32 [M]: number of the clip of each entry, -1 for none. `since` int32 [Q]: of the first clip that
        counts for each slot. A slot for which no entry counts reads zeros.
        """
        counts = (clips >= since.unsqueeze(1)).unsqueeze(2)
        similarity = torch.where(counts, memory_keys @ key.unsqueeze(2), LOWEST)
        powers = torch.where(counts, torch.exp(similarity - similarity.amax(dim=1, keepdim=True)), 0.0)
        weights = powers / powers.sum(dim=1, keepdim=True).clamp(min=1)
        return base + (weights.transpose(1, 2) @ memory_values).squeeze(1)


LOWEST = -3e38
"""Of inner products. Not minus infinity, whose difference to itself is NaN."""


class ClipGraph(nn.Module):
    """From the frame queries of clips and the queries that their slots start from to the slots and their state.

    A slot with NaN or infinity has NaN for its class logits, starts the next clip from `first` and is remembered as
    zeros. precision: of the network; `first` is float32, as for the first clip of a video.
    """

    first_base: Tensor
    first_key: Tensor

    def __init__(self, vita: GenVisModule, first: NextStart, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.vita, self.precision = vita, precision
        self.register_buffer("first_base", first.base)
        self.register_buffer("first_key", first.key)

    def forward(self, frame_queries: Tensor, instance_queries: Tensor) -> ClipTensors:
        """`frame_queries` [S, T, F, C] and `instance_queries` [S, Q, C], float32."""
        outputs = self.vita(frame_queries.to(self.precision), instance_queries.to(self.precision))
        logits, masks, prototypes = (values.float() for values in outputs[:3])
        start, entry = self.vita.next_start(prototypes), self.vita.memory_entry(prototypes)
        valid = valid_slots(logits, masks, prototypes, *start, *entry).unsqueeze(2)
        return ClipTensors(
            torch.where(valid, logits, torch.nan),
            torch.where(valid, masks, 0.0),
            torch.where(valid, prototypes, 0.0),
            torch.where(valid, start.base, self.first_base),
            torch.where(valid, start.key, self.first_key),
            torch.where(valid, entry[0], 0.0),
            torch.where(valid, entry[1], 0.0),
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
            "memory_keys": "of each slot and remembered clip",
            "memory_values": "of each slot and remembered clip",
            "clips": "number of the remembered clip, -1 where there is none",
            "since": "of each slot, number of the first clip that counts",
        }

    @property
    def states(self) -> Mapping[str, InitialState]:
        first = self._first()
        base, key, entry = first.base.numpy(), first.key.numpy(), np.zeros_like(first.key.numpy())
        return {
            "base": InitialState("base", "base", base, device="engine"),
            "key": InitialState("key", "key", key, device="engine"),
            "memory_keys": InitialState("memory_keys", "memory_key", entry, device="engine", ring=True),
            "memory_values": InitialState("memory_values", "memory_value", entry, device="engine", ring=True),
        }

    @property
    def unread(self) -> frozenset[str]:
        return frozenset({"prototypes"})

    @torch.no_grad()
    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        """The same calls as `runtime.genvis_outputs` makes of engines."""
        frame: FrameQueries = self.network(pixels)
        clip, base = ClipGraph(self._vita(), self._first()), self._first().base[None]
        roles: dict[str, Array] = {"frame_queries": frame.frame_queries[0].numpy()}
        for length in compared_lengths(self.clip_lengths):
            outputs = clip(frame.frame_queries.expand(length, -1, -1)[None], base)
            if length == 1:
                slots = torch.arange(base.shape[1])[None]
                masks = SlotMasksGraph()(slots, outputs.mask_embeddings, frame.mask_features).mask_logits[0]
            roles |= roles_of_clip({name: value[0].numpy() for name, value in outputs._asdict().items()}, length)
        read = MemoryGraph()(**{name: torch.from_numpy(values) for name, values in after_a_clip(roles).items()})
        return {
            **roles,
            "instance_queries": read.numpy(),
            "mask_features": frame.mask_features[0].numpy(),
            "mask_logits": masks.numpy(),
        }

    def float32_graphs(self) -> Graphs:
        return {"frame": self.graph, "clip": ClipGraph(self._vita(), self._first())}

    @torch.no_grad()
    def halved_graphs(
        self, graphs: Graphs, pixels: Sequence[Tensor], kept: Sequence[str]
    ) -> tuple[Graphs, list[Island]]:
        """In the clip graph, what the memory is made of stays in float32."""
        frame, found = halved(graphs["frame"], pixels, [name for name in kept if not name.startswith(VIDEO_PART)])
        first = self._first()
        batches = [(self.network(one).frame_queries[None], first.base[None]) for one in pixels]
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
        return {"frame": frame, "clip": ClipGraph(half, first, torch.float16)}, found

    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        frame = onnx_from_frame_graph(graphs["frame"], *self.spec.image_size, FrameQueries._fields)
        return {"frame": frame, **self.small_models(graphs["clip"], precision)}

    def small_models(self, clip: nn.Module, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        """All but the frame graph."""
        settings = self.checkpoint.settings
        slots, dim, mask_dim = settings.instances, settings.frame.hidden_dim, settings.frame.mask_dim
        features = (mask_dim, self.spec.height // 4, self.spec.width // 4)
        dtypes = (torch.float32, precision)
        return {
            "memory": onnx_from_memory_graph(slots, dim),
            "clip": onnx_from_clip_graph(clip, settings.frame.queries, slots, dim),
            "masks": onnx_from_slot_masks_graph(SlotMasksGraph(), slots, mask_dim, features, dtypes),
        }

    def _vita(self) -> GenVisModule:
        assert isinstance(self.network, GenVis)
        return self.network.vita_module

    @torch.no_grad()
    def _first(self) -> NextStart:
        assert isinstance(self.network, GenVis)
        return self.network.first_start()


def onnx_from_memory_graph(slots: int, dim: int) -> onnx.ModelProto:
    """The `memory` graph of one stream, for any number of entries."""
    entries = TRACED_WITH + 1
    return onnx_from_module(
        MemoryGraph(),
        {  # a tensor of its own for each: the tracer takes two inputs that are one tensor for one input
            **{name: torch.zeros(slots, dim) for name in ("base", "key")},
            **{name: torch.zeros(slots, entries, dim) for name in ("memory_keys", "memory_values")},
            "clips": torch.zeros(entries, dtype=torch.int32),
            "since": torch.zeros(slots, dtype=torch.int32),
        },
        {"memory_keys": (None, "clips"), "memory_values": (None, "clips"), "clips": "clips"},
        {"instance_queries": None},
    )


def onnx_from_clip_graph(module: nn.Module, frame_queries: int, slots: int, dim: int) -> onnx.ModelProto:
    """The `clip` graph of any number of streams and frames, with `frame_queries` a frame."""
    streams, frames = TRACED_WITH, TRACED_WITH + 1
    return onnx_from_module(
        module,
        {
            "frame_queries": torch.zeros(streams, frames, frame_queries, dim),
            "instance_queries": torch.zeros(streams, slots, dim),
        },
        {"frame_queries": ("streams", "frames"), "instance_queries": "streams"},
        dict.fromkeys(ClipTensors._fields, "streams"),
    )


def read_genvis(path: Path, spec: InputSpec, association: Mapping[str, Any]) -> GenVisExport:
    """`association`: all settings of the family."""
    checkpoint = load_checkpoint(path, GENVIS)
    graph = FrameGraph.from_settings(checkpoint.network(), checkpoint.settings.frame, spec)
    return GenVisExport(checkpoint, graph, spec, tuple(association["clip_lengths"]))
