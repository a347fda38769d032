"""Which form of deformable attention to export: time in ONNX Runtime, and what TensorRT-RTX makes of each.

One attention layer of the published size: 8505 tokens (480x864), 8 heads of 32 channels, 3 levels, 4 points.

    python -m visrt.benchmarks.experiments.deformable_forms --write
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from visrt.benchmarks.accuracy.result_files import EXPERIMENT_RESULTS, add_result_options, write_result
from visrt.benchmarks.experiments.peak_memory import peak_mb
from visrt.benchmarks.experiments.sampling_forms import FORMS, SHIPPED, attention_in_form
from visrt.export.onnx_graph import cleaned
from visrt.models.deformable import Size, pixel_centres
from visrt.runtime.bundles.manifest import GraphSpec, TensorSpec
from visrt.runtime.bundles.writer import file_spec
from visrt.runtime.engines.trt.build import BuildRequest, build_engine
from visrt.runtime.engines.trt.library import load_tensorrt
from visrt.runtime.errors import VisrtError

__all__ = ["Layer", "Measured", "feeds_of", "graph_of", "measure"]

ALL = (*FORMS, SHIPPED)
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
TARGETS = ("8.6", "8.9", "12.0")
OFFSETS_PX = 3.0
WARM_UP = 2


@dataclass(frozen=True)
class Layer:
    """The layer that is measured; sizes: height and width of its levels."""

    heads: int = 8
    head_dim: int = 32
    sizes: tuple[Size, ...] = ((15, 27), (30, 54), (60, 108))

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        return sum(height * width for height, width in self.sizes)


@dataclass(frozen=True)
class Measured:
    """One form in one precision. difference: largest to the first form in float32. built: TensorRT-RTX's answer."""

    form: str
    precision: str
    nodes: int
    median_ms: float
    fastest_ms: float
    peak_mb: float
    difference: float
    built: dict[str, Any]


def graph_of(form: str, precision: str, layer: Layer) -> onnx.ModelProto:
    """The traced layer with seeded weights, its batch dynamic; values in `precision`, coordinates in float32."""
    torch.manual_seed(0)
    module = attention_in_form(form, layer.dim, layer.heads, list(layer.sizes))
    for projection in (module.sampling_offsets, module.attention_weights):
        torch.nn.init.normal_(projection.weight, std=OFFSETS_PX / layer.dim**0.5)
    module = module.eval().to(PRECISIONS[precision])
    feeds = {name: torch.from_numpy(array) for name, array in feeds_of(layer, precision, 2).items()}
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        module,
        kwargs=feeds,
        input_names=list(feeds),
        output_names=["attended"],
        dynamic_shapes={"query": {0: batch}, "value": {0: batch}, "places": None},
        opset_version=18,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return cleaned(program.model_proto)


def feeds_of(layer: Layer, precision: str, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    """Seeded query and value [B, tokens, C] in `precision`, places float32 [tokens, 2]."""
    random = np.random.default_rng(0)
    shape = (batch, layer.tokens, layer.dim)
    places = torch.cat([pixel_centres(size, torch.device("cpu")) for size in layer.sizes]).numpy()
    dtype = np.dtype({"fp32": "float32", "fp16": "float16"}[precision])
    tokens = {name: random.standard_normal(shape).astype(dtype) for name in ("query", "value")}
    return {**tokens, "places": places}


def measure(layer: Layer, repeats: int, threads: int) -> list[Measured]:
    """Every form in every precision; the repeats go round all forms, so that a busy spell falls on each alike."""
    rows: list[Measured] = []
    for precision in PRECISIONS:
        models = {form: graph_of(form, precision, layer) for form in ALL}
        times, outputs = _run(models, feeds_of(layer, precision, 1), repeats, threads)
        if not rows:
            expected = next(iter(outputs.values()))
        for form, model in models.items():
            rows.append(
                Measured(
                    form=form,
                    precision=precision,
                    nodes=len(model.graph.node),
                    median_ms=round(median(times[form]), 1),
                    fastest_ms=round(min(times[form]), 1),
                    peak_mb=peak_mb(model.SerializeToString(), feeds_of(layer, precision, 1)),
                    difference=float(np.abs(outputs[form].astype(np.float32) - expected).max()),
                    built=_built(model, precision),
                )
            )
            print(json.dumps(asdict(rows[-1])), flush=True)
    return rows


def _run(
    models: dict[str, onnx.ModelProto], feeds: dict[str, Any], repeats: int, threads: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Milliseconds of each repeat and the output, by form."""
    sessions = {form: _session(model.SerializeToString(), threads) for form, model in models.items()}
    times: dict[str, list[float]] = {form: [] for form in models}
    outputs = {}
    for repeat in range(WARM_UP + repeats):
        for form, session in sessions.items():
            start = time.perf_counter()
            outputs[form] = session.run(None, feeds)[0]
            if repeat >= WARM_UP:
                times[form].append((time.perf_counter() - start) * 1e3)
    return times, outputs


def _session(model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _built(model: onnx.ModelProto, precision: str) -> dict[str, Any]:
    """Seconds, size and warnings of the TensorRT-RTX build for GPUs that are not here; or why there is none."""
    data = model.SerializeToString()
    graph = GraphSpec(
        file=file_spec("layer.onnx", data),
        opset=18,
        precision=precision,
        inputs={value.name: _tensor(value) for value in model.graph.input},
        outputs={value.name: _tensor(value) for value in model.graph.output},
    )
    start = time.perf_counter()
    try:
        library = load_tensorrt("tensorrt-rtx")
        engine = build_engine(library, BuildRequest("layer", graph, data, {"batch": (1, 1, 4)}, TARGETS))
    except VisrtError as error:
        return {"refused": str(error)}
    seconds = round(time.perf_counter() - start, 1)
    return {"seconds": seconds, "megabytes": round(len(engine.data) / 1e6, 2), "warnings": list(engine.warnings)}


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype: Any = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec(name=value.name, dtype=dtype, shape=shape, meaning="of the measured layer")


def arguments(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(description=__doc__)
    add_result_options(parser, EXPERIMENT_RESULTS / "deformable_forms.json")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(argv)


def settings_of(given: Namespace) -> dict[str, Any]:
    return {
        "layer": asdict(Layer()),
        "forms": ALL,
        "precisions": list(PRECISIONS),
        "repeats": given.repeats,
        "warm_up": WARM_UP,
        "threads": given.threads,
        "batch": 1,
        "targets": TARGETS,
    }


def main() -> None:
    given = arguments()
    forms = [asdict(row) for row in measure(Layer(), given.repeats, given.threads)]
    write_result(given.out, settings_of(given), {"forms": forms})


if __name__ == "__main__":
    main()
