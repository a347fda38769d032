"""`visrt build`, `visrt export --engine` and what `visrt inspect` says of the engines that are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_tensorrt import install_tensorrt
from networks import HEIGHT, PUBLISHED_KIND, WIDTH, saved
from typer.testing import CliRunner

from visrt.cli import app

RTX_ABSENT = "TensorRT-RTX is not installed; pip install -r tests/requirements-rtx.txt"
GPUS = ("--target", "8.9")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VISRT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "red")


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)))


def test_rtx_build_keeps_an_engine_a_graph_and_inspect_shows_them(bundle: Path, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason=RTX_ABSENT)
    arguments = ("build", "--bundle", bundle, "--engine", "tensorrt-rtx", *GPUS)
    first = run(*arguments, "--out-log", tmp_path / "log.json")
    assert first.exit_code == 0, first.stderr
    log = json.loads((tmp_path / "log.json").read_text())
    assert [(engine["graph"], engine["source"]) for engine in log["engines"]] == [
        ("frame", "built"),
        ("masks", "built"),
    ]
    assert all(engine["warnings"] == [] and engine["bytes"] > 10_000 for engine in log["engines"])
    assert log["machine"]
    assert "were not run" in first.output
    again = run(*arguments, "--out-log", tmp_path / "log.json")
    assert [engine["source"] for engine in json.loads((tmp_path / "log.json").read_text())["engines"]] == ["kept"] * 2
    assert again.exit_code == 0
    shown = run("inspect", bundle)
    assert shown.output.count("engine of tensorrt-rtx") == 2
    assert str(cache) not in bundle.as_posix()


def test_build_takes_a_level_and_shows_messages_that_nobody_knows(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = Gpu()
    gpu.faults.build_warnings = ["Something strange"]
    install_cuda(monkeypatch, gpu)
    install_tensorrt(monkeypatch, gpu, "tensorrt", "11.1.0")
    arguments = ("build", "--bundle", bundle, "--optimize", 5, "--out-log", tmp_path / "log.json")

    refused = run(*arguments)
    assert refused.exit_code == 5
    assert "Something strange; VISRT_ACCEPT_MESSAGES=1 takes the engine all the same" in refused.stderr

    monkeypatch.setenv("VISRT_ACCEPT_MESSAGES", "1")
    taken = run(*arguments)
    assert taken.exit_code == 0, taken.stderr
    assert "NOT accounted for: Something strange" in taken.output
    log = json.loads((tmp_path / "log.json").read_text())
    assert log["plan"]["level"] == 5
    assert [engine["unaccounted"] for engine in log["engines"]] == [["Something strange"]] * 2
    assert run("inspect", bundle).output.count("1 messages NOT accounted for") == 2


def test_rtx_export_with_an_engine_builds_it_too(cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason=RTX_ABSENT)
    checkpoint = saved(PUBLISHED_KIND, tmp_path / "model.safetensors")
    size = f"{HEIGHT}x{WIDTH}"
    done = run(
        *("export", checkpoint, "--out", tmp_path / "bundle", "--size", size, "--precision", "fp16"),
        *("--keep-fp32", "backbone", "--engine", "tensorrt-rtx", *GPUS),
    )
    assert done.exit_code == 0, done.stderr
    assert "kept in" in done.output
    assert len(list(cache.rglob("*.engine"))) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--engine", "abacus"], 2, "expected tensorrt or tensorrt-rtx"),
        (["--target", "8.9"], 2, "add --engine tensorrt-rtx"),
    ],
)
def test_an_engine_that_cannot_be_built_is_refused_before_the_export(
    arguments: Sequence[str], code: int, told: str, tmp_path: Path
) -> None:
    ended = run("export", tmp_path / "absent.pth", "--out", tmp_path / "b", "--size", "64x96", *arguments)
    assert ended.exit_code == code
    assert told in ended.stderr


def test_rtx_build_for_a_gpu_that_does_not_exist_is_one_line_and_a_log(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason=RTX_ABSENT)
    log = tmp_path / "log.json"
    arguments = ("--bundle", bundle, "--engine", "tensorrt-rtx", "--target", "1.1", "--out-log", log)
    ended = run("build", *arguments)
    assert ended.exit_code == 5
    assert "targets 1.1 were requested" in ended.stderr
    assert json.loads(log.read_text())["refused"]


def test_inspect_shows_costs_and_the_bytes_a_frame_moves(bundle: Path) -> None:
    shown = run("inspect", bundle, "--masks", "3")
    assert shown.exit_code == 0
    assert "multiply-accumulates not recorded" in shown.output
    assert f"{64 * 96 * 3:,}" in shown.output
    assert f"{3 * 16 * 24 * 4:,}" in shown.output
    for way in ("host to device", "stays on the device", "device to host"):
        assert way in shown.output


def test_inspect_sums_the_bytes_of_each_graph_and_of_all(bundle: Path) -> None:
    """Pictures and valid sizes up; mask features stay; everything else down, with 3 masks."""
    shown = run("inspect", bundle, "--masks", "3").output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if " host " in line]
    sums = {(graph, way): int(size.replace(",", "")) for graph, what, way, size in rows if what in ("all", "")}
    up, down = "host to device", "device to host"

    assert sums["frame", up] == 64 * 96 * 3 + 8
    assert sums["masks", down] == 3 * 16 * 24 * 4
    assert sums["sum", up] == sums["frame", up] + sums["masks", up]
    assert sums["sum", down] == sums["frame", down] + sums["masks", down]


def test_inspect_probes_a_bundle_before_it_shows_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = run("inspect", bundle, "--probe")
    assert shown.exit_code == 0
    assert "frame, masks: loaded and run once" in shown.stderr
