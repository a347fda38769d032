"""From the name of a backend to engines. The backend that was named is the one that runs, or there is an error.

Backends are imported when they are opened, so that help texts can name them without loading anything heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from visrt.runtime.engines.diagnostics import onnxruntime_absence, tensorrt_absence
from visrt.runtime.engines.options import EngineOptions, usable_cores
from visrt.runtime.errors import UsageError, VisrtError

if TYPE_CHECKING:
    from visrt.runtime.arrays import Tensors
    from visrt.runtime.bundles.bundle import Bundle
    from visrt.runtime.bundles.manifest import Manifest
    from visrt.runtime.engines.engine import Engine
    from visrt.runtime.engines.trt.library import Flavour

__all__ = [
    "BACKENDS",
    "Backend",
    "OpenEngines",
    "SizedEngines",
    "backend_named",
    "engines_by_size",
    "open_engines",
    "threads_of_each",
]

OpenEngines = Callable[[], "Mapping[str, Engine]"]
"""Opens the engines of a bundle, by graph."""


class SizedEngines(NamedTuple):
    """A bundle at one size of its input: its manifest, its engines by graph or what opens them, its initial states."""

    manifest: Manifest
    engines: Mapping[str, Engine] | OpenEngines
    states: Tensors | None = None


@dataclass(frozen=True)
class Backend:
    """One way to run the graphs of a bundle.

    open: the engines of a bundle by graph. absence: why this machine cannot run it, found without opening an engine;
    empty if it should, as a broken driver shows only when an engine is opened. on_gpu: whether it computes on a GPU,
    where one call with the frames of several streams is fastest; on the CPU it is one call of one frame per core.
    """

    open: Callable[[Bundle, EngineOptions], dict[str, Engine]]
    absence: Callable[[], str]
    on_gpu: bool = True


def threads_of_each(threads: int | None, calls: int) -> int | None:
    """Threads of each of so many `calls` at a time, which share `threads` or all cores."""

    return threads if calls <= 1 else max(1, (threads or usable_cores()) // calls)


def _cpu(bundle: Bundle, options: EngineOptions) -> dict[str, Engine]:
    from visrt.runtime.engines.ort import CpuEngine

    return {name: CpuEngine(graph, bundle.graph(name), options) for name, graph in bundle.manifest.graphs.items()}


def _cuda(bundle: Bundle, options: EngineOptions) -> dict[str, Engine]:
    from visrt.runtime.engines.ort import CudaEngine

    return {name: CudaEngine(graph, bundle.graph(name), options) for name, graph in bundle.manifest.graphs.items()}


def _tensorrt(flavour: Flavour, bundle: Bundle, options: EngineOptions) -> dict[str, Engine]:
    from visrt.runtime.engines.trt.trt import open_tensorrt

    return open_tensorrt(bundle, flavour, options)


BACKENDS = {
    "cpu": Backend(_cpu, partial(onnxruntime_absence, "CPUExecutionProvider"), on_gpu=False),
    "cuda": Backend(_cuda, partial(onnxruntime_absence, "CUDAExecutionProvider")),
    "tensorrt": Backend(partial(_tensorrt, "tensorrt"), partial(tensorrt_absence, "tensorrt")),
    "tensorrt-rtx": Backend(partial(_tensorrt, "tensorrt-rtx"), partial(tensorrt_absence, "tensorrt-rtx")),
}
"""Every backend by the name that users give it."""


def backend_named(name: str) -> Backend:
    """The backend called `name`; UsageError lists the known ones."""
    if name not in BACKENDS:
        raise UsageError(f"engine {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def open_engines(bundle: Bundle, backend: str = "cpu", options: EngineOptions | None = None) -> dict[str, Engine]:
    """An engine for each graph of `bundle`, all on one backend, because their tensors go from one to the next."""
    return backend_named(backend).open(bundle, options or EngineOptions())


def engines_by_size(bundle: Bundle, backend: str, options: EngineOptions) -> list[SizedEngines]:
    """The sizes of `bundle`, the main one first. The engines of an only size are opened now, those of several on first
    use: many streams need one size alone. Raises UsageError if a GPU was chosen for an engine that uses none."""
    from visrt.runtime.bundles.bundle import initial_states

    known = backend_named(backend)
    if options.device and not known.on_gpu:
        gpus = ", ".join(name for name, other in BACKENDS.items() if other.on_gpu)
        raise UsageError(f"device {options.device} was chosen for engine {backend}, which uses no GPU; take {gpus}")
    if not bundle.manifest.other_sizes:
        states = initial_states(bundle)
        return [SizedEngines(bundle.manifest, known.open(bundle, options), states)]
    return [
        SizedEngines(size.manifest, partial(_opened_late, size, known, options), initial_states(size))
        for size in bundle.sizes
    ]


def _opened_late(size: Bundle, backend: Backend, options: EngineOptions) -> dict[str, Engine]:
    try:
        return backend.open(size, options)
    except VisrtError as error:
        height, width = size.manifest.input.height, size.manifest.input.width
        raise type(error)(f"network input of {height}x{width} (height x width): {error}") from error
