"""gpu-check says what it found, and never calls a machine without a GPU checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import write_bundle
from data_sets import ROOT

from visrt.benchmarks import gpu_check
from visrt.benchmarks.gpu_check import CheckSettings, EngineCheck, check, exit_code, report_lines
from visrt.benchmarks.speed.engine_layers import counted_layers
from visrt.benchmarks.speed.percentiles import by_stage, percentiles
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines.backends import BACKENDS
from visrt.runtime.errors import EngineError

INT8 = ROOT / "bundles" / "default-int8"
CLIP = ROOT / "clips" / "demo.mp4"
QUICK = CheckSettings(batches=(1, 2), frames=3, repeats=2, kept=3)
NO_GPU = "no NVIDIA driver here"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in gpu_check.ON_GPU:
        monkeypatch.setitem(BACKENDS, engine, replace(BACKENDS[engine], absence=lambda: NO_GPU))


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_the_cpu_is_measured_and_the_verdict_is_no_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "check.json"
    arguments = ("--bundle", str(INT8), "--clip", str(CLIP), "--frames", "3", "--repeats", "2", "--batch", "1", "2")
    assert gpu_check.main([*arguments, "--out", str(out)]) == 3
    printed = capsys.readouterr().out
    assert printed.count(NO_GPU) == len(gpu_check.ON_GPU)
    assert "NOT a GPU check" in printed
    whole = json.loads(out.read_text())
    [cpu] = [found for found in whole["checks"] if found["engine"] == "cpu"]
    assert cpu["state"] == "checked", cpu["reason"]
    assert cpu["verified"].keys() == {"1", "2"}
    assert [timing["frame"]["samples"] for timing in cpu["alone"]] == [2, 2]
    assert [(timing["in_flight"], timing["frames"]) for timing in cpu["clip"]] == [(1, 3), (2, 3)]
    assert whole["machine"]["cpu"]


def test_a_failing_engine_is_told_and_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in gpu_check.ON_GPU:
        monkeypatch.setitem(BACKENDS, engine, replace(BACKENDS[engine], absence=lambda: ""))

    def refuse(bundle: object, engine: str, options: object) -> None:
        raise EngineError(f"{engine} is on fire")

    monkeypatch.setattr(gpu_check, "open_engines", refuse)
    found = check([open_bundle(INT8)], CLIP, QUICK, say=lambda _: None)
    assert [(one.engine, one.state) for one in found] == [(engine, "failed") for engine in gpu_check.ON_GPU]
    assert [report_lines(one)[0] for one in found] == [
        f"visrt-default-int8 on {engine}: failed, {engine} is on fire" for engine in gpu_check.ON_GPU
    ]
    assert exit_code(found) == 5


@pytest.mark.usefixtures("no_gpu")
def test_each_size_of_a_bundle_is_checked(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "red", other_sizes=[(96, 64)]))
    found = [one for one in check([bundle], CLIP, QUICK, say=lambda _: None) if one.engine == "cpu"]
    assert [one.bundle for one in found] == ["fake 64x96", "fake 96x64"]


@pytest.mark.parametrize(
    ("states", "code"),
    [([("cpu", "checked")], 3), ([("cuda", "checked"), ("tensorrt", "absent")], 0), ([("cuda", "absent")], 3)],
)
def test_only_an_engine_on_a_gpu_makes_a_check(states: list[tuple[str, str]], code: int) -> None:
    assert exit_code([EngineCheck("b", engine, state) for engine, state in states]) == code


def test_the_inspectors_layers_are_counted_by_the_type_of_their_output() -> None:
    layers = [
        {"LayerType": "gemm", "Outputs": [{"Format/Datatype": "Half"}]},
        {"LayerType": "gemm", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
        {"LayerType": "conv", "Outputs": [{"Format": "Thirty-two wide channel vectorized row major Int8 format"}]},
        {"LayerType": "myelin", "Outputs": []},
    ]
    assert counted_layers(json.dumps({"Layers": layers})) == {"conv int8": 1, "gemm fp16": 2, "myelin unknown": 1}


@pytest.mark.parametrize("text", ["no json", "{}", '{"Layers": []}', '{"Layers": ["a name"]}'])
def test_an_inspector_without_types_is_said_to_be_one(text: str) -> None:
    with pytest.raises(EngineError, match="precision is known from the build"):
        counted_layers(text)


def test_percentiles_of_a_hundred_durations() -> None:
    found = percentiles([i / 1e3 for i in range(101)])
    assert (found.p50_ms, found.p95_ms, found.p99_ms, found.samples) == (50, 95, 99, 101)
    assert found.fps == pytest.approx(20)
    assert percentiles([]).fps == 0


def test_a_stage_that_a_frame_lacks_took_it_no_time() -> None:
    stages = by_stage([{"decode": 0.002}, {"decode": 0.004, "masks": 0.001}])
    assert stages["decode"].mean_ms == pytest.approx(3)
    assert stages["masks"].mean_ms == pytest.approx(0.5)
