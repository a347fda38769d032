"""Leaves of a traced ONNX model what an engine needs: no stack traces, no paths, no arithmetic on constants."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = ["cleaned"]

REARRANGES = ("Split", "Reshape", "Transpose")


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that says nothing of the machine or the code it was traced from."""
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    clean.ClearField("metadata_props")
    clean.ClearField("doc_string")
    clean.producer_name, clean.producer_version = "visrt", ""
    clean.graph.name = "visrt"
    _strip(clean.graph)
    _fold_rearranged(clean.graph, clean.opset_import[0].version)
    _drop_unused_weights(clean.graph)
    return clean


def _strip(graph: onnx.GraphProto) -> None:
    """Drop what the tracer noted on each node and tensor: its module, source lines and inferred shapes."""
    graph.ClearField("value_info")
    for described in (graph, *graph.input, *graph.output, *graph.initializer, *graph.node):
        described.ClearField("doc_string")
        described.ClearField("metadata_props")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip(attribute.g)


def _fold_rearranged(graph: onnx.GraphProto, opset: int) -> None:
    """Weights that are split, reshaped or transposed at every call in the trace; here once and for all."""
    weights = {weight.name: weight for weight in graph.initializer}
    for node in list(graph.node):
        if node.op_type in REARRANGES and all(name in weights for name in node.input):
            given = {name: numpy_helper.to_array(weights[name]) for name in node.input}
            parts = ReferenceEvaluator(node, opsets={"": opset}).run(None, given)
            for name, part in zip(node.output, parts, strict=True):
                weights[name] = numpy_helper.from_array(np.ascontiguousarray(part), name)
                graph.initializer.append(weights[name])
            graph.node.remove(node)


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for weight in [weight for weight in graph.initializer if weight.name not in used]:
        graph.initializer.remove(weight)
