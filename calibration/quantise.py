"""INT8 written into the ONNX: explicit QuantizeLinear and DequantizeLinear pairs around chosen layers.

What TensorRT's strongly typed networks read: symmetric, zero point 0, one scale a tensor for activations and one a
channel for weights. A weight is stored as int8 with its DequantizeLinear; biases stay as they are.

Scales have the type of the tensors around them, float16 in FP16 graphs, so that nothing stands between a pair and the
layer that it makes INT8.
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
from visrt.calibration.tensors import GraphView

__all__ = ["FP16_SCALES_OPSET", "quantised", "weight_to_int8"]

FP16_SCALES_OPSET = 19
"""The first opset whose QuantizeLinear takes float16. Float32 graphs keep their own, as ONNX Runtime's CUDA provider
lacks kernels for some operators of later ones."""

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
            scale = self._constant(f"{name}_scale", _scale(np.asarray(self.limits[name]), dtype))
            zero = self._constant(f"{name}_zero_point", np.zeros((), np.int8))
            whole = self._node("QuantizeLinear", [name, scale, zero], f"{name}_int8")
            self.written[name] = self._node("DequantizeLinear", [whole, scale, zero], f"{name}_dequantised")
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
            self.written[key] = self._node("DequantizeLinear", sources, f"{key}_dequantised", axis=axis)
        return self.written[key]

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
    of_node = {name: layer for layer in layers for name in layer.nodes}
    writer = _Writer(view, limits)
    for node in model.graph.node:
        layer = of_node.get(node.name)
        writer.nodes.append(node if layer is None else _rewired(node, layer, writer))
    return _with(model, writer)


def weight_to_int8(values: Values, axis: int) -> tuple[NDArray[np.int8], Values]:
    """`values` as int8, and the scales [C] of its channels along `axis` in the type of `values`."""
    others = tuple(i for i in range(values.ndim) if i != axis)
    scales = _scale(np.abs(values.astype(np.float32)).max(axis=others), values.dtype)
    along = [1] * values.ndim
    along[axis] = -1
    steps = np.rint(values.astype(np.float32) / scales.astype(np.float32).reshape(along))
    return np.clip(steps, -INT8_MAX, INT8_MAX).astype(np.int8), scales


def _scale(limits: Values, dtype: np.dtype[Any]) -> Values:
    """The step of int8 for values up to `limits`; never 0, which would divide."""
    return np.asarray(np.maximum((limits / INT8_MAX).astype(dtype), np.finfo(dtype).smallest_subnormal))


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
    if any(constant.data_type == onnx.TensorProto.FLOAT16 for constant in writer.constants):
        _require_opset(whole, FP16_SCALES_OPSET)
    return whole


def _require_opset(model: onnx.ModelProto, opset: int) -> None:
    """Between 18 and 19 the operators of exported graphs only gained options, so that they mean the same in both."""
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = max(entry.version, opset)


def _needed(nodes: Sequence[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """Those of `nodes` on which `outputs` depend, in order: the transpose of a weight is not, once it is int8."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node.input)
    return kept[::-1]
