"""ONNX Runtime as an engine: what was asked for runs, what does not fit the manifest is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from bundles import SIZE, frame_model, masks_model, model, write_bundle
from fakes import fake_manifest, patches
from onnx import helper

from visrt.runtime.arrays import Array
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.bundles.manifest import GraphSpec, TensorSpec
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.ort import CpuEngine, CudaEngine, DeviceTensor
from visrt.runtime.errors import EngineError, UsageError
from visrt.runtime.session import Session

ONE_THREAD = EngineOptions(threads=1)


@pytest.fixture
def masks_spec() -> GraphSpec:
    return fake_manifest(SIZE, 4).graphs["masks"]


@pytest.fixture
def masks_engine(masks_spec: GraphSpec) -> Engine:
    return CpuEngine(masks_spec, masks_model(masks_spec).SerializeToString(), ONE_THREAD)


def feeds(*, masks: int = 2, other: Mapping[str, Array] | None = None) -> dict[str, Array]:
    random = np.random.default_rng(0)
    sound = {
        "mask_embeddings": random.normal(size=(masks, 8)).astype(np.float32),
        "mask_features": random.normal(size=(8, 16, 24)).astype(np.float32),
    }
    return {**sound, **(other or {})}


def with_input(spec: GraphSpec, role: str, **change: Any) -> GraphSpec:
    """The graph's manifest with one input told otherwise."""
    tensor = TensorSpec.model_validate({**spec.inputs[role].model_dump(), **change})
    return spec.model_copy(update={"inputs": {**spec.inputs, role: tensor}})


def test_it_computes_the_graph_and_names_outputs_by_role(masks_engine: Engine) -> None:
    given = feeds(masks=3)

    logits = masks_engine(given)["mask_logits"]

    expected = np.einsum("md,dhw->mhw", given["mask_embeddings"], given["mask_features"])
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-4)
    assert (logits.shape, str(logits.dtype), logits.device) == ((3, 16, 24), "float32", "cpu")
    np.testing.assert_array_equal(logits.row(1).numpy(), logits.numpy()[1])


def test_the_provider_is_the_one_that_runs_the_graph(masks_engine: Engine) -> None:
    assert masks_engine.provider == "CPUExecutionProvider"


def test_roles_are_mapped_to_the_names_inside_the_graph(masks_spec: GraphSpec) -> None:
    renamed = with_input(masks_spec, "mask_embeddings", name="input.17")
    named = masks_model(masks_spec)
    named.graph.input[0].name = named.graph.node[0].input[0] = "input.17"

    answer = CpuEngine(renamed, named.SerializeToString(), ONE_THREAD)(feeds())

    assert list(answer) == ["mask_logits"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "elsewhere"}, "input 'elsewhere' is not in the graph, which has mask_embeddings, mask_features"),
        ({"dtype": "float16"}, r"expected float16 \[masks, 8\], found float32 \[masks, 8\]"),
        ({"shape": ("masks", 9)}, r"expected float32 \[masks, 9\], found float32 \[masks, 8\]"),
        ({"shape": (5, 8)}, r"expected float32 \[5, 8\], found float32 \[masks, 8\]"),
        ({"shape": ("masks", 8, 1)}, r"expected float32 \[masks, 8, 1\], found"),
    ],
)
def test_a_graph_unlike_its_manifest_is_refused_with_both_told(
    masks_spec: GraphSpec, change: Mapping[str, Any], told: str
) -> None:
    graph = with_input(masks_spec, "mask_embeddings", **change)

    with pytest.raises(EngineError, match=f"does not fit its manifest: .*{told}"):
        CpuEngine(graph, masks_model(masks_spec).SerializeToString(), ONE_THREAD)


def test_every_difference_is_listed_at_once(masks_spec: GraphSpec) -> None:
    graph = with_input(with_input(masks_spec, "mask_embeddings", shape=("masks", 9)), "mask_features", name="gone")

    with pytest.raises(EngineError, match=r"'gone' is not in.*'mask_embeddings': expected.*'mask_features' is in"):
        CpuEngine(graph, masks_model(masks_spec).SerializeToString(), ONE_THREAD)


def test_an_unknown_operator_and_a_future_opset_are_refused(masks_spec: GraphSpec) -> None:
    inputs, outputs = ["mask_embeddings", "mask_features"], ["mask_logits"]
    unknown = model([helper.make_node("Nonsense", inputs, outputs, domain="nowhere")], masks_spec)
    future = masks_model(masks_spec)
    future.opset_import[0].version = 999

    for refused in (unknown, future):
        with pytest.raises(EngineError, match=r"ONNX Runtime refuses it"):
            CpuEngine(masks_spec, refused.SerializeToString(), ONE_THREAD)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"novelty": np.zeros(1)}, "given inputs .*novelty; expected mask_embeddings, mask_features"),
        (
            {"mask_embeddings": np.zeros((2, 8))},
            r"'mask_embeddings' is float64 \[2, 8\]; expected float32 \[masks, 8\]",
        ),
        ({"mask_embeddings": np.zeros((2, 7), np.float32)}, r"is float32 \[2, 7\]; expected float32 \[masks, 8\]"),
        ({"mask_features": np.zeros((1, 8, 16, 24), np.float32)}, r"expected float32 \[8, 16, 24\]"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_by_role(masks_engine: Engine, given: dict[str, Array], told: str) -> None:
    with pytest.raises(EngineError, match=told):
        masks_engine(feeds(other=given))


def test_a_dynamic_axis_has_one_size_in_a_call(masks_spec: GraphSpec) -> None:
    frame = fake_manifest(SIZE, 4).graphs["frame"]
    engine = CpuEngine(frame, frame_model(frame).SerializeToString(), ONE_THREAD)
    images, sizes = np.zeros((2, *SIZE, 3), np.uint8), np.ones((3, 2), np.int32)

    with pytest.raises(EngineError, match=r"'valid_sizes' is int32 \[3, 2\]; .* with {'batch': 2}"):
        engine({"images": images, "valid_sizes": sizes})


def test_what_fails_inside_the_graph_is_an_engine_error(masks_spec: GraphSpec) -> None:
    """A Gather beyond its data passes every check before the run."""
    nodes = [
        helper.make_node("Einsum", ["mask_embeddings", "mask_features"], ["maps"], equation="md,dhw->mhw"),
        helper.make_node("Gather", ["mask_features", "beyond"], ["nothing"]),
        helper.make_node("Add", ["maps", "nothing"], ["mask_logits"]),
    ]
    beyond = model(nodes, masks_spec, {"beyond": np.array([99])})
    failing = CpuEngine(masks_spec, beyond.SerializeToString(), ONE_THREAD)

    with pytest.raises(EngineError, match="failed while it ran"):
        failing(feeds(masks=2))


def test_cuda_asked_for_and_absent_is_an_error_that_names_the_extra(
    masks_spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])

    with pytest.raises(EngineError, match=r"CUDAExecutionProvider is not in this onnxruntime.*'\.\[gpu\]'"):
        CudaEngine(masks_spec, masks_model(masks_spec).SerializeToString())


def test_a_silent_fall_back_to_the_cpu_is_an_error(masks_spec: GraphSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime lists CUDA, fails to load its libraries and runs on the CPU: it only warns."""
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, settings, providers: real(data, settings, ["CPUExecutionProvider"]),
    )

    with pytest.raises(EngineError, match="CUDAExecutionProvider was requested but CPUExecutionProvider took"):
        CudaEngine(masks_spec, masks_model(masks_spec).SerializeToString())


class Opened:
    """What `InferenceSession` was given for CUDA; the graph runs on the CPU, under CUDA's name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.providers: list[Any] = []
        real = onnxruntime.InferenceSession

        class Session:
            def __init__(self, data: bytes, settings: Any, providers: list[Any]) -> None:
                opened.providers += providers
                self._real = real(data, settings, ["CPUExecutionProvider"])

            def get_providers(self) -> list[str]:
                return ["CUDAExecutionProvider", "CPUExecutionProvider"]

            def __getattr__(self, name: str) -> Any:
                return getattr(self._real, name)

        opened = self
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(onnxruntime, "InferenceSession", Session)


def test_cuda_computes_in_float32_on_the_chosen_gpu_and_does_not_search(
    masks_spec: GraphSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)

    CudaEngine(masks_spec, masks_model(masks_spec).SerializeToString(), EngineOptions(threads=1, device=1))

    assert opened.providers == [
        (
            "CUDAExecutionProvider",
            {
                "device_id": "1",
                "use_tf32": "0",
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
            },
        )
    ]


def test_the_libraries_that_pip_installed_are_loaded_once_before_the_first_session(
    masks_spec: GraphSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = Opened(monkeypatch)
    loaded: list[int] = []

    def preload() -> None:
        loaded.append(len(opened.providers))
        print("Failed to load libcudnn.so.9")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)
    for _ in range(2):
        CudaEngine(masks_spec, masks_model(masks_spec).SerializeToString(), ONE_THREAD)

    assert loaded == [0]
    assert not capsys.readouterr().out


def no_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(onnxruntime, "preload_dlls", raising=False)


def broken_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    def preload() -> None:
        raise OSError("libcublas.so.13 is not a library")

    monkeypatch.setattr(onnxruntime, "preload_dlls", preload, raising=False)


def talking_preload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("Failed to load\nlibcudnn.so.9"), raising=False)


@pytest.mark.parametrize(
    ("preload", "told"),
    [
        (no_preload, "older than 1.21"),
        (broken_preload, "libcublas.so.13 is not a library"),
        (talking_preload, "Failed to load libcudnn.so.9"),
    ],
)
def test_why_cuda_did_not_load_is_told_with_what_brings_it(
    masks_spec: GraphSpec, monkeypatch: pytest.MonkeyPatch, preload: Callable[[pytest.MonkeyPatch], None], told: str
) -> None:
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, settings, providers: real(data, settings, ["CPUExecutionProvider"]),
    )
    preload(monkeypatch)

    with pytest.raises(EngineError, match=rf"took none\.onnx; .*{told}.*'\.\[gpu\]'"):
        CudaEngine(masks_spec, masks_model(masks_spec).SerializeToString())


class BoundInHostMemory(CudaEngine):
    """The CUDA engine's bindings and addresses, on a machine without CUDA."""

    provider = "CPUExecutionProvider"
    memory = "cpu"


def test_outputs_stay_on_the_device_and_their_rows_feed_the_next_graph() -> None:
    graphs = fake_manifest(SIZE, 4).graphs
    frame = BoundInHostMemory(graphs["frame"], frame_model(graphs["frame"]).SerializeToString(), ONE_THREAD)
    masks = BoundInHostMemory(graphs["masks"], masks_model(graphs["masks"]).SerializeToString(), ONE_THREAD)
    images = np.stack([patches(SIZE, (0, x, 16, 24, 20)) for x in (4, 40)])

    outputs = frame({"images": images, "valid_sizes": np.full((2, 2), SIZE, np.int32)})
    features = outputs["mask_features"]
    rows = [features.row(index) for index in range(2)]
    picks = outputs["mask_embeddings"].numpy()[0]
    logits = [masks({"mask_embeddings": picks, "mask_features": row})["mask_logits"].numpy() for row in rows]

    assert isinstance(features, DeviceTensor)
    assert (features.device, features.shape, rows[1].shape) == ("cpu:0", (2, 8, 16, 24), (8, 16, 24))
    for index, row in enumerate(rows):
        np.testing.assert_array_equal(row.numpy(), features.numpy()[index])
        np.testing.assert_allclose(logits[index], np.einsum("md,dhw->mhw", picks, row.numpy()), atol=1e-5)
    assert not np.allclose(logits[0], logits[1])


def test_an_unknown_backend_is_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"engine 'tpu' is unknown; choose one of cpu, cuda"):
        open_engines(open_bundle(write_bundle(tmp_path / "bundle")), "tpu")


def test_a_session_on_a_bundle_sees_and_follows_the_object(tmp_path: Path) -> None:
    frames = [patches((128, 192), (0, 20 + 10 * t, 30, 60, 50)) for t in range(3)]

    with Session.open(write_bundle(tmp_path / "bundle"), threads=1) as session:
        found = [result.objects for frame in frames for result in session.step(frame)]

    assert [[(o.id, o.label) for o in objects] for objects in found] == [[(0, 0)]] * 3
    for t, (red,) in enumerate(found):
        assert np.allclose(red.box, (20 + 10 * t, 30, 60, 50), atol=8)


def test_a_batch_of_two_is_two_batches_of_one(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle")
    frames = [patches((128, 192), (0, 20 + 10 * t, 30, 60, 50)) for t in range(4)]

    with Session.open(folder, threads=1) as one, Session.open(folder, threads=1) as two:
        singly = [result for frame in frames for result in one.step(frame)]
        paired = [result for pair in (frames[:2], frames[2:]) for result in two.step_batch(pair)]

    assert singly == paired
