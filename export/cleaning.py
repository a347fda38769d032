"""Leaves of a traced ONNX model what an engine needs: no stack traces, no paths, no arithmetic on constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

__all__ = ["cleaned"]


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that says nothing of the machine or the code it was traced from."""
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    clean.ClearField("metadata_props")
    clean.ClearField("doc_string")
    clean.producer_name, clean.producer_version = "visrt", ""
    clean.graph.name = "visrt"
    _strip(clean.graph)
    _fold_splits(clean.graph)
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


def _fold_splits(graph: onnx.GraphProto) -> None:
    """Weights packed for attention are split at every call in the trace; here once and for all."""
    weights = {weight.name: weight for weight in graph.initializer}
    splits = [node for node in graph.node if node.op_type == "Split" and all(name in weights for name in node.input)]
    for node in splits:
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        packed, *sizes = (numpy_helper.to_array(weights[name]) for name in node.input)
        parts = np.split(packed, _ends(packed.shape[axis], len(node.output), sizes), axis)
        for name, part in zip(node.output, parts, strict=True):
            graph.initializer.append(numpy_helper.from_array(part, name))
        graph.node.remove(node)


def _ends(length: int, count: int, sizes: list[np.ndarray[Any, Any]]) -> list[int]:
    """Where all but the last of `count` parts end; without `sizes` they are equal and the last takes the rest."""
    if sizes:
        return [int(end) for end in np.cumsum(sizes[0])[:-1]]
    return [-(-length // count) * part for part in range(1, count)]


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for weight in [weight for weight in graph.initializer if weight.name not in used]:
        graph.initializer.remove(weight)
