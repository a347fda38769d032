"""Traces that are not the graph that was meant are refused; what remains says nothing of where it was made."""

from __future__ import annotations

import getpass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from networks import HEIGHT, LIGHT, PUBLISHED_KIND, WIDTH, Exported, exported
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from visrt.export.graphs import FrameGraph, MasksGraph
from visrt.export.onnx_graph import OPSET, check_uint8_inputs, cleaned, onnx_from_frame_graph, onnx_from_masks_graph
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.mask2former import MASK2FORMER
from visrt.models.mask2former import IMAGENET_MEAN, IMAGENET_STD, FrameOutputs
from visrt.runtime.errors import ParityError


@pytest.fixture
def published_kind(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(PUBLISHED_KIND, tmp_path_factory)


@pytest.fixture
def light(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(LIGHT, tmp_path_factory)


class Pooled(nn.Module):
    """The smallest network with the four outputs."""

    def forward(self, images: Tensor) -> FrameOutputs:
        features = nn.functional.avg_pool2d(images, 4)
        queries = features.flatten(2)[:, :, :5].transpose(1, 2)
        return FrameOutputs(queries, queries, queries, features)


class Sampled(Pooled):
    def forward(self, images: Tensor) -> FrameOutputs:
        grid = images[:, :2].permute(0, 2, 3, 1).tanh()
        return super().forward(nn.functional.grid_sample(images, grid, align_corners=False))


class FixedBatch(Pooled):
    """Two images, however many are given: what a trace makes of a batch size in Python."""

    def forward(self, images: Tensor) -> FrameOutputs:
        return super().forward(images.mean(0, keepdim=True).expand(2, -1, -1, -1))


class ReadsItsInput(FrameGraph):
    """Normalises what it transposes as bytes."""

    def normalised(self, images: Tensor, valid_sizes: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2).to(torch.float32) * valid_sizes.sum()


def traced(network: nn.Module) -> onnx.ModelProto:
    return onnx_from_frame_graph(FrameGraph(network, IMAGENET_MEAN, IMAGENET_STD), 32, 64)


def test_a_grid_sample_is_refused() -> None:
    with pytest.raises(ParityError, match="GridSample"):
        traced(Sampled())


def test_an_image_that_is_moved_as_bytes_is_refused() -> None:
    with pytest.raises(ParityError, match=r"uint8 input images is read by Transpose .*; expected one Cast, to float32"):
        onnx_from_frame_graph(ReadsItsInput(Pooled(), IMAGENET_MEAN, IMAGENET_STD), 32, 64)


def test_a_batch_that_became_static_is_refused() -> None:
    with pytest.raises(ParityError, match=r"traced as \(2, .*dynamic first axis 'batch'"):
        traced(FixedBatch())


def test_graphs_have_opset_18_and_nothing_but_standard_operators(published_kind: Exported, light: Exported) -> None:
    for bundle in (published_kind, light):
        for name in ("frame", "masks"):
            model = onnx.load(bundle.folder / f"{name}.onnx")
            assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
            assert {node.domain for node in model.graph.node} == {""}
            assert "GridSample" not in {node.op_type for node in model.graph.node}
            check_uint8_inputs(model.graph)


def test_two_exports_are_the_same_bytes(published_kind: Exported) -> None:
    network = load_checkpoint(published_kind.checkpoint, MASK2FORMER).network()
    settings = network.settings
    again = onnx_from_frame_graph(FrameGraph(network, settings.pixel_mean, settings.pixel_std), HEIGHT, WIDTH)
    assert again.SerializeToString(deterministic=True) == (published_kind.folder / "frame.onnx").read_bytes()


def test_a_graph_does_not_tell_where_and_from_what_code_it_was_traced(published_kind: Exported) -> None:
    model = onnx.load(published_kind.folder / "frame.onnx")
    del model.graph.initializer[:]
    text = model.SerializeToString()
    root = str(Path(__file__).resolve().parents[2])
    for secret in (root, str(Path.home()), ".py", "site-packages", "forward", "pkg.torch"):
        assert secret.encode() not in text
    assert getpass.getuser() not in {model.producer_name, model.doc_string}
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_masks_graph_takes_any_number_of_masks() -> None:
    model = onnx_from_masks_graph(MasksGraph(), 8, 32, 64)
    features = np.random.default_rng(0).normal(size=(8, 8, 16)).astype(np.float32)
    for count in (1, 5):
        embeddings = np.ones((count, 8), np.float32)
        (logits,) = ReferenceEvaluator(model).run(None, {"mask_embeddings": embeddings, "mask_features": features})
        np.testing.assert_allclose(logits, np.broadcast_to(features.sum(0), (count, 8, 16)), atol=1e-5)


@pytest.mark.parametrize("sizes", [None, [1, 4, 2]], ids=["equal parts", "given sizes"])
def test_weights_that_are_split_at_every_call_are_split_once(sizes: list[int] | None) -> None:
    model = splitting_model(sizes)
    clean = cleaned(model)
    given = {"x": np.arange(3, dtype=np.float32)}
    before, after = (ReferenceEvaluator(m).run(None, given) for m in (model, clean))
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "Split" not in {node.op_type for node in clean.graph.node}
    assert {weight.name for weight in clean.graph.initializer} == {"a", "b", "c"}


def splitting_model(sizes: list[int] | None) -> onnx.ModelProto:
    """x times each part of a packed weight [7, 3]."""
    weights = [numpy_helper.from_array(np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32), "packed")]
    if sizes:
        weights.append(numpy_helper.from_array(np.array(sizes, np.int64), "sizes"))
        split = helper.make_node("Split", ["packed", "sizes"], ["a", "b", "c"], axis=0)
    else:
        split = helper.make_node("Split", ["packed"], ["a", "b", "c"], axis=0, num_outputs=3)
    products = [helper.make_node("MatMul", [part, "x"], [f"{part}x"]) for part in "abc"]
    outputs = [helper.make_tensor_value_info(f"{part}x", TensorProto.FLOAT, None) for part in "abc"]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])]
    graph = helper.make_graph([split, *products], "split", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    onnx_from_masks_graph(MasksGraph(), 8, 32, 64)
    assert torch.rand(1) == expected
