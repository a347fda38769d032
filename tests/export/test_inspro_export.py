"""An InsPro checkpoint becomes a bundle of three graphs, or four, and its learned pairs; it builds and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from inspro_bundles import SETTINGS, WITHOUT_LITE, exported_inspro, saved_inspro, wanted_inspro
from networks import HEIGHT, WIDTH

from visrt.export.bundle import ExportReport, export_bundle
from visrt.export.frames import synthetic_frames
from visrt.models.checkpoints.checkpoint import load_checkpoint
from visrt.models.checkpoints.inspro import INSPRO
from visrt.runtime.bundles.bundle import initial_states, open_bundle
from visrt.runtime.engines.trt.build import Profile, build_engine, build_request
from visrt.runtime.engines.trt.library import TensorRt, load_tensorrt
from visrt.runtime.errors import CheckpointError
from visrt.runtime.methods.inspro_outputs import box_logits
from visrt.runtime.parity.agreement import packed_masks
from visrt.runtime.parity.verify import verify
from visrt.runtime.session import Session

BUILDS: list[tuple[str, Profile]] = [
    ("frame", {"batch": (1, 2, 4)}),
    ("head", {"streams": (1, 1, 8)}),
    ("head_lite", {"streams": (1, 1, 8)}),
    ("masks", {"streams": (1, 1, 8), "masks": (1, 10, 100)}),
]
TARGETS = ("8.6", "8.9", "12.0")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return exported_inspro(tmp_path_factory, "inspro_lite")


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    return exported_inspro(tmp_path_factory, "inspro", "fp16")


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    return load_tensorrt("tensorrt-rtx")


def test_inspro_a_lite_bundle_holds_four_graphs_and_the_learned_pairs(report: ExportReport) -> None:
    bundle = open_bundle(report.folder)
    manifest = bundle.manifest
    assert set(manifest.graphs) == {"frame", "head", "head_lite", "masks"}
    network = load_checkpoint(report.folder.parent / "model.safetensors", INSPRO).network()
    queries, proposals = (part.detach().numpy() for part in network.first_pairs())
    states = initial_states(bundle)
    assert np.array_equal(states["queries"], queries)
    assert np.array_equal(states["proposals"], proposals)
    assert states["bank"].shape == (6, 3, 32)
    assert not states["bank"].any()
    assert manifest.states["bank"].ring
    assert {state.device for state in manifest.states.values()} == {"engine"}
    assert manifest.association["key_every_frames"] == 10
    heads = [manifest.graphs[name].macs for name in ("head", "head_lite")]
    assert all(macs for macs in heads)


def test_inspro_parity_covers_every_output_twice_in_a_row_and_the_lite_head(report: ExportReport) -> None:
    seen = {"class_logits", "embeddings", "mask_embeddings", "boxes", "next_proposals"}
    rows = {(row.graph, row.role) for row in report.parity.tensors}
    seen |= {"next_queries"}
    expected = {("frame", "mask_features"), ("masks", "mask_logits")}
    expected |= {("head", role + again) for role in seen for again in ("", "@2")}
    expected |= {("head_lite", role + "@lite") for role in seen}
    assert rows == expected
    assert all(row.tolerance <= 1e-3 and not row.beyond for row in report.parity.tensors)


def test_inspro_no_graph_holds_what_tensorrt_cannot_compile(report: ExportReport) -> None:
    for graph in report.manifest.graphs.values():
        operators = {node.op_type for node in onnx.load(report.folder / graph.file.file).graph.node}
        assert not operators & {"RoiAlign", "GridSample", "NonZero", "ScatterND", "GatherND"}


def test_inspro_heads_have_no_axis_that_depends_on_the_data(report: ExportReport) -> None:
    for name in ("head", "head_lite"):
        graph = report.manifest.graphs[name]
        for tensor in (*graph.inputs.values(), *graph.outputs.values()):
            assert tensor.shape[0] == "streams"
            assert all(isinstance(size, int) for size in tensor.shape[1:])


def test_inspro_only_what_the_host_decides_with_crosses_to_it(report: ExportReport) -> None:
    """No pyramid, no state and no mask features."""
    crossing = {
        name: {role for role, tensor in {**graph.inputs, **graph.outputs}.items() if tensor.place == "host"}
        for name, graph in report.manifest.graphs.items()
    }
    seen = {"box_side_min", "class_logits", "boxes", "restarted"}
    assert crossing == {
        "frame": {"images", "valid_sizes"},
        "head": seen | {"ages", "fill"},
        "head_lite": seen,
        "masks": {"slots", "mask_logits", "kept_embeddings"},
    }


@pytest.mark.parametrize("key_every_frames", [1, 3])
def test_inspro_a_bundle_runs_and_slots_keep_their_ids(report: ExportReport, key_every_frames: int) -> None:
    images = synthetic_frames(4, HEIGHT, WIDTH).images
    with Session.open(report.folder, threads=1, association={"key_every_frames": key_every_frames}) as session:
        results = [result for image in images for result in session.step(image)]
        told = session.times.ms_per_frame()
    assert [result.index for result in results] == [0, 1, 2, 3]
    assert session.events.dropped_slots == session.events.bad_frames == 0
    assert all({found.id for found in result.objects} <= set(range(6)) for result in results)
    assert ("head_lite_engine" in told) == (key_every_frames > 1)


def test_inspro_a_bundle_is_verified_without_torch(report: ExportReport) -> None:
    assert verify(report.folder).passed


def test_inspro_fp16_keeps_what_travels_in_fp32_and_passes(half: ExportReport) -> None:
    assert half.parity.passed
    graphs = half.manifest.graphs
    assert set(graphs) == {"frame", "head", "masks"}
    assert graphs["frame"].outputs["pyramid"].dtype == graphs["head"].inputs["pyramid"].dtype == "float16"
    others = [spec for role, spec in graphs["head"].inputs.items() if role not in ("pyramid", "ages", "fill")]
    assert all(spec.dtype == "float32" for spec in (*others, *graphs["head"].outputs.values()))


def test_inspro_without_a_lite_head_there_is_no_lite_bundle(tmp_path: Path) -> None:
    wanted = wanted_inspro(tmp_path, "inspro_lite")
    saved_inspro(wanted.checkpoint, WITHOUT_LITE)
    with pytest.raises(CheckpointError, match="holds no lite head; export it with --family inspro"):
        export_bundle(wanted)


@pytest.mark.parametrize(("family", "precision"), [("inspro_lite", "fp32"), ("inspro", "fp16")])
def test_inspro_a_network_of_boxes_alone_becomes_a_bundle_without_masks(
    tmp_path: Path, family: str, precision: str
) -> None:
    wanted = wanted_inspro(tmp_path, family, precision)
    saved_inspro(wanted.checkpoint, replace(SETTINGS, outputs="boxes"))
    report = export_bundle(wanted)
    heads = {"head", "head_lite"} if family == "inspro_lite" else {"head"}
    assert set(report.manifest.graphs) == {"frame"} | heads
    assert not [role for graph in report.manifest.graphs.values() for role in graph.outputs if "mask" in role]
    judged = {(row.graph, row.role) for row in report.parity.tensors}
    assert {("head", "boxes"), ("head", "boxes@2"), ("head", "box_logits")} <= judged
    assert all(batch.agreement and batch.agreement.iou_mean > 0.99 for batch in report.parity.batches)
    assert verify(report.folder).passed
    with Session.open(report.folder, threads=1) as session:
        [result] = session.step(synthetic_frames(1, HEIGHT, WIDTH).images[0])
    assert result.objects
    assert all(found.rle is None and min(found.box[2:]) > 0 for found in result.objects)


def test_inspro_wrong_boxes_are_found_by_their_overlap() -> None:
    """As masks are, in every precision."""
    boxes = np.array([[[4.0, 8.0, 36.0, 40.0], [0.0, 0.0, 96.0, 64.0]]])
    moved = boxes + np.array([16.0, 0.0, 16.0, 0.0])
    right, wrong = (packed_masks(box_logits(one, (64, 96))) for one in (boxes, moved))
    assert np.unpackbits(right, axis=-1).sum(axis=-1).tolist() == [[64, 384]]
    shared = np.unpackbits(right & wrong, axis=-1).sum(axis=-1)
    assert shared.tolist() == [[32, 320]]


@pytest.mark.parametrize(("name", "profile"), BUILDS)
def test_rtx_compiles_inspro_in_fp32(rtx: TensorRt, report: ExportReport, name: str, profile: Profile) -> None:
    built = build_engine(rtx, build_request(open_bundle(report.folder), name, profile, TARGETS))
    assert len(built.data) > 10_000
    assert not built.warnings


@pytest.mark.parametrize(("name", "profile"), [build for build in BUILDS if build[0] != "head_lite"])
def test_rtx_compiles_inspro_in_fp16(rtx: TensorRt, half: ExportReport, name: str, profile: Profile) -> None:
    """The masks graph computes in float32: places in pixels are too large for halves, and its work is little."""
    built = build_engine(rtx, build_request(open_bundle(half.folder), name, profile, TARGETS))
    assert not built.warnings
    precisions = {kind.split()[-1] for kind in built.precision if not kind.startswith("tensor ")}
    assert ("fp16" in precisions) == (name != "masks")


@pytest.mark.parametrize("change", [{"propagation": "off", "bank_frames": 1}, {"outputs": "boxes"}], ids=str)
def test_rtx_compiles_the_head_of_a_variant(rtx: TensorRt, tmp_path: Path, change: dict[str, Any]) -> None:
    """What does not travel is handed over as a constant."""
    wanted = wanted_inspro(tmp_path, "inspro")
    saved_inspro(wanted.checkpoint, replace(WITHOUT_LITE, **change))
    bundle = open_bundle(export_bundle(wanted).folder)
    assert not build_engine(rtx, build_request(bundle, "head", {"streams": (1, 1, 2)}, TARGETS[:1])).warnings
