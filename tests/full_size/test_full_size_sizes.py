"""MinVIS with ResNet-50 at the four sizes of YouTube-VIS: one checkpoint, weights once, an engine for each size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from visrt.export.bundle import Export
from visrt.export.sizes import YTVIS_SHAPES, SizesReport, export_sizes, sizes_for_shapes, with_published_resize
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.published import published
from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.models.mask2former import Mask2Former
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.trt.build import build_engine, build_request
from visrt.runtime.engines.trt.library import load_tensorrt

pytestmark = pytest.mark.every_size

SIZES = ["384x640", "640x384", "384x480", "480x384"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> SizesReport:
    """What `visrt export r50.safetensors --sizes ytvis` writes."""
    folder: Path = tmp_path_factory.mktemp("r50")
    checkpoint = folder / "r50.safetensors"
    save_checkpoint(steady_r50(), checkpoint, DATASET_CLASSES["ytvis2019"])
    export = with_published_resize(Export(checkpoint, folder / "bundle", 0, 0))
    assert export.short_side is not None
    return export_sizes(export, list(sizes_for_shapes(YTVIS_SHAPES, export.short_side, export.long_side)))


def steady_r50() -> Mask2Former:
    """Random weights but for mask features that hardly vary: mask logits then keep away from 0, where masked attention
    jumps and torch itself would not repeat its queries."""
    torch.manual_seed(0)
    network = Mask2Former(published("r50", 40)).eval()
    features: Any = network.sem_seg_head.pixel_decoder.mask_features
    with torch.no_grad():
        features.weight.mul_(1e-3)
        features.bias.fill_(1.0)
    return network


def test_four_sizes_are_little_larger_than_one(exported: SizesReport) -> None:
    """Parity was judged at each size, or there would be no bundle."""
    assert [size.input.text for size in exported.manifest.sizes] == SIZES
    four, one = (
        sum(spec.bytes for spec in manifest.files()) for manifest in (exported.manifest, exported.reports[0].manifest)
    )
    assert four < 1.15 * one


@pytest.mark.parametrize("size", range(len(SIZES)), ids=SIZES)
def test_rtx_compiles_the_graphs_of_each_size(exported: SizesReport, size: int) -> None:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    rtx, bundle = load_tensorrt("tensorrt-rtx"), open_bundle(exported.folder).sizes[size]
    for name, profile in (("frame", {"batch": (1, 1, 1)}), ("masks", {"masks": (1, 10, 100)})):
        assert not build_engine(rtx, build_request(bundle, name, profile, ("8.6", "8.9", "12.0"))).warnings
