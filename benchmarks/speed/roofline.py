"""The speed of an engine in relation to the best the machine can do: the roofline of Williams et al. (CACM 2009).

A graph needs so many multiply-accumulates and must move so many bytes; the machine's best rates for both are measured
with two graphs that do nothing else, by the same library on the same threads. The longer of the two times is the least
a frame can take; its share of the measured time is what is reached.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from visrt.export.counting import count, moved
from visrt.runtime.arrays import Array
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.engines.backends import open_engines
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.parity.verify import closing

__all__ = ["Peak", "Reached", "machine_peak", "reached"]

PRODUCT = 1024
"""Rows and columns of the matrices that are multiplied."""

STREAM = 16 * 2**20
"""Float32 numbers in each array that is streamed: 64 MiB, far beyond any cache."""

REPEATS = 7


@dataclass(frozen=True)
class Peak:
    """The machine's peak: float32 multiply-accumulates and bytes, a second."""

    macs: float
    bytes: float


@dataclass(frozen=True)
class Reached:
    """One graph on one engine: measured_ms, the median of calls for one frame, or for `masks` masks of one.

    macs_ms, bytes_ms: the least by the machine's peaks. fraction: the larger of the two over what was measured.
    """

    graph: str
    macs: int
    least_bytes: int
    unfused_bytes: int
    macs_ms: float
    bytes_ms: float
    measured_ms: float

    @property
    def fraction(self) -> float:
        return max(self.macs_ms, self.bytes_ms) / self.measured_ms


def machine_peak(threads: int | None) -> Peak:
    """Measured with ONNX Runtime on the CPU, on `threads` threads, None for all cores; the best of some runs."""
    side = np.ones((PRODUCT, PRODUCT), np.float32)
    product_s = _best_s(_model("MatMul", ("n", "m"), 2), {"a": side, "b": side}, threads)
    array = np.ones(STREAM, np.float32)
    stream_s = _best_s(_model("Neg", ("n",), 1), {"a": array}, threads)
    return Peak(PRODUCT**3 / product_s, 2 * array.nbytes / stream_s)


def reached(bundle: Bundle, peak: Peak, threads: int | None, repeats: int, masks: int = 10) -> list[Reached]:
    """The frame graph and the masks graph of `bundle` on the CPU, against `peak`."""
    found = []
    measured_s = _graph_seconds(bundle, threads, repeats, masks)
    for graph, seconds in measured_s.items():
        model = onnx.load_model_from_string(bundle.graph(graph))
        macs, bytes_moved = (masks if graph == "masks" else 1) * count(model).macs, moved(model)
        found.append(
            Reached(
                graph,
                macs,
                bytes_moved.least,
                bytes_moved.unfused,
                1e3 * macs / peak.macs,
                1e3 * bytes_moved.least / peak.bytes,
                1e3 * median(seconds),
            )
        )
    return found


def _graph_seconds(bundle: Bundle, threads: int | None, repeats: int, masks: int) -> dict[str, list[float]]:
    """Of calls of each graph, for one frame of noise and `masks` masks of it, after one that warms up."""
    spec = bundle.manifest.input
    images = np.random.default_rng(0).integers(0, 255, (1, *spec.image_size, 3), dtype=np.uint8)
    feeds: dict[str, Array] = {"images": images, "valid_sizes": np.array([[spec.height, spec.width]], np.int32)}
    with closing(open_engines(bundle, "cpu", EngineOptions(threads))) as engines:
        outputs = engines["frame"](feeds)
        features = outputs["mask_features"].row(0)
        embeddings = np.resize(outputs["mask_embeddings"].numpy()[0], (masks, features.shape[0])).astype(features.dtype)
        calls: dict[str, Callable[[], object]] = {
            "frame": lambda: engines["frame"](feeds),
            "masks": lambda: engines["masks"]({"mask_embeddings": embeddings, "mask_features": features}),
        }
        return {graph: [_timed(call) for _ in range(repeats + 1)][1:] for graph, call in calls.items()}


def _model(operator: str, axes: tuple[str, ...], inputs: int) -> onnx.ModelProto:
    names = ["a", "b"][:inputs]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name in (*names, "out")]
    graph = helper.make_graph([helper.make_node(operator, names, ["out"])], "peak", values[:-1], values[-1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def _best_s(model: onnx.ModelProto, feeds: dict[str, Array], threads: int | None) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    out = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(feeds["a"]))
    binding: Any = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    binding.bind_ortvalue_output("out", out)
    return min(_timed(lambda: session.run_with_iobinding(binding)) for _ in range(REPEATS))


def _timed(call: Callable[[], object]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
