"""Every exported graph compiles to a TensorRT-RTX engine, ahead of time and without a GPU, without a warning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from networks import LIGHT, PUBLISHED_KIND, Exported, exported

trt = pytest.importorskip(
    "tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
)

# Smallest, usual and largest size of each dynamic axis.
PROFILES = {"batch": (1, 2, 4), "masks": (1, 10, 100)}


class Complaints(trt.ILogger):  # type: ignore[misc,name-defined]
    """Keeps what TensorRT says from warnings on: it builds broken engines with no more than that."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity <= trt.ILogger.Severity.WARNING:
            self.heard.append(message)


# TensorRT keeps the first logger of a process.
COMPLAINTS = Complaints()


@pytest.fixture
def published_kind(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(PUBLISHED_KIND, tmp_path_factory)


@pytest.fixture
def light(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported(LIGHT, tmp_path_factory)


@pytest.mark.parametrize("name", ["frame", "masks"])
@pytest.mark.parametrize("kind", ["light", "published_kind"])
def test_rtx_compiles_the_graph_for_a_gpu_that_is_not_here(
    kind: str, name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind).folder
    COMPLAINTS.heard.clear()
    engine = compiled(folder, name, PROFILES)
    assert not COMPLAINTS.heard
    assert engine is not None
    assert len(engine) > 10_000


def test_rtx_a_dynamic_axis_without_a_profile_is_a_complaint(light: Exported) -> None:
    """The check above can fail: TensorRT tells its logger, and raises nothing."""
    COMPLAINTS.heard.clear()
    assert compiled(light.folder, "masks", {}) is None
    assert COMPLAINTS.heard


def compiled(bundle: Path, name: str, profiles: dict[str, tuple[int, int, int]]) -> bytes | None:
    """The engine of graph `name` for Ada GPUs (SM 8.9), or None if TensorRT gives none."""
    builder = trt.Builder(COMPLAINTS)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, COMPLAINTS)
    parsed = parser.parse((bundle / f"{name}.onnx").read_bytes())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    if profiles:
        config.add_optimization_profile(profile_of(builder, bundle, name, profiles))
    engine = builder.build_serialized_network(network, config)
    return None if engine is None else bytes(engine)


def profile_of(builder: Any, bundle: Path, name: str, profiles: dict[str, tuple[int, int, int]]) -> Any:
    """Shapes of each input with its dynamic axis at its smallest, usual and largest."""
    profile = builder.create_optimization_profile()
    for spec in json.loads((bundle / "manifest.json").read_text())["graphs"][name]["inputs"].values():
        symbols = [axis for axis in spec["shape"] if isinstance(axis, str)]
        for symbol in symbols:
            shapes = [[size if axis == symbol else axis for axis in spec["shape"]] for size in profiles[symbol]]
            profile.set_shape(spec["name"], *shapes)
    return profile
