"""Every exported graph compiles to a TensorRT-RTX engine, ahead of time, without a GPU and without a warning."""

from __future__ import annotations

from dataclasses import replace

import pytest
from networks import HEIGHT, LIGHT, PUBLISHED_KIND, WIDTH, Exported, exported

from visrt.export.bundle import Export, export_bundle
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.trt.build import BuiltEngine, Profile, build_engine, build_request
from visrt.runtime.engines.trt.library import TensorRt, load_tensorrt
from visrt.runtime.errors import EngineError

# Smallest, usual and largest size of the graph's dynamic axis, and the GPUs that one engine is for.
BUILDS: list[tuple[str, Profile, tuple[str, ...]]] = [
    ("frame", {"batch": (1, 1, 1)}, ("8.6", "8.9", "12.0")),
    ("frame", {"batch": (1, 2, 4)}, ("8.6", "8.9", "12.0")),
    ("frame", {"batch": (1, 2, 4)}, ("8.0",)),
    ("masks", {"masks": (1, 10, 100)}, ("8.6", "8.9", "12.0")),
    ("masks", {"masks": (1, 10, 100)}, ("8.0",)),
]


@pytest.fixture(scope="module")
def rtx() -> TensorRt:
    pytest.importorskip(
        "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
    )
    return load_tensorrt("tensorrt-rtx")


@pytest.fixture
def published_kind(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(PUBLISHED_KIND, tmp_path_factory)


@pytest.fixture
def light(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(LIGHT, tmp_path_factory)


@pytest.fixture(scope="module")
def published_kind_fp16(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """All in FP16 but for the islands that are written in the models."""
    checkpoint = exported(PUBLISHED_KIND, tmp_path_factory).checkpoint
    folder = tmp_path_factory.mktemp("half") / "bundle"
    export_bundle(Export(checkpoint, folder, HEIGHT, WIDTH, precision="fp16", keep_fp32=()))
    return open_bundle(folder)


@pytest.mark.parametrize(("name", "profile", "targets"), BUILDS)
@pytest.mark.parametrize("kind", ["light", "published_kind"])
def test_rtx_compiles_the_graph_for_gpus_that_are_not_here(
    rtx: TensorRt, kind: str, name: str, profile: Profile, targets: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    bundle = open_bundle(request.getfixturevalue(kind).folder)
    built = build_engine(rtx, build_request(bundle, name, profile, targets))
    assert len(built.data) > 10_000
    assert not built.warnings
    assert computes_in(built) == {"fp32"}


@pytest.mark.parametrize(("name", "profile", "targets"), BUILDS[1:])
def test_rtx_compiles_the_graph_in_fp16(
    rtx: TensorRt, published_kind_fp16: Bundle, name: str, profile: Profile, targets: tuple[str, ...]
) -> None:
    """With what nodes.json says of every node that multiplies."""
    built = build_engine(rtx, build_request(published_kind_fp16, name, profile, targets))
    assert not built.warnings
    assert "fp16" in computes_in(built)


def test_rtx_an_fp32_graph_in_an_fp16_bundle_is_found_out(
    rtx: TensorRt, published_kind: Exported, published_kind_fp16: Bundle
) -> None:
    request = build_request(published_kind_fp16, "frame", {"batch": (1, 2, 4)}, ("8.9",))
    wide = open_bundle(published_kind.folder)
    with pytest.raises(EngineError, match=r"calls it fp16, but .* computes in fp32"):
        build_engine(rtx, replace(request, model=wide.graph("frame"), graph=as_fp16(wide.manifest.graphs["frame"])))


def test_rtx_a_dynamic_axis_without_a_profile_is_an_error(rtx: TensorRt, light: Exported) -> None:
    with pytest.raises(EngineError, match="expected the dynamic axes of its inputs, masks"):
        build_engine(rtx, build_request(open_bundle(light.folder), "masks", {}, ("8.9",)))


def as_fp16(graph: GraphSpec) -> GraphSpec:
    return graph.model_copy(update={"precision": "fp16"})


def computes_in(built: BuiltEngine) -> set[str]:
    """The precisions of the layers that multiply."""
    return {kind.split()[-1] for kind in built.precision if not kind.startswith("tensor ")}
