"""Networks of real size compile to TensorRT-RTX engines in every precision, without a GPU and without a warning that
is not listed with its reason: what `build_engine` refuses."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

from visrt.benchmarks.experiments.large_graphs import FullSize, in_int8, network_graphs
from visrt.models.efficientnet import EfficientNetLite0Settings
from visrt.models.mask2former import NetworkSettings
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.trt.build import BuiltEngine, Profile, build_engine, build_request
from visrt.runtime.engines.trt.library import TensorRt, load_tensorrt

pytestmark = pytest.mark.full_size

BUNDLES = sorted(path.parent for path in Path(__file__).parents[2].glob("bundles/*/manifest.json"))
PRECISIONS = ("fp32", "fp16", "int8")
CONSUMER, DATA_CENTRE = ("8.6", "8.9", "12.0"), ("8.0",)
BUILDS: list[tuple[str, Profile, tuple[str, ...]]] = [
    (name, profile, targets)
    for name, profile in [
        ("frame", {"batch": (1, 1, 1)}),
        ("frame", {"batch": (1, 4, 4)}),
        ("masks", {"masks": (1, 10, 50)}),
    ]
    for targets in (CONSUMER, DATA_CENTRE)
]

R50 = (NetworkSettings(classes=40), 480, 864)
"""MinVIS with ResNet-50, as published."""

LIGHT = (
    NetworkSettings(
        classes=3,
        queries=50,
        backbone=EfficientNetLite0Settings(),
        pixel_decoder="fpn",
        conv_dim=128,
        mask_dim=128,
        hidden_dim=128,
        heads=8,
        encoder_layers=2,
        encoder_feedforward_dim=512,
        decoder_layers=4,
        decoder_feedforward_dim=512,
    ),
    256,
    448,
)
"""The kind the default bundle is made from, at its size."""


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    return load_tensorrt("tensorrt-rtx")


@lru_cache(maxsize=2)
def traced(kind: str, precision: str) -> FullSize:
    """Each is traced once, half a minute long; INT8 is written into FP16."""
    settings, height, width = {"r50": R50, "light": LIGHT}[kind]
    if precision == "int8":
        return in_int8(traced(kind, "fp16"))
    return network_graphs(settings, precision, height, width)


@pytest.fixture(scope="module")
def graphs(request: pytest.FixtureRequest) -> Iterator[FullSize]:
    yield traced(*request.param)
    if request.param[1] != "fp16":
        traced.cache_clear()


@pytest.mark.parametrize(("name", "profile", "targets"), BUILDS)
@pytest.mark.parametrize("graphs", [("light", p) for p in PRECISIONS], indirect=True, ids=PRECISIONS)
def test_full_size_rtx_compiles_a_light_network(
    rtx: TensorRt, graphs: FullSize, name: str, profile: Profile, targets: tuple[str, ...]
) -> None:
    compile_and_check(rtx, graphs, name, profile, targets)


@pytest.mark.parametrize(("name", "profile", "targets"), BUILDS)
@pytest.mark.parametrize("graphs", [("r50", p) for p in PRECISIONS], indirect=True, ids=PRECISIONS)
def test_full_size_rtx_compiles_r50_minvis_at_480x864(
    rtx: TensorRt, graphs: FullSize, name: str, profile: Profile, targets: tuple[str, ...]
) -> None:
    compile_and_check(rtx, graphs, name, profile, targets)


@pytest.mark.parametrize(("name", "profile", "targets"), BUILDS)
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda folder: folder.name)
def test_full_size_rtx_compiles_the_shipped_bundles(
    rtx: TensorRt, bundle: Path, name: str, profile: Profile, targets: tuple[str, ...]
) -> None:
    opened = open_bundle(bundle)
    built = build_engine(rtx, build_request(opened, name, profile, targets))
    assert stated(opened, name) in computes_in(built)


def compile_and_check(rtx: TensorRt, graphs: FullSize, name: str, profile: Profile, targets: tuple[str, ...]) -> None:
    built = build_engine(rtx, graphs.request(name, profile, targets))
    expected = "fp16" if graphs.precision == "int8" and name == "masks" else graphs.precision
    assert expected in computes_in(built)


def stated(bundle: Bundle, name: str) -> str:
    return bundle.manifest.graphs[name].precision


def computes_in(built: BuiltEngine) -> set[str]:
    """The precisions of the layers that multiply."""
    return {kind.split()[-1] for kind in built.precision if not kind.startswith("tensor ")}
