"""INT8 written into the ONNX: explicit QuantizeLinear and DequantizeLinear pairs around chosen layers.

What TensorRT's strongly typed networks read: symmetric, zero point 0, one scale a tensor for activations and one a
channel for weights. A weight is stored as int8 with its DequantizeLinear; biases stay as they are.

Scales are float32 in FP16 graphs too, with casts around the pairs. TensorRT-RTX 1.7 folds them into the same INT8
kernels as float16 scales, which it would convert itself, with a warning; and float16 scales would need opset 19, some
operators of which ONNX Runtime's CUDA provider lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from visrt.calibration.histogram import INT8_MAX
from visrt.calibration.layers import Layer
from visrt.calibration.tensors import GraphView, node_label

__all__ = ["quantised", "weight_to_int8"]

Values = NDArray[Any]


@dataclass
class _Writer:
    """The nodes and constants of the graph that is being written."""

    view: GraphView
    limits: Mapping[str, float]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)

    def activation(self, name: str, dtype: np.dtype[Any]) -> str:
        """The tensor `name` of type `dtype` after its pair, which is written once however many layers read it."""
        if name not in self.written:
            scale = self._constant(f"{name}_scale", _scale(np.asarray(self.limits[name])))
            zero = self._constant(f"{name}_zero_point", np.zeros((), np.int8))
            whole = f"{name}_int8"
            self._node("QuantizeLinear", [self._cast(name, dtype, np.dtype(np.float32)), scale, zero], whole)
            back = self._node("DequantizeLinear", [whole, scale, zero], f"{name}_dequantised")
            self.written[name] = self._cast(back, np.dtype(np.float32), dtype)
        return self.written[name]

    def weight(self, name: str, axis: int) -> str:
        """The weight `name`, stored as int8 with a scale for each channel of `axis`, after its DequantizeLinear."""
        key = f"{name}_axis{axis}"
        if key not in self.written:
            values = self.view.constant(name)
            assert values is not None
            whole, scales = weight_to_int8(values, axis)
            sources = [
                self._constant(f"{key}_int8", whole),
                self._constant(f"{key}_scale", scales),
                self._constant(f"{key}_zero_point", np.zeros(len(scales), np.int8)),
            ]
            back = self._node("DequantizeLinear", sources, f"{key}_dequantised", axis=axis)
            self.written[key] = self._cast(back, np.dtype(np.float32), values.dtype)
        return self.written[key]

    def _cast(self, name: str, given: np.dtype[Any], wanted: np.dtype[Any]) -> str:
        if given == wanted:
            return name
        return self._node("Cast", [name], f"{name}_{wanted}", to=helper.np_dtype_to_tensor_dtype(wanted))

    def _node(self, op: str, inputs: list[str], output: str, **attributes: int) -> str:
        """Writes a node named after its output, and returns that."""
        self.nodes.append(helper.make_node(op, inputs, [self._name(output)], f"{output}_{op}", **attributes))
        return output

    def _constant(self, name: str, values: Values) -> str:
        self.constants.append(numpy_helper.from_array(values, self._name(name)))
        return name

    def _name(self, name: str) -> str:
        """`name`, which nothing in the graph may bear already."""
        if name in self.view.producers or name in self.view.initializers:
            raise ValueError(f"the graph has a tensor {name!r} already")
        return name


def quantised(model: onnx.ModelProto, layers: Sequence[Layer], limits: Mapping[str, float]) -> onnx.ModelProto:
    """A copy of `model` in which `layers` compute in INT8. limits: magnitude at which each of their inputs clips."""
    view = GraphView(model)
    of_node = {label: layer for layer in layers for label in layer.nodes}
    writer = _Writer(view, limits)
    for node in model.graph.node:
        layer = of_node.get(node_label(node))
        writer.nodes.append(node if layer is None else _rewired(node, layer, writer))
    return _with(model, writer)


def weight_to_int8(values: Values, axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """`values` as int8, and the scales [C] of its channels along `axis`."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scales = _scale(np.abs(values.astype(np.float32)).max(axis=others))
    along = [1] * values.ndim
    along[axis] = -1
    steps = np.rint(values.astype(np.float32) / scales.reshape(along))
    return np.clip(steps, -INT8_MAX, INT8_MAX).astype(np.int8), scales


def _scale(limits: Values) -> NDArray[np.float32]:
    """The step of int8 for values up to `limits`; never 0, which would divide."""
    return np.asarray(np.maximum(limits / INT8_MAX, np.finfo(np.float32).smallest_normal), np.float32)


def _rewired(node: onnx.NodeProto, layer: Layer, writer: _Writer) -> onnx.NodeProto:
    values = writer.view.constant(layer.weight)
    assert values is not None
    rewired = onnx.NodeProto()
    rewired.CopyFrom(node)
    rewired.input[0] = writer.activation(node.input[0], values.dtype)
    rewired.input[1] = writer.weight(layer.weight, layer.axis)
    return rewired


def _with(model: onnx.ModelProto, writer: _Writer) -> onnx.ModelProto:
    """`model` with the nodes and constants of `writer`, without what they made superfluous."""
    nodes = _needed(writer.nodes, {value.name for value in model.graph.output})
    used = {name for node in nodes for name in node.input} | {value.name for value in model.graph.output}
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    whole.graph.ClearField("node")
    whole.graph.ClearField("initializer")
    whole.graph.node.extend(nodes)
    whole.graph.initializer.extend(c for c in (*model.graph.initializer, *writer.constants) if c.name in used)
    return whole


def _needed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Those of `nodes` on which `outputs` depend, in order: the transpose of a weight is not, once it is int8."""
    wanted = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(name in wanted for name in node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]
