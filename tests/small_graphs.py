"""ONNX graphs of one or two layers in each precision, and the manifest's description of them, for builds in seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from fakes import graph_spec
from onnx import TensorProto, helper, numpy_helper

from visrt.runtime.engines.trt.build import BuildRequest, Profile

__all__ = [
    "BATCHES",
    "Tensors",
    "conv_int8",
    "conv_of",
    "island",
    "model_bytes",
    "one_node",
    "request_of",
    "widened_input",
]

BATCHES = {"batch": (1, 2, 4)}
SIZE = 16
CHANNELS = 8

Tensors = Mapping[str, tuple[str, tuple[Any, ...]]]
_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}


def request_of(
    model: bytes,
    inputs: Tensors,
    outputs: Tensors,
    precision: str = "fp32",
    profile: Profile = BATCHES,
    targets: tuple[str, ...] = ("8.6",),
    nodes: Mapping[str, str] | None = None,
) -> BuildRequest:
    graph = graph_spec(inputs, outputs).model_copy(update={"precision": precision})
    return BuildRequest("small", graph, model, profile, targets, nodes)


def conv_of(dtype: str, batch: int | str = "batch", **changes: Any) -> BuildRequest:
    """A convolution in `dtype` and a ReLU."""
    inputs, outputs = {"x": (dtype, _image(3, batch))}, {"z": (dtype, _image(CHANNELS, batch))}
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["y"], ["z"], name="relu"),
    ]
    model = model_bytes(nodes, inputs, outputs, {"weight": _weight(dtype)})
    stated = {"precision": {"float32": "fp32", "float16": "fp16"}[dtype], **changes}
    return request_of(model, inputs, outputs, **stated)


def conv_int8(**changes: Any) -> BuildRequest:
    """A convolution quantised explicitly, input and weights, and one in FP16 behind it."""
    inputs, outputs = {"x": ("float16", _image(3))}, {"z": ("float16", _image(CHANNELS))}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"], name="quantise"),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"], name="dequantise"),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["wd"], name="dequantise weight", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="quantised", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["y", "plain weight"], ["z"], name="plain"),
    ]
    arrays = {
        "scale": np.float16(0.02),
        "zero": np.int8(0),
        "weight": np.arange(-108, 108, dtype=np.int8).reshape(CHANNELS, 3, 3, 3),
        "scales": np.full(CHANNELS, 0.01, np.float16),
        "zeros": np.zeros(CHANNELS, np.int8),
        "plain weight": np.ones((CHANNELS, CHANNELS, 1, 1), np.float16),
    }
    return request_of(model_bytes(nodes, inputs, outputs, arrays), inputs, outputs, **{"precision": "int8", **changes})


def island(**changes: Any) -> BuildRequest:
    """A product in FP16 whose result is cast up for one in FP32."""
    inputs, outputs = {"x": ("float16", ("batch", CHANNELS))}, {"z": ("float32", ("batch", CHANNELS))}
    nodes = [
        helper.make_node("MatMul", ["x", "half"], ["y"], name="product"),
        helper.make_node("Cast", ["y"], ["wide"], name="up", to=TensorProto.FLOAT),
        helper.make_node("Relu", ["wide"], ["positive"], name="relu"),
        helper.make_node("MatMul", ["positive", "single"], ["z"], name="in the island"),
    ]
    arrays = {"half": np.eye(CHANNELS, dtype=np.float16), "single": np.eye(CHANNELS, dtype=np.float32)}
    return request_of(model_bytes(nodes, inputs, outputs, arrays), inputs, outputs, **{"precision": "fp16", **changes})


def widened_input(**changes: Any) -> BuildRequest:
    """A uint8 image that goes into FP32 and stays there, whatever the manifest says; a product in FP16 beside it."""
    inputs = {"x": ("uint8", _image(3)), "h": ("float16", ("batch", CHANNELS))}
    outputs = {"z": ("float32", _image(CHANNELS)), "g": ("float16", ("batch", CHANNELS))}
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], name="to numbers", to=TensorProto.FLOAT),
        helper.make_node("Conv", ["wide", "weight"], ["z"], name="forgotten", pads=[1, 1, 1, 1]),
        helper.make_node("MatMul", ["h", "half"], ["g"], name="product"),
    ]
    arrays = {"weight": _weight("float32"), "half": np.eye(CHANNELS, dtype=np.float16)}
    return request_of(model_bytes(nodes, inputs, outputs, arrays), inputs, outputs, **{"precision": "fp16", **changes})


def one_node(operator: str, inputs: Tensors, outputs: Tensors, **changes: Any) -> BuildRequest:
    """A graph of one node, called "the node", sound or not."""
    node = helper.make_node(operator, list(inputs), list(outputs), name="the node")
    return request_of(model_bytes([node], inputs, outputs, {}), inputs, outputs, profile={}, **changes)


def model_bytes(
    nodes: Sequence[onnx.NodeProto], inputs: Tensors, outputs: Tensors, arrays: Mapping[str, Any], opset: int = 19
) -> bytes:
    """A serialised model; `arrays` are its constants."""
    constants = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(list(nodes), "small", _values(inputs), _values(outputs), constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def _values(tensors: Tensors) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(name, _TYPES[dtype], shape) for name, (dtype, shape) in tensors.items()]


def _image(channels: int, batch: int | str = "batch") -> tuple[Any, ...]:
    return (batch, channels, SIZE, SIZE)


def _weight(dtype: str) -> Any:
    """Weights [8, 3, 3, 3] of a convolution."""
    return np.linspace(-1, 1, CHANNELS * 27).reshape(CHANNELS, 3, 3, 3).astype(dtype)
