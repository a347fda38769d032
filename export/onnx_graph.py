"""Torch module -> checked ONNX model, the same bytes on every machine.

One static height and width a graph; dynamic axes are traced with two or more, because a trace with one silently becomes
static.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from visrt.models.mask2former import FrameOutputs
from visrt.runtime.errors import ParityError

__all__ = [
    "OPSET",
    "TRACED_WITH",
    "check_uint8_inputs",
    "cleaned",
    "onnx_from_frame_graph",
    "onnx_from_masks_graph",
    "onnx_from_module",
    "onnx_from_slot_masks_graph",
    "rewire_uint8_inputs",
]

OPSET = 18
"""ONNX Runtime's CUDA provider has no kernels for some operators of later opsets (Resize-19, ReduceMax-20)."""

TRACED_WITH = 2

FORBIDDEN = {
    "GridSample": "TensorRT 10.13 to 11.1 miscompiles it inside deformable attention without a word",
    "RoiAlign": "TensorRT makes it a plugin that cannot be compiled without a GPU",
}
DOMAINS = ("", "ai.onnx")
PROTOBUF_LIMIT_BYTES = 2**31 - 1

Axes = str | tuple[str | None, ...] | None
"""The dynamic axes of a tensor: the symbol of the first one alone, or of the first ones, None for those that are fixed;
or None for a tensor without."""

REARRANGES = ("Split", "Reshape", "Transpose")

READ_SIZES = ("Shape", "Size")
"""Operators that give the same answer for a tensor and for its Cast."""

UINT8_CASTS = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
"""What TensorRT converts uint8 to."""


def onnx_from_frame_graph(
    module: nn.Module, height: int, width: int, outputs: Sequence[str] = FrameOutputs._fields
) -> onnx.ModelProto:
    """The `frame` graph of images `height` x `width`, its batch dynamic; `outputs` names those of `module` in order."""
    images = torch.zeros((TRACED_WITH, height, width, 3), dtype=torch.uint8)
    sizes = torch.tensor([[height, width], [height - 1, width - 2]], dtype=torch.int32)
    return onnx_from_module(
        module,
        {"images": images, "valid_sizes": sizes},
        {"images": "batch", "valid_sizes": "batch"},
        dict.fromkeys(outputs, "batch"),
    )


def onnx_from_masks_graph(
    module: nn.Module, dim: int, height: int, width: int, precision: torch.dtype = torch.float32
) -> onnx.ModelProto:
    """The `masks` graph for frames of `height` x `width` and `dim` channels, with a dynamic number of masks."""
    return onnx_from_module(
        module,
        {
            "mask_embeddings": torch.zeros(TRACED_WITH, dim, dtype=precision),
            "mask_features": torch.zeros(dim, height // 4, width // 4, dtype=precision),
        },
        {"mask_embeddings": "masks"},
        {"mask_logits": "masks"},
    )


def onnx_from_slot_masks_graph(
    module: nn.Module,
    slots: int,
    embedding_dim: int,
    features: tuple[int, ...],
    dtypes: tuple[torch.dtype, torch.dtype],
) -> onnx.ModelProto:
    """The `masks` graph of networks whose `slots` are objects, for any number of streams and of masks a stream.

    features: shape of one frame's mask features. dtypes: of mask embeddings and mask features.
    """
    return onnx_from_module(
        module,
        {
            "slots": torch.zeros(TRACED_WITH, TRACED_WITH + 1, dtype=torch.int32),
            "mask_embeddings": torch.zeros(TRACED_WITH, slots, embedding_dim, dtype=dtypes[0]),
            "mask_features": torch.zeros(TRACED_WITH, *features, dtype=dtypes[1]),
        },
        {"slots": ("streams", "masks"), "mask_embeddings": "streams", "mask_features": "streams"},
        {"mask_logits": ("streams", "masks"), "kept_embeddings": ("streams", "masks")},
    )


def onnx_from_module(
    module: nn.Module, examples: dict[str, Tensor], dynamic: Mapping[str, Axes], outputs: Mapping[str, Axes]
) -> onnx.ModelProto:
    """The graph of `module` with inputs like `examples`: traced, cleaned and checked.

    `dynamic` and `outputs` name the symbols of a tensor's dynamic axes; inputs that `dynamic` lacks have none.
    """
    axes = {name: _symbols(dynamic.get(name)) for name in examples}
    dims = {symbol: torch.export.Dim(symbol, min=1) for each in axes.values() for symbol in each if symbol}
    shapes = {name: {at: dims[symbol] for at, symbol in enumerate(each) if symbol} for name, each in axes.items()}
    with torch.no_grad(), _quiet_tracer():
        program = torch.onnx.export(
            module.eval(),
            kwargs=examples,
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model = cleaned(program.model_proto)
    _check(model, dynamic, outputs)
    return model


def _symbols(axes: Axes) -> tuple[str | None, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without what an engine does not need: stack traces, paths, arithmetic on constants."""
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    clean.ClearField("metadata_props")
    clean.ClearField("doc_string")
    clean.producer_name, clean.producer_version = "visrt", ""
    clean.graph.name = "visrt"
    _strip(clean.graph)
    _fold_rearranged(clean.graph, clean.opset_import[0].version)
    _drop_unused_weights(clean.graph)
    rewire_uint8_inputs(clean.graph)
    return clean


def rewire_uint8_inputs(graph: onnx.GraphProto) -> None:
    """Reads sizes of a uint8 input from its Cast, which goes to the front of `graph`: the values are the same.

    Other readers stay, for `check_uint8_inputs` to refuse.
    """
    for value in _uint8_inputs(graph):
        readers = [node for node in graph.node if value.name in node.input]
        for cast in [node for node in readers if node.op_type == "Cast"][:1]:
            first = onnx.NodeProto()
            first.CopyFrom(cast)
            graph.node.remove(cast)
            graph.node.insert(0, first)
            for node in readers:
                if node.op_type in READ_SIZES:
                    node.input[0] = first.output[0]


def check_uint8_inputs(graph: onnx.GraphProto) -> None:
    """Raises ParityError unless each uint8 input of `graph` has one reader, a Cast to floating point.

    TensorRT takes nothing else: no other layer reads uint8, not even those that only move data.
    """
    for value in _uint8_inputs(graph):
        readers = [node for node in graph.node if value.name in node.input]
        kinds = [UINT8_CASTS.get(_target(node)) if node.op_type == "Cast" else None for node in readers]
        if len(readers) != 1 or None in kinds:
            found = ", ".join(f"{node.op_type} {node.name!r}" for node in readers) or "nothing"
            raise ParityError(
                f"the uint8 input {value.name} is read by {found}; expected one Cast, to "
                f"{' or '.join(UINT8_CASTS.values())}, as TensorRT takes no other reader: convert it before all else"
            )


def _uint8_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    return [value for value in graph.input if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8]


def _target(cast: onnx.NodeProto) -> int:
    return next(int(attribute.i) for attribute in cast.attribute if attribute.name == "to")


def _strip(graph: onnx.GraphProto) -> None:
    """Drop what the tracer noted on each node and tensor: its module, source lines and inferred shapes."""
    graph.ClearField("value_info")
    for described in (graph, *graph.input, *graph.output, *graph.initializer, *graph.node):
        described.ClearField("doc_string")
        described.ClearField("metadata_props")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _strip(attribute.g)


def _fold_rearranged(graph: onnx.GraphProto, opset: int) -> None:
    """Weights that are split, reshaped or transposed at every call in the trace; here once and for all."""
    weights = {weight.name: weight for weight in graph.initializer}
    for node in list(graph.node):
        if node.op_type in REARRANGES and all(name in weights for name in node.input):
            given = {name: numpy_helper.to_array(weights[name]) for name in node.input}
            parts = ReferenceEvaluator(node, opsets={"": opset}).run(None, given)
            for name, part in zip(node.output, parts, strict=True):
                weights[name] = numpy_helper.from_array(np.ascontiguousarray(part), name)
                graph.initializer.append(weights[name])
            graph.node.remove(node)


def _drop_unused_weights(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for weight in [weight for weight in graph.initializer if weight.name not in used]:
        graph.initializer.remove(weight)


@contextmanager
def _quiet_tracer() -> Iterator[None]:
    """Without the tracer's notes on its own internals; what it gets wrong is found by the checks and by parity."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _check(model: onnx.ModelProto, dynamic: Mapping[str, Axes], outputs: Mapping[str, Axes]) -> None:
    """Raises ParityError when the trace is not the graph that was meant."""
    if model.ByteSize() > PROTOBUF_LIMIT_BYTES:
        raise ParityError(
            f"the graph is {model.ByteSize() / 2**30:.1f} GiB; one ONNX file holds 2 GiB: choose a smaller backbone"
        )
    onnx.checker.check_model(model, full_check=True)
    _check_opset(model)
    _check_operators(model)
    check_uint8_inputs(model.graph)
    _check_axes(model, {**dict.fromkeys(value.name for value in model.graph.input), **dynamic, **outputs})


def _check_opset(model: onnx.ModelProto) -> None:
    imports = {entry.domain: entry.version for entry in model.opset_import}
    if imports.get("") != OPSET or any(domain not in DOMAINS for domain in imports) or len(model.functions):
        raise ParityError(
            f"the graph uses {imports} and {len(model.functions)} functions; expected opset {OPSET} alone"
        )


def _check_operators(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in FORBIDDEN:
            raise ParityError(
                f"the graph holds {node.op_type}; {FORBIDDEN[node.op_type]}: write it with plain operators in models/"
            )


def _check_axes(model: onnx.ModelProto, axes: Mapping[str, Axes]) -> None:
    """Dynamic axes carry their symbols and everything else is fixed: nothing became static."""
    tensors = {value.name: value for value in (*model.graph.input, *model.graph.output)}
    for name, symbols in axes.items():
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensors[name].type.tensor_type.shape.dim)
        expected = (*_symbols(symbols), *[None] * len(shape))[: len(shape)]
        pairs = zip(shape, expected, strict=True)
        if any(axis != symbol if symbol else isinstance(axis, str) for axis, symbol in pairs):
            raise ParityError(
                f"{name} was traced as {shape}; expected {_described(expected)}: something in the network fixes the "
                "batch size or lets a size depend on the data"
            )


def _described(expected: tuple[str | None, ...]) -> str:
    dynamic = [symbol for symbol in expected if symbol]
    if not dynamic:
        return "static axes"
    if expected[0] and len(dynamic) == 1:
        return f"a dynamic first axis {dynamic[0]!r} and static others"
    return f"axes ({', '.join(symbol or 'static' for symbol in expected)})"
