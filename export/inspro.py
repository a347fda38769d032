"""Export of InsPro and InsPro-lite: graphs `frame`, `head`, for lite `head_lite`, and `masks`; the learned pairs.

A network of boxes alone has no `masks` graph, nor the tensors that lead to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from visrt.export.family import Exportable, Graphs, InitialState
from visrt.export.half import Island, halved, halved_network
from visrt.export.inspro_graphs import (
    HeadGraph,
    HeadTensors,
    InsProFrameGraph,
    InsProFrameTensors,
    InsProMasksGraph,
    LiteHeadGraph,
    head_examples,
    with_frozen_norms,
)
from visrt.export.onnx_graph import (
    TRACED_WITH,
    onnx_from_frame_graph,
    onnx_from_module,
    onnx_from_slot_masks_graph,
)
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.inspro import INSPRO
from visrt.models.condinst import STRIDE, dynamic_masks, parameter_count
from visrt.models.inspro import InsPro, InsProSettings
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.errors import CheckpointError
from visrt.runtime.methods.inspro import BANK, PROPOSALS, QUERIES
from visrt.runtime.methods.inspro_outputs import RunHead, box_logits, roles_of_frames
from visrt.runtime.methods.inspro_pairs import first_pairs

__all__ = ["InsProExport", "read_inspro", "read_inspro_lite"]

Heads = dict[str, HeadGraph | LiteHeadGraph]

OF_THE_PAST = ("bank", "ages", "fill")
OUTPUTS = {
    "frame": InsProFrameTensors._fields,
    "head": HeadTensors._fields,
    "head_lite": HeadTensors._fields,
}
OF_MASKS = ("mask_features", "mask_embeddings")

OF_FRAMES = ("backbone", "mask_branch")
"""Parts of the network that see the frame, before any query does."""

INSIDE = "network."
"""A head graph's modules lie below the network that it holds."""


@dataclass(frozen=True)
class InsProExport(Exportable[InsProSettings]):
    """An InsPro network. heads: "head", and "head_lite" for the lite variant, in float32."""

    heads: Heads

    @property
    def network(self) -> InsPro:
        network = self.graph.network
        assert isinstance(network, InsPro)
        return network

    @property
    def meanings(self) -> Mapping[str, str]:
        return {
            "pyramid": "four maps at strides 4, 8, 16, 32, pixel by pixel, one after another",
            "picture_sizes": "height and width in pixels of each frame inside the input",
            "queries": "of each slot, as the frame before handed them over",
            "proposals": "box of each slot, x1, y1, x2, y2 as parts of the frame, as the frame before handed them over",
            "box_side_min": "part of the frame; a slot whose next box has a shorter side restarts",
            "bank": "object features of frames before, a ring",
            "ages": "of the entries of the bank: 1 the newest, 0 empty",
            "fill": "how many of the newest entries of the bank count for each slot",
            "boxes": "of each slot, x1, y1, x2, y2 in pixels",
            "object_features": "of each slot; the next entry of the bank",
            "next_queries": "of each slot, for the next frame",
            "next_proposals": "box of each slot as parts of the frame, for the next frame",
            "restarted": "1 for a slot that starts from its learned pair in the next frame",
        }

    @property
    def states(self) -> Mapping[str, InitialState]:
        queries, proposals = (part.detach().numpy() for part in self.network.first_pairs())
        states = {
            QUERIES: InitialState("queries", "next_queries", queries, device="engine"),
            PROPOSALS: InitialState("proposals", "next_proposals", proposals, device="engine"),
        }
        if not self.checkpoint.settings.bank_entries:
            return states
        entry = np.zeros(queries.shape, dtype=np.float32)
        return {**states, BANK: InitialState("bank", "object_features", entry, device="engine", ring=True)}

    @property
    def unread(self) -> frozenset[str]:
        """Without a bank nobody takes the object features."""
        return frozenset({"object_features"})

    @torch.no_grad()
    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        """The same calls as `runtime.methods.inspro_outputs` makes of engines."""
        maps, states = self.network(pixels), self.states
        entries = self.checkpoint.settings.bank_entries
        pairs = first_pairs(states[QUERIES].values, states[PROPOSALS].values, entries, streams=1)
        roles = roles_of_frames(self._running(maps.pyramid.rows), pairs, tuple(self.heads))
        if maps.mask_features is None:
            roles["box_logits"] = box_logits(roles["boxes"], (self.spec.height, self.spec.width))
        else:
            parameters = torch.from_numpy(roles["mask_embeddings"])
            masks = dynamic_masks(parameters, maps.mask_features, self.checkpoint.settings.mask_scale_px)
            roles |= {"mask_features": maps.mask_features.numpy(), "mask_logits": masks.numpy()}
        return {role: values[0] for role, values in roles.items()}

    def float32_graphs(self) -> Graphs:
        return {"frame": self.graph, **self.heads}

    @torch.no_grad()
    def halved_graphs(
        self, graphs: Graphs, pixels: Sequence[Tensor], kept: Sequence[str]
    ) -> tuple[Graphs, list[Island]]:
        """Boxes and what travels from frame to frame stay in float32. Each head is watched on the learned pairs."""
        of_frames = [name for name in kept if name.startswith(OF_FRAMES)]
        of_heads = [INSIDE + name for name in kept if not name.startswith(OF_FRAMES)]
        frame, found = halved(self.graph.with_network(with_frozen_norms(self.network)), pixels, of_frames)
        halves: Graphs = {"frame": frame}
        for name, head in self.heads.items():
            examples = self._examples(name, torch.float32, streams=1)
            batches = [tuple({**examples, "pyramid": self.network(one).pyramid.rows}.values()) for one in pixels]
            half, found_in_head = halved_network(head, batches, of_heads)
            halves[name] = half.eval()
            halves[name].precision = torch.float16
            found += [Island(island.module.removeprefix(INSIDE), island.largest) for island in found_in_head]
        return halves, found

    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        heads = {name: self._head_model(name, graphs[name], precision) for name in self.heads}
        frame = onnx_from_frame_graph(graphs["frame"], *self.spec.image_size, self._outputs("frame"))
        masks = {"masks": self._masks_model()} if self._has_masks else {}
        return {"frame": frame, **heads, **masks}

    @property
    def _has_masks(self) -> bool:
        return self.checkpoint.settings.outputs == "masks"

    def _outputs(self, name: str) -> list[str]:
        """Outputs of the graph `name`, in order."""
        return [role for role in OUTPUTS[name] if self._has_masks or role not in OF_MASKS]

    def _running(self, pyramid: Tensor) -> RunHead:
        pictures = torch.tensor([[self.spec.height, self.spec.width]], dtype=torch.float32)

        def run(graph: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
            given = {role: torch.from_numpy(values) for role, values in feeds.items()}
            outputs = self.heads[graph](pyramid, pictures, **given)
            return {role: tensor.numpy() for role, tensor in outputs._asdict().items() if tensor is not None}

        return run

    def _examples(self, name: str, precision: torch.dtype, streams: int) -> dict[str, Tensor]:
        """Inputs of the head `name`, in the order of its `forward`."""
        examples = head_examples(self.network, self.spec.height, self.spec.width, precision, streams)
        has_past = name == "head" and self.checkpoint.settings.bank_entries
        return {role: one for role, one in examples.items() if has_past or role not in OF_THE_PAST}

    def _head_model(self, name: str, graph: nn.Module, precision: torch.dtype) -> onnx.ModelProto:
        examples = self._examples(name, precision, TRACED_WITH)
        outputs = dict.fromkeys(self._outputs(name), "streams")
        return onnx_from_module(graph, examples, dict.fromkeys(examples, "streams"), outputs)

    def _masks_model(self) -> onnx.ModelProto:
        """In float32 in every precision: its work is little, and coordinates in pixels are too large for FP16."""
        settings = self.checkpoint.settings
        features = (settings.mask_features, self.spec.height // STRIDE, self.spec.width // STRIDE)
        parameters = parameter_count(settings.mask_features)
        graph, dtypes = InsProMasksGraph(settings.mask_scale_px), (torch.float32, torch.float32)
        return onnx_from_slot_masks_graph(graph, settings.queries, parameters, features, dtypes)


def read_inspro(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> InsProExport:
    """With all stages in every frame."""
    return _read(path, spec, {"head": HeadGraph})


def read_inspro_lite(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> InsProExport:
    """With one stage between key frames."""
    return _read(path, spec, {"head": HeadGraph, "head_lite": LiteHeadGraph})


def _read(path: Path, spec: InputSpec, heads: Mapping[str, Callable[..., nn.Module]]) -> InsProExport:
    checkpoint = load_checkpoint(path, INSPRO)
    settings = checkpoint.settings
    if "head_lite" in heads and not settings.lite_stages:
        raise CheckpointError(f"{path}: holds no lite head; export it with --family inspro, or train one")
    network = checkpoint.network()
    graphs: Any = {name: head(network, spec.height, spec.width).eval() for name, head in heads.items()}
    return InsProExport(checkpoint, InsProFrameGraph.from_settings(network, settings, spec), spec, graphs)
