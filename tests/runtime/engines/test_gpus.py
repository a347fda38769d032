"""The GPUs of a machine by the driver's account, and which engines can use them."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from bundles import write_bundle
from data_sets import ROOT
from fake_gpu import Gpu
from fake_pycuda import install_cuda
from fake_tensorrt import install_tensorrt
from typer.testing import CliRunner

from visrt.benchmarks.gpu_check.parts import engines_here
from visrt.benchmarks.speed.memory import gpu_memory_mb
from visrt.cli import app
from visrt.runtime.bundles.bundle import open_bundle
from visrt.runtime.engines import gpus
from visrt.runtime.engines.backends import BACKENDS, open_engines
from visrt.runtime.errors import EngineError

UUIDS = ("1f0e2a7c-2f6c-4d5b-9a31-0123456789ab", "9c0e2a7c-2f6c-4d5b-9a31-0123456789ab")


@dataclass
class Driver:
    """libcuda as ctypes sees it; its GPUs are those that CUDA_VISIBLE_DEVICES shows, in that order."""

    gpus: int = 1
    status: int = 0
    capability: tuple[int, int] = (8, 6)

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = ordinal + 40
        return 0 if ordinal < self.gpus else 101

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:  # noqa: N802
        value._obj.value = self.capability[attribute - 75]
        return 0 if device >= 40 else 101

    def cuDeviceGetUuid_v2(self, uuid: Any, device: int) -> int:  # noqa: N802
        uuid[:] = UUID(UUIDS[device - 40]).bytes
        return 0


def install_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver) -> None:
    monkeypatch.setattr(gpus, "ctypes", WithDriver(driver))


@dataclass
class WithDriver:
    """ctypes where every library that is loaded is `driver`."""

    driver: Driver

    def __getattr__(self, name: str) -> Any:
        return (lambda _: self.driver) if name == "CDLL" else getattr(ctypes, name)


@pytest.mark.parametrize(
    ("driver", "told"),
    [(Driver(1), ""), (Driver(0), "finds no GPU"), (Driver(0, status=100), "error 100")],
)
def test_a_gpu_is_looked_for_with_the_driver(monkeypatch: pytest.MonkeyPatch, driver: Driver, told: str) -> None:
    install_driver(monkeypatch, driver)
    absence = gpus.gpu_absence()
    assert told in absence
    assert bool(absence) == bool(told)
    assert gpus.gpu_capabilities() == ([] if told else [(8, 6)])
    assert (gpus.gpu_uuid(0) is None) == bool(told)


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "DRIVER", "libcuda-of-nobody.so")
    assert "libcuda-of-nobody.so does not load" in gpus.gpu_absence()
    assert (gpus.gpu_capabilities(), gpus.gpu_uuid(0)) == ([], None)


def test_memory_is_asked_for_by_the_uuid_of_the_gpu_that_engines_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi's own numbers follow the bus and know nothing of CUDA_VISIBLE_DEVICES."""
    used = {f"GPU-{UUIDS[0]}": "100", f"GPU-{UUIDS[1]}": "7"}

    def answer(query: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        [chosen] = [word.removeprefix("--id=") for word in query if word.startswith("--id=")]
        if chosen not in used:
            raise subprocess.CalledProcessError(6, query)
        return subprocess.CompletedProcess(query, 0, used[chosen], "")

    install_driver(monkeypatch, Driver(2))
    monkeypatch.setattr("visrt.benchmarks.speed.memory.shutil.which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr("visrt.benchmarks.speed.memory.subprocess.run", answer)

    assert [gpu_memory_mb(), gpu_memory_mb(0), gpu_memory_mb(1), gpu_memory_mb(2)] == [100, 100, 7, None]
    used.clear()
    assert gpu_memory_mb() is None


# TensorRT-RTX builds for the GPUs of workstations, not for those of data centres.


@pytest.mark.parametrize(
    ("capability", "absence"),
    [
        ((8, 9), ""),
        ((12, 0), ""),
        (
            (9, 0),
            "tensorrt-rtx 1.7.1.116 has no target for compute capability 9.0, only for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; "
            "use --engine tensorrt",
        ),
    ],
)
def test_rtx_is_absent_where_it_has_no_target_for_the_gpu(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], absence: str
) -> None:
    gpu = Gpu(capability=capability)
    install_cuda(monkeypatch, gpu)
    install_driver(monkeypatch, Driver(capability=capability))
    for flavour, version in (("tensorrt", "10.13.3.9"), ("tensorrt-rtx", "1.7.1.116")):
        install_tensorrt(monkeypatch, gpu, flavour, version)

    assert BACKENDS["tensorrt-rtx"].absence() == absence
    assert BACKENDS["tensorrt"].absence() == ""
    assert engines_here(["tensorrt", "tensorrt-rtx"]) == {"tensorrt": "", "tensorrt-rtx": absence}


def test_doctor_says_which_engines_are_absent_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(capability=(9, 0))
    install_cuda(monkeypatch, gpu)
    install_driver(monkeypatch, Driver(capability=(9, 0)))
    for flavour, version in (("tensorrt", "10.13.3.9"), ("tensorrt-rtx", "1.7.1.116")):
        install_tensorrt(monkeypatch, gpu, flavour, version)

    shown = " ".join(CliRunner().invoke(app, ["doctor"]).output.split())

    assert "--engine tensorrt can be opened" in shown
    assert "--engine tensorrt-rtx absent: tensorrt-rtx 1.7.1.116 has no target for compute capability 9.0" in shown


def test_opening_rtx_on_a_gpu_without_a_target_says_so_before_minutes_of_building(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpu = Gpu(capability=(9, 0))
    install_cuda(monkeypatch, gpu)
    install_tensorrt(monkeypatch, gpu, "tensorrt-rtx", "1.7.1.116")
    folder = write_bundle(tmp_path / "bundle")

    with pytest.raises(EngineError, match=r"no target for compute capability 9\.0, .*use --engine tensorrt"):
        open_engines(open_bundle(folder), "tensorrt-rtx")
    ended = CliRunner().invoke(app, ["build", "--bundle", str(folder), "--engine", "tensorrt-rtx"])
    assert ended.exit_code != 0
    assert "no target for compute capability 9.0" in ended.stderr
    assert gpu.counts["builds"] == 0
    assert not gpu.left


def test_without_any_library_for_cuda_tensorrt_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu()
    install_cuda(monkeypatch, gpu)
    install_driver(monkeypatch, Driver())
    install_tensorrt(monkeypatch, gpu, "tensorrt", "10.13.3.9")
    assert BACKENDS["tensorrt"].absence() == ""
    gpu.faults.missing_functions = {"libcuda"}
    assert BACKENDS["tensorrt"].absence() == ""
    monkeypatch.setitem(sys.modules, "pycuda", None)
    assert "pycuda is not installed, and cuDriverGetVersion cannot be called" in BACKENDS["tensorrt"].absence()


def test_the_extra_trt_needs_no_pycuda_which_would_be_compiled() -> None:
    extras = dict(re.findall(r"^([a-z-]+) = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert "cuda-bindings" in extras["trt"]
    assert "pycuda" not in extras["trt"]
    assert "pycuda" in extras["trt-pycuda"]
    assert "visrt[trt]" in extras["trt-pycuda"]
