"""The nodes that can compute in INT8: those with a constant weight. Nodes that share a weight are one layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from visrt.calibration.ranges import TensorRange
from visrt.calibration.tensors import GraphView
from visrt.export.nodes import computing_precisions

__all__ = ["Layer", "layers_of", "precision_by_node"]


@dataclass(frozen=True)
class Layer:
    """The nodes, by name, that multiply their first input with one weight.

    graph: of the bundle, by name. axis: of the weight's output channels. work: multiply-accumulates over all range
    frames.
    """

    graph: str
    name: str
    op: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weight: str
    axis: int
    work: int


def layers_of(graph: str, model: onnx.ModelProto, ranges: Mapping[str, TensorRange]) -> tuple[Layer, ...]:
    """The layers of `model`, which is `graph` of the bundle, in order.

    Left out is what never saw anything but 0, or saw NaN, on the range frames.
    """
    view = GraphView(model)
    nodes: dict[tuple[str, int], list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if _has_weight(node, view) and _is_live(node.input[0], ranges):
            nodes[node.input[1], _channel_axis(node)].append(node)
    return tuple(_layer(graph, weight, axis, users, view, ranges) for (weight, axis), users in nodes.items())


def precision_by_node(model: onnx.ModelProto, quantised: frozenset[str]) -> dict[str, str]:
    """The precision of each computing node of `model`, a graph without Q/DQ, once the nodes `quantised` are INT8."""
    own = computing_precisions(model)
    return {name: "int8" if name in quantised else precision for name, precision in own.items()}


def _has_weight(node: onnx.NodeProto, view: GraphView) -> bool:
    """True for a convolution, or a product with a constant matrix on the right."""
    if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[0] not in view.varying:
        return False
    weight = view.constant(node.input[1]) if node.input[1] not in view.varying else None
    return weight is not None and weight.dtype.kind == "f" and (node.op_type == "Conv" or weight.ndim == 2)


def _is_live(tensor: str, ranges: Mapping[str, TensorRange]) -> bool:
    found = ranges.get(tensor)
    return found is not None and found.magnitudes.largest > 0 and not found.magnitudes.not_finite


def _layer(
    graph: str,
    weight: str,
    axis: int,
    nodes: list[onnx.NodeProto],
    view: GraphView,
    ranges: Mapping[str, TensorRange],
) -> Layer:
    names = tuple(node.name for node in nodes)
    inputs = tuple(dict.fromkeys(node.input[0] for node in nodes))
    values = view.constant(weight)
    assert values is not None
    numbers = sum(ranges[node.output[0]].magnitudes.count for node in nodes)
    work = numbers * values.size // values.shape[axis]
    return Layer(graph, names[0], nodes[0].op_type, names, inputs, weight, axis, work)


def _channel_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else 1
