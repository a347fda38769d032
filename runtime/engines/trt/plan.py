"""A deserialised TensorRT engine: checked against the manifest, it gives execution contexts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from operator import gt, lt
from typing import Any

from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.signature import EngineTensor, signature_faults
from visrt.runtime.errors import EngineError

__all__ = ["Kernels", "Plan"]

PROFILE = 0
"""Engines are built with one optimisation profile."""


@dataclass(frozen=True)
class Kernels:
    """What TensorRT-RTX compiled for an engine in earlier runs, and what keeps that of this one."""

    known: bytes
    keep: Callable[[bytes], None]


class Plan:
    """One engine of TensorRT or TensorRT-RTX. workspace_bytes: scratch memory of an execution."""

    def __init__(
        self,
        module: Any,
        engine: Any,
        graph: GraphSpec,
        largest: Mapping[str, int],
        kernels: Kernels | None = None,
    ) -> None:
        """`kernels`: of TensorRT-RTX, which compiles where it runs.

        Raises EngineError with all differences unless `engine` computes `graph`, for sizes from 1 to `largest`.
        """
        if faults := _differences(module, engine, graph, largest):
            raise EngineError(
                f"the engine of {graph.file.file} does not fit its manifest: {'; '.join(faults)}; delete it from the "
                "engine cache, and if that does not help export the bundle again"
            )
        self._engine, self._kernels = engine, kernels
        self._compiled: Any = None
        self._choice = self._context_choice(module)
        self.workspace_bytes = int(engine.device_memory_size_v2)

    def context(self) -> Any:
        """A new execution context without a workspace; None if TensorRT has not enough memory for one."""
        return self._engine.create_execution_context(self._choice)

    def close(self) -> None:
        """Keeps what was compiled. TensorRT frees an engine with its last reference."""
        compiled, self._compiled = self._compiled, None
        if compiled is not None and self._kernels is not None:
            kernels = compiled.serialize()
            if kernels is not None and len(data := bytes(kernels)) > len(self._kernels.known):
                self._kernels.keep(data)
        self._choice = self._engine = None

    def _context_choice(self, module: Any) -> Any:
        """Makes contexts take their workspace from us, because all contexts of a bundle share one.

        TensorRT-RTX compiles kernels on the GPU that it runs on. With a cache shared by all contexts it compiles each
        once, and with that of an earlier run not even that; one that it refuses is replaced. The eager strategy
        compiles before a shape's first call ends, so that a CUDA graph holds the final kernels.
        """
        strategy = module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
            return strategy
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        self._compiled = config.create_runtime_cache()
        if self._kernels is not None and self._kernels.known and not self._compiled.deserialize(self._kernels.known):
            self._kernels = replace(self._kernels, known=b"")
        config.set_runtime_cache(self._compiled)
        config.dynamic_shapes_kernel_specialization_strategy = module.DynamicShapesKernelSpecializationStrategy.EAGER
        return config


def _differences(module: Any, engine: Any, graph: GraphSpec, largest: Mapping[str, int]) -> list[str]:
    inputs: list[EngineTensor] = []
    outputs: list[EngineTensor] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        side = inputs if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT else outputs
        side.append(EngineTensor.reported(name, engine.get_tensor_dtype(name).name, engine.get_tensor_shape(name)))
    return signature_faults(graph, inputs, outputs) or _profile_faults(engine, graph, largest)


def _profile_faults(engine: Any, graph: GraphSpec, largest: Mapping[str, int]) -> list[str]:
    """Inputs whose sizes from 1 to `largest` the engine was not built for."""
    faults = []
    for spec in graph.inputs.values():
        if all(isinstance(axis, int) for axis in spec.shape):
            continue
        smallest, _, most = (tuple(shape) for shape in engine.get_tensor_profile_shape(spec.name, PROFILE))
        low = tuple(1 if isinstance(axis, str) else axis for axis in spec.shape)
        high = tuple(largest[axis] if isinstance(axis, str) else axis for axis in spec.shape)
        if any(map(gt, smallest, low)) or any(map(lt, most, high)):
            faults.append(f"input {spec.name!r}: built for {smallest} to {most}, needed are {low} to {high}")
    return faults
