"""Claims about what is left of a traced model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from visrt.export.onnx_graph import cleaned


def test_weights_that_a_trace_rearranges_are_stored_as_they_are_used() -> None:
    packed = np.arange(24, dtype=np.float32).reshape(6, 4)
    nodes = [
        helper.make_node("Split", ["packed"], ["first", "second"], axis=0, num_outputs=2),
        helper.make_node("Reshape", ["first", "shape"], ["square"]),
        helper.make_node("Transpose", ["square"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["y"]),
        helper.make_node("Reshape", ["x", "shape"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "traced",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 6])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, width])
            for name, width in {"y": 2, "z": 6}.items()
        ],
        [numpy_helper.from_array(packed, "packed"), numpy_helper.from_array(np.array([2, 6]), "shape")],
    )
    clean = cleaned(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert [node.op_type for node in clean.graph.node] == ["MatMul", "Reshape"]
    weights = {weight.name: numpy_helper.to_array(weight) for weight in clean.graph.initializer}
    assert set(weights) == {"turned", "shape"}
    np.testing.assert_array_equal(weights["turned"], packed[:3].reshape(2, 6).T)
    onnx.checker.check_model(clean)
