"""Claims about bundles of EoMT: parity, positions as constants, black padding, the official outputs, TensorRT-RTX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from golden import Golden, comparing, golden_sets
from typer.testing import CliRunner
from written_clips import write_clip

from visrt.cli import app
from visrt.export.bundle import Export, export_bundle
from visrt.export.eomt import read_eomt
from visrt.export.families import published_resize
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.published import eomt
from visrt.models.eomt import Eomt, EomtSettings
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.bundles.manifest import InputSpec
from visrt.runtime.engines.trt.build import Profile, build_engine, build_request
from visrt.runtime.engines.trt.library import load_tensorrt
from visrt.runtime.methods.minvis import MinVis
from visrt.runtime.methods.registry import method_of

HEIGHT, WIDTH = 64, 96
CLASSES = ("person", "vehicle", "animal")
SIZES: dict[str, Any] = {
    "classes": 3, "queries": 6, "dim": 64, "blocks": 3, "heads": 1, "feedforward_dim": 96, "query_blocks": 2,
    "table_side": 3,
}  # fmt: skip
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "table": ({}, "fp32"),
    "rotary in fp16": ({"positions": "rotary", "table_side": 0, "norm_eps": 1e-5}, "fp16"),
}
"""Settings and precision of the bundles."""

CONSTANT = {"Resize", "Cos", "Sin", "Range", "Pad", "GridSample"}
"""Operators of which positions are made in torch."""

_DONE: dict[str, Bundle] = {}


def network(**changed: Any) -> Eomt:
    torch.manual_seed(0)
    built = Eomt(EomtSettings(**{**SIZES, **changed}))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built.eval()


@pytest.fixture(params=list(KINDS))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Each is exported once; export itself compares ONNX Runtime with torch."""
    changed, precision = KINDS[request.param]
    if request.param not in _DONE:
        folder = tmp_path_factory.mktemp("eomt")
        save_checkpoint(network(**changed), folder / "model.safetensors", CLASSES)
        export = Export(
            folder / "model.safetensors", folder / "bundle", HEIGHT, WIDTH, family="eomt", precision=precision
        )
        assert export_bundle(export).parity.passed
        _DONE[request.param] = open_bundle(folder / "bundle")
    return _DONE[request.param]


def test_positions_are_constants_of_the_graph(bundle: Bundle) -> None:
    import onnx

    operators = {node.op_type for node in onnx.load_from_string(bundle.graph("frame")).graph.node}
    assert "MatMul" in operators
    assert not operators & CONSTANT


def test_queries_are_tracked_by_the_rules_of_per_frame_networks(bundle: Bundle, tmp_path: Path) -> None:
    assert isinstance(method_of(bundle.manifest), MinVis)
    assert method_of(bundle.manifest, preset="ctvis").settings.keep_score
    clip = write_clip(tmp_path / "clip.mp4", 4)
    arguments = ("track", clip, "--bundle", bundle.folder, "--out", tmp_path / "out", "--threads", 1)
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    lines = map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines())
    assert [line["frame"] for line in lines if "frame" in line] == list(range(4))


def test_padding_is_black_before_the_normalisation_whatever_the_images_hold_there(tmp_path: Path) -> None:
    save_checkpoint(network(), tmp_path / "model.safetensors", CLASSES)
    graph = read_eomt(tmp_path / "model.safetensors", InputSpec(height=HEIGHT, width=WIDTH), {}).graph
    images = torch.full((1, HEIGHT, WIDTH, 3), 200, dtype=torch.uint8)
    pixels = graph.normalised(images, torch.tensor([[40, 50]], dtype=torch.int32))
    expected = (torch.zeros(3) - graph.pixel_mean.flatten()) / graph.pixel_std.flatten()
    torch.testing.assert_close(pixels[0, :, 45, 20], expected)
    torch.testing.assert_close(pixels[0, :, 20, 60], expected)
    assert (pixels[0, :, 39, 49] > 0).all()


def test_the_published_resize_is_to_a_long_side_of_640() -> None:
    resize = published_resize("eomt", eomt("vit_l", 80), ())
    assert (resize.short_side, resize.long_side) == (640, 640)


@pytest.mark.parametrize("golden", golden_sets("eomt", "images"), indirect=True)
def test_golden_eomt_exported_graphs_give_the_official_outputs(golden: Golden) -> None:
    """From the padded images on, in ONNX Runtime, all in one call."""
    folder = golden.path.with_name(f"{golden.path.stem}_hf")
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    height, width = golden.input_size
    export = read_eomt(folder, InputSpec(height=height, width=width), {})
    models = export.onnx_models(export.float32_graphs(), torch.float32)
    frame, masks = (ort.InferenceSession(models[name].SerializeToString()) for name in ("frame", "masks"))
    images = golden["padded_u8"].transpose(0, 2, 3, 1)
    sizes = np.array([(height, width)] * len(images), dtype=np.int32)
    names = [output.name for output in frame.get_outputs()]
    outputs = dict(zip(names, frame.run(None, {"images": images, "valid_sizes": sizes}), strict=True))
    logits = [
        masks.run(None, {"mask_embeddings": rows, "mask_features": features})[0]
        for rows, features in zip(outputs["mask_embeddings"], outputs["mask_features"], strict=True)
    ]
    with comparing(golden, {"pred_logits": 1e-4, "pred_masks": 1e-3}) as compare:
        compare("", {"pred_logits": outputs["class_logits"], "mask_embeddings": outputs["mask_embeddings"]})
        compare("", {"mask_features": outputs["mask_features"], "pred_masks": np.stack(logits)})


@pytest.mark.parametrize("targets", [("8.0",), ("8.6", "8.9", "12.0"), ("7.5",)], ids=" ".join)
@pytest.mark.parametrize(("name", "profile"), [("frame", {"batch": (1, 2, 4)}), ("masks", {"masks": (1, 6, 100)})])
def test_rtx_compiles_the_graphs_without_a_message(
    bundle: Bundle, name: str, profile: Profile, targets: tuple[str, ...]
) -> None:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    if targets == ("7.5",) and bundle.manifest.graphs[name].precision == "fp32":
        pytest.skip("TensorRT-RTX has no products of FP32 matrices for 7.5")
    request = build_request(bundle, name, profile, targets)
    built = build_engine(load_tensorrt("tensorrt-rtx"), request)
    assert len(built.data) > 5_000
    assert not built.warnings


def test_a_network_for_one_size_computes_what_it_did_at_that_size() -> None:
    plain, fixed = network(), network()
    fixed.embeddings.fix_size(HEIGHT, WIDTH)
    images = torch.randn(1, 3, HEIGHT, WIDTH)
    with torch.inference_mode():
        for ours, theirs in zip(fixed(images), plain(images), strict=True):
            torch.testing.assert_close(ours, theirs)
