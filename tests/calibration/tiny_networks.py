"""Small frame graphs with all that quantising meets: convolutions, shared inputs, shared and transposed weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from fakes import graph_spec
from onnx import TensorProto, helper, numpy_helper

from visrt.calibration.ranges import Replay
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.engine import Engine
from visrt.runtime.parity.frames import Frames

HEIGHT, WIDTH = 16, 24
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


def network(dtype: str = "float32", gain: float = 1.0) -> onnx.ModelProto:
    """images -> stem and branch, which share their input -> a product with a transposed weight, used twice.

    gain: of the stem; large ones leave FP16's range in "stem".
    """
    random = np.random.default_rng(0)
    constants: dict[str, Any] = {
        "stem.weight": gain * random.normal(size=(8, 3, 3, 3)) / 255,
        "stem.bias": random.normal(size=8),
        "deep.weight": random.normal(size=(8, 1, 3, 3)) * np.geomspace(0.01, 1, 8).reshape(8, 1, 1, 1),
        "branch.weight": random.normal(size=(4, 8, 1, 1)),
        "head.weight": random.normal(size=(6, 8)),
    }
    constants = {name: value.astype(dtype) for name, value in constants.items()}
    constants["rows"] = np.array([0, 8, -1])
    nodes = [
        node("Cast", ["images"], "pixels", to=TYPES[dtype]),
        node("Transpose", ["pixels"], "planes", perm=[0, 3, 1, 2]),
        node("Conv", ["planes", "stem.weight", "stem.bias"], "stem", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", ["stem"], "shared"),
        node("Conv", ["shared", "deep.weight"], "deep", pads=[1, 1, 1, 1], group=8),
        node("Conv", ["shared", "branch.weight"], "branch"),
        node("Reshape", ["deep", "rows"], "flat"),
        node("Transpose", ["flat"], "tokens", perm=[0, 2, 1]),
        node("Transpose", ["head.weight"], "head.turned", perm=[1, 0]),
        node("MatMul", ["tokens", "head.turned"], "first"),
        node("Relu", ["tokens"], "positive"),
        node("MatMul", ["positive", "head.turned"], "second"),
        node("Add", ["first", "second"], "sum"),
        node("MatMul", ["flat", "tokens"], "self_product"),
        node("Cast", ["sum"], "out", to=TensorProto.FLOAT),
        node("Cast", ["branch"], "side", to=TensorProto.FLOAT),
        node("Cast", ["self_product"], "square", to=TensorProto.FLOAT),
        node("Cast", ["valid_sizes"], "sizes", to=TensorProto.FLOAT),
    ]
    tokens = HEIGHT * WIDTH // 4
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", HEIGHT, WIDTH, 3])]
    inputs.append(helper.make_tensor_value_info("valid_sizes", TensorProto.INT32, ["batch", 2]))
    outputs = [
        helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", tokens, 6]),
        helper.make_tensor_value_info("side", TensorProto.FLOAT, ["batch", 4, HEIGHT // 2, WIDTH // 2]),
        helper.make_tensor_value_info("square", TensorProto.FLOAT, ["batch", 8, 8]),
        helper.make_tensor_value_info("sizes", TensorProto.FLOAT, ["batch", 2]),
    ]
    return model(nodes, inputs, outputs, constants)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: dict[str, Any]) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializer=weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """A node named after its output."""
    return helper.make_node(op, inputs, [output], f"node_{output}", **attributes)


def spec() -> GraphSpec:
    """What a manifest would say of the network."""
    inputs = {"images": ("uint8", ("batch", HEIGHT, WIDTH, 3)), "valid_sizes": ("int32", ("batch", 2))}
    outputs = {
        "out": ("float32", ("batch", HEIGHT * WIDTH // 4, 6)),
        "side": ("float32", ("batch", 4, HEIGHT // 2, WIDTH // 2)),
        "square": ("float32", ("batch", 8, 8)),
        "sizes": ("float32", ("batch", 2)),
    }
    return graph_spec(inputs, outputs)


def each_frame(frames: Frames) -> Replay:
    """Calls the network once for each of `frames`."""

    def replay(engine: Engine) -> None:
        for t in range(len(frames)):
            engine({"images": frames.images[t : t + 1], "valid_sizes": frames.valid_sizes[t : t + 1]})

    return replay


def some_frames(count: int = 3) -> Frames:
    images = np.random.default_rng(1).integers(0, 255, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return Frames(images, np.tile(np.array([[HEIGHT, WIDTH]], np.int32), (count, 1)))
