"""Multiply-accumulates and parameters: against counts by hand, and against torch's own of a whole network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from networks import HEIGHT, LIGHT, PUBLISHED_KIND, WIDTH, Exported, exported
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from visrt.export.counting import count
from visrt.export.graphs import FrameGraph
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.errors import ParityError

DYNAMIC = "batch"


def graph(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[Any], weights: dict[str, Any], inputs: Sequence[str] = ("x",)
) -> onnx.ModelProto:
    """A model of `nodes` from inputs of `shape` to "y", of whose shape only its rank is not said."""
    initializer = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs]
    made = [helper.make_empty_tensor_value_info("y")]
    whole = helper.make_graph(nodes, "graph", given, made, initializer=initializer)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 18)])


def floats(*shape: int) -> Any:
    return np.zeros(shape, dtype=np.float32)


def test_a_convolution_in_groups_with_stride() -> None:
    """Output 6 x 5 x 4, each a sum over 3 x 3 pixels of the 8 / 2 channels of its group."""
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=2, strides=[2, 2], pads=[1, 1, 1, 1])
    counts = count(graph([node], [DYNAMIC, 8, 10, 8], {"w": floats(6, 4, 3, 3), "b": floats(6)}))
    assert counts.macs == 6 * 5 * 4 * 3 * 3 * 4
    assert counts.parameters == 6 * 4 * 3 * 3 + 6


def test_a_transposed_convolution() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    assert count(graph([node], [DYNAMIC, 8, 5, 4], {"w": floats(8, 3, 2, 2)})).macs == 8 * 5 * 4 * 3 * 2 * 2


def test_a_matrix_product_with_leading_axes_counts_one_of_the_dynamic_axis() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    assert count(graph([node], [DYNAMIC, 7, 3, 4], {"w": floats(4, 5)})).macs == 7 * 3 * 4 * 5


@pytest.mark.parametrize(("transposed", "shape"), [(0, (6, 4)), (1, (4, 6))])
def test_a_gemm(transposed: int, shape: tuple[int, int]) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=transposed)
    assert count(graph([node], shape, {"w": floats(4, 5)})).by_operator == {"Gemm": 6 * 4 * 5}


def test_an_einsum_is_the_product_of_its_axes() -> None:
    node = helper.make_node("Einsum", ["x", "w"], ["y"], equation="bqc,chw->bqhw")
    assert count(graph([node], [DYNAMIC, 7, 3], {"w": floats(3, 4, 5)})).macs == 7 * 3 * 4 * 5


def test_int8_weights_count_and_their_scales_do_not() -> None:
    weights = {"q": np.zeros((4, 5), dtype=np.int8), "scale": floats(5), "zero": np.zeros(5, dtype=np.int8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"], axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    counts = count(graph(nodes, [DYNAMIC, 4], weights))
    assert (counts.macs, counts.parameters) == (4 * 5, 4 * 5)


def test_a_shape_that_depends_on_the_data_is_refused_by_the_name_of_its_node() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Cast", ["found"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["w", "cast"], ["y"], name="the product"),
    ]
    with pytest.raises(ParityError, match=r"'the product' \(MatMul\).*cast"):
        count(graph(nodes, [3, 4], {"w": floats(5, 2)}))


@pytest.mark.parametrize("settings", [LIGHT, PUBLISHED_KIND], ids=["light", "published_kind"])
def test_a_whole_network_counts_what_torch_counts(
    settings: NetworkSettings, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for what export folds or reshapes: little. Torch counts no embedding bag, so it takes traced forms."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    done = exported(settings, tmp_path_factory)
    counts = count(onnx.load(done.folder / "frame.onnx"))
    expected = torch_macs(done)
    assert counts.by_operator["Conv"] == expected["convolution"]
    assert counts.macs == pytest.approx(sum(expected.values()), rel=0.01)
    network = load_checkpoint(done.checkpoint, MASK2FORMER).network()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert counts.parameters == pytest.approx(parameters, rel=0.05)


def torch_macs(done: Exported) -> dict[str, int]:
    """Of one frame, by operator; torch counts two operations a multiply-accumulate."""
    checkpoint = load_checkpoint(done.checkpoint, MASK2FORMER)
    whole = FrameGraph(checkpoint.network(), checkpoint.settings.pixel_mean, checkpoint.settings.pixel_std).eval()
    whole.requires_grad_(False)
    images = torch.zeros(1, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        whole(images, torch.tensor([[HEIGHT, WIDTH]], dtype=torch.int32))
    flops = counted.get_flop_counts()["Global"]
    return {str(operator).removeprefix("aten."): number // 2 for operator, number in flops.items()}
