"""VidEoMT and EoMT of published size, random weights: FP16 bundles that `visrt verify` passes, and their engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from visrt.cli import app
from visrt.export.bundle import Export, export_bundle
from visrt.models.checkpoints.checkpoint import save_checkpoint
from visrt.models.checkpoints.published import eomt, videomt
from visrt.models.dataset_classes import DATASET_CLASSES
from visrt.models.eomt import Eomt
from visrt.models.videomt import VideoMt
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.bundles.dynamic_axes import profile_of
from visrt.runtime.engines.trt.build import build_engine, build_request
from visrt.runtime.engines.trt.library import load_tensorrt

pytestmark = pytest.mark.full_size

VIDEOMT, EOMT = (VideoMt, videomt, "ytvis2019"), (Eomt, eomt, "coco")
Kind = tuple[Callable[[Any], torch.nn.Module], Callable[[str, int], Any], str]

NETWORKS: dict[str, tuple[str, Kind, str, int, int]] = {
    "videomt-s": ("videomt", VIDEOMT, "vit_s", 448, 800),
    "videomt-b": ("videomt", VIDEOMT, "vit_b", 448, 800),
    "videomt-l": ("videomt", VIDEOMT, "vit_l", 448, 800),
    "videomt-l-dinov3": ("videomt", VIDEOMT, "vit_l_dinov3", 480, 864),
    "eomt-l": ("eomt", EOMT, "vit_l", 640, 640),
}
"""Family, kind, transformer, and the height and width of a 16:9 frame after the published resize, padded."""

TARGETS = {"data centre": ("8.0",), "consumer": ("8.6", "8.9", "12.0"), "T4": ("7.5",)}


@pytest.fixture(scope="module", params=NETWORKS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """One at a time, and deleted after its tests: an L is 1.3 GB in float32."""
    family, (network, settings, classes), name, height, width = NETWORKS[request.param]
    folder, names = tmp_path_factory.mktemp(request.param), DATASET_CLASSES[classes]
    torch.manual_seed(0)
    save_checkpoint(network(settings(name, len(names))), folder / "model.safetensors", names)
    export_bundle(
        Export(folder / "model.safetensors", folder / "bundle", height, width, family=family, precision="fp16")
    )
    (folder / "model.safetensors").unlink()
    yield open_bundle(folder / "bundle")
    for path in (folder / "bundle").iterdir():
        path.unlink()


def test_verify_passes_in_fp16(bundle: Bundle, tmp_path: Path) -> None:
    assert {graph.precision for graph in bundle.manifest.graphs.values()} == {"fp16"}
    ended = CliRunner().invoke(app, ["verify", str(bundle.folder), "--engine", "cpu"])
    assert ended.exit_code == 0, ended.output


@pytest.mark.parametrize("targets", TARGETS)
def test_rtx_compiles_every_graph(bundle: Bundle, targets: str) -> None:
    """A message that is not listed would be refused. A T4 has no products of FP32 matrices, so none may be left."""
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    rtx = load_tensorrt("tensorrt-rtx")
    for name in bundle.manifest.graphs:
        profile = profile_of(bundle.manifest, name, batch=1)
        built = build_engine(rtx, build_request(bundle, name, profile, TARGETS[targets]))
        multiplies = {kind for kind in built.precision if not kind.startswith("tensor ")}
        assert multiplies
        assert {kind.split()[-1] for kind in multiplies} == {"fp16"}, name
