"""gpu-check goes on after a failure, says what it most likely means, and tries the CUDA layer by itself."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bundles import write_bundle
from data_sets import ROOT
from fake_gpu import Gpu
from fake_pycuda import Layer, install_cuda
from fake_tensorrt import install_tensorrt

from visrt.benchmarks.gpu_check import measure, parts
from visrt.benchmarks.gpu_check.__main__ import check, main
from visrt.benchmarks.gpu_check.calls import frame_feeds, trtexec_ms, trtexec_note, trtexec_tool
from visrt.benchmarks.gpu_check.known_failures import KNOWN, UNKNOWN, known_failures
from visrt.benchmarks.gpu_check.measure import measured
from visrt.benchmarks.gpu_check.parts import Part, Subject, cuda_parts
from visrt.benchmarks.gpu_check.record import RECORD, Done, Record
from visrt.benchmarks.gpu_check.report import exit_code, page, verdict_of
from visrt.benchmarks.speed.streams import StreamRun, run_streams
from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.engines.trt.cuda_bindings import BindingsLayer
from visrt.runtime.engines.trt.cuda_pycuda import PycudaLayer
from visrt.runtime.errors import EngineError, UsageError

CLIP = ROOT / "clips" / "demo.mp4"
STEPS = {"open", "copies", "two streams", "rows and zeros", "CUDA graph", "close", "open and close 5 times"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gpu:
    """A fake GPU with TensorRT 10.13."""
    gpu = Gpu()
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    install_cuda(monkeypatch, gpu)
    install_tensorrt(monkeypatch, gpu, "tensorrt", "10.13.3.9")
    monkeypatch.setattr(measure, "trtexec_tool", lambda: None)
    monkeypatch.setattr(parts, "gpu_absence", lambda: "")
    return gpu


@pytest.fixture
def library(gpu: Gpu, layer: Layer, monkeypatch: pytest.MonkeyPatch) -> Layer:
    """Each library that calls CUDA's driver in turn, installed on the fake GPU."""
    install_cuda(monkeypatch, gpu)
    return layer


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject("small", write_bundle(tmp_path / "small"), "64x96")


def the_part(subject: Subject, kind: Any, **more: Any) -> Part:
    return replace(Part(kind, subject, "tensorrt", 2, 0, frames=3, rounds=2, clip=str(CLIP)), **more)


def cuda_part(layer: str) -> Part:
    [part] = cuda_parts([layer], 0)
    return part


# The CUDA layer alone


def test_every_step_of_the_cuda_layer_passes_and_leaves_nothing(gpu: Gpu, library: Layer) -> None:
    figures = measured(cuda_part(library))

    passed = {step for step, outcome in figures["steps"].items() if outcome == "ok"}
    assert passed == STEPS
    assert "fault" not in figures
    assert figures["gpu"] == "NVIDIA Fake 4090, compute capability 8.9"
    assert min(figures[name] for name in ("up_gb_s", "device_gb_s", "down_gb_s", "launch_us")) > 0
    assert gpu.counts["create_stream"] == 2 * 6, "opened once and five times again"
    assert gpu.counts["pageable"] == 0
    assert not gpu.left


def test_a_step_that_fails_costs_no_other(gpu: Gpu, library: Layer) -> None:
    gpu.faults.capture = 1

    figures = measured(cuda_part(library))

    failed = {step for step, outcome in figures["steps"].items() if outcome != "ok" and "not tried" not in outcome}
    assert failed == {"CUDA graph"}
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in figures["fault"]
    assert not gpu.left


@pytest.mark.parametrize("kind", [PycudaLayer, BindingsLayer])
def test_arguments_that_a_library_does_not_take_are_a_failed_step(
    gpu: Gpu, library: Layer, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    def refuse(*_: object) -> None:
        raise TypeError("Python argument types did not match C++ signature")

    monkeypatch.setattr(kind, "copy_rows", refuse)

    figures = measured(cuda_part(library))

    faults = ["rows and zeros: TypeError: Python argument types did not match C++ signature"]
    assert figures.get("fault", "").split(" | ") == (faults if kind.name == library else [""])


def test_bytes_that_come_back_wrong_are_found(gpu: Gpu, library: Layer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gpu, "let_wait", lambda *_: None)

    figures = measured(cuda_part(library))

    assert re.match(r"two streams: from stream to stream: \d+ of \d+ bytes came back wrong$", figures["fault"])


def test_without_a_gpu_the_only_step_is_the_one_that_says_why(gpu: Gpu, library: Layer) -> None:
    gpu.faults.init = 1

    figures = measured(cuda_part(library))

    assert figures["steps"].keys() == {"open"}
    assert "GPU 0 cannot be opened" in figures["fault"]


def fake_torch(gpu: Gpu, sum_of: Any = lambda size: size) -> Any:
    """torch with CUDA: its first tensor makes the primary context current in the thread, and leaves it there."""
    torch: Any = ModuleType("torch")

    class Ones:
        def __init__(self, size: int, device: str) -> None:
            assert device == "cuda:0"
            if not gpu.stack:
                gpu.stack.append(gpu.retain())
            assert gpu.stack == [gpu.epoch], "another context is current than torch's"
            self.size = size

        def sum(self) -> int:
            return int(sum_of(self.size))

    torch.cuda = ModuleType("torch.cuda")
    torch.cuda.is_available = lambda: True
    torch.ones = Ones
    return torch


def test_beside_torch_all_steps_are_taken_again_and_torch_goes_on(
    gpu: Gpu, library: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(gpu))

    figures = measured(cuda_part(library))

    again = {f"{step} beside torch" for step in ("copies", "two streams", "rows and zeros", "CUDA graph")}
    assert figures["steps"] == dict.fromkeys([*STEPS, *again, "beside torch"], "ok")
    assert gpu.stack == [gpu.epoch], "torch's context is current as before"


def test_torch_that_computes_wrongly_afterwards_is_a_fault(
    gpu: Gpu, library: Layer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", fake_torch(gpu, lambda size: 0))
    assert "torch computes wrong sums" in measured(cuda_part(library))["fault"]


def test_both_layers_are_parts_where_both_are_installed(
    gpu: Gpu, library: Layer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No bundle, clip or TensorRT is looked for."""
    given = ["--out", str(tmp_path / "out"), "--clip", str(tmp_path / "none.mp4"), "--parts", "--only"]

    assert main([*given, "cuda"]) == 0

    both = ["cuda/pycuda: to do", "cuda/cuda-bindings: to do"]
    assert capsys.readouterr().out.splitlines() == (both if library == "pycuda" else both[1:])
    with pytest.raises(UsageError, match="no such file; expected a video"):
        main([*given, "cuda", "small"])


def test_the_layer_alone_is_done_once_and_told_in_one_table(gpu: Gpu, tmp_path: Path) -> None:
    chosen, machine = cuda_parts(["pycuda", "cuda-bindings"], 0), {"gpu": "NVIDIA Fake 3000"}
    ran: list[str] = []

    def run(part: Part, key: str) -> Done:
        ran.append(part.id)
        return Done(part.id, key, "done", figures=measured(part))

    for _ in range(2):
        record = Record(tmp_path, machine)
        check(chosen, record, run, lambda _: None)
    assert ran == ["cuda/pycuda", "cuda/cuda-bindings"]
    record.verdict = verdict_of(chosen, record)
    assert exit_code(chosen, record) == 0
    report = page(chosen, record)
    assert "**the CUDA layer passed; no engine was checked**" in report
    assert report.count(" | 7 of 7 | ") == 2
    assert "engines alone" not in report
    with_others = [*chosen, Part("verify", Subject("small", tmp_path, "64x96"), "tensorrt", 1)]
    assert exit_code(with_others, record) == 3, "no engine has run"


def test_another_torch_is_another_check_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"torch": "2.1"}
    monkeypatch.setattr(parts, "version", versions.__getitem__)
    first = cuda_part("pycuda").key({})
    versions["torch"] = "2.2"
    assert cuda_part("pycuda").key({}) != first


# Failures within a part


def test_a_graph_that_cannot_be_built_does_not_keep_the_others_from_it(gpu: Gpu, subject: Subject) -> None:
    gpu.faults.build = 1

    figures = measured(the_part(subject, "build"))

    assert "frame.onnx" in figures["fault"]
    assert [graph["graph"] for graph in figures["graphs"]] == ["masks"]
    assert "opened_s" not in figures
    assert "opened_s" in measured(the_part(subject, "build"))


def test_messages_of_every_graph_are_told_at_once(gpu: Gpu, subject: Subject) -> None:
    gpu.faults.build_warnings = ["something new"]
    fault = measured(the_part(subject, "build"))["fault"]
    assert "frame.onnx" in fault
    assert "masks.onnx" in fault
    assert fault.count("messages that nobody has accounted for") == 2


def test_engines_that_fail_in_a_pipeline_are_timed_by_themselves(
    gpu: Gpu, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Any:
        raise EngineError("a stream is on fire")

    whole = measured(the_part(subject, "engines"))
    monkeypatch.setattr(measure, "_tracked", fail)
    figures = measured(the_part(subject, "engines"))

    assert whole.keys() == {"fps", "stages", "in_flight_fps", "call", "note"}
    assert figures["fault"] == "a stream is on fire", "said once"
    assert figures.keys() == {"call", "note", "fault"}
    assert min(figures["call"].values()) > 0
    assert not gpu.left


def test_a_round_that_fails_does_not_cost_the_others(
    gpu: Gpu, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0

    def once_wrong(*given: Any) -> StreamRun:
        nonlocal rounds
        rounds += 1
        run = run_streams(*given)
        failed = [replace(outcome, end="failed", reason="on fire") for outcome in run.outcomes]
        return replace(run, outcomes=failed) if rounds == 2 else run

    monkeypatch.setattr(measure, "run_streams", once_wrong)
    figures = measured(the_part(subject, "streams", streams=2))

    assert rounds == 1 + 2
    assert figures["fault"] == "a stream ended as failed after 3 frames: on fire"
    assert figures["fps"]["median"] > 0
    assert figures["first_frame_s"] > figures["opened_s"] > 0


def test_figures_of_a_part_that_failed_are_in_the_table_with_what_it_means(tmp_path: Path, subject: Subject) -> None:
    record, part = Record(tmp_path / "out", {"gpu": "any"}), the_part(subject, "engines")
    fault = "CUDA failed (CUDA_ERROR_ILLEGAL_ADDRESS)"
    call = {"alone_ms": 4.0, "in_flight_ms": 2.5, "mb": 1.2}
    said: list[str] = []

    def run(part: Part, key: str) -> Done:
        return Done(part.id, key, "failed", fault, figures={"in_flight_fps": 123.4, "call": call, "trtexec_ms": 2.4})

    check([part], record, run, said.append)
    report = page([part], record)

    assert " | failed | 123.4 | " in report
    assert " | 4.00 | 2.50 | 2.40 | 1.2 |" in report
    assert said[-2] == f"{part.id}: failed, {fault}"
    assert said[-1].startswith("  - likely: a kernel read or wrote outside its memory")
    assert "try: compute-sanitizer --tool memcheck" in said[-1]
    assert "\n".join(said[-2:]) in report
    assert (tmp_path / "out" / RECORD).is_file()


# trtexec

TOOL = """#!/bin/sh
echo "$@" > {seen}
echo "[I] Latency: min = 2.90 ms, max = 3.5 ms, mean = 3.1 ms, median = 3.034 ms, percentile(90%) = 3.2 ms"
echo "[I] GPU Compute Time: min = 1.90 ms, max = 2.5 ms, mean = 2.1 ms, median = 2.034 ms, percentile(90%) = 2.2 ms"
exit {code}
"""


@contextmanager
def built(subject: Subject) -> Iterator[Bundle]:
    measured(the_part(subject, "build"))
    yield open_bundle(subject.folder)


def write_tool(folder: Path, code: int = 0) -> Path:
    tool = folder / "trtexec"
    tool.write_text(TOOL.format(seen=folder / "seen", code=code))
    tool.chmod(0o755)
    return tool


def test_trtexec_is_given_the_engine_that_runs_with_shapes_and_values(
    gpu: Gpu, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = write_tool(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with built(subject) as bundle:
        assert trtexec_tool() == tool
        assert trtexec_ms(tool, bundle, frames=2, device=1) == 2.034
        given = (tmp_path / "seen").read_text().split()
        [engine] = [Path(word.partition("=")[2]) for word in given if word.startswith("--loadEngine=")]
        assert engine.parent == tmp_path / "cache"
        assert engine.name.startswith("frame-")
        assert {"--useCudaGraph", "--noDataTransfers", "--device=1"} <= {*given}
        spec = bundle.manifest.graphs["frame"].inputs["images"]
        assert any(word.startswith("--shapes=") and f"{spec.name}:2x64x96x3" in word for word in given)
        assert any(word.startswith("--loadInputs=") and f"{spec.name}:" in word for word in given)
        with pytest.raises(EngineError, match="holds no engine of the frame graph; do the part `build` first"):
            trtexec_ms(tool, bundle, frames=5, device=0)


def test_trtexec_that_fails_is_a_note_and_no_fault(
    gpu: Gpu, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = write_tool(tmp_path, code=1)
    with built(subject):
        monkeypatch.setattr(measure, "trtexec_tool", lambda: tool)
        figures = measured(the_part(subject, "engines"))
        assert "gave no time (exit code 1)" in figures["note"]
        assert "fault" not in figures
        write_tool(tmp_path)
        figures = measured(the_part(subject, "engines"))
        assert figures["trtexec_ms"] == 2.034


@pytest.mark.parametrize(
    ("alone", "in_flight", "trtexec", "meaning"),
    [
        (2.4, 2.3, 2.1, ""),
        (3.0, 2.3, 2.1, "which calls in flight hide"),
        (3.5, 3.4, 2.1, "hold the engine up"),
        (1.5, 1.4, 2.1, "trtexec is slower, so the GPU was busy"),
    ],
)
def test_a_difference_to_trtexec_is_told_with_what_it_means(
    alone: float, in_flight: float, trtexec: float, meaning: str
) -> None:
    note = trtexec_note(alone, in_flight, trtexec, mb=1.2)
    assert (meaning in note) if meaning else not note


def test_images_that_are_timed_fill_the_input(subject: Subject) -> None:
    feeds = frame_feeds(open_bundle(subject.folder), 3)
    assert feeds["images"].shape == (3, 64, 96, 3)
    assert feeds["images"].std() > 50
    assert feeds["valid_sizes"].tolist() == [[64, 96]] * 3


# What failures mean

LINES = {
    "GPU 0 cannot be opened: cuInit failed: no CUDA-capable device is detected": "shown no GPU",
    "cuInit failed: CUDA_ERROR_NO_DEVICE": "shown no GPU",
    "frame.onnx (frame): tensorrt does not start; it needs an NVIDIA GPU": "driver is older",
    "pybind11::init(): factory function returned nullptr": "driver is older",
    "the NVIDIA driver finds no GPU it can use (error 803)": "another libcuda",
    "RuntimeError: cuStreamGetX cannot be called: Function not found": "newer than the driver",
    "pycuda is installed but does not load (libcuda.so.1)": "compiled for another CUDA",
    "opening: CUDA failed (CUDA_ERROR_CONTEXT_IS_DESTROYED)": "primary context went",
    "cuMemAlloc failed: invalid device context": "another library has left its own context",
    "CUDA graph: cuStreamEndCapture failed: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED": "could not be recorded",
    "launch 1 of a CUDA graph: 3 of 9 bytes came back wrong": "not what was recorded",
    "two streams: from stream to stream: 3 of 9 bytes came back wrong": "before what it waits for",
    "CUDA failed (CUDA_ERROR_ILLEGAL_ADDRESS)": "outside its memory",
    "frame.onnx: tensorrt cannot take this graph: UINT8 tensor feeds Shape": "feed a Cast and nothing else",
    "built it with messages that nobody has accounted for; it says: x": "lines in the log",
    "tensorrt-rtx 1.7 has no target for compute capability 9.0": "GPUs of workstations",
    "3 of 9 comparisons fail; error 1.0e-03, tolerance 2e-04": "a kernel that computes wrongly",
    "CUDAExecutionProvider was requested but CPUExecutionProvider took frame.onnx": "does not find the libraries",
    "tensorrt does not load (libnvinfer.so.10: cannot open shared object file)": "bindings are there without",
    "needs 5000.0 MB of GPU memory, 10.0 MB of 80000.0 MB are free": "ran out of memory",
    "its process was ended by SIGSEGV: it printed nothing": "a crash in a native library",
    "took longer than 600 s and was stopped": "the part hangs",
    "GPU 3 was requested, this machine has 1": "CUDA counts only the GPUs",
}
BY_PART = {
    "small/cuda/verify/batch1": ("error 1.0e-03, tolerance 2e-04", "TF32"),
    "small/tensorrt/build/batch8": ("took longer than 600 s and was stopped", "longer than the limit"),
}


@pytest.mark.parametrize("line", LINES)
def test_a_known_line_is_told_with_its_meaning(line: str) -> None:
    found = known_failures("small/tensorrt/verify/batch1", line)
    assert any(LINES[line] in known.meaning for known in found), found


@pytest.mark.parametrize("part", BY_PART)
def test_some_lines_mean_something_else_in_a_part(part: str) -> None:
    line, meaning = BY_PART[part]
    assert meaning in known_failures(part, line)[0].meaning


def test_every_known_failure_is_met_by_a_line_and_says_what_to_try() -> None:
    lines = [("small/tensorrt/verify/batch1", line) for line in LINES]
    lines += [(part, line) for part, (line, _) in BY_PART.items()]
    met = {known for part, line in lines for known in known_failures(part, line)}
    assert not [known.pattern for known in KNOWN if known not in met]
    assert all(known.meaning and known.to_try for known in (*KNOWN, UNKNOWN))


def test_what_nobody_has_met_yet_leads_to_the_log() -> None:
    assert known_failures("small/tensorrt/verify/batch1", "the moon is full") == (UNKNOWN,)
