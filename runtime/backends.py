"""From the name of a backend to engines. The backend asked for is the backend used, or an error."""

from __future__ import annotations

from collections.abc import Callable

from visrt.runtime.bundle import Bundle
from visrt.runtime.engine import Engine
from visrt.runtime.errors import UsageError
from visrt.runtime.manifest import GraphSpec
from visrt.runtime.ort import CpuEngine, CudaEngine, OrtOptions

__all__ = ["BACKENDS", "open_engines"]

BACKENDS: dict[str, Callable[[GraphSpec, bytes, OrtOptions], Engine]] = {"cpu": CpuEngine, "cuda": CudaEngine}


def open_engines(bundle: Bundle, backend: str = "cpu", options: OrtOptions | None = None) -> dict[str, Engine]:
    """An engine for each graph of `bundle`, all on one backend, as their tensors go from one to the next."""
    if backend not in BACKENDS:
        raise UsageError(f"engine {backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
    start = BACKENDS[backend]
    specs = bundle.manifest.graphs
    return {name: start(spec, bundle.graph(name), options or OrtOptions()) for name, spec in specs.items()}
