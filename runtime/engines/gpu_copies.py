"""Copies within the memory of a GPU for ONNX Runtime, which copies whole tensors only, through the driver's API."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from visrt.runtime.engines.driver_api import DriverError, call, driver_api
from visrt.runtime.errors import EngineError, install_hint

__all__ = ["GpuCopies", "RowsCopy"]


class RowsCopy(NamedTuple):
    """`rows` pieces of `width` bytes, which begin `source_pitch` bytes apart and come to lie `pitch` bytes apart."""

    target: int
    pitch: int
    source: int
    source_pitch: int
    width: int
    rows: int = 1


class GpuCopies:
    """Copies in the primary context of a GPU, which is the one that ONNX Runtime uses."""

    def __init__(self, device: int) -> None:
        """EngineError without cuda-bindings or without that GPU."""
        try:
            self._driver, self._device = driver_api(), device
        except DriverError as error:
            raise EngineError(
                f"{error}, but this bundle keeps state on the GPU; {install_hint('gpu')}, or use --engine cpu"
            ) from None
        self._call(self._driver.cuInit, 0)
        self._context = self._call(self._driver.cuDevicePrimaryCtxRetain, device)

    def run(self, copies: Iterable[RowsCopy]) -> None:
        """Makes all `copies` and waits for them: ONNX Runtime's own work is on a stream of its own."""
        driver = self._driver
        self._call(driver.cuCtxPushCurrent, self._context)
        try:
            for one in copies:
                copy = driver.CUDA_MEMCPY2D()
                copy.srcMemoryType = copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
                copy.srcDevice, copy.srcPitch = one.source, one.source_pitch
                copy.dstDevice, copy.dstPitch = one.target, one.pitch
                copy.WidthInBytes, copy.Height = one.width, one.rows
                self._call(driver.cuMemcpy2DUnaligned, copy)
            self._call(driver.cuStreamSynchronize, 0)
        finally:
            driver.cuCtxPopCurrent()

    def close(self) -> None:
        self._driver.cuDevicePrimaryCtxRelease(self._device)

    def _call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        try:
            return call(function, *arguments)
        except DriverError as error:
            raise EngineError(
                f"copying state on GPU {self._device}: {error}; open the session again, and if that fails too, restart "
                "the process"
            ) from None
