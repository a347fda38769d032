"""Export of InsPro and InsPro-lite: graphs `frame`, `head`, for lite `head_lite`, and `masks`; the learned pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from visrt.export.family import InitialState, Traced
from visrt.export.frames import Frames
from visrt.export.graphs import resize_for
from visrt.export.half import Island
from visrt.export.inspro_graphs import (
    HeadGraph,
    HeadTensors,
    InsProFrameGraph,
    InsProFrameTensors,
    InsProMasksGraph,
    LiteHeadGraph,
    LiteHeadTensors,
    head_examples,
    inspro_frame_graph,
)
from visrt.export.inspro_half import halved_frame_graph, halved_head
from visrt.export.onnx_graph import TRACED_WITH, onnx_from_frame_graph, onnx_from_module
from visrt.models.checkpoints import load_checkpoint
from visrt.models.condinst import STRIDE, parameter_count
from visrt.models.inspro import InsPro
from visrt.models.inspro_checkpoints import INSPRO
from visrt.runtime.clip_family import Tensors
from visrt.runtime.engine import Array
from visrt.runtime.errors import CheckpointError
from visrt.runtime.inspro import BANK, PROPOSALS, QUERIES
from visrt.runtime.inspro_outputs import Look, roles_of_frame
from visrt.runtime.inspro_pairs import first_pairs
from visrt.runtime.manifest import InputSpec

__all__ = ["InsProExport", "read_inspro", "read_inspro_lite"]

Heads = dict[str, HeadGraph | LiteHeadGraph]

OUTPUTS = {"head": HeadTensors._fields, "head_lite": LiteHeadTensors._fields}


@dataclass(frozen=True)
class InsProExport:
    """An InsPro network. heads: "head", and "head_lite" for the lite variant, in float32."""

    checkpoint: InsProCheckpoint
    graph: InsProFrameGraph
    heads: Heads
    spec: InputSpec

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.checkpoint.classes

    @property
    def class_count(self) -> int:
        return self.checkpoint.settings.classes

    @property
    def network(self) -> InsPro:
        network = self.graph.network
        assert isinstance(network, InsPro)
        return network

    @property
    def states(self) -> Mapping[str, InitialState]:
        queries, proposals = (part.detach().numpy() for part in self.network.first_pairs())
        bank = np.zeros((self.checkpoint.settings.bank_frames - 1, *queries.shape), dtype=np.float32)
        return {
            QUERIES: InitialState("queries", "next_queries", queries),
            PROPOSALS: InitialState("proposals", "next_proposals", proposals),
            BANK: InitialState("bank", "object_features", bank),
        }

    def normalised(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        return self.graph.normalised(images, valid_sizes)

    @torch.no_grad()
    def answers(self, pixels: Tensor) -> dict[str, Array]:
        """As `runtime.inspro_outputs` asks engines."""
        maps = self.network(pixels)
        pairs = first_pairs(*(state.values for state in self.states.values()))
        roles = roles_of_frame(self._looking(maps.pyramid.rows[0]), pairs, tuple(self.heads))
        parameters = torch.from_numpy(roles["mask_embeddings"])
        masks = InsProMasksGraph(self.checkpoint.settings.mask_scale_px)(parameters, maps.mask_features[0])
        return {**roles, "mask_features": maps.mask_features[0].numpy(), "mask_logits": masks.numpy()}

    def traced(self, precision: str, frames: Frames, kept: Sequence[str]) -> Traced:
        modules = dict(self.network.named_modules())
        kept = [name for name in kept if name in modules]
        graph, heads, found = self.graph, self.heads, list[Island]()
        if precision == "fp16":
            graph, heads, found = self._halved(frames, kept)
        models = {
            "frame": onnx_from_frame_graph(graph, *self.spec.image_size, InsProFrameTensors._fields),
            **{name: self._head_model(name, head) for name, head in heads.items()},
            "masks": self._masks_model(),
        }
        return Traced(models, tuple(kept), tuple(found))

    def _looking(self, pyramid: Tensor) -> Look:
        picture = torch.tensor([self.spec.height, self.spec.width], dtype=torch.float32)

        def look(graph: str, feeds: Tensors) -> Tensors:
            given = {role: torch.from_numpy(values) for role, values in feeds.items()}
            outputs = self.heads[graph](pyramid, picture, **given)
            return {role: tensor.numpy() for role, tensor in outputs._asdict().items()}

        return look

    @torch.no_grad()
    def _halved(self, frames: Frames, kept: Sequence[str]) -> tuple[InsProFrameGraph, Heads, list[Island]]:
        graph, found = halved_frame_graph(self.graph, list(self._pixels(frames)), kept)
        heads: Heads = {}
        for name, head in self.heads.items():
            heads[name], more = halved_head(head, [self._inputs_of(name, one) for one in self._pixels(frames)], kept)
            found += more
        return graph, heads, found

    def _pixels(self, frames: Frames) -> Iterator[Tensor]:
        for t in range(len(frames)):
            image, size = frames.images[t : t + 1], frames.valid_sizes[t : t + 1]
            yield self.normalised(torch.from_numpy(image), torch.from_numpy(size))

    def _inputs_of(self, name: str, pixels: Tensor) -> tuple[Tensor, ...]:
        """Inputs of a head for one frame, from the learned pairs."""
        examples = self._examples(name, torch.float32)
        return (self.network(pixels).pyramid.rows[0], *list(examples.values())[1:])

    def _examples(self, name: str, precision: torch.dtype) -> dict[str, Tensor]:
        examples = head_examples(self.network, self.spec.height, self.spec.width, precision)
        return examples if name == "head" else {role: examples[role] for role in list(examples)[:4]}

    def _head_model(self, name: str, head: HeadGraph | LiteHeadGraph) -> onnx.ModelProto:
        return onnx_from_module(head, self._examples(name, head.precision), {}, dict.fromkeys(OUTPUTS[name]))

    def _masks_model(self) -> onnx.ModelProto:
        """In float32 in every precision: its work is little, and coordinates in pixels are too large for FP16."""
        settings = self.checkpoint.settings
        size = (self.spec.height // STRIDE, self.spec.width // STRIDE)
        examples = {
            "mask_embeddings": torch.zeros(TRACED_WITH, parameter_count(settings.mask_features)),
            "mask_features": torch.zeros(settings.mask_features, *size),
        }
        graph = InsProMasksGraph(settings.mask_scale_px)
        return onnx_from_module(graph, examples, {"mask_embeddings": "masks"}, {"mask_logits": "masks"})


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
    if settings.outputs == "boxes":
        raise CheckpointError(f"{path}: this network gives boxes alone; expected one with masks to export")
    if settings.bank_frames == 1:
        raise CheckpointError(f"{path}: this network has no intra-query attention; expected bank_frames of 2 or more")
    network = checkpoint.network()
    graphs: Any = {name: head(network, spec.height, spec.width).eval() for name, head in heads.items()}
    return InsProExport(checkpoint, inspro_frame_graph(network, resize_for(spec)), graphs, spec)
