"""Ranges are those of the graph's own tensors, and tensors that FP16 does not hold are named with their node."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tiny_networks import HEIGHT, WIDTH, each_frame, model, network, node, some_frames, spec

from visrt.calibration.ranges import hazards, ranges_of, refuse_overflow
from visrt.runtime.errors import ParityError

SCALED = spec().model_copy(update={"outputs": {}})
"""Of `scaled` graphs, whose outputs nobody reads by role."""


def test_a_range_is_the_largest_magnitude_over_all_frames() -> None:
    ranges = ranges_of("frame", spec(), network(), each_frame(some_frames()))
    outputs = run(network(), some_frames().images)
    assert ranges["branch"].magnitudes.largest == pytest.approx(float(np.abs(outputs["side"]).max()), rel=1e-5)
    assert ranges["branch"].magnitudes.finite == outputs["side"].size


def test_a_view_has_the_range_of_what_it_views_and_names_its_maker() -> None:
    ranges = ranges_of("frame", spec(), network(), each_frame(some_frames()))
    assert ranges["tokens"] == ranges["deep"]
    assert ranges["tokens"].node == "node_deep"


def test_groups_change_nothing_but_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = ranges_of("frame", spec(), network(), each_frame(some_frames()))
    monkeypatch.setattr("visrt.calibration.ranges.GROUP_BYTES", 1)
    steps: list[int] = []
    parts = ranges_of("frame", spec(), network(), each_frame(some_frames()), lambda done, of: steps.append(of))
    assert steps[0] > 5
    assert {name: found.magnitudes.finite for name, found in parts.items()} == {
        name: found.magnitudes.finite for name, found in whole.items()
    }
    assert all(parts[name].magnitudes.largest == pytest.approx(whole[name].magnitudes.largest) for name in whole)


def test_tensors_beyond_fp16_are_named_with_their_node() -> None:
    found = hazards(ranges_of("frame", spec(), network(gain=1e5), each_frame(some_frames())))
    told = [hazard.describe() for hazard in found if hazard.what == "overflow"]
    assert any("stem of Conv node_stem in the frame graph" in line for line in told)
    assert not hazards(ranges_of("frame", spec(), network(), each_frame(some_frames())))


def test_a_tensor_near_the_limit_and_one_too_small_are_told_apart() -> None:
    graph = scaled({"near": 100.0, "tiny": 1e-8})
    ranges = ranges_of("frame", SCALED, graph, each_frame(some_frames()))
    found = {hazard.found.tensor: hazard.what for hazard in hazards(ranges)}
    assert found == {"near": "near overflow", "tiny": "underflow"}


@pytest.mark.parametrize("mask", [-np.inf, -3.4e38, -65504.0])
def test_infinities_of_a_mask_are_on_purpose(mask: float) -> None:
    graph = scaled({"masked": mask})
    ranges = ranges_of("frame", SCALED, graph, each_frame(some_frames()))
    assert ranges["masked"].on_purpose
    assert not hazards(ranges)
    refuse_overflow(ranges, "the graph")


def test_an_fp16_graph_that_overflows_is_refused_by_name() -> None:
    ranges = ranges_of("frame", spec(), network("float16", gain=1e5), each_frame(some_frames()))
    with pytest.raises(ParityError, match=r"stem of Conv node_stem .*--precision fp16"):
        refuse_overflow(ranges, "the bundle")


def scaled(factors: dict[str, float]) -> onnx.ModelProto:
    """The images times a constant, one output a constant."""
    nodes = [node("Cast", ["images"], "pixels", to=TensorProto.FLOAT)]
    nodes += [node("Mul", ["pixels", f"{name}.factor"], name) for name in factors]
    constants = {f"{name}.factor": np.full(1, value, np.float32) for name, value in factors.items()}
    shape = ["batch", HEIGHT, WIDTH, 3]
    inputs = [helper.make_tensor_value_info("images", TensorProto.UINT8, shape)]
    inputs.append(helper.make_tensor_value_info("valid_sizes", TensorProto.INT32, ["batch", 2]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in factors]
    return model(nodes, inputs, outputs, constants)


def run(graph: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    sizes = np.tile(np.array([[HEIGHT, WIDTH]], np.int32), (len(images), 1))
    return dict(zip(names, session.run(names, {"images": images, "valid_sizes": sizes}), strict=True))
