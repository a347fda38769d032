"""Two families as a user would add them, whose networks take the queries of the frame before.

`fused`: frame graph (images, previous queries) -> classes, mask embeddings, mask features, next queries. `split`: the
same network as an encoder without state, whose tokens stay on the device, and a decoder with state, which gives the
mask features too. Neither touches a shared file: each side is a class here and a line in its registry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import visrt.export.families
import visrt.runtime.methods.registry
from visrt.export.family import Exportable, Graphs, InitialState
from visrt.export.graphs import FrameGraph, MasksGraph, SlotMasksGraph
from visrt.export.onnx_graph import (
    TRACED_WITH,
    onnx_from_frame_graph,
    onnx_from_masks_graph,
    onnx_from_module,
    onnx_from_slot_masks_graph,
)
from visrt.models.checkpoints.checkpoint import NetworkKind, load_checkpoint
from visrt.runtime.arrays import Array, Floats, Tensors, softmax
from visrt.runtime.bundles.contract import GraphNeed, TensorNeed, slot_masks
from visrt.runtime.bundles.manifest import InputSpec, Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.methods.method import (
    Call,
    FrameOutputs,
    FrameTracks,
    Steps,
    Track,
    TrackingMethod,
    masks_of_slots,
    refuse_nonfinite,
    tracks_with_masks,
    valid_outputs,
)
from visrt.runtime.methods.method import Graphs as MethodGraphs
from visrt.runtime.methods.outputs import Outputs, outputs_of, slot_masks_of
from visrt.runtime.methods.slot_tracks import SlotTracks, mark_seen, new_slot_tracks, shown_objects
from visrt.runtime.settings import load_settings

# --- models/: the network and how its checkpoints are read -----------------------------------------------------------


@dataclass(frozen=True)
class NetworkSettings:
    classes: int = 3
    queries: int = 5
    channels: int = 8
    pixel_mean: tuple[float, float, float] = (123.7, 116.3, 103.5)
    pixel_std: tuple[float, float, float] = (58.4, 57.1, 57.4)


class Decoded(NamedTuple):
    class_logits: Tensor
    mask_embeddings: Tensor
    mask_features: Tensor
    next_queries: Tensor


class QueryNetwork(nn.Module):
    """A recurrence over queries: each gathers what it attends to and becomes the next."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        self.settings = settings
        dim = settings.channels
        self.stem = nn.Conv2d(3, dim, kernel_size=4, stride=4)
        self.features = nn.Conv2d(dim, dim, kernel_size=1)
        self.keep, self.take = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.classify, self.mask = nn.Linear(dim, settings.classes + 1), nn.Linear(dim, dim)
        self.first_queries = nn.Parameter(torch.randn(settings.queries, dim))

    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens [B, C, H/4, W/4] of normalised RGB [B, 3, H, W]."""
        tokens: Tensor = torch.tanh(self.stem(pixels))
        return tokens

    def decode(self, tokens: Tensor, queries: Tensor) -> Decoded:
        """What `queries` [B, Q, C] make of `tokens` [B, C, h, w]."""
        flat = tokens.flatten(2)
        gathered = torch.softmax(queries @ flat, dim=2) @ flat.transpose(1, 2)
        after = torch.tanh(self.keep(queries) + 2 * self.take(gathered))
        return Decoded(self.classify(after), self.mask(after), self.features(tokens), after)


KIND: NetworkKind[QueryNetwork, NetworkSettings] = NetworkKind(
    expected="a query recurrence",
    settings=NetworkSettings,
    build=QueryNetwork,
    settings_from_weights=lambda weights, where: NetworkSettings(),
    mark="first_queries",
)

# --- export/: the graphs ---------------------------------------------------------------------------------------------


class FusedGraph(FrameGraph):
    def forward(self, images: Tensor, valid_sizes: Tensor, queries: Tensor) -> Decoded:  # type: ignore[override]
        network: Any = self.network
        decoded: Decoded = network.decode(network.encode(self.normalised(images, valid_sizes)), queries)
        return decoded


class EncoderGraph(FrameGraph):
    def forward(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        network: Any = self.network
        tokens: Tensor = network.encode(self.normalised(images, valid_sizes))
        return tokens


class DecoderGraph(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens: Tensor, queries: Tensor) -> Decoded:
        decoded: Decoded = self.network.decode(tokens, queries)
        return decoded


class FusedExport(Exportable[NetworkSettings]):
    @property
    def states(self) -> Mapping[str, InitialState]:
        network: Any = self.network
        first = network.first_queries.detach().numpy()
        return {"queries": InitialState("queries", "next_queries", first, device="engine")}

    @property
    def meanings(self) -> Mapping[str, str]:
        return {
            "queries": "of each slot, as the frame before left them",
            "next_queries": "of each slot, for the next frame",
            "tokens": "of the frame, for the decoder",
        }

    @torch.no_grad()
    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        network: Any = self.network
        outputs = network.decode(network.encode(pixels), network.first_queries[None])
        roles = {name: tensor[0] for name, tensor in outputs._asdict().items()}
        roles["mask_logits"] = MasksGraph()(roles["mask_embeddings"], roles["mask_features"])
        return {name: tensor.numpy() for name, tensor in roles.items()} | {"embeddings": roles["next_queries"].numpy()}

    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        height, width = self.spec.image_size
        settings = self.checkpoint.settings
        images = torch.zeros((TRACED_WITH, height, width, 3), dtype=torch.uint8)
        sizes = torch.tensor([[height, width]] * TRACED_WITH, dtype=torch.int32)
        queries = torch.zeros(TRACED_WITH, settings.queries, settings.channels)
        inputs = {"images": images, "valid_sizes": sizes, "queries": queries}
        batch = dict.fromkeys(inputs, "batch")
        frame = onnx_from_module(graphs["frame"], inputs, batch, dict.fromkeys(Decoded._fields, "batch"))
        return {"frame": frame, "masks": self.masks_model()}

    def masks_model(self) -> onnx.ModelProto:
        size = (self.spec.height, self.spec.width)
        return onnx_from_masks_graph(MasksGraph(), self.checkpoint.settings.channels, *size)


class SplitExport(FusedExport):
    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        settings, (height, width) = self.checkpoint.settings, (self.spec.height, self.spec.width)
        tokens = torch.zeros(TRACED_WITH, settings.channels, height // 4, width // 4)
        inputs = {"tokens": tokens, "queries": torch.zeros(TRACED_WITH, settings.queries, settings.channels)}
        axes, outputs = dict.fromkeys(inputs, "streams"), dict.fromkeys(Decoded._fields, "streams")
        features, dtypes = tokens.shape[1:], (torch.float32, torch.float32)
        slots, dim = settings.queries, settings.channels
        return {
            "frame": onnx_from_frame_graph(graphs["frame"], height, width, ("tokens",)),
            "decoder": onnx_from_module(DecoderGraph(self.network), inputs, axes, outputs),
            "masks": onnx_from_slot_masks_graph(SlotMasksGraph(), slots, dim, features, dtypes),
        }


def read_fused(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> FusedExport:
    checkpoint = load_checkpoint(path, KIND)
    return FusedExport(checkpoint, FusedGraph.from_settings(checkpoint.network(), checkpoint.settings, spec), spec)


def read_split(path: Path, spec: InputSpec, _: Mapping[str, Any]) -> SplitExport:
    checkpoint = load_checkpoint(path, KIND)
    return SplitExport(checkpoint, EncoderGraph.from_settings(checkpoint.network(), checkpoint.settings, spec), spec)


# --- runtime/: the tracking method -----------------------------------------------------------------------------------

IMAGES = {"images": TensorNeed("B I J 3", ("uint8",)), "valid_sizes": TensorNeed("B 2", ("int32",))}
MASKS = GraphNeed(
    inputs={"mask_embeddings": TensorNeed("M C"), "mask_features": TensorNeed("C h w")},
    outputs={"mask_logits": TensorNeed("M h w")},
)


def decoded(batch: str) -> dict[str, TensorNeed]:
    axes = {"class_logits": "Q L", "mask_embeddings": "Q C", "mask_features": "C h w", "next_queries": "Q C"}
    return {role: TensorNeed(batch + own) for role, own in axes.items()}


@dataclass(frozen=True)
class SlotSettings:
    birth_score: float = 0.0
    keep_score: float = 0.0


@dataclass(frozen=True)
class Fused(TrackingMethod[SlotTracks]):
    """Slot i is one object for the whole video; all the state between frames is the network's and the ids."""

    settings: SlotSettings = SlotSettings()
    clip_frames: ClassVar[int] = 1

    def required_graphs(self) -> Mapping[str, GraphNeed]:
        return {"frame": GraphNeed({**IMAGES, "queries": TensorNeed("B Q C")}, decoded("B ")), "masks": MASKS}

    def required_states(self) -> Mapping[str, TensorNeed]:
        return {"queries": TensorNeed("Q C")}

    def start(self, initial: Tensors) -> SlotTracks:
        return new_slot_tracks(len(initial["queries"]), next_id=0)

    def restart(self, state: SlotTracks, initial: Tensors) -> SlotTracks:
        return new_slot_tracks(len(initial["queries"]), state.next_id)

    def outputs(self, frame: FrameOutputs) -> Steps[Tensors]:
        yield from ()
        return frame.tensors

    def shown(
        self,
        frame: FrameOutputs,
        graphs: MethodGraphs,
        objects: list[tuple[int, int, float]],
        outputs: Tensors,
        slots: Array,
    ) -> Steps[FrameTracks]:
        yield from ()
        return tracks_with_masks(frame, graphs, objects, outputs["mask_embeddings"][slots])

    def update(
        self, frames: Sequence[FrameOutputs], graphs: MethodGraphs, state: SlotTracks
    ) -> Steps[tuple[list[FrameTracks], SlotTracks]]:
        [frame] = frames
        outputs = yield from self.outputs(frame)
        refuse_nonfinite("class_logits", outputs["class_logits"])
        probabilities: Floats = softmax(outputs["class_logits"])[:, :-1]
        limits = {"birth_score": self.settings.birth_score, "keep_score": self.settings.keep_score}
        tracks, visible = mark_seen(state, probabilities, frame.now_s, **limits, max_objects=100)
        tracks = replace(tracks, scores=probabilities)
        objects, slots = shown_objects(tracks, visible)
        shown = yield from self.shown(frame, graphs, objects, outputs, slots)
        return [shown], tracks

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        queries = {"queries": np.repeat(initial["queries"][None], len(images), axis=0)}
        outputs = outputs_of(engines, images, valid_sizes, queries)
        return {**outputs, "embeddings": outputs["next_queries"]}

    def graph_of(self, role: str) -> str:
        return "masks" if role == "mask_logits" else "frame"


class Split(Fused):
    def required_graphs(self) -> Mapping[str, GraphNeed]:
        inputs = {"tokens": TensorNeed("N C h w"), "queries": TensorNeed("N Q C")}
        frame = GraphNeed(IMAGES, {"tokens": TensorNeed("B C h w")})
        masks = slot_masks("C", features="C h w")
        return {"frame": frame, "decoder": GraphNeed(inputs, decoded("N ")), "masks": masks}

    def outputs(self, frame: FrameOutputs) -> Steps[Tensors]:
        answer = yield Call("decoder", [frame])
        outputs, _ = valid_outputs(answer, "decoder")
        answer.renew()
        return outputs

    def shown(
        self,
        frame: FrameOutputs,
        graphs: MethodGraphs,
        objects: list[tuple[int, int, float]],
        outputs: Tensors,
        slots: Array,
    ) -> Steps[FrameTracks]:
        logits, _ = yield from masks_of_slots(frame, slots)
        return FrameTracks(tuple(Track(*one, mask) for one, mask in zip(objects, logits, strict=True)))

    def full_outputs(
        self, engines: Mapping[str, Engine], manifest: Manifest, initial: Tensors, images: Array, valid_sizes: Array
    ) -> Outputs:
        tokens = engines["frame"]({"images": images, "valid_sizes": valid_sizes})["tokens"]
        queries = np.repeat(initial["queries"][None], len(images), axis=0)
        made = engines["decoder"]({"tokens": tokens, "queries": queries})
        masks = slot_masks_of(engines["masks"], made["mask_embeddings"], made["mask_features"])
        outputs = {role: tensor.numpy() for role, tensor in made.items()}
        return {**outputs, "mask_logits": masks, "embeddings": outputs["next_queries"]}

    def graph_of(self, role: str) -> str:
        return "masks" if role == "mask_logits" else "decoder"


KINDS = {"fused": (Fused, read_fused), "split": (Split, read_split)}


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line in each registry, for the time of a test."""
    for name, (method, read) in KINDS.items():

        def make(association: Mapping[str, Any], method: type[Fused] = method) -> Fused:
            return method(load_settings(SlotSettings, association, "association"))

        monkeypatch.setitem(visrt.runtime.methods.registry.METHODS, name, make)
        monkeypatch.setitem(visrt.export.families.FAMILIES, name, read)
