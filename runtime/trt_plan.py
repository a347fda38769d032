"""A deserialised TensorRT engine: whether it is the graph of the manifest, and execution contexts of it.

TensorRT says no by returning None or False and writing to its log; here each no is an error that carries the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from visrt.runtime.errors import EngineError
from visrt.runtime.manifest import GraphSpec, TensorSpec

__all__ = ["Plan"]

_DTYPES = {
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "HALF": "float16",
    "FLOAT": "float32",
    "BOOL": "bool",
}
DYNAMIC = -1
PROFILE = 0
"""Engines are built with one optimisation profile."""


class Plan:
    """One engine of TensorRT or TensorRT-RTX. workspace_bytes: what a run needs beside its inputs and outputs."""

    def __init__(self, module: Any, engine: Any, graph: GraphSpec, largest: Mapping[str, int]) -> None:
        """EngineError that lists all differences unless `engine` is `graph`, for sizes from 1 to `largest`."""
        if faults := _differences(module, engine, graph, largest):
            raise EngineError(
                f"the engine of {graph.file.file} does not fit its manifest: {'; '.join(faults)}; delete it from the "
                "engine cache, and if that does not help export the bundle again"
            )
        self._engine = engine
        self._choice = _context_choice(module, engine)
        self.workspace_bytes = int(engine.device_memory_size_v2)

    def context(self) -> Any:
        """A new execution context, whose workspace is given to it; None if TensorRT refuses, for want of memory."""
        return self._engine.create_execution_context(self._choice)

    def close(self) -> None:
        """TensorRT frees an engine with its last reference."""
        self._choice = self._engine = None


def _context_choice(module: Any, engine: Any) -> Any:
    """How contexts get their workspace: from us, as all contexts of a bundle share one.

    TensorRT-RTX compiles kernels on the GPU it meets. A cache shared by all contexts makes that once for each, and
    the eager strategy makes it before a shape's first run ends, so that a CUDA graph holds the final kernels.
    """
    strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
    if not hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
        return strategy
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    config.set_runtime_cache(config.create_runtime_cache())
    config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
    return config


def _differences(module: Any, engine: Any, graph: GraphSpec, largest: Mapping[str, int]) -> list[str]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT}
    faults = _tensor_faults("input", engine, graph.inputs.values(), [name for name in names if name in inputs])
    faults += _tensor_faults("output", engine, graph.outputs.values(), [name for name in names if name not in inputs])
    return faults or _profile_faults(engine, graph, largest)


def _tensor_faults(side: str, engine: Any, specs: Iterable[TensorSpec], names: list[str]) -> list[str]:
    expected = {spec.name: spec for spec in specs}
    faults = [f"{side} {name!r} is not in it, it has {', '.join(names)}" for name in expected if name not in names]
    for name in names:
        dtype, shape = _DTYPES.get(engine.get_tensor_dtype(name).name, "?"), tuple(engine.get_tensor_shape(name))
        if name not in expected:
            faults.append(f"{side} {name!r} is in it but not in the manifest")
        elif (dtype, shape) != (expected[name].dtype, _with_dynamic(expected[name])):
            wanted = _told(expected[name].dtype, _with_dynamic(expected[name]))
            faults.append(f"{side} {name!r}: expected {wanted}, found {_told(dtype, shape)}")
    return faults


def _profile_faults(engine: Any, graph: GraphSpec, largest: Mapping[str, int]) -> list[str]:
    """Inputs whose sizes from 1 to `largest` the engine was not built for."""
    faults = []
    for spec in graph.inputs.values():
        if DYNAMIC not in _with_dynamic(spec):
            continue
        smallest, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, PROFILE))
        wanted = tuple(largest[axis] if isinstance(axis, str) else axis for axis in spec.shape)
        least = tuple(1 if isinstance(axis, str) else axis for axis in spec.shape)
        if any(a > b for a, b in zip(smallest, least, strict=True)) or any(
            a < b for a, b in zip(most, wanted, strict=True)
        ):
            faults.append(f"input {spec.name!r}: built for {smallest} to {most}, needed are {least} to {wanted}")
    return faults


def _with_dynamic(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else DYNAMIC for axis in spec.shape)


def _told(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} [{', '.join('?' if axis == DYNAMIC else str(axis) for axis in shape)}]"
