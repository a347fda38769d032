"""The precision of each multiplying node of a graph, read from the graph itself."""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

__all__ = ["COMPUTING", "NODES", "computing_precisions", "nodes_json"]

NODES = "nodes.json"

COMPUTING = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum")
"""Operators of which a bundle says what precision they compute in."""

PRECISIONS = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16"}


def computing_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """ "fp32" or "fp16" by the name of each node that multiplies, in a graph without Q/DQ."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    return {node.name: PRECISIONS[types[node.output[0]]] for node in inferred.node if node.op_type in COMPUTING}


def nodes_json(nodes: Mapping[str, Mapping[str, str]]) -> bytes:
    """The file of a bundle that gives precisions by graph and node."""
    return json.dumps(nodes, indent=1).encode() + b"\n"
