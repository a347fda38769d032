"""The structure of a graph: which tensors vary with the input, which node makes them, the values of constants."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

__all__ = ["VIEWS", "GraphView", "with_node_names"]

VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Operators whose output holds exactly the values of their first input."""


def with_node_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which every node has a name of its own; one without is named after its first output."""
    named = onnx.ModelProto()
    named.CopyFrom(model)
    taken: set[str] = set()
    for node in named.graph.node:
        if not node.name or node.name in taken:
            node.name = node.output[0]
        taken.add(node.name)
    return named


@dataclass(frozen=True)
class GraphView:
    """Look-ups in one ONNX graph; the graph is never changed."""

    model: onnx.ModelProto

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that makes each tensor."""
        return {name: node for node in self.model.graph.node for name in node.output if name}

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def varying(self) -> frozenset[str]:
        """Tensors that depend on what the graph is fed."""
        names = {value.name for value in self.model.graph.input} - self.initializers.keys()
        for node in self.model.graph.node:
            if any(name in names for name in node.input):
                names.update(name for name in node.output if name)
        return frozenset(names)

    def origin(self, name: str) -> str:
        """The tensor with the same values as `name`, before it was reshaped or transposed."""
        while (node := self.producers.get(name)) is not None and node.op_type in VIEWS:
            name = node.input[0]
        return name

    def constant(self, name: str) -> NDArray[Any] | None:
        """The value of a constant: an initialiser, as it is or cast, transposed; None for anything else."""
        if name in self.initializers:
            return np.asarray(numpy_helper.to_array(self.initializers[name]))
        node = self.producers.get(name)
        if node is None:
            return None
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if node.op_type == "Constant":
            return np.asarray(numpy_helper.to_array(attributes["value"])) if "value" in attributes else None
        if node.op_type not in ("Identity", "Transpose", "Cast"):
            return None
        array = self.constant(node.input[0])
        if array is None or node.op_type == "Identity":
            return array
        if node.op_type == "Transpose":
            return np.transpose(array, attributes.get("perm"))
        return array.astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))

    def float_results(self) -> Iterator[tuple[str, onnx.NodeProto]]:
        """Each tensor that varies and is no view of another, with the node that makes it."""
        for node in self.model.graph.node:
            if node.op_type not in VIEWS:
                yield from ((name, node) for name in node.output if name in self.varying)
