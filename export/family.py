"""The interface between export and a family: its network, the outputs that torch gives, and its graphs.

A new family is a subclass of `Exportable` in a file of its own, and one line in `export.families`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import onnx
import torch
from torch import Tensor, nn

from visrt.export.graphs import FrameGraph
from visrt.export.half import Island, halved, network_inputs
from visrt.models.checkpoints.checkpoint import Checkpoint, HasClasses
from visrt.runtime.arrays import Array, Floats
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.parity.frames import Frames

__all__ = ["PRECISIONS", "Exportable", "Graphs", "InitialState", "Traced"]

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}

Graphs = dict[str, Any]
"""A family's graphs with weights by name, as torch modules; "frame" is a FrameGraph."""

S = TypeVar("S", bound=HasClasses)


@dataclass(frozen=True)
class Traced:
    """The graphs by name, and the modules of an FP16 network that compute in float32: `kept` by choice, `found`
    because their values leave FP16's range."""

    models: Mapping[str, onnx.ModelProto]
    kept: tuple[str, ...] = ()
    found: tuple[Island, ...] = ()


@dataclass(frozen=True)
class InitialState:
    """A state tensor: the graph input it feeds, the output that renews it, and its value before the first frame.

    device: "cpu" where the tracking method renews it, "engine" where it stays in the engine's memory from call to call.
    ring: as of `StateSpec`; its values are then those of one entry.
    """

    input: str
    output: str
    values: Floats
    device: Literal["cpu", "engine"] = "cpu"
    ring: bool = False


@dataclass(frozen=True)
class Exportable(ABC, Generic[S]):
    """A checkpoint that was read, as its family exports it. `graph` is the frame graph in float32."""

    checkpoint: Checkpoint[Any, S]
    graph: FrameGraph
    spec: InputSpec

    @property
    def network(self) -> nn.Module:
        """The whole network; modules that stay in float32 are named as in it."""
        return self.graph.network

    @property
    def states(self) -> Mapping[str, InitialState]:
        return {}

    @property
    def meanings(self) -> Mapping[str, str]:
        """The meaning of the family's own tensors, for the manifest: by role, without those in `contract.MEANINGS`."""
        return {}

    @property
    def unread(self) -> frozenset[str]:
        """Outputs that only parity reads: the runtime leaves them on the device."""
        return frozenset()

    def normalised(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        """Network input [B, 3, H, W] of `images`, the frame graph's input."""
        return self.graph.normalised(images, valid_sizes)

    @abstractmethod
    def full_outputs(self, pixels: Tensor) -> dict[str, Array]:
        """Torch's outputs for one frame, by the roles that parity compares; `pixels` [1, 3, H, W]."""

    def traced(self, precision: str, frames: Frames, kept: Sequence[str]) -> Traced:
        """The graphs in `precision`; `kept` names modules of the network that stay in float32."""
        modules = dict(self.network.named_modules())
        kept = [name for name in kept if name in modules]
        graphs, found = self.float32_graphs(), list[Island]()
        if precision == "fp16":
            graphs, found = self.halved_graphs(graphs, network_inputs(self.graph, frames), kept)
        return Traced(self.onnx_models(graphs, PRECISIONS[precision]), tuple(kept), tuple(found))

    def float32_graphs(self) -> Graphs:
        return {"frame": self.graph}

    def halved_graphs(
        self, graphs: Graphs, pixels: Sequence[Tensor], kept: Sequence[str]
    ) -> tuple[Graphs, list[Island]]:
        """`graphs` in FP16 but for islands: those `kept`, and those found on `pixels`, each [1, 3, H, W]."""
        frame, found = halved(graphs["frame"], pixels, kept)
        return {"frame": frame}, found

    @abstractmethod
    def onnx_models(self, graphs: Graphs, precision: torch.dtype) -> dict[str, onnx.ModelProto]:
        """All graphs of the bundle by name, `graphs` and those without weights, in `precision`."""
