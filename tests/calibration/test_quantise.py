"""INT8 is written as explicit, symmetric Q/DQ pairs around the chosen nodes, and computes what the graph computed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tiny_networks import HEIGHT, WIDTH, each_frame, network, some_frames, spec

from visrt.calibration.layers import Layer, layers_of, precision_by_node
from visrt.calibration.quantise import quantised, weight_to_int8
from visrt.calibration.ranges import ranges_of
from visrt.runtime.engines.trt.build import BuildRequest, build_engine
from visrt.runtime.engines.trt.library import load_tensorrt

DTYPES = ("float32", "float16")


def measured(model: onnx.ModelProto) -> tuple[tuple[Layer, ...], dict[str, float]]:
    ranges = ranges_of("frame", spec(), model, each_frame(some_frames()))
    layers = layers_of("frame", model, ranges)
    return layers, {name: ranges[name].magnitudes.int8_limit() for layer in layers for name in layer.inputs}


def with_int8(dtype: str, names: Sequence[str] | None = None) -> onnx.ModelProto:
    """The tiny network with the layers `names` in INT8, or all."""
    model = network(dtype)
    layers, limits = measured(model)
    return quantised(model, [layer for layer in layers if names is None or layer.name in names], limits)


class TestLayers:
    def test_layers_are_the_products_with_a_constant_and_those_that_share_one_are_one(self) -> None:
        layers, _ = measured(network())
        assert [layer.nodes for layer in layers] == [
            ("node_stem",),
            ("node_deep",),
            ("node_branch",),
            ("node_first", "node_second"),
        ]

    def test_work_is_the_multiply_accumulates_over_the_range_frames(self) -> None:
        pixels = HEIGHT * WIDTH // 4
        layers, _ = measured(network())
        assert [layer.work for layer in layers] == [3 * pixels * work for work in (8 * 3 * 9, 8 * 9, 4 * 8, 2 * 6 * 8)]

    def test_a_layer_that_saw_only_zeros_is_left_out(self) -> None:
        model = network()
        ranges = ranges_of("frame", spec(), model, each_frame(some_frames()))
        dead = {name: found for name, found in ranges.items() if name != "shared"}
        assert [layer.name for layer in layers_of("frame", model, dead)] == ["node_stem", "node_first"]

    @pytest.mark.parametrize(("dtype", "own"), [("float32", "fp32"), ("float16", "fp16")])
    def test_every_computing_node_says_its_precision(self, dtype: str, own: str) -> None:
        assert precision_by_node(network(dtype), frozenset({"node_stem", "node_first"})) == {
            "node_stem": "int8",
            "node_deep": own,
            "node_branch": own,
            "node_first": "int8",
            "node_second": own,
            "node_self_product": own,
        }


class TestWeights:
    def test_each_channel_has_its_own_scale_and_a_rounding_error_of_half_a_step(self) -> None:
        weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32) * np.geomspace(1e-3, 1, 7)
        whole, scales = weight_to_int8(weight.astype(np.float32), axis=1)
        assert np.abs(whole.astype(int)).max(axis=0).tolist() == [127] * 7
        assert (np.abs(whole * scales - weight) <= scales / 2 + 1e-9).all()

    def test_a_channel_of_zeros_stays_zeros(self) -> None:
        whole, scales = weight_to_int8(np.zeros((2, 3, 1, 1), np.float32), axis=0)
        assert not whole.any()
        assert (scales > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
class TestGraph:
    def test_it_is_sound_onnx_and_close_to_the_graph_it_was_made_from(self, dtype: str) -> None:
        int8 = with_int8(dtype)
        onnx.checker.check_model(int8, full_check=True)
        before, after = run(network(dtype)), run(int8)
        for name in ("out", "side", "square"):
            expected = before[name]
            assert 1e-4 < np.linalg.norm(after[name] - expected) / np.linalg.norm(expected) < 0.05

    def test_no_layer_means_no_change(self, dtype: str) -> None:
        before, after = run(network(dtype)), run(with_int8(dtype, ()))
        assert all((after[name] == expected).all() for name, expected in before.items())

    def test_one_activation_of_several_layers_has_one_pair(self, dtype: str) -> None:
        int8 = with_int8(dtype, ("node_deep", "node_branch"))
        assert [node.op_type for node in int8.graph.node].count("QuantizeLinear") == 1

    def test_only_the_chosen_nodes_read_int8(self, dtype: str) -> None:
        int8 = with_int8(dtype, ("node_branch",))
        inputs = {node.name: tuple(node.input) for node in int8.graph.node}
        assert inputs["node_deep"] == ("shared", "deep.weight")
        assert inputs["node_branch"][0].startswith("shared_dequantised")

    def test_zero_points_are_zero_and_weights_are_stored_as_int8_only(self, dtype: str) -> None:
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in with_int8(dtype).graph.initializer}
        assert not any(stored[name].any() for name in stored if name.endswith("zero_point"))
        assert stored["head.turned_axis1_int8"].dtype == np.int8
        assert not {"stem.weight", "deep.weight", "branch.weight", "head.weight"} & stored.keys()
        assert stored["stem.bias"].dtype == dtype

    def test_the_batch_stays_dynamic(self, dtype: str) -> None:
        frames, int8 = some_frames(3), with_int8(dtype)
        together = run(int8, frames.images)["out"]
        singly = np.concatenate([run(int8, frames.images[t : t + 1])["out"] for t in range(3)])
        np.testing.assert_allclose(together, singly, rtol=1e-2, atol=1e-2)

    def test_rtx_builds_it_in_int8_for_a_gpu_that_is_not_here(self, dtype: str) -> None:
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
        layers, _ = measured(network(dtype))
        nodes = precision_by_node(network(dtype), frozenset(name for layer in layers for name in layer.nodes))
        graph = spec().model_copy(update={"precision": "int8"})
        profile = {"batch": (1, 1, 4)}
        request = BuildRequest("frame", graph, with_int8(dtype).SerializeToString(), profile, ("8.9",), nodes)
        built = build_engine(load_tensorrt("tensorrt-rtx"), request)
        assert built.precision["convolution int8"] == 3
        assert built.precision["matrix multiply int8"] == 2


def run(model: onnx.ModelProto, images: np.ndarray | None = None) -> dict[str, np.ndarray]:
    images = some_frames().images if images is None else images
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    sizes = np.tile(np.array([[HEIGHT, WIDTH]], np.int32), (len(images), 1))
    return dict(zip(names, session.run(names, {"images": images, "valid_sizes": sizes}), strict=True))
