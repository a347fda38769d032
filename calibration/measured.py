"""The graphs of a bundle that calibration may change, with what their tensors held on the range frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import onnx

from visrt.calibration.layers import Layer, layers_of
from visrt.calibration.quantise import quantised
from visrt.calibration.ranges import Replay, TensorRange, ranges_of
from visrt.calibration.tensors import with_node_names
from visrt.export.onnx_graph import check_uint8_inputs, rewire_uint8_inputs
from visrt.runtime.bundles.bundle import Bundle

__all__ = ["MeasuredGraph", "MeasuredGraphs", "all_layers", "in_int8", "measured_graph"]


@dataclass(frozen=True)
class MeasuredGraph:
    """One graph as it is. layers: those that can compute in INT8. limits: magnitude at which their inputs clip."""

    model: onnx.ModelProto
    ranges: Mapping[str, TensorRange]
    layers: tuple[Layer, ...]
    limits: Mapping[str, float]


MeasuredGraphs = Mapping[str, MeasuredGraph]
"""By name, in the order of the family's plan."""


def measured_graph(
    bundle: Bundle, name: str, replay: Replay, progress: Callable[[int, int], None] = lambda *_: None
) -> MeasuredGraph:
    """The graph `name` of `bundle`, measured by running `replay`. Raises ParityError if TensorRT cannot take its uint8
    inputs."""
    model = with_node_names(onnx.load_from_string(bundle.graph(name)))
    rewire_uint8_inputs(model.graph)
    check_uint8_inputs(model.graph)
    ranges = ranges_of(name, bundle.manifest.graphs[name], model, replay, progress)
    layers = layers_of(name, model, ranges)
    limits = {tensor: ranges[tensor].magnitudes.int8_limit() for layer in layers for tensor in layer.inputs}
    return MeasuredGraph(model, ranges, layers, limits)


def all_layers(graphs: MeasuredGraphs) -> tuple[Layer, ...]:
    """The layers of all `graphs`, in order."""
    return tuple(chain.from_iterable(graph.layers for graph in graphs.values()))


def in_int8(graphs: MeasuredGraphs, layers: Sequence[Layer]) -> dict[str, onnx.ModelProto]:
    """Those of `graphs` that have any of `layers`, by name, with these in INT8."""
    of_graphs = {name: [layer for layer in layers if layer.graph == name] for name in graphs}
    return {
        name: quantised(graphs[name].model, chosen, graphs[name].limits) for name, chosen in of_graphs.items() if chosen
    }
