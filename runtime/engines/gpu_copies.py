"""Copies within the memory of a GPU for ONNX Runtime, which copies whole tensors only, through the driver's API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

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
            from cuda.bindings import driver
        except ImportError as error:
            raise EngineError(
                f"cuda-bindings cannot be imported ({error}), but this bundle keeps state on the GPU; "
                f"{install_hint('gpu')}, or use --engine cpu"
            ) from None
        self._driver, self._device = driver, device
        self._done("cuInit", driver.cuInit(0))
        self._context = self._done("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(device))

    def run(self, copies: Iterable[RowsCopy]) -> None:
        """Makes all `copies` and waits for them: ONNX Runtime's own work is on a stream of its own."""
        driver = self._driver
        self._done("cuCtxPushCurrent", driver.cuCtxPushCurrent(self._context))
        try:
            for one in copies:
                copy = driver.CUDA_MEMCPY2D()
                copy.srcMemoryType = copy.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
                copy.srcDevice, copy.srcPitch = one.source, one.source_pitch
                copy.dstDevice, copy.dstPitch = one.target, one.pitch
                copy.WidthInBytes, copy.Height = one.width, one.rows
                self._done("cuMemcpy2DUnaligned", driver.cuMemcpy2DUnaligned(copy))
            self._done("cuStreamSynchronize", driver.cuStreamSynchronize(0))
        finally:
            driver.cuCtxPopCurrent()

    def close(self) -> None:
        self._driver.cuDevicePrimaryCtxRelease(self._device)

    def _done(self, what: str, answer: tuple[Any, ...]) -> Any:
        """The value of a driver call, whose answer begins with its error."""
        if answer[0] != self._driver.CUresult.CUDA_SUCCESS:
            raise EngineError(
                f"copying state on GPU {self._device}: {what} failed ({answer[0].name}); open the session again, and "
                "if that fails too, restart the process"
            )
        return answer[1] if len(answer) > 1 else None
