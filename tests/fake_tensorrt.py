"""tensorrt and tensorrt_rtx on a fake GPU: builder, parser, runtime, engine and execution context, as the real ones.

They say no as the real ones do, by None or False and a line in the log. An engine carries its ONNX model, and ONNX
Runtime computes it on the CPU, out of and into the fake GPU's memory and not before someone waits for the stream. A
context that is rebound after a capture makes the graph write rubbish, as what it does is undefined. What the real ones
do not have is called fake_something.

Versions differ where it matters here: 10.x has the FP16 and INT8 builder flags and weak typing, needs the flag
STRONGLY_TYPED and selects a profile for the first context only; 11.x and RTX have none of that; RTX has runtime
configurations and can be asked whether a context can be captured.
"""

from __future__ import annotations

import enum
import hashlib
import json
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from fake_gpu import RUBBISH, CudaFault, Gpu, Operation
from onnx import TensorProto

from visrt.runtime.engines.trt.library import Flavour

__all__ = ["FLAVOURS", "engine_of", "install_tensorrt", "tensorrt_module"]

FLAVOURS: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("10.3.0", "10.13.3.9", "11.1.0"),
    "tensorrt-rtx": ("1.7.1.116",),
}
"""Flavours, and the versions that tests run each in."""

MAGIC = b"FAKETRT1"
WORKSPACE_BYTES = 4096
ADDRESS_ALIGNMENT = 256


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    INT64 = 8


_DTYPES = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.INT8: DataType.INT8,
    TensorProto.INT32: DataType.INT32,
    TensorProto.BOOL: DataType.BOOL,
    TensorProto.UINT8: DataType.UINT8,
    TensorProto.INT64: DataType.INT64,
}
_NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT8: np.int8,
    DataType.INT32: np.int32,
    DataType.BOOL: np.bool_,
    DataType.UINT8: np.uint8,
    DataType.INT64: np.int64,
}


class TensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.Enum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    """Base of every logger; one that forgets `log` is told so when TensorRT speaks."""

    Severity: type[enum.IntEnum] = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None: ...

    def log(self, severity: enum.IntEnum, msg: str) -> None:
        raise NotImplementedError


class Logger(ILogger):
    def __init__(self, min_severity: enum.IntEnum = Severity.WARNING) -> None:
        self.min_severity = min_severity

    def log(self, severity: enum.IntEnum, msg: str) -> None:
        if severity <= self.min_severity:
            print(f"[TRT] {msg}")


class IHostMemory(bytes):
    """What build_serialized_network gives: a buffer."""

    @property
    def nbytes(self) -> int:
        return len(self)


class NetworkDefinitionCreationFlag(enum.Enum):
    EXPLICIT_BATCH = 0
    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    DEBUG = 2
    TF32 = 7
    REQUIRE_USER_ALLOCATION = 25


class BuilderFlag10(enum.Enum):
    FP16 = 0
    INT8 = 1
    DEBUG = 2
    OBEY_PRECISION_CONSTRAINTS = 5
    TF32 = 7


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class ProfilingVerbosity(enum.Enum):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class LayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class HardwareCompatibilityLevel(enum.Enum):
    NONE = 0
    AMPERE_PLUS = 1
    SAME_COMPUTE_CAPABILITY = 2


ComputeCapability = enum.Enum(
    "ComputeCapability", ["NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120", "SM121"]
)
LayerType = enum.Enum(
    "LayerType",
    ["CONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "CAST", "SHUFFLE", "QUANTIZE", "DEQUANTIZE", "ELEMENTWISE"],
)

_LAYERS = {
    "Conv": "CONVOLUTION",
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "Einsum": "EINSUM",
    "Cast": "CAST",
    "Reshape": "SHUFFLE",
    "Transpose": "SHUFFLE",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
}
"""TensorRT's kinds of layers for ONNX operators; all others are told as elementwise."""


class IProgressMonitor:
    def __init__(self) -> None: ...

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError


class ITensor:
    is_shape_tensor = False

    def __init__(self, name: str, dtype: DataType, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self.fake_axes: tuple[int | str, ...] = shape


class ILayer:
    """One ONNX node. Weights are inside the layer, not tensors of their own: their places are None."""

    def __init__(self, node: onnx.NodeProto, tensors: Mapping[str, ITensor]) -> None:
        self.name = node.name or f"/{node.op_type}"
        self.type = LayerType[_LAYERS.get(node.op_type, "ELEMENTWISE")]
        self.metadata = f"[ONNX Layer: {self.name}]"
        self._inputs = [tensors.get(name) for name in node.input]
        self._outputs = [tensors[name] for name in node.output if name in tensors]
        self.num_inputs, self.num_outputs = len(self._inputs), len(self._outputs)

    def get_input(self, index: int) -> ITensor | None:
        return self._inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[index]

    def get_output_type(self, index: int) -> DataType:
        return self._outputs[index].dtype


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.fake_model = b""
        self.fake_inputs: list[ITensor] = []
        self.fake_outputs: list[ITensor] = []
        self.fake_layers: list[ILayer] = []
        self.name = ""

    def get_flag(self, flag: NetworkDefinitionCreationFlag) -> bool:
        return bool(self.flags & 1 << flag.value)

    @property
    def num_inputs(self) -> int:
        return len(self.fake_inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.fake_outputs)

    @property
    def num_layers(self) -> int:
        return len(self.fake_layers)

    def get_input(self, index: int) -> ITensor:
        return self.fake_inputs[index]

    def get_output(self, index: int) -> ITensor:
        return self.fake_outputs[index]

    def get_layer(self, index: int) -> ILayer:
        return self.fake_layers[index]


class ParserError:
    def __init__(self, text: str, node: onnx.NodeProto | None = None) -> None:
        self._text, self._node = text, node or onnx.NodeProto()

    def desc(self) -> str:
        return self._text

    def node_name(self) -> str:
        return str(self._node.name)

    def node_operator(self) -> str:
        return str(self._node.op_type)


class OnnxParser:
    """Of TensorRT 10 and 11, where no layer but a conversion to floating point reads uint8."""

    takes_uint8 = False

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._logger = network, logger
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            loaded = onnx.load_from_string(bytes(model))
            onnx.checker.check_model(loaded)
            inferred = onnx.shape_inference.infer_shapes(loaded)
        except Exception as error:
            self._errors.append(ParserError(f"Failed to parse ONNX model: {error}"))
            self._logger.log(Severity.ERROR, f"ModelImporter: {error}")
            return False
        graph, network = inferred.graph, self._network
        if not self.takes_uint8 and (refused := _uint8_readers(graph)):
            self._errors.append(ParserError("All UINT8 inputs must directly feed into a cast layer", refused[0]))
            self._logger.log(Severity.ERROR, f"ModelImporter: While parsing node {refused[0].name}: UINT8 is refused")
            return False
        tensors = {value.name: _tensor(value) for value in [*graph.value_info, *graph.input, *graph.output]}
        network.fake_model = bytes(model)
        network.fake_inputs = [tensors[value.name] for value in graph.input]
        network.fake_outputs = [tensors[value.name] for value in graph.output]
        network.fake_layers = [ILayer(node, tensors) for node in graph.node]
        return True


class OnnxParserOfRtx(OnnxParser):
    takes_uint8 = True


def _uint8_readers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that read uint8 and do not convert it to float32 or float16."""
    narrow = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    return [
        node
        for node in graph.node
        if narrow & {*node.input}
        and not (node.op_type == "Cast" and any(a.name == "to" and a.i in floats for a in node.attribute))
    ]


def _tensor(value: onnx.ValueInfoProto) -> ITensor:
    kind = value.type.tensor_type
    axes = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in kind.shape.dim)
    shape = tuple(-1 if isinstance(axis, str) else axis for axis in axes)
    tensor = ITensor(value.name, _DTYPES.get(kind.elem_type, DataType.FLOAT), shape)
    tensor.fake_axes = axes
    return tensor


class IOptimizationProfile:
    def __init__(self) -> None:
        self.fake_shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        shapes = tuple(min), tuple(opt), tuple(max)
        if not all(a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise ValueError(f"Dimensions are not consistent for {input}")
        self.fake_shapes[input] = shapes

    def get_shape(self, input: str) -> list[tuple[int, ...]]:
        return list(self.fake_shapes[input])


class ITimingCache:
    def serialize(self) -> IHostMemory:
        return IHostMemory(b"timings")


class IBuilderConfig:
    def __init__(self) -> None:
        self.fake_profiles: list[IOptimizationProfile] = []
        self.fake_raised: set[Any] = set()
        self.fake_pools: dict[MemoryPoolType, int] = {}
        self.fake_capabilities: dict[int, Any] = {}
        self.num_compute_capabilities = 0
        self.progress_monitor: IProgressMonitor | None = None
        self.profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE
        self.max_aux_streams = 0

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.fake_profiles.append(profile)
        return len(self.fake_profiles) - 1

    def set_flag(self, flag: Any) -> None:
        self.fake_raised.add(flag)

    def get_flag(self, flag: Any) -> bool:
        return flag in self.fake_raised

    def clear_flag(self, flag: Any) -> None:
        self.fake_raised.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.fake_pools[pool] = pool_size

    def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
        self.fake_capabilities[index] = compute_capability
        return index < self.num_compute_capabilities

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache()

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        return True

    def get_timing_cache(self) -> ITimingCache:
        return ITimingCache()


class Builder:
    """Gives engines for the GPU that is here, and logs what the fake GPU's faults say, as good builds do too."""

    def __init__(self, gpu: Gpu, identity: str, logger: ILogger) -> None:
        self._gpu, self._identity, self.logger = gpu, identity, logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None:
        self._gpu.counts["builds"] += 1
        for severity, texts in (
            (Severity.WARNING, self._gpu.faults.build_warnings),
            (Severity.ERROR, self._gpu.faults.build_errors),
        ):
            for text in texts:
                self.logger.log(severity, text)
        capabilities = self.fake_capabilities(config)
        if unknown := [one for one in capabilities if not self.fake_builds_for(one)]:
            self.logger.log(Severity.ERROR, f"IBuilder::buildSerializedNetwork: no kernels for {unknown[0]}")
            return None
        shapes = config.fake_profiles[0].fake_shapes if config.fake_profiles else {}
        dynamic = [tensor.name for tensor in network.fake_inputs if -1 in tensor.shape]
        if any(name not in shapes for name in dynamic):
            self.logger.log(Severity.ERROR, "Network has dynamic or shape inputs, but no optimization profile")
            return None
        if self._gpu.faults.strikes("build"):
            self.logger.log(Severity.ERROR, "Error Code 10: Internal Error (Could not find any implementation)")
            return None
        if (monitor := config.progress_monitor) is not None:
            monitor.phase_start("Building Engine", None, 2)
            going_on = all(monitor.step_complete("Building Engine", step) for step in range(2))
            monitor.phase_finish("Building Engine")
            if not going_on:
                return None
        detailed = config.profiling_verbosity is ProfilingVerbosity.DETAILED
        return IHostMemory(
            engine_of(self._gpu, self._identity, network.fake_model, shapes, capabilities, detailed=detailed)
        )

    def fake_capabilities(self, config: IBuilderConfig) -> list[tuple[int, int]]:
        """What the engine is for."""
        return [self._gpu.capability]

    def fake_builds_for(self, capability: tuple[int, int]) -> bool:
        return True


class BuilderOfRtx(Builder):
    """Its configuration takes CURRENT without looking at the GPU; the build ends where it has no kernels for it."""

    def fake_capabilities(self, config: IBuilderConfig) -> list[tuple[int, int]]:
        chosen = [config.fake_capabilities[index].name for index in range(config.num_compute_capabilities)]
        named = [(int(name[2:-1]), int(name[-1])) for name in chosen if name.startswith("SM")]
        return named or [self._gpu.capability]

    def fake_builds_for(self, capability: tuple[int, int]) -> bool:
        return f"SM{capability[0]}{capability[1]}" in ComputeCapability.__members__


def engine_of(
    gpu: Gpu,
    identity: str,
    model: bytes,
    shapes: Mapping[str, tuple[tuple[int, ...], ...]],
    capabilities: Sequence[tuple[int, int]] = (),
    *,
    detailed: bool = True,
) -> bytes:
    """A serialised engine of `model`, for this GPU or for `capabilities`.

    shapes: least, usual and largest of each dynamic input. detailed: whether its inspector knows types of layers.
    """
    given = {"identity": identity, "capabilities": list(capabilities) or [gpu.capability], "shapes": shapes}
    head = json.dumps({**given, "detailed": detailed}).encode()
    body = len(head).to_bytes(4, "little") + head + model
    return MAGIC + hashlib.sha256(body).digest() + body


class Runtime:
    def __init__(self, gpu: Gpu, identity: str, logger: ILogger) -> None:
        self._gpu, self._identity, self._logger = gpu, identity, logger
        self.fake_identity = identity
        self.fake_engine_class = ICudaEngine
        gpu.objects.add(self)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        data = bytes(serialized_engine)
        start = len(MAGIC) + 32
        if data[: len(MAGIC)] != MAGIC or hashlib.sha256(data[start:]).digest() != data[len(MAGIC) : start]:
            return self._none("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magicTag mismatch)")
        size = int.from_bytes(data[start : start + 4], "little")
        head = json.loads(data[start + 4 : start + 4 + size])
        if head["identity"] != self._identity:
            return self._none(f"The engine plan file is not compatible: {head['identity']}, not {self._identity}")
        if list(self._gpu.capability) not in head["capabilities"]:
            return self._none("The engine plan file was generated on an incompatible device")
        if self._gpu.faults.strikes("deserialize"):
            return self._none("Error Code 4: Internal Error (Engine deserialization failed.)")
        if self._gpu.faults.strikes("deserialize_memory"):
            return self._none("Error Code 2: OutOfMemory (Requested size was 1000 bytes.)")
        engine = self.fake_engine_class(self, self._gpu, self._logger, data[start + 4 + size :], head["shapes"])
        engine.fake_detailed = head["detailed"]
        return engine

    def _none(self, why: str) -> ICudaEngine | None:
        self._logger.log(Severity.ERROR, why)
        return None


class IRuntimeCache:
    """Which engines have been compiled; what another version or GPU wrote is refused."""

    def __init__(self, identity: str, gpu: Gpu) -> None:
        self._origin = f"{identity} on {gpu.capability}"
        self.fake_compiled: set[str] = set()

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps([self._origin, sorted(self.fake_compiled)]).encode())

    def deserialize(self, blob: bytes) -> bool:
        origin, compiled = json.loads(bytes(blob))
        if origin == self._origin:
            self.fake_compiled |= set(compiled)
        return bool(origin == self._origin)

    def reset(self) -> bool:
        self.fake_compiled.clear()
        return True


class IRuntimeConfig:
    def __init__(self, engine: ICudaEngine) -> None:
        self._origin = engine.fake_runtime.fake_identity, engine.fake_gpu
        self.fake_strategy = ExecutionContextAllocationStrategy.STATIC
        self.fake_cache: IRuntimeCache | None = None
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self.fake_strategy = strategy

    def get_execution_context_allocation_strategy(self) -> ExecutionContextAllocationStrategy:
        return self.fake_strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache(*self._origin)

    def set_runtime_cache(self, cache: IRuntimeCache | None = None) -> bool:
        self.fake_cache = cache
        return True


class ICudaEngine:
    """Knows its tensors; keeps what it was deserialised by alive, as the real one does."""

    num_optimization_profiles = 1
    num_aux_streams = 0
    name = "Unnamed Network 0"

    def __init__(self, runtime: Runtime, gpu: Gpu, logger: ILogger, model: bytes, shapes: Mapping[str, Any]) -> None:
        self.fake_runtime, self.fake_gpu, self.fake_logger = runtime, gpu, logger
        graph = onnx.load_from_string(model).graph
        self.fake_tensors: dict[str, ITensor] = {value.name: _tensor(value) for value in [*graph.input, *graph.output]}
        self.fake_inputs = {value.name for value in graph.input}
        self.fake_shapes = {name: [tuple(shape) for shape in given] for name, given in shapes.items()}
        self.fake_contexts = 0
        self.fake_layers = [ILayer(node, {}) for node in graph.node]
        self.fake_detailed = True
        self.fake_digest = hashlib.sha256(model).hexdigest()
        self.num_layers = len(graph.node)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = settings.inter_op_num_threads = 1
        self.fake_session = onnxruntime.InferenceSession(model, settings, ["CPUExecutionProvider"])
        gpu.objects.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self.fake_tensors)

    @property
    def device_memory_size_v2(self) -> int:
        return WORKSPACE_BYTES

    def get_tensor_name(self, index: int) -> str:
        return list(self.fake_tensors)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        if name not in self.fake_tensors:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if name in self.fake_inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self.fake_tensors[name].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.fake_tensors[name].shape

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return self.fake_shapes.get(name) or [self.fake_tensors[name].shape] * 3

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> Any:
        if self.fake_gpu.faults.strikes("context"):
            self.fake_logger.log(Severity.ERROR, "Error Code 2: OutOfMemory (Requested size was 1000 bytes.)")
            return None
        kind = strategy.fake_strategy if isinstance(strategy, IRuntimeConfig) else strategy
        assert kind is ExecutionContextAllocationStrategy.USER_MANAGED, "each context would allocate a workspace"
        if isinstance(strategy, IRuntimeConfig) and strategy.fake_cache is not None:
            if self.fake_digest not in strategy.fake_cache.fake_compiled:
                self.fake_gpu.counts["compiled"] += 1
            strategy.fake_cache.fake_compiled.add(self.fake_digest)
        self.fake_contexts += 1
        return self.fake_context_class(self)

    fake_context_class: type[IExecutionContext]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self)


class EngineInspector:
    """Names of layers, and what they are where the engine was built with the verbosity DETAILED."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine

    def get_layer_information(self, layer_index: int, format: LayerInformationFormat) -> str:
        layer = self._engine.fake_layers[layer_index]
        told: Any = {"Name": layer.name, "LayerType": layer.type.name} if self._engine.fake_detailed else layer.name
        return json.dumps(told) if format is LayerInformationFormat.JSON else str(told)

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        layers = [json.loads(self.get_layer_information(index, format)) for index in range(self._engine.num_layers)]
        return json.dumps({"Layers": layers})


class IExecutionContext:
    later_profile = 0
    """The profile of all contexts but the first."""

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine = engine
        self.active_optimization_profile = 0 if engine.fake_contexts == 1 else self.later_profile
        self._gpu = engine.fake_gpu
        self._shapes = {
            n: engine.fake_tensors[n].shape for n in engine.fake_inputs if -1 not in engine.fake_tensors[n].shape
        }
        self._addresses: dict[str, int] = {}
        self._workspace = (0, 0)
        self._changes = 0
        self._flushed = -1
        self._gpu.objects.add(self)
        self._gpu.contexts.add(self)
        self._gpu.counts["contexts"] += 1

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._gpu.stream(stream_handle)
        if profile_index:
            return self._no(f"Profile {profile_index} is not in range")
        self._changed("active_optimization_profile", profile_index)
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        if size < WORKSPACE_BYTES or memory % ADDRESS_ALIGNMENT or not self._gpu.holds(memory, size):
            self._no(f"setDeviceMemoryV2: {size} bytes at {memory:#x} cannot serve")
            return
        self._changed("_workspace", (memory, size))

    def set_input_shape(self, name: str, shape: tuple[int, ...] | list[int]) -> bool:
        if name not in self.engine.fake_inputs or self.active_optimization_profile != 0:
            return self._no(f"setInputShape: no input {name} in profile {self.active_optimization_profile}")
        least, _, most = self.engine.get_tensor_profile_shape(name, 0)
        sizes = tuple(shape)
        fits = len(sizes) == len(least) and all(a <= b <= c for a, b, c in zip(least, sizes, most, strict=True))
        if not fits or self._gpu.faults.strikes("input_shape"):
            return self._no(f"setInputShape: {name} {sizes} does not satisfy the profile {least} to {most}")
        self._changed("_shapes", {**self._shapes, name: sizes})
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, self.engine.fake_tensors[name].shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        known = name in self.engine.fake_tensors
        if not known or memory % ADDRESS_ALIGNMENT or self._gpu.faults.strikes("tensor_address"):
            return self._no(f"setTensorAddress: {memory:#x} for {name}; expected a tensor and 256-byte alignment")
        self._changed("_addresses", {**self._addresses, name: memory})
        return True

    def get_tensor_address(self, name: str) -> int:
        return self._addresses.get(name, 0)

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.fake_inputs if name not in self._shapes]

    def execute_async_v3(self, stream_handle: int) -> bool:
        if (fault := self._unready()) is not None or self._gpu.faults.strikes("execution"):
            return self._no(f"IExecutionContext::enqueueV3: Error Code 1: {fault or 'Cuda Runtime (unspecified)'}")
        stream = self._gpu.stream(stream_handle)
        if stream.capture is not None and self._flushed != self._changes:
            stream.broken = True
            return self._no("enqueueV3: shapes changed since the last run, which cannot be captured")
        self._gpu.counts["enqueued"] += 1
        self._flushed = self._changes
        self._gpu.enqueue(
            stream,
            Operation(
                f"execute {self._told()}",
                self._work(stream.capture is not None),
                self._gpu.costs.kernels(self._shapes),
                workspace=self._workspace,
                spoil=partial(_spoil, self._gpu, self._outputs()),
            ),
        )
        return True

    def _told(self) -> str:
        return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(self._shapes.items()))

    def _unready(self) -> str | None:
        """What is missing to run, in words."""
        if missing := self.infer_shapes():
            return f"no shape for {missing}"
        if self._workspace == (0, 0):
            return "no device memory was set"
        outputs = self._output_shapes()
        for name, tensor in self.engine.fake_tensors.items():
            shape = self._shapes.get(name) or outputs[name]
            size = int(np.prod(shape)) * np.dtype(_NUMPY[tensor.dtype]).itemsize
            if not self._gpu.holds(self._addresses.get(name, 0), size):
                return f"{name}: no {size} bytes at {self._addresses.get(name, 0):#x}"
        return None

    def _output_shapes(self) -> dict[str, tuple[int, ...]]:
        """A dynamic axis of an output is as long as the axis of an input with its symbol."""
        tensors = self.engine.fake_tensors
        sizes = {
            symbol: size
            for name, shape in self._shapes.items()
            for symbol, size in zip(tensors[name].fake_axes, shape, strict=True)
        }
        return {
            name: tuple(sizes[axis] if isinstance(axis, str) else axis for axis in tensors[name].fake_axes)
            for name in tensors
            if name not in self.engine.fake_inputs
        }

    def _work(self, captured: bool) -> Callable[[], None]:
        """The execution with what is bound now. It holds no reference: who lets the context go early sees rubbish."""
        return partial(
            _execute,
            weakref.ref(self),
            self._gpu,
            {name: (self._addresses[name], shape) for name, shape in self._shapes.items()},
            self._outputs(),
            self._workspace,
            self._changes if captured else None,
        )

    def _outputs(self) -> Bound:
        return {name: (self._addresses[name], shape) for name, shape in self._output_shapes().items()}

    def _changed(self, what: str, value: Any) -> None:
        if getattr(self, what) != value:
            setattr(self, what, value)
            self._changes += 1

    def _no(self, why: str) -> bool:
        self.engine.fake_logger.log(Severity.ERROR, why)
        return False


class ContextOf10(IExecutionContext):
    later_profile = -1


class ContextOfRtx(IExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        return not self._gpu.faults.not_capturable


Bound = Mapping[str, tuple[int, tuple[int, ...]]]


def _execute(
    held: weakref.ref[IExecutionContext],
    gpu: Gpu,
    inputs: Bound,
    outputs: Bound,
    workspace: tuple[int, int],
    changes: int | None,
) -> None:
    """Reads inputs and writes outputs on the device; `changes` is the state a captured context must still have."""
    context = held()
    if gpu.faults.strikes("kernel"):
        raise CudaFault("CUDA_ERROR_ILLEGAL_ADDRESS")
    gpu.counts["executions"] += 1
    gpu.view(*workspace)[:] = RUBBISH
    sound = context is not None and changes in (None, context._changes)
    results: dict[str, Any] = {}
    if context is not None and sound:
        dtypes = {name: _NUMPY[tensor.dtype] for name, tensor in context.engine.fake_tensors.items()}
        feeds = {name: _array(gpu, *bound, dtypes[name]).copy() for name, bound in inputs.items()}
        results = dict(zip(outputs, context.engine.fake_session.run(list(outputs), feeds), strict=True))
    for name, (address, shape) in outputs.items():
        if name in results:
            _array(gpu, address, shape, results[name].dtype)[...] = results[name]
        else:
            gpu.view(address, int(np.prod(shape)))[:] = RUBBISH


def _spoil(gpu: Gpu, outputs: Bound) -> None:
    """Rubbish in place of all outputs."""
    for address, shape in outputs.values():
        gpu.view(address, int(np.prod(shape)))[:] = RUBBISH


def _array(gpu: Gpu, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return gpu.view(address, size).view(dtype).reshape(shape)


PUBLIC: tuple[type, ...] = (
    *(DataType, TensorIOMode, ExecutionContextAllocationStrategy, MemoryPoolType, ProfilingVerbosity),
    *(LayerInformationFormat, HardwareCompatibilityLevel, LayerType, NetworkDefinitionCreationFlag),
    *(ILogger, Logger, IHostMemory, IProgressMonitor, IOptimizationProfile, IBuilderConfig),
    *(INetworkDefinition, ILayer, ITensor),
)
"""What is the same in every flavour and version."""


def tensorrt_module(gpu: Gpu, flavour: str, version: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx` of `version`, its engines for `gpu`."""
    module: Any = ModuleType(flavour.replace("-", "_"))
    module.__version__ = version
    identity = f"{flavour} {version}"
    rtx, ten = flavour == "tensorrt-rtx", version.startswith("10.")
    for kind in PUBLIC:
        setattr(module, kind.__name__, kind)
    module.BuilderFlag = BuilderFlag10 if ten else BuilderFlag
    module.OnnxParser = OnnxParserOfRtx if rtx else OnnxParser
    if rtx:
        module.ComputeCapability = ComputeCapability
        module.DynamicShapesKernelSpecializationStrategy = DynamicShapesKernelSpecializationStrategy
    context = ContextOfRtx if rtx else ContextOf10 if ten else IExecutionContext
    module.IExecutionContext = context
    module.ICudaEngine = type("ICudaEngine", (ICudaEngine,), {"fake_context_class": context})
    module.Builder = partial(BuilderOfRtx if rtx else Builder, gpu, identity)
    module.Runtime = partial(_runtime, module.ICudaEngine, gpu, identity)
    return module


def _runtime(engine_class: type[ICudaEngine], gpu: Gpu, identity: str, logger: ILogger) -> Runtime:
    if gpu.faults.strikes("runtime"):
        raise TypeError("pybind11::init(): factory function returned nullptr")
    # In static memory, from its first use to the end of the process.
    gpu.static_epoch = gpu.epoch if gpu.static_epoch is None else gpu.static_epoch
    if gpu.static_epoch != gpu.epoch:
        logger.log(Severity.ERROR, "Error Code 1: Cuda Runtime (context is destroyed)")
        raise TypeError("pybind11::init(): factory function returned nullptr")
    runtime = Runtime(gpu, identity, logger)
    runtime.fake_engine_class = engine_class
    return runtime


def install_tensorrt(monkeypatch: pytest.MonkeyPatch, gpu: Gpu, flavour: str, version: str) -> Any:
    """Makes `import tensorrt` or `import tensorrt_rtx` find the fake, and returns it."""
    module = tensorrt_module(gpu, flavour, version)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module
