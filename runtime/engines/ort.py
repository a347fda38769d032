"""ONNX Runtime as an engine: on the CPU, and on CUDA with tensors that stay on the device.

ONNX Runtime falls back to the CPU with only a log line, so the provider that took the graph is compared with the one
that was requested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np

from visrt.runtime.arrays import Array, Feed, HostTensor, Joined, Tensor
from visrt.runtime.bundles.contract import check_feeds
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.engine import HostEngine
from visrt.runtime.engines.gpu_copies import GpuCopies
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.engines.ort_device import Copies, DeviceBuffer, DeviceMemory, DeviceTensor
from visrt.runtime.engines.signature import EngineTensor, dtype_name, signature_faults
from visrt.runtime.errors import EngineError, install_hint, one_line

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["CpuEngine", "CudaEngine", "DeviceTensor"]

_EXTRAS = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "gpu"}
_QUIET = 3

CUDA_SETTINGS = {
    # TF32 rounds float32 to 10 bits, which misses the tolerance of an FP32 bundle.
    "use_tf32": "0",
    # By default cuDNN tries every algorithm for every new shape, so that each batch size stalls once.
    "cudnn_conv_algo_search": "HEURISTIC",
    # By default each growth of the arena is a power of two, of a GPU that others use too.
    "arena_extend_strategy": "kSameAsRequested",
}

DEFAULTS = EngineOptions()


class CpuEngine(HostEngine):
    """One graph on the CPU. Outputs are new host arrays for each call."""

    provider = "CPUExecutionProvider"

    def __init__(self, graph: GraphSpec, model: bytes, options: EngineOptions = DEFAULTS) -> None:
        self._graph = graph
        self._session = _open(graph, model, self.provider, options)
        self._names = [spec.name for spec in graph.outputs.values()]

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self._graph, feeds)
        named = {self._graph.inputs[role].name: _host(tensor) for role, tensor in feeds.items()}
        try:
            outputs = self._session.run(self._names, named)
        except Exception as error:
            raise _failed(self._graph, error) from error
        return {role: HostTensor(array) for role, array in zip(self._graph.outputs, outputs, strict=True)}

    def close(self) -> None:
        del self._session


class CudaEngine:
    """One graph on CUDA through I/O binding: outputs stay on the device until `.numpy()` asks for them."""

    provider = "CUDAExecutionProvider"
    memory = "cuda"

    def __init__(self, graph: GraphSpec, model: bytes, options: EngineOptions = DEFAULTS) -> None:
        self._graph = graph
        self._device = options.device
        self._session = _open(graph, model, self.provider, options)
        self._memory = DeviceMemory(self.memory, self._device, self._open_copies)

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        check_feeds(self._graph, feeds)
        binding = self._session.io_binding()
        # A binding holds addresses: what they belong to must live until the run is over.
        placed = {role: self._placed(feed) for role, feed in feeds.items()}
        for role, tensor in placed.items():
            self._bind_input(binding, self._graph.inputs[role].name, tensor)
        for spec in self._graph.outputs.values():
            binding.bind_output(spec.name, self.memory, self._device)
        try:
            self._session.run_with_iobinding(binding)
            values = binding.get_outputs()
        except Exception as error:
            raise _failed(self._graph, error) from error
        return {role: self._tensor(value) for role, value in zip(self._graph.outputs, values, strict=True)}

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceBuffer:
        return DeviceBuffer(self._memory, shape, np.dtype(dtype))

    def close(self) -> None:
        self._memory.close()
        del self._session

    def _open_copies(self) -> Copies:
        return GpuCopies(self._device)

    def _placed(self, feed: Feed) -> Array | DeviceTensor:
        """On the device what lies there, at least in part; else on the host."""
        if isinstance(feed, DeviceTensor):
            return feed
        if isinstance(feed, Joined) and any(isinstance(row, DeviceTensor) for row in feed.rows):
            return self._memory.joined(feed)
        return _host(feed)

    def _bind_input(self, binding: Any, name: str, tensor: Array | DeviceTensor) -> None:
        if isinstance(tensor, DeviceTensor):
            binding.bind_input(name, self.memory, self._device, tensor.dtype.type, list(tensor.shape), tensor.address)
        else:
            binding.bind_cpu_input(name, tensor)

    def _tensor(self, value: Any) -> DeviceTensor:
        dtype = np.dtype(dtype_name(value.data_type()))
        return DeviceTensor(value, tuple(value.shape()), dtype, f"{self.memory}:{self._device}")


def _host(tensor: Feed) -> Array:
    return np.ascontiguousarray(tensor if isinstance(tensor, np.ndarray) else tensor.numpy())


def _open(graph: GraphSpec, model: bytes, provider: str, options: EngineOptions) -> InferenceSession:
    """An inference session on exactly `provider`, its tensors checked against the manifest."""
    ort = _onnxruntime(provider)
    settings = ort.SessionOptions()
    settings.log_severity_level = _QUIET
    settings.inter_op_num_threads = 1
    # Threads that wait in a loop take the cores from all else: decoding, association, other programs. Measured on two
    # cores: 163 CPU-ms a frame with it, 98 without; with other programs running, half the frames a second.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.intra_op_num_threads = options.threads or 0
    on_cuda = provider == CudaEngine.provider
    chosen = {"device_id": str(options.device), **CUDA_SETTINGS} if on_cuda else {}
    said = _preloaded(getattr(ort, "preload_dlls", None)) if on_cuda else ""
    try:
        session = ort.InferenceSession(model, settings, providers=[(provider, chosen)])
    except Exception as error:
        raise EngineError(f"{graph.file.file}: ONNX Runtime refuses it: {one_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise EngineError(
            f"{provider} was requested but {session.get_providers()[0]} took {graph.file.file}; "
            f"{said or 'its libraries did not load'}: check the GPU's driver (`visrt doctor`), {install_hint('gpu')}, "
            "which brings the libraries of CUDA and cuDNN, or use --engine cpu"
        )
    session.disable_fallback()
    if faults := signature_faults(graph, _tensors(session.get_inputs()), _tensors(session.get_outputs())):
        raise EngineError(f"{graph.file.file} does not fit its manifest: {'; '.join(faults)}; export the bundle again")
    return session


@cache
def _preloaded(preload: Callable[[], None] | None) -> str:
    """Loads the libraries of CUDA and cuDNN that pip installed, once in a process; what ONNX Runtime says of it.

    Without it ONNX Runtime finds only libraries of the system. preload: `onnxruntime.preload_dlls`, of 1.21 or newer.
    """
    if preload is None:
        return "this onnxruntime is older than 1.21 and finds no libraries of CUDA that pip installed"
    said = StringIO()
    try:
        with redirect_stdout(said):
            preload()
    except Exception as error:
        return one_line(error)
    return " ".join(said.getvalue().split())


def _tensors(nodes: list[Any]) -> list[EngineTensor]:
    return [EngineTensor.reported(node.name, node.type, node.shape) for node in nodes]


def _onnxruntime(provider: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"onnxruntime cannot be imported ({error}); {install_hint(_EXTRAS[provider])}") from None
    if provider not in onnxruntime.get_available_providers():
        raise EngineError(
            f"{provider} is not in this onnxruntime, which has {', '.join(onnxruntime.get_available_providers())}; "
            f"pip uninstall onnxruntime and {install_hint(_EXTRAS[provider])}"
        )
    return onnxruntime


def _failed(graph: GraphSpec, error: Exception) -> EngineError:
    return EngineError(f"{graph.file.file}: ONNX Runtime failed while it ran: {one_line(error)}")
