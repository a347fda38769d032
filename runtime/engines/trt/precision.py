"""In which precision a network computes, read from TensorRT's strongly typed definition of it.

In a strongly typed network the types are the graph's: TensorRT casts nothing by itself. What a layer takes is what it
computes in, but for explicit quantisation, where a layer whose operands all come from dequantisation is run in INT8.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.errors import BundleError, EngineError
from visrt.runtime.json_file import parse_json_object

__all__ = ["NetworkPrecision", "WorkingLayer", "check_precision", "node_precisions", "precision_of"]

WORKING = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM", "ATTENTION_INPUT")
"""Kinds of layers that do the multiply-accumulates."""

OPERANDS = {"CONVOLUTION": 2, "DECONVOLUTION": 2}
"""Inputs that are multiplied, where not all are: a convolution's third is its bias."""

MOVING = ("SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY")
"""Kinds of layers that change no value, with one input that matters; quantisation is seen through them."""

NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "FP8": "fp8", "INT4": "int4", "FP4": "fp4"}
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "fp8": 1, "int4": 0.5, "fp4": 0.5}


@dataclass(frozen=True)
class WorkingLayer:
    """A layer that multiplies.

    node: the ONNX node it comes from. precision: what it computes in, "fp32", "fp16", "int8". widened: whether what it
    takes was cast up from fewer bits, explicitly, on its way: an island.
    """

    node: str
    kind: str
    precision: str
    widened: bool


@dataclass(frozen=True)
class NetworkPrecision:
    """layers: those that multiply. counts: of these by kind and precision, and of all tensors by type."""

    layers: tuple[WorkingLayer, ...]
    counts: Mapping[str, int]


def precision_of(network: Any) -> NetworkPrecision:
    """The precision that `network`, an INetworkDefinition, computes in."""
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {tensor.name: layer for layer in layers for tensor in _outputs(layer)}
    working = tuple(_working(layer, makers) for layer in layers if layer.type.name in WORKING)
    counts = Counter(f"{layer.kind} {layer.precision}" for layer in working)
    counts.update(f"tensor {_name(tensor)}" for layer in layers for tensor in _outputs(layer))
    return NetworkPrecision(working, dict(sorted(counts.items())))


def check_precision(where: str, stated: str, found: NetworkPrecision, nodes: Mapping[str, str] | None = None) -> None:
    """Raises EngineError unless what the manifest states of a graph is what its network computes in.

    `stated` is the graph's precision, `nodes` the precision by ONNX node from nodes.json. Only layers that multiply are
    checked, convolutions and matrix products, as the precision of the rest affects neither speed nor accuracy.

    - A layer whose node is in `nodes` computes in exactly that: neither more, which would be slower than stated, nor
      less, which would be less accurate.
    - Any other computes in `stated`, or in fewer bits, or, in an int8 graph, in fp16. It may compute in more bits only
      where its input was cast up explicitly from fewer bits inside the network: an island of FP32, which someone wrote.
      A cast from integers is no such thing: a network that is FP32 from the image on starts with one.
    - A graph that multiplies does so in `stated` at least once. One that is islands only is not what it is called.
    - An fp32 graph has no layer in fewer bits.
    """
    faults = [fault for layer in found.layers if (fault := _fault(layer, stated, nodes or {}))]
    # With its nodes listed, the list decides: a small graph of an int8 bundle may have nothing in int8.
    if nodes is None and found.layers and all(layer.precision != stated for layer in found.layers):
        faults.insert(0, f"nothing in it computes in {stated}")
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise EngineError(
            f"{where}: the manifest calls it {stated}, but {'; '.join(faults[:5])}{more}; export the bundle again"
        )


def _fault(layer: WorkingLayer, stated: str, nodes: Mapping[str, str]) -> str:
    """The fault of a layer as text; empty if there is none."""
    found = f"{layer.kind} {layer.node!r} computes in {layer.precision}"
    # TensorRT calls a node without a name after its output, as nodes.json does, with a prefix.
    expected = nodes.get(layer.node) or nodes.get(layer.node.removeprefix("node_of_"))
    if expected is not None:
        return "" if layer.precision == expected else f"{found}, nodes.json says {expected}"
    if stated == "fp32":
        return "" if layer.precision == stated else f"{found}, not fp32"
    allowed = "fp16" if stated == "int8" else stated
    if BYTES.get(layer.precision, 4) <= BYTES.get(allowed, 4) or layer.widened:
        return ""
    return f"{found}, and no cast makes it an island"


def node_precisions(bundle: Bundle) -> dict[str, dict[str, str]]:
    """The precisions in nodes.json of `bundle`, by graph and ONNX node; empty for a bundle without one."""
    spec = bundle.manifest.nodes
    if spec is None:
        return {}
    where = str(bundle.folder / spec.file)
    expected = "for each graph, the precision (fp32, fp16 or int8) of each node by name; export the bundle again"
    graphs = parse_json_object(bundle.read(spec), where, expected, BundleError)
    if not all(map(_is_node_table, graphs.values())):
        raise BundleError(f"{where}: expected {expected}")
    return graphs


def _is_node_table(table: object) -> bool:
    return isinstance(table, dict) and all(value in ("fp32", "fp16", "int8") for value in table.values())


def _working(layer: Any, makers: Mapping[str, Any]) -> WorkingLayer:
    kind = layer.type.name
    operands = _inputs(layer)[: OPERANDS.get(kind)]
    precision = _name(operands[0])
    # A convolution with plain weights has no tensor for them: one operand only.
    if len(operands) >= 2 and all(_dequantised(tensor, makers) for tensor in operands):
        precision = "int8"
    widened = any(_widened(tensor, makers) for tensor in operands)
    return WorkingLayer(_node(layer), kind.lower().replace("_", " "), precision, widened)


def _dequantised(tensor: Any, makers: Mapping[str, Any]) -> bool:
    """Whether `tensor` comes from INT8 by a dequantisation, through nothing that changes values."""
    layer = makers.get(tensor.name)
    while layer is not None and layer.type.name in MOVING:
        layer = makers.get(_inputs(layer)[0].name)
    return layer is not None and layer.type.name == "DEQUANTIZE" and _inputs(layer)[0].dtype.name == "INT8"


def _widened(tensor: Any, makers: Mapping[str, Any]) -> bool:
    """Whether on the way to `tensor`, as long as that is in its type, there is a cast from fewer bits of a float."""
    kind, waiting, seen = tensor.dtype, [tensor], set()
    while waiting:
        layer = makers.get(waiting.pop().name)
        if layer is None or id(layer) in seen:
            continue
        seen.add(id(layer))
        sources = _inputs(layer)
        if layer.type.name == "CAST" and _bits_below(_name(sources[0]), NAMES.get(kind.name, "")):
            return True
        waiting += [source for source in sources if source.dtype == kind]
    return False


def _bits_below(precision: str, other: str) -> bool:
    return precision in ("fp16", "bf16", "fp8") and BYTES[precision] < BYTES.get(other, 0)


def _node(layer: Any) -> str:
    """The ONNX node `layer` comes from, which TensorRT notes as "[ONNX Layer: name]"."""
    note, start = str(getattr(layer, "metadata", "")), "[ONNX Layer: "
    return note[len(start) : -1] if note.startswith(start) and note.endswith("]") else str(layer.name)


def _inputs(layer: Any) -> list[Any]:
    tensors = (layer.get_input(index) for index in range(layer.num_inputs))
    return [tensor for tensor in tensors if tensor is not None]


def _outputs(layer: Any) -> Iterator[Any]:
    return (layer.get_output(index) for index in range(layer.num_outputs))


def _name(tensor: Any) -> str:
    name: str = tensor.dtype.name
    return NAMES.get(name, name.lower())
