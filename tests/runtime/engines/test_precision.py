"""What a network computes in, read from TensorRT-RTX's definition of small graphs, against what a manifest states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bundles import write, write_bundle
from small_graphs import conv_int8, conv_of, island, widened_input

from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.trt.build import build_engine
from visrt.runtime.engines.trt.library import TensorRt, load_tensorrt
from visrt.runtime.engines.trt.precision import NetworkPrecision, WorkingLayer, check_precision, node_precisions
from visrt.runtime.errors import BundleError, EngineError


@pytest.fixture
def rtx() -> TensorRt:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    return load_tensorrt("tensorrt-rtx")


def test_rtx_fp32_from_end_to_end_is_not_fp16(rtx: TensorRt) -> None:
    with pytest.raises(EngineError, match=r"calls it fp16, but nothing in it computes in fp16; convolution 'conv'"):
        build_engine(rtx, conv_of("float32", precision="fp16"))


def test_rtx_fp16_is_not_fp32(rtx: TensorRt) -> None:
    with pytest.raises(EngineError, match=r"convolution 'conv' computes in fp16, not fp32"):
        build_engine(rtx, conv_of("float16", precision="fp32"))


def test_rtx_fp16_is_not_int8(rtx: TensorRt) -> None:
    with pytest.raises(EngineError, match=r"calls it int8, but nothing in it computes in int8"):
        build_engine(rtx, conv_of("float16", precision="int8"))


def test_rtx_what_is_cast_up_is_an_island(rtx: TensorRt) -> None:
    counts = build_engine(rtx, island()).precision
    assert (counts["matrix multiply fp16"], counts["matrix multiply fp32"]) == (1, 1)


def test_rtx_what_was_wide_from_the_image_on_is_no_island(rtx: TensorRt) -> None:
    with pytest.raises(EngineError, match=r"convolution 'forgotten' computes in fp32, and no cast makes it an island"):
        build_engine(rtx, widened_input())


def test_rtx_a_wide_layer_that_nodes_json_names_is_allowed(rtx: TensorRt) -> None:
    assert build_engine(rtx, widened_input(nodes={"forgotten": "fp32"})).data


def test_rtx_an_island_that_nodes_json_calls_fp16_is_not(rtx: TensorRt) -> None:
    with pytest.raises(EngineError, match=r"'in the island' computes in fp32, nodes\.json says fp16"):
        build_engine(rtx, island(nodes={"product": "fp16", "in the island": "fp16"}))


def test_rtx_quantised_is_what_has_both_operands_from_int8(rtx: TensorRt) -> None:
    assert build_engine(rtx, conv_int8(nodes={"quantised": "int8", "plain": "fp16"})).data
    with pytest.raises(EngineError, match=r"convolution 'plain' computes in fp16, nodes\.json says int8"):
        build_engine(rtx, conv_int8(nodes={"quantised": "int8", "plain": "int8"}))


def test_rtx_what_was_to_stay_out_of_int8_is_missed_there(rtx: TensorRt) -> None:
    with pytest.raises(EngineError, match=r"convolution 'quantised' computes in int8, nodes\.json says fp16"):
        build_engine(rtx, conv_int8(nodes={"quantised": "fp16", "plain": "fp16"}))


def layers(*precisions: str, widened: bool = False) -> NetworkPrecision:
    found = (WorkingLayer(f"layer {i}", "convolution", kind, widened) for i, kind in enumerate(precisions))
    return NetworkPrecision(tuple(found), {})


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        ("fp32", ("fp32",)),
        ("fp16", ("fp16", "fp16")),
        ("fp16", ("fp16", "int8")),
        ("int8", ("int8", "fp16")),
        ("fp16", ()),
    ],
)
def test_what_is_stated_or_fewer_bits_is_right(stated: str, found: tuple[str, ...]) -> None:
    check_precision("graph", stated, layers(*found))


@pytest.mark.parametrize(
    ("stated", "found"),
    [("fp32", ("fp32", "fp16")), ("fp32", ("int8",)), ("fp16", ("fp16", "fp32")), ("int8", ("int8", "fp32"))],
)
def test_more_bits_than_stated_are_an_error_and_fewer_in_fp32_too(stated: str, found: tuple[str, ...]) -> None:
    with pytest.raises(EngineError, match="export the bundle again"):
        check_precision("graph", stated, layers(*found))


def test_islands_alone_are_not_what_the_graph_is_called() -> None:
    with pytest.raises(EngineError, match="nothing in it computes in fp16"):
        check_precision("graph", "fp16", layers("fp32", "fp32", widened=True))


def test_with_its_nodes_listed_an_int8_bundle_s_small_graph_may_have_no_int8() -> None:
    check_precision("graph", "int8", layers("fp16"), {"layer 0": "fp16"})


def test_a_node_without_a_name_is_known_by_its_output() -> None:
    found = NetworkPrecision((WorkingLayer("node_of_y", "convolution", "fp32", False),), {})
    check_precision("graph", "fp16", found, {"y": "fp32"})
    with pytest.raises(EngineError, match="'node_of_y' computes in fp32"):
        check_precision("graph", "fp16", found, {"z": "fp32"})


def test_many_faults_are_told_by_their_number() -> None:
    with pytest.raises(EngineError, match="and 4 more"):
        check_precision("graph", "fp16", layers("fp16", *["fp32"] * 9))


# nodes.json


def with_nodes(folder: Path, text: str) -> Bundle:
    bundle = open_bundle(write_bundle(folder / "bundle"))
    spec = write(bundle.folder / "nodes.json", text.encode())
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"nodes": spec}))


def test_nodes_of_a_bundle_are_read_by_graph(tmp_path: Path) -> None:
    nodes = {"frame": {"conv": "int8", "y": "fp32"}, "masks": {}}
    assert node_precisions(with_nodes(tmp_path, json.dumps(nodes))) == nodes


def test_a_bundle_without_nodes_has_none(tmp_path: Path) -> None:
    assert node_precisions(open_bundle(write_bundle(tmp_path / "bundle"))) == {}


@pytest.mark.parametrize("nodes", ["[]", "{", '{"frame": []}', '{"frame": {"conv": "fp64"}}', '{"frame": {"conv": 8}}'])
def test_nodes_of_another_form_are_refused(tmp_path: Path, nodes: Any) -> None:
    with pytest.raises(BundleError, match=r"nodes\.json: .*export the bundle again"):
        node_precisions(with_nodes(tmp_path, nodes))
