"""Which nodes can compute in INT8: those with a constant weight. What shares a weight is one layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from visrt.calibration.ranges import TensorRange
from visrt.calibration.tensors import GraphView, node_label

__all__ = ["COMPUTING", "Layer", "layers_of", "precision_by_node"]

COMPUTING = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")
"""Operators of which a bundle says what precision they compute in."""

PRECISIONS = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}


@dataclass(frozen=True)
class Layer:
    """The nodes, by label, that multiply their first input with one weight. axis: of the weight's output channels."""

    name: str
    op: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weight: str
    axis: int


def layers_of(model: onnx.ModelProto, ranges: Mapping[str, TensorRange]) -> tuple[Layer, ...]:
    """The layers of `model` in order. Left out is what never saw anything but 0, or saw NaN, on the range frames."""
    view = GraphView(model)
    nodes: dict[tuple[str, int], list[onnx.NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        if _has_weight(node, view) and _is_live(node.input[0], ranges):
            nodes[node.input[1], _channel_axis(node)].append(node)
    return tuple(_layer(weight, axis, users) for (weight, axis), users in nodes.items())


def precision_by_node(model: onnx.ModelProto, quantised: frozenset[str]) -> dict[str, str]:
    """What each computing node of `model`, a graph without Q/DQ, computes in once the nodes `quantised` are INT8."""
    types = _types(model)
    return {
        (label := node_label(node)): "int8" if label in quantised else PRECISIONS[types[node.output[0]]]
        for node in model.graph.node
        if node.op_type in COMPUTING
    }


def _has_weight(node: onnx.NodeProto, view: GraphView) -> bool:
    """True for a convolution, or a product with a constant matrix on the right."""
    if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[0] not in view.varying:
        return False
    weight = view.constant(node.input[1]) if node.input[1] not in view.varying else None
    return weight is not None and weight.dtype.kind == "f" and (node.op_type == "Conv" or weight.ndim == 2)


def _is_live(tensor: str, ranges: Mapping[str, TensorRange]) -> bool:
    found = ranges.get(tensor)
    return found is not None and found.magnitudes.largest > 0 and not found.magnitudes.not_finite


def _layer(weight: str, axis: int, nodes: list[onnx.NodeProto]) -> Layer:
    labels = tuple(node_label(node) for node in nodes)
    inputs = tuple(dict.fromkeys(node.input[0] for node in nodes))
    return Layer(labels[0], nodes[0].op_type, labels, inputs, weight, axis)


def _channel_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if transposed else 1


def _types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}
