"""Claims about what is left of a traced model."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from visrt.export.onnx_graph import check_uint8_inputs, cleaned
from visrt.runtime.errors import ParityError


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


Value = tuple[int, list[int | str]]
IMAGES: Value = TensorProto.UINT8, ["batch", 4]
SHAPE: Value = TensorProto.INT64, [2]
TO_FLOAT = helper.make_node("Cast", ["images"], ["levels"], name="to float", to=TensorProto.FLOAT)


def uint8_model(*nodes: onnx.NodeProto, outputs: dict[str, Value]) -> onnx.ModelProto:
    """A graph that reads `images`, uint8 [batch, 4]."""
    values = [helper.make_tensor_value_info(name, *of) for name, of in {"images": IMAGES, **outputs}.items()]
    graph = helper.make_graph(nodes, "traced", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_sizes_of_a_uint8_input_are_read_from_its_cast() -> None:
    """As PyTorch traces a dynamic batch: the shape first, from the input itself."""
    model = uint8_model(
        helper.make_node("Shape", ["images"], ["shape"]),
        TO_FLOAT,
        helper.make_node("Size", ["images"], ["size"]),
        helper.make_node("Mul", ["levels", "levels"], ["squares"]),
        outputs={"shape": SHAPE, "size": (TensorProto.INT64, []), "squares": (TensorProto.FLOAT, ["batch", 4])},
    )
    clean = cleaned(model)
    check_uint8_inputs(clean.graph)
    onnx.checker.check_model(clean, full_check=True)
    assert [(node.op_type, *node.input) for node in clean.graph.node if "images" in node.input] == [("Cast", "images")]
    given = {"images": np.arange(12, dtype=np.uint8).reshape(3, 4)}
    for ours, theirs in zip(*(ReferenceEvaluator(m).run(None, given) for m in (clean, model)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("nodes", "found"),
    [
        (
            [helper.make_node("Identity", ["images"], ["y"], name="same")],
            "is read by Identity 'same'; expected one Cast",
        ),
        (
            [helper.make_node("Cast", ["images"], ["y"], name="to int", to=TensorProto.INT32)],
            "is read by Cast 'to int'",
        ),
        (
            [TO_FLOAT, helper.make_node("Transpose", ["images"], ["y"], name="turn", perm=[1, 0])],
            "is read by Cast 'to float', Transpose 'turn'",
        ),
        ([helper.make_node("Shape", ["images"], ["y"], name="shape")], "is read by Shape 'shape'"),
        ([helper.make_node("Constant", [], ["y"], value_int=3)], "is read by nothing"),
    ],
)
def test_a_uint8_input_that_feeds_anything_but_a_cast_is_refused(nodes: list[onnx.NodeProto], found: str) -> None:
    clean = cleaned(uint8_model(*nodes, outputs={"y": (TensorProto.UINT8, ["batch", 4])}))
    with pytest.raises(ParityError, match=f"the uint8 input images {found}"):
        check_uint8_inputs(clean.graph)
