"""Graphs of real size in each precision, as requests for builds: from random weights, or the shipped bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import torch

from visrt.calibration.histogram import magnitudes_of
from visrt.calibration.layers import layers_of, precision_by_node
from visrt.calibration.quantise import quantised
from visrt.calibration.ranges import TensorRange
from visrt.calibration.tensors import with_node_names
from visrt.export.contract import graph_spec
from visrt.export.frames import synthetic_frames
from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.export.half import halved, network_inputs
from visrt.export.nodes import computing_precisions
from visrt.export.onnx_graph import onnx_from_frame_graph, onnx_from_masks_graph
from visrt.models.mask2former import Mask2Former, NetworkSettings
from visrt.runtime.bundles.writer import file_spec
from visrt.runtime.engines.trt.build import BuildRequest, Profile

__all__ = ["FullSize", "in_int8", "network_graphs"]

LIMIT = 4.0
"""Every tensor is said to reach this: whether a graph builds does not hang on the size of its scales."""


@dataclass(frozen=True)
class FullSize:
    """The graphs of one network in one precision. nodes: by graph, the precision of each node that multiplies."""

    precision: str
    models: Mapping[str, onnx.ModelProto]
    nodes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def request(self, name: str, profile: Profile, targets: tuple[str, ...]) -> BuildRequest:
        model = self.models[name]
        data = model.SerializeToString(deterministic=True)
        meanings = {value.name: "" for value in (*model.graph.input, *model.graph.output)}
        spec = graph_spec(model, file_spec(f"{name}.onnx", data), self._stated(name), meanings)
        return BuildRequest(name, spec, data, profile, targets, self.nodes.get(name))

    def _stated(self, name: str) -> str:
        """What the manifest would say: graphs of an int8 bundle without such nodes stay as they were."""
        if self.precision == "int8" and "int8" not in self.nodes[name].values():
            return "fp16"
        return self.precision


def network_graphs(settings: NetworkSettings, precision: str, height: int, width: int) -> FullSize:
    """A network with seeded random weights, traced at `height` x `width` in "fp32" or "fp16"."""
    torch.manual_seed(0)
    network = Mask2Former(settings).eval()
    graph = FrameGraph(network, settings.pixel_mean, settings.pixel_std).eval()
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[precision]
    if precision == "fp16":
        graph, _ = halved(graph, network_inputs(graph, synthetic_frames(1, height, width)))
    models = {
        "frame": onnx_from_frame_graph(graph, height, width),
        "masks": onnx_from_masks_graph(MasksGraph(), settings.mask_dim, height, width, dtype),
    }
    nodes = {name: computing_precisions(model) for name, model in models.items()} if precision != "fp32" else {}
    return FullSize(precision, models, nodes)


def in_int8(graphs: FullSize, names: Sequence[str] = ("frame",)) -> FullSize:
    """FP16 `graphs` with every layer that has a constant weight in INT8 in those of `names`, the worst that can be."""
    models, nodes = dict(graphs.models), dict(graphs.nodes)
    for name in names:
        models[name], nodes[name] = _in_int8(name, graphs.models[name])
    return FullSize("int8", models, nodes)


def _in_int8(name: str, model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The graph with all its layers in INT8, and the precision of each node that multiplies."""
    model = with_node_names(model)
    seen = magnitudes_of(np.full(1, LIMIT, np.float32))
    ranges = {
        tensor: TensorRange(name, tensor, node.name, node.op_type, seen, False)
        for node in model.graph.node
        for tensor in node.output
    }
    layers = layers_of(name, model, ranges)
    whole = quantised(model, layers, {tensor: LIMIT for layer in layers for tensor in layer.inputs})
    onnx.checker.check_model(whole, full_check=True)
    return whole, precision_by_node(model, frozenset(node for layer in layers for node in layer.nodes))
