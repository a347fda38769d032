"""Finding TensorRT: which module, which version, and what to do where there is none; what it says is heard."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

import pytest
from fake_gpu import Gpu
from fake_tensorrt import FLAVOURS, Severity, install_tensorrt

from visrt.runtime.engines.trt import library as library_module
from visrt.runtime.engines.trt.library import TensorRt, cuda_build, load_tensorrt
from visrt.runtime.engines.trt.log import Line, log_of
from visrt.runtime.errors import EngineError


@pytest.mark.parametrize(
    ("flavour", "version"), [(flavour, version) for flavour, known in FLAVOURS.items() for version in known]
)
def test_every_version_in_use_is_found(monkeypatch: pytest.MonkeyPatch, flavour: Any, version: str) -> None:
    module = install_tensorrt(monkeypatch, Gpu(), flavour, version)
    assert load_tensorrt(flavour) == TensorRt(module, flavour, version)


def test_tensorrt_rtx_is_found_under_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("tensorrt_rtx_bindings")
    module.__version__ = "1.7.1.116"
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", module)
    assert load_tensorrt("tensorrt-rtx").module is module


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_what_is_not_installed_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch, flavour: Any) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=rf"{flavour} is not installed: pip install .*tensorrt.*--engine cpu"):
        load_tensorrt(flavour)


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0.19", "10.0.1", "unknown"])
def test_tensorrt_before_10_3_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install_tensorrt(monkeypatch, Gpu(), "tensorrt", version)
    with pytest.raises(EngineError, match=rf"tensorrt is {version}; expected 10\.3 or newer"):
        load_tensorrt("tensorrt")


@pytest.mark.parametrize("version", ["1.0.0", "1.6.1.120"])
def test_tensorrt_rtx_before_1_7_takes_too_much_memory(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    install_tensorrt(monkeypatch, Gpu(), "tensorrt-rtx", version)
    with pytest.raises(EngineError, match=rf"tensorrt-rtx is {version}; expected 1\.7 or newer, .* 57 MiB of the host"):
        load_tensorrt("tensorrt-rtx")


@pytest.mark.parametrize(
    ("installed", "told"),
    [((), ""), (("cu13",), "cu13"), (("cu12", "cu13"), "cu12+cu13")],
)
def test_the_wheel_tells_the_version_of_cuda_it_is_for(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], told: str
) -> None:
    def distribution(name: str) -> str:
        if name not in [f"tensorrt-{build}-bindings" for build in installed]:
            raise PackageNotFoundError(name)
        return name

    monkeypatch.setattr(library_module, "distribution", distribution)
    assert cuda_build("tensorrt") == told


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libnvinfer.so.10: cannot open shared object file"),
        ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs"),
        OSError("invalid ELF header"),
    ],
)
def test_what_is_installed_but_does_not_load_says_why(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(name: str) -> Any:
        raise error

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(EngineError, match=r"does not load \((libnvinfer|No module|invalid ELF)"):
        load_tensorrt("tensorrt")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> TensorRt:
    install_tensorrt(monkeypatch, Gpu(), "tensorrt", "10.3.0")
    return load_tensorrt("tensorrt")


def test_warnings_and_errors_are_heard_and_no_less(library: TensorRt) -> None:
    log = log_of(library)
    with log.listening() as heard:
        for severity in Severity:
            log.logger.log(severity, f"{severity.name} of\n  two lines")
    assert heard == [Line(name, f"{name} of two lines") for name in ("INTERNAL_ERROR", "ERROR", "WARNING")]


def test_who_listens_hears_what_is_said_meanwhile(library: TensorRt) -> None:
    log = log_of(library)
    log.logger.log(Severity.ERROR, "before")
    with log.listening() as outer:
        log.logger.log(Severity.ERROR, "first")
        with log.listening() as inner:
            log.logger.log(Severity.ERROR, "second")
    log.logger.log(Severity.ERROR, "after")
    assert [line.text for line in outer] == ["first", "second"]
    assert [line.text for line in inner] == ["second"]


def test_a_library_has_one_logger_for_the_whole_process(library: TensorRt) -> None:
    """TensorRT keeps the first."""
    first = log_of(library)
    gc.collect()
    assert log_of(TensorRt(library.module, library.flavour, library.version)) is first


def test_nothing_is_lost_when_threads_speak_at_once(library: TensorRt) -> None:
    log = log_of(library)
    with log.listening() as heard:
        threads = [
            threading.Thread(target=lambda: [log.logger.log(Severity.WARNING, "said") for _ in range(200)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(heard) == 800
