"""A bundle on TensorRT, from its ONNX to tracked objects, on a fake GPU: built once, kept, run as on the CPU."""

from __future__ import annotations

import builtins
import json
import logging
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import pytest
from bundles import write_bundle
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_tensorrt import FLAVOURS, install_tensorrt
from fakes import patches

from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.trt.build import ACCEPT_MESSAGES
from visrt.runtime.engines.trt.build_progress import ignore_progress
from visrt.runtime.engines.trt.bundle_build import BuildPlan, build_bundle
from visrt.runtime.engines.trt.engine import TrtEngine
from visrt.runtime.engines.trt.engine_cache import EngineCache
from visrt.runtime.engines.trt.library import Flavour, load_tensorrt
from visrt.runtime.engines.trt.trt import open_tensorrt
from visrt.runtime.errors import BundleError, EngineError
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionSettings

pytestmark = pytest.mark.usefixtures("layer")

VERSIONS = [(flavour, version) for flavour, versions in FLAVOURS.items() for version in versions]
FRAMES = [patches((128, 192), (0, 20 + 10 * t, 30, 60, 50)) for t in range(8)]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """A GPU with TensorRT 10.13 and an engine cache of its own."""
    gpu = Gpu()
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    install_cuda(monkeypatch, gpu)
    install_tensorrt(monkeypatch, gpu, "tensorrt", "10.13.3.9")
    return gpu


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(write_bundle(tmp_path / "bundle"))


def tracked(bundle: Bundle, engine: str, batch: int = 1) -> list[FrameResult]:
    """The results of all frames, `batch` at a time."""
    engines = open_engines(bundle, engine, EngineOptions(threads=1, batch=batch))
    with Session(bundle.manifest, engines) as session:
        steps = [FRAMES[start : start + batch] for start in range(0, len(FRAMES), batch)]
        return [result for frames in steps for result in session.step_batch(frames)]


def numbers(bundle: Bundle, role: str) -> int:
    """Of an output of the frame graph, for one frame."""
    return math.prod(axis for axis in bundle.manifest.graphs["frame"].outputs[role].shape if isinstance(axis, int))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("flavour", "version"), VERSIONS)
def test_a_session_follows_objects_as_on_the_cpu(
    gpu: Gpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, flavour: Flavour, version: str, batch: int
) -> None:
    install_tensorrt(monkeypatch, gpu, flavour, version)

    found = tracked(bundle, flavour, batch)

    assert found == tracked(bundle, "cpu", batch)
    assert [[o.id for o in result.objects] for result in found] == [[0]] * len(FRAMES)
    assert gpu.counts["graph_launch"] > (4 if batch == 1 else 0)
    assert gpu.counts["pageable"] == 0
    assert not gpu.left


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("batch", [1, 9])
def test_a_camera_that_turns_to_and_fro_is_followed_at_both_sizes_of_a_bundle_as_on_the_cpu(
    gpu: Gpu, tmp_path: Path, batch: int, in_flight: int
) -> None:
    """An engine has room for two calls: frames that change from one to the next wait for it in turn."""
    sizes = open_bundle(write_bundle(tmp_path / "sizes", other_sizes=[(96, 64)]))
    upright = [np.ascontiguousarray(np.rot90(frame)) for frame in FRAMES]
    frames = [frame for pair in zip(FRAMES, upright, strict=True) for frame in pair] + FRAMES[:2]
    found = {}
    for engine in ("cpu", "tensorrt"):
        settings = SessionSettings(in_flight=in_flight)
        with Session.open(sizes, engine, threads=1, batch=batch, settings=settings) as session:
            steps = [frames[start : start + batch] for start in range(0, len(frames), batch)]
            found[engine] = [result for step in steps for result in session.step_batch(step)] + session.flush()
            assert session.events.restarts == 16

    assert found["tensorrt"] == found["cpu"]
    assert [[one.id for one in result.objects] for result in found["cpu"]] == [[t] for t in [*range(17), 16]]
    assert gpu.counts["builds"] == 4
    assert not gpu.left


def test_engines_are_built_once_and_said_so_and_kept(
    gpu: Gpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        first = tracked(bundle, "tensorrt")
        assert gpu.counts["builds"] == 2
        assert [text.split(" in ")[0] for text in caplog.messages] == [
            f"building the engine of {name} for NVIDIA Fake 4090, compute capability 8.9" for name in ("frame", "masks")
        ]
        caplog.clear()
        second = tracked(bundle, "tensorrt")

    assert gpu.counts["builds"] == 2
    assert not caplog.messages
    assert first == second


def test_another_batch_and_another_gpu_have_engines_of_their_own(gpu: Gpu, bundle: Bundle) -> None:
    tracked(bundle, "tensorrt", batch=1)
    tracked(bundle, "tensorrt", batch=2)
    assert gpu.counts["builds"] == 3

    gpu.capability = (8, 6)
    tracked(bundle, "tensorrt", batch=1)

    assert gpu.counts["builds"] == 5


def test_of_several_engines_of_a_graph_the_one_of_the_highest_level_is_used(
    gpu: Gpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    library = load_tensorrt("tensorrt")
    for level in (0, 4):
        built = list(build_bundle(bundle, library, BuildPlan(level=level), EngineCache(), lambda _: ignore_progress))
        assert [report.source for report in built] == ["built", "built"]
    gpu.faults.deserialize = 1

    assert tracked(bundle, "tensorrt") == tracked(bundle, "cpu")

    assert gpu.counts["builds"] == 5
    assert "refuses the cached engine" in " ".join(caplog.messages)
    levels = [kept.key["level"] for kept in EngineCache().kept(bundle.manifest.graphs["frame"].sha256)]
    assert sorted(levels) == [0, 4], "the one that was refused was built again as it was"


def test_an_engine_is_taken_with_its_messages_and_says_so_each_time(
    gpu: Gpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.faults.build_warnings = ["Profile kMAX values are not self-consistent"]
    monkeypatch.setenv(ACCEPT_MESSAGES, "1")
    tracked(bundle, "tensorrt")
    monkeypatch.delenv(ACCEPT_MESSAGES)
    caplog.clear()

    tracked(bundle, "tensorrt")

    assert gpu.counts["builds"] == 2
    assert len([text for text in caplog.messages if "nobody has accounted for (Profile kMAX" in text]) == 2


def test_what_tensorrt_rtx_compiled_is_there_at_the_next_opening(
    gpu: Gpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install_tensorrt(monkeypatch, gpu, "tensorrt-rtx", "1.7.1.116")
    compiled = []
    for _ in range(2):
        tracked(bundle, "tensorrt-rtx")
        compiled.append(gpu.counts["compiled"])
    assert compiled == [2, 2]
    kept = sorted((tmp_path / "cache").glob("*.kernels"))
    assert len(kept) == 2

    before = [path.stat().st_mtime_ns for path in kept]
    tracked(bundle, "tensorrt-rtx")
    assert [path.stat().st_mtime_ns for path in kept] == before, "written only where it grew"

    kept[0].write_bytes(b"0" * 64 + kept[0].read_bytes()[64:])
    tracked(bundle, "tensorrt-rtx")
    assert gpu.counts["compiled"] == 3, "what was altered is not used"
    tracked(bundle, "tensorrt-rtx")
    assert gpu.counts["compiled"] == 3


def test_kernels_that_tensorrt_rtx_refuses_are_compiled_and_kept_again(
    gpu: Gpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tensorrt(monkeypatch, gpu, "tensorrt-rtx", "1.7.1.116")
    tracked(bundle, "tensorrt-rtx")
    with monkeypatch.context() as other:
        other.setattr(fake_tensorrt.IRuntimeCache, "deserialize", lambda cache, blob: False)
        tracked(bundle, "tensorrt-rtx")
    assert gpu.counts["compiled"] == 4
    tracked(bundle, "tensorrt-rtx")
    assert gpu.counts["compiled"] == 4


def test_profiles_are_of_the_batch_and_of_the_queries(gpu: Gpu, bundle: Bundle, tmp_path: Path) -> None:
    tracked(bundle, "tensorrt", batch=3)

    keys = [json.loads(path.read_text())["key"] for path in (tmp_path / "cache").glob("*.json")]
    assert {key["graph"]: key["profile"] for key in keys} == {
        "frame": [["batch", [1, 3, 3]]],
        "masks": [["masks", [1, 4, 4]]],
    }


def test_an_engine_that_tensorrt_refuses_is_built_anew_once(
    gpu: Gpu, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    expected = tracked(bundle, "tensorrt")
    gpu.faults.deserialize = 1

    with caplog.at_level(logging.WARNING):
        assert tracked(bundle, "tensorrt") == expected

    assert gpu.counts["builds"] == 3
    assert "frame.onnx: TensorRT refuses the cached engine; a new one is built" in caplog.messages


@pytest.mark.parametrize("kept", [False, True])
def test_an_engine_that_is_refused_when_it_was_just_built_is_an_error(gpu: Gpu, bundle: Bundle, kept: bool) -> None:
    if kept:
        tracked(bundle, "tensorrt")
    before = gpu.counts["builds"]
    gpu.faults.deserialize = 2

    with pytest.raises(EngineError, match=r"frame\.onnx: TensorRT refuses the engine; it says: .*deserialization"):
        tracked(bundle, "tensorrt")

    assert gpu.counts["builds"] == before + 1
    assert not gpu.left


def test_for_want_of_memory_no_engine_is_built_anew(gpu: Gpu, bundle: Bundle) -> None:
    tracked(bundle, "tensorrt")
    gpu.faults.deserialize_memory = 1

    with pytest.raises(EngineError, match=r"OutOfMemory.*; end what else runs on NVIDIA Fake 4090"):
        tracked(bundle, "tensorrt")

    assert gpu.counts["builds"] == 2
    assert not gpu.left


def test_a_bundle_with_an_unknown_dynamic_axis_is_refused_and_nothing_stays_open(gpu: Gpu, bundle: Bundle) -> None:
    masks = bundle.manifest.graphs["masks"]
    tensor = masks.inputs["mask_features"].model_copy(update={"shape": (8, "rows", 24)})
    graph = masks.model_copy(update={"inputs": {**masks.inputs, "mask_features": tensor}})
    graphs = {**bundle.manifest.graphs, "masks": graph}
    strange = Bundle(bundle.folder, bundle.manifest.model_copy(update={"graphs": graphs}))

    with pytest.raises(
        BundleError,
        match=r"graph 'masks' has dynamic axes rows; TensorRT engines are built for batch, frames, streams, "
        r"masks",
    ):
        open_tensorrt(strange, "tensorrt", EngineOptions())

    assert not gpu.left


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ({"build": 9}, "Could not find any implementation"),
        ({"build_warnings": ["Profile kMAX values are not self-consistent"]}, "not self-consistent"),
    ],
)
def test_an_engine_that_cannot_be_built_is_an_error_and_all_is_freed(
    gpu: Gpu, bundle: Bundle, fault: dict[str, Any], told: str
) -> None:
    for name, value in fault.items():
        setattr(gpu.faults, name, value)

    with pytest.raises(EngineError, match=rf"frame\.onnx.*{told}"):
        tracked(bundle, "tensorrt")

    assert not gpu.left


def test_results_so_far_are_kept_when_the_gpu_fails_half_way(gpu: Gpu, bundle: Bundle) -> None:
    kept: list[FrameResult] = []
    with Session(bundle.manifest, open_engines(bundle, "tensorrt")) as session:
        for index, frame in enumerate(FRAMES):
            if index == 5:
                gpu.faults.graph_launch = gpu.faults.execution = 1
                with pytest.raises(EngineError, match="TensorRT says"):
                    session.step(frame)
            else:
                kept += session.step(frame)
        assert session.events.frames == 7

    assert [result.index for result in kept] == list(range(7))
    assert not gpu.left


def test_the_mask_features_of_a_session_never_cross_the_bus(gpu: Gpu, bundle: Bundle) -> None:
    tracked(bundle, "tensorrt")

    assert numbers(bundle, "mask_features") > 3000
    host = sum(numbers(bundle, role) for role in ("class_logits", "embeddings", "mask_embeddings")) * 4
    one_mask, alignment = 16 * 24 * 4, 3 * 256
    assert 0 <= gpu.counts["dtoh_bytes"] - len(FRAMES) * (host + one_mask) < len(FRAMES) * alignment
    assert gpu.counts["dtod"] == len(FRAMES)


# What is missing


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Makes `import` of a module fail, as on a machine without it."""
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name.split(".")[0] in names:
            raise ImportError(f"libcuda.so.1: cannot open {name}")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)


def no_pycuda(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    without(monkeypatch, "pycuda")
    return EngineOptions()


def second_gpu(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    return EngineOptions(device=1)


def no_driver(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    gpu.faults.init = 1
    return EngineOptions()


def no_stream(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    gpu.faults.stream = 1
    return EngineOptions()


def no_library(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    return EngineOptions()


def no_runtime(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> EngineOptions:
    gpu.faults.runtime = 1
    return EngineOptions()


@pytest.mark.parametrize(
    ("lack", "told"),
    [
        (no_pycuda, r"pycuda is installed but does not load .*libcuda.*pip uninstall pycuda.*--engine cpu"),
        (second_gpu, "GPU 1 was requested, this machine has 1"),
        (no_driver, "GPU 0 cannot be opened: cuInit failed.*nvidia-smi"),
        (no_stream, r"opening a stream: the GPU is out of memory \(cuStreamCreate failed"),
        (no_library, "tensorrt is (not installed|installed but does not load)"),
        (no_runtime, r"tensorrt 10\.13\.3\.9 does not start: .*driver, which serves CUDA 13\.0"),
    ],
)
def test_what_is_missing_is_told_and_nothing_stays_open(
    gpu: Gpu,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    lack: Callable[[Gpu, pytest.MonkeyPatch], EngineOptions],
    told: str,
) -> None:
    options = lack(gpu, monkeypatch)

    with pytest.raises(EngineError, match=told) as kept:
        open_tensorrt(bundle, "tensorrt", options)

    assert not gpu.left
    assert kept.value


def test_the_engines_say_what_they_are(gpu: Gpu, bundle: Bundle) -> None:
    engines = open_tensorrt(bundle, "tensorrt", EngineOptions())

    assert list(engines) == ["frame", "masks"]
    for engine in engines.values():
        assert isinstance(engine, TrtEngine)
        assert engine.provider == "TensorRT 10.13.3.9"
        assert engine.notices == ()
        engine.close()


def test_importing_the_runner_loads_no_library_of_nvidia() -> None:
    program = (
        "import sys, visrt.runtime.engines.trt.trt, visrt.runtime.engines.trt.cuda_graph\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'onnx', 'onnxruntime', 'pycuda', 'cuda', 'tensorrt', 'tensorrt_rtx', 'tensorrt_rtx_bindings'}))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert answer.stdout.strip() == "[]"
