"""From the name of a backend to engines. The backend asked for is the backend used, or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from visrt.runtime.bundle import Bundle
from visrt.runtime.engine import Engine
from visrt.runtime.errors import UsageError
from visrt.runtime.ort import CpuEngine, CudaEngine, OrtOptions
from visrt.runtime.threads import usable_cores

__all__ = ["BACKENDS", "EngineOptions", "open_engines", "threads_of_each"]

Engines = dict[str, Engine]


@dataclass(frozen=True)
class EngineOptions:
    """How engines are opened.

    threads: of one operator on the CPU, None takes all cores. device: index of the GPU. batch: the most frames that
    one call will bring; TensorRT builds for it.
    """

    threads: int | None = None
    device: int = 0
    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1 or self.device < 0:
            raise UsageError(f"{self}: expected a batch of 1 or more and a device of 0 or more")


def threads_of_each(threads: int | None, calls: int) -> int | None:
    """Threads of one call where so many `calls` share `threads`, or all cores."""
    return threads if calls <= 1 else max(1, (threads or usable_cores()) // calls)


def _onnxruntime(start: type[CpuEngine] | type[CudaEngine], bundle: Bundle, options: EngineOptions) -> Engines:
    settings = OrtOptions(options.threads, options.device)
    specs = bundle.manifest.graphs
    return {name: start(spec, bundle.graph(name), settings) for name, spec in specs.items()}


def _tensorrt(bundle: Bundle, options: EngineOptions) -> Engines:
    from visrt.runtime.trt import open_tensorrt

    return open_tensorrt(bundle, "tensorrt", options)


def _tensorrt_rtx(bundle: Bundle, options: EngineOptions) -> Engines:
    from visrt.runtime.trt import open_tensorrt

    return open_tensorrt(bundle, "tensorrt-rtx", options)


BACKENDS: dict[str, Callable[[Bundle, EngineOptions], Engines]] = {
    "cpu": partial(_onnxruntime, CpuEngine),
    "cuda": partial(_onnxruntime, CudaEngine),
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}


def open_engines(bundle: Bundle, backend: str = "cpu", options: EngineOptions | None = None) -> Engines:
    """An engine for each graph of `bundle`, all on one backend, as their tensors go from one to the next."""
    if backend not in BACKENDS:
        raise UsageError(f"engine {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    return BACKENDS[backend](bundle, options or EngineOptions())
