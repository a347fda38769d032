"""The GPUs of this machine as NVIDIA's driver lists them, by no package: none is opened.

The driver numbers the GPUs that CUDA_VISIBLE_DEVICES shows, in CUDA's order. nvidia-smi numbers all, by their place on
the bus.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any
from uuid import UUID

__all__ = ["gpu_absence", "gpu_capabilities", "gpu_uuid"]

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


class _NoGpuError(Exception):
    """Why there is no usable GPU."""


def gpu_absence() -> str:
    """Why there is no usable GPU, by the driver's own account; empty if there is one."""
    try:
        _driver()
    except _NoGpuError as error:
        return str(error)
    return ""


def gpu_capabilities() -> list[tuple[int, int]]:
    """The compute capability of each GPU, (8, 6); empty without one."""
    try:
        driver, count = _driver()
        return [
            (_attribute(driver, i, CAPABILITY_MAJOR), _attribute(driver, i, CAPABILITY_MINOR)) for i in range(count)
        ]
    except _NoGpuError:
        return []


def gpu_uuid(device: int) -> str | None:
    """The UUID of a GPU, by which nvidia-smi knows it too; None if there is no such GPU.

    Of a part of a GPU (MIG) it is the part's own, for which nvidia-smi tells no memory.
    """
    try:
        driver, count = _driver()
        if device >= count:
            return None
        # The first version of the call tells of a part the UUID of the whole card.
        found = (ctypes.c_ubyte * 16)()
        ask = getattr(driver, "cuDeviceGetUuid_v2", None) or driver.cuDeviceGetUuid
        _done("cuDeviceGetUuid", ask(found, _handle(driver, device)))
    except _NoGpuError:
        return None
    return f"GPU-{UUID(bytes=bytes(found))}"


def _driver() -> tuple[Any, int]:
    """The driver, ready to be asked, and how many GPUs it has: one or more."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise _NoGpuError(f"no NVIDIA driver here ({DRIVER} does not load)") from None
    count = ctypes.c_int(0)
    if status := driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        raise _NoGpuError(f"the NVIDIA driver finds no GPU it can use (error {status})")
    if not count.value:
        raise _NoGpuError("the NVIDIA driver finds no GPU")
    return driver, count.value


def _attribute(driver: Any, device: int, attribute: int) -> int:
    value = ctypes.c_int(0)
    _done("cuDeviceGetAttribute", driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, _handle(driver, device)))
    return value.value


def _handle(driver: Any, device: int) -> int:
    handle = ctypes.c_int(0)
    _done("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(handle), device))
    return handle.value


def _done(what: str, status: int) -> None:
    if status:
        raise _NoGpuError(f"{what} failed (error {status})")
