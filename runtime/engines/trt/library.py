"""TensorRT and TensorRT-RTX as one library: imported when it is needed, and only in a supported version."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Literal, get_args

from visrt.runtime.errors import EngineError, one_line

__all__ = ["FLAVOURS", "Flavour", "TensorRt", "cuda_build", "load_tensorrt", "target_absence"]

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
INSTALL: dict[Flavour, str] = {
    "tensorrt": "pip install 'tensorrt>=10.3', or on a Jetson use the TensorRT of its system (JetPack 6)",
    "tensorrt-rtx": "pip install 'tensorrt_rtx_cu13_libs>=1.7' 'tensorrt_rtx_cu13_bindings>=1.7'",
}
OLDEST: dict[Flavour, tuple[tuple[int, int], str]] = {
    "tensorrt": ((10, 3), "as older ones are not strongly typed throughout"),
    "tensorrt-rtx": (
        (1, 7),
        "as older ones take 57 MiB of the host's memory for each convolution of each execution context "
        "(NVIDIA/TensorRT-RTX#39)",
    ),
}
"""Oldest versions in use, and why: TensorRT 10.3 is what JetPack 6 has."""

CUDA_BUILDS = ("cu12", "cu13")
"""Wheels of one version exist for several versions of CUDA."""


@dataclass(frozen=True)
class TensorRt:
    """One of the two libraries. module: its Python bindings; all of TensorRT's names are taken from it."""

    module: Any
    flavour: Flavour
    version: str


def load_tensorrt(flavour: Flavour) -> TensorRt:
    """The library of `flavour`; EngineError if it is not installed, does not load or is too old."""
    module = _imported(flavour)
    version = str(module.__version__)
    oldest, reason = OLDEST[flavour]
    if _major_minor(version) < oldest:
        raise EngineError(
            f"{flavour} is {version}; expected {oldest[0]}.{oldest[1]} or newer, {reason}: {INSTALL[flavour]}"
        )
    return TensorRt(module, flavour, version)


def cuda_build(flavour: Flavour) -> str:
    """The version of CUDA that the installed wheel was made for, as "cu13"; empty where no wheel tells."""
    found = []
    for build in CUDA_BUILDS:
        try:
            distribution(f"{flavour}-{build}-bindings")
        except PackageNotFoundError:
            continue
        found.append(build)
    return "+".join(found)


def target_absence(library: TensorRt, capabilities: Iterable[tuple[int, int]]) -> str:
    """Why `library` can build for none of the GPUs of these compute capabilities; empty if it can for one.

    TensorRT-RTX lists its targets, which leave out the GPUs of data centres; TensorRT has no list.
    """
    if library.flavour == "tensorrt":
        return ""
    targets = [name[2:] for name in library.module.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    found = [f"{major}{minor}" for major, minor in capabilities]
    if set(targets) & set(found):
        return ""
    return (
        f"{library.flavour} {library.version} has no target for compute capability {_dotted(found)}, only for "
        f"{_dotted(targets)}; use --engine tensorrt"
    )


def _dotted(capabilities: Iterable[str]) -> str:
    """ "8.6, 12.0" of "86" and "120"."""
    return ", ".join(f"{name[:-1]}.{name[-1]}" for name in capabilities)


def _imported(flavour: Flavour) -> Any:
    for name in MODULES[flavour]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise _does_not_load(flavour, error) from error
        except (ImportError, OSError, RuntimeError) as error:
            raise _does_not_load(flavour, error) from error
    raise EngineError(f"{flavour} is not installed: {INSTALL[flavour]}; or use --engine cpu")


def _does_not_load(flavour: Flavour, error: Exception) -> EngineError:
    return EngineError(
        f"{flavour} is installed but does not load ({one_line(error)}); install it again: {INSTALL[flavour]}"
    )


def _major_minor(version: str) -> tuple[int, int]:
    """(10, 3) of "10.3.0.26"; what has no such form is older than everything."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)
