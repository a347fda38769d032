"""Counts the cost of a graph from its shapes: multiply-accumulates of one frame or mask, numbers in its weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from visrt.runtime.arrays import Array
from visrt.runtime.errors import ParityError

__all__ = ["Counts", "Moved", "count", "moved"]

WEIGHTS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8)
QUANTISED = ("QuantizeLinear", "DequantizeLinear")
INTEGERS = (TensorProto.INT32, TensorProto.INT64)
SMALL = 64
"""Numbers in the largest tensor that is taken for a part of some shape."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Counts:
    """macs: multiply-accumulates with every dynamic axis at one, the sum of those `by_operator`.

    parameters: floating-point and int8 numbers stored in the graph, which are its weights and what was folded into
    constants, such as position embeddings; scales and zero points of quantisation are not counted.
    """

    macs: int
    parameters: int
    by_operator: Mapping[str, int]


@dataclass(frozen=True)
class Moved:
    """Bytes that one frame or mask moves, every dynamic axis at one.

    least: weights, inputs and outputs once each: no engine moves less, unless they stay in its caches. unfused: what
    every node reads and writes, if nothing is fused and nothing stays in a cache.
    """

    least: int
    unfused: int


def moved(model: ModelProto) -> Moved:
    """Bytes of `model`; tensors whose shape depends on the data are left out."""
    types = _types(model)
    sizes = {name: _bytes(kind) for name, kind in types.items()}
    ends = [value.name for value in (*model.graph.input, *model.graph.output)]
    weights = [weight.name for weight in model.graph.initializer]
    nodes = [name for node in _nodes(model.graph) for name in (*node.input, *node.output)]
    least, unfused = (sum(sizes.get(name, 0) for name in names) for names in ({*weights, *ends}, nodes))
    return Moved(least, unfused)


def _bytes(kind: TypeProto) -> int:
    sizes = _sizes(kind)
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type).itemsize
    return 0 if sizes is None else math.prod(sizes) * itemsize


def count(model: ModelProto) -> Counts:
    """Counts of `model`; ParityError names the node if a shape that matters depends on the data."""
    shapes = {name: sizes for name, kind in _types(model).items() if (sizes := _sizes(kind)) is not None}
    by_operator: Counter[str] = Counter()
    for node in _nodes(model.graph):
        if node.op_type in MACS:
            by_operator[node.op_type] += _macs(node, shapes)
    return Counts(sum(by_operator.values()), _parameters(model.graph), dict(by_operator))


def _nodes(graph: GraphProto) -> list[NodeProto]:
    """The nodes of `graph`; ParityError if some lie in branches or loops: how often these run is not in the shapes."""
    for node in graph.node:
        if any(attribute.type == onnx.AttributeProto.GRAPH for attribute in node.attribute):
            raise ParityError(f"node {node.name!r} ({node.op_type}) holds a graph of its own; expected a plain graph")
    return list(graph.node)


def _macs(node: NodeProto, shapes: Shapes) -> int:
    missing = [name for name in (*node.input[:2], node.output[0]) if name not in shapes]
    if missing:
        raise ParityError(
            f"node {node.name!r} ({node.op_type}): the shape of {', '.join(missing)} depends on the data; its "
            "multiply-accumulates cannot be counted: write it with fixed sizes in models/"
        )
    return MACS[node.op_type](node, shapes)


def _conv(node: NodeProto, shapes: Shapes) -> int:
    """Each output number is a sum over the kernel and its group: the weight is [out, in / groups, *kernel]."""
    return math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _transposed_conv(node: NodeProto, shapes: Shapes) -> int:
    """Each input number goes into the kernel and its group's channels: the weight is [in, out / groups, *kernel]."""
    return math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _matmul(node: NodeProto, shapes: Shapes) -> int:
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _gemm(node: NodeProto, shapes: Shapes) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]


def _einsum(node: NodeProto, shapes: Shapes) -> int:
    """The product of all axes that are named: what a plain nest of loops does."""
    equation = next(attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if "." in equation or len(terms) != 2:
        raise ParityError(f"node {node.name!r}: einsum {equation!r}; expected two operands with every axis named")
    sizes = {
        axis: size
        for term, name in zip(terms, node.input, strict=True)
        for axis, size in zip(term, shapes[name], strict=True)
    }
    return math.prod(sizes.values())


MACS: dict[str, Callable[[NodeProto, Shapes], int]] = {
    "Conv": _conv,
    "ConvTranspose": _transposed_conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Einsum": _einsum,
}


def _parameters(graph: GraphProto) -> int:
    scales = {name for node in graph.node if node.op_type in QUANTISED for name in node.input[1:]}
    counted = [weight for weight in graph.initializer if weight.data_type in WEIGHTS and weight.name not in scales]
    return sum(math.prod(weight.dims) for weight in counted)


def _types(model: ModelProto) -> dict[str, TypeProto]:
    """The types of all tensors by name, as far as they can be known, with every dynamic axis at one.

    onnx's own inference over a whole graph loses shapes that were computed from shapes, as a traced dynamic batch makes
    them. Node by node, with the values of small integer tensors at hand, nothing is lost.
    """
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    types = {weight.name: _type(weight.data_type, weight.dims) for weight in model.graph.initializer}
    types |= {value.name: _fixed(value) for value in model.graph.input if value.name not in types}
    values = {
        weight.name: numpy_helper.to_array(weight)
        for weight in model.graph.initializer
        if math.prod(weight.dims) <= SMALL and weight.data_type in INTEGERS
    }
    for node in model.graph.node:
        _infer(node, opsets, types, values)
    return types


def _infer(node: NodeProto, opsets: Mapping[str, int], types: dict[str, TypeProto], values: dict[str, Array]) -> None:
    """Adds the types of the node's outputs, and their values where they are shapes or made from them."""
    given = [name for name in node.input if name]
    if any(name not in types for name in given):
        return
    schema = onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    known = {name: numpy_helper.from_array(values[name], name) for name in given if name in values}
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    types |= onnx.shape_inference.infer_node_outputs(
        schema, node, {name: types[name] for name in given}, known, opset_imports=imports
    )
    if node.op_type == "Shape" and (sizes := _sizes(types[given[0]])) is not None:
        values[node.output[0]] = _part_of_shape(node, sizes)
    elif all(name in values for name in given) and all(_is_small_type(types.get(name)) for name in node.output):
        outputs = ReferenceEvaluator(node).run(None, {name: values[name] for name in given})
        values |= dict(zip(node.output, map(np.asarray, outputs), strict=True))


def _part_of_shape(node: NodeProto, sizes: tuple[int, ...]) -> Array:
    """The output of a Shape node: all sizes, or those from its start to its end."""
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    return np.array(sizes[bounds.get("start", 0) : bounds.get("end")], dtype=np.int64)


def _is_small_type(kind: TypeProto | None) -> bool:
    """Whether a tensor may be part of a shape's arithmetic: integers or truth values, and few."""
    sizes = None if kind is None else _sizes(kind)
    return (
        kind is not None
        and sizes is not None
        and math.prod(sizes) <= SMALL
        and kind.tensor_type.elem_type in (*INTEGERS, TensorProto.BOOL)
    )


def _fixed(value: onnx.ValueInfoProto) -> TypeProto:
    """The type of `value` with its dynamic axes at one."""
    kind = value.type.tensor_type
    return _type(kind.elem_type, [axis.dim_value or 1 for axis in kind.shape.dim])


def _type(elem_type: int, sizes: Iterable[int]) -> TypeProto:
    return onnx.helper.make_tensor_type_proto(elem_type, list(sizes))


def _sizes(kind: TypeProto) -> tuple[int, ...] | None:
    axes = kind.tensor_type.shape.dim
    if not kind.tensor_type.HasField("shape") or any(axis.WhichOneof("value") != "dim_value" for axis in axes):
        return None
    return tuple(axis.dim_value for axis in axes)
