"""Which engines this machine can run, found without opening one: libraries, providers, and a GPU behind its driver."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Literal

from visrt.runtime.errors import EngineError

__all__ = ["ABSENCE", "gpu_absence"]

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def gpu_absence() -> str:
    """Why there is no GPU to use, by the driver's own account; empty if there is one."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return f"no NVIDIA driver here ({DRIVER} does not load)"
    count = ctypes.c_int(0)
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return f"the NVIDIA driver finds no GPU it can use (error {status})"
    return "" if count.value else "the NVIDIA driver finds no GPU"


def _onnxruntime(provider: str) -> str:
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return f"onnxruntime does not load ({_line(error)})"
    if provider not in onnxruntime.get_available_providers():
        return f"this onnxruntime has no {provider}"
    return ""


def _cpu() -> str:
    return _onnxruntime("CPUExecutionProvider")


def _cuda() -> str:
    return _onnxruntime("CUDAExecutionProvider") or gpu_absence()


def _tensorrt(flavour: Literal["tensorrt", "tensorrt-rtx"]) -> str:
    from visrt.runtime.tensorrt_library import load_tensorrt

    try:
        load_tensorrt(flavour)
    except EngineError as error:
        return str(error)
    return gpu_absence() or _pycuda()


def _pycuda() -> str:
    try:
        import_module("pycuda.driver")
    except (ImportError, OSError) as error:
        return f"pycuda does not load ({_line(error)})"
    return ""


ABSENCE: dict[str, Callable[[], str]] = {
    "cpu": _cpu,
    "cuda": _cuda,
    "tensorrt": lambda: _tensorrt("tensorrt"),
    "tensorrt-rtx": lambda: _tensorrt("tensorrt-rtx"),
}
"""For each engine why this machine cannot run it; empty if it should. A driver that is ill shows when it is opened."""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
