"""Every exported graph compiles to a TensorRT-RTX engine, ahead of time, without a GPU and without a warning."""

from __future__ import annotations

import pytest
from networks import LIGHT, PUBLISHED_KIND, Exported, exported

from visrt.runtime.build import BuiltEngine, build_engine, build_request
from visrt.runtime.bundle import open_bundle
from visrt.runtime.errors import EngineError
from visrt.runtime.tensorrt_library import TensorRt, load_tensorrt

# Smallest, usual and largest size of each graph's dynamic axis: a batch of one only, or up to four.
PROFILES = {
    "frame": [{"batch": (1, 1, 1)}, {"batch": (1, 2, 4)}],
    "masks": [{"masks": (1, 10, 100)}],
}
TARGETS = [("8.6", "8.9", "12.0"), ("8.0",)]


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


@pytest.mark.parametrize("targets", TARGETS, ids=" ".join)
@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("kind", ["light", "published_kind"])
def test_rtx_compiles_the_graph_for_gpus_that_are_not_here(
    rtx: TensorRt, kind: str, name: str, targets: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    for profile in PROFILES[name]:
        built = compiled(rtx, request.getfixturevalue(kind), name, profile, targets)
        assert len(built.data) > 10_000
        assert not built.warnings
        assert computes_in(built) == {"fp32"}


def test_rtx_a_dynamic_axis_without_a_profile_is_an_error(rtx: TensorRt, light: Exported) -> None:
    with pytest.raises(EngineError, match="expected the dynamic axes of its inputs, masks"):
        compiled(rtx, light, "masks", {}, ("8.9",))


def compiled(
    rtx: TensorRt, bundle: Exported, name: str, profile: dict[str, tuple[int, int, int]], targets: tuple[str, ...]
) -> BuiltEngine:
    return build_engine(rtx, build_request(open_bundle(bundle.folder), name, profile, targets))


def computes_in(built: BuiltEngine) -> set[str]:
    """The precisions of the layers that multiply."""
    return {kind.split()[-1] for kind in built.precision if not kind.startswith("tensor ")}
