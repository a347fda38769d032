"""The GPU is chosen by one number, which reaches the engine from everywhere that opens or builds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import write_bundle
from data_sets import ROOT
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_tensorrt import install_tensorrt
from red_videos import red_videos
from typer.testing import CliRunner
from written_clips import write_clip

from visrt.benchmarks.gpu_check.measure import measured
from visrt.benchmarks.gpu_check.parts import CheckSettings, Subject, parts_of
from visrt.cli import app
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.engines.backends import BACKENDS, Backend
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import UsageError
from visrt.runtime.pipeline import Pipeline
from visrt.runtime.session import Session

SHIPPED = ROOT / "bundles" / "default-int8"


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The devices that engine "cuda" was opened on; the CPU computes in its place."""
    seen: list[int] = []
    cpu = BACKENDS["cpu"]

    def opened(bundle: Bundle, options: EngineOptions) -> dict[str, Engine]:
        seen.append(options.device)
        return cpu.open(bundle, replace(options, device=0))

    monkeypatch.setitem(BACKENDS, "cuda", Backend(opened, lambda: ""))
    return seen


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "red")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "street.mp4", 4)


def run(*arguments: object) -> None:
    ended = CliRunner().invoke(app, list(map(str, arguments)))
    assert ended.exit_code == 0, ended.output


def by_track(bundle: Path, clip: Path) -> None:
    run("track", clip, "--bundle", bundle, "--out", bundle.parent / "out", "--engine", "cuda", "--device", 3)


def by_several_streams(bundle: Path, clip: Path) -> None:
    out = bundle.parent / "out"
    run("track", clip, clip, "--bundle", bundle, "--out", out, "--streams", 2, "--engine", "cuda", "--device", 3)


def by_verify(bundle: Path, clip: Path) -> None:
    run("verify", SHIPPED, "--batch", "1", "--engine", "cuda", "--device", 3)


def by_bench(bundle: Path, clip: Path) -> None:
    given = ("--bundle", bundle, "--clip", clip, "--frames", 2, "--rounds", 1, "--streams", 1, "--length", 2)
    run("bench", *given, "--live-fps", 5, "--engine", "cuda", "--engine", "cpu", "--device", 3)


def by_eval(bundle: Path, clip: Path) -> None:
    videos = red_videos(bundle.parent / "set", videos=1, frames=3)
    classes = bundle.parent / "classes.json"
    classes.write_text('{"dog": "person", "car": null}')
    run("eval", "--data", videos, "--classes", classes, "--bundle", bundle, "--engine", "cuda", "--device", 3)


def by_gpu_check(bundle: Path, clip: Path) -> None:
    settings = CheckSettings((1,), (1,), frames=2, rounds=1, device=3)
    with_reference = Subject("with a reference", SHIPPED, "256x448")
    for part in parts_of([Subject("small", bundle, "64x96"), with_reference], ["cuda"], settings, clip):
        if (part.kind == "verify") == (part.subject == with_reference):
            measured(part)


def by_session(bundle: Path, clip: Path) -> None:
    Session.open(bundle, "cuda", device=3).close()


def by_pipeline(bundle: Path, clip: Path) -> None:
    Pipeline.open(bundle, "cuda", device=3).close()


@pytest.mark.parametrize(
    "way", [by_session, by_pipeline, by_track, by_several_streams, by_verify, by_bench, by_eval, by_gpu_check]
)
def test_the_gpu_that_was_chosen_is_the_engine_s(
    devices: list[int], bundle: Path, clip: Path, way: Callable[[Path, Path], None]
) -> None:
    way(bundle, clip)

    assert devices
    assert set(devices) == {3}


def test_without_a_choice_it_is_the_first(devices: list[int], bundle: Path) -> None:
    Session.open(bundle, "cuda").close()

    assert devices == [0]


def test_an_engine_that_uses_no_gpu_takes_no_choice(bundle: Path) -> None:
    for opened in (Session.open, Pipeline.open):
        with pytest.raises(
            UsageError, match="device 1 was chosen for engine cpu, which uses no GPU; take cuda, tensorrt"
        ):
            opened(bundle, "cpu", device=1)


@pytest.mark.parametrize("arguments", [("build",), ("track", "clip.mp4", "--out", "out")])
def test_a_gpu_that_is_not_there_is_refused(
    bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    gpu = Gpu()
    install_cuda(monkeypatch, gpu)
    install_tensorrt(monkeypatch, gpu, "tensorrt", "11.1.0")
    monkeypatch.setenv("VISRT_CACHE", str(bundle.parent / "cache"))
    given = [str(clip) if one == "clip.mp4" else str(bundle.parent / one) if one == "out" else one for one in arguments]

    ended = CliRunner().invoke(app, [*given, "--bundle", str(bundle), "--engine", "tensorrt", "--device", "1"])

    assert ended.exit_code == 5
    assert "GPU 1 was requested, this machine has 1" in ended.stderr


def test_a_device_below_zero_is_refused_by_the_check(bundle: Path) -> None:
    with pytest.raises(UsageError, match="device -1: expected the number of a GPU, from 0"):
        CheckSettings(device=-1)
