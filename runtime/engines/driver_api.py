"""CUDA's driver API through cuda-bindings: its module or why there is none, and its answers as values or exceptions.

cuda-bindings imports on a machine without a driver. It raises only when it is called, where libcuda or a function in
it is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visrt.runtime.errors import one_line

__all__ = ["DriverError", "DriverMemoryError", "call", "driver_api"]


class DriverError(Exception):
    """A call of the driver that failed, or a driver that is not there; the reason in words."""


class DriverMemoryError(DriverError):
    """There is not enough memory, on the GPU or page-locked on the host."""


def driver_api() -> Any:
    """The module cuda.bindings.driver; DriverError where it cannot be imported or finds no driver."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DriverError(f"cuda-bindings cannot be imported ({one_line(error)})") from None
    call(driver.cuDriverGetVersion)
    return driver


def call(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """The value of a driver call, a tuple if there are several; DriverError if the driver answers with an error."""
    try:
        status, *values = function(*arguments)
    except RuntimeError as error:
        # A missing library is a child of RuntimeError too.
        raise DriverError(f"{function.__name__} cannot be called: {one_line(error)}") from None
    if status != 0:
        kind = DriverMemoryError if status.name == "CUDA_ERROR_OUT_OF_MEMORY" else DriverError
        raise kind(f"{function.__name__} failed: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
