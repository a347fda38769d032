"""Writes a small bundle with real ONNX graphs: a MinVIS network that sees one red object, in a few plain operators."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from fakes import fake_manifest
from onnx import TensorProto, helper, numpy_helper

from visrt.runtime.bundles.bundle import MANIFEST
from visrt.runtime.bundles.manifest import FileSpec, GraphSpec, Manifest, SizeSpec, TensorSpec

SIZE = (64, 96)
QUERIES = 4
CHANNELS = 8
CLASSES = ("person", "vehicle", "animal")

_TYPES = {"uint8": TensorProto.UINT8, "int32": TensorProto.INT32, "float32": TensorProto.FLOAT}


def write_bundle(
    folder: Path,
    association: Mapping[str, Any] | None = None,
    size: tuple[int, int] = SIZE,
    other_sizes: Sequence[tuple[int, int]] = (),
    queries: int = QUERIES,
) -> Path:
    """A sound bundle in the new `folder`; `size` is height and width of its input, `other_sizes` are further ones."""
    folder.mkdir(parents=True)
    reference = write(folder / "reference.npz", b"frames and torch's outputs would be here")
    manifest, *others = (
        fake_manifest(one, queries, CLASSES, CHANNELS, CHANNELS, association) for one in (size, *other_sizes)
    )
    sizes = [
        SizeSpec(
            input=one.input,
            graphs=_graphs(folder, one, f"-{one.input.height}x{one.input.width}"),
            reference=reference,
        )
        for one in others
    ]
    update = {"graphs": _graphs(folder, manifest), "reference": reference, "other_sizes": tuple(sizes)}
    (folder / MANIFEST).write_text(manifest.model_copy(update=update).model_dump_json(by_alias=True))
    return folder


def _graphs(folder: Path, manifest: Manifest, suffix: str = "") -> dict[str, GraphSpec]:
    """The graphs of one size, written to files whose names end in `suffix`."""
    models = {"frame": frame_model(manifest.graphs["frame"]), "masks": masks_model(manifest.graphs["masks"])}
    return {
        name: manifest.graphs[name].model_copy(
            update={"file": write(folder / f"{name}{suffix}.onnx", model.SerializeToString())}
        )
        for name, model in models.items()
    }


def write(path: Path, data: bytes) -> FileSpec:
    path.write_bytes(data)
    return FileSpec(file=path.name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def frame_model(spec: GraphSpec) -> onnx.ModelProto:
    """Query 0 is what is red in the image, the others are background.

    mask_features channel 0 is (red - green) / 32 - 2, averaged over 4x4 cells, and query 0 picks that channel. The
    first class gets its logit if any cell is above zero. The valid sizes are read and change nothing.
    """
    red = np.zeros((CHANNELS, 3, 4, 4), dtype=np.float32)
    red[0, 0], red[0, 1] = 1 / 512, -1 / 512
    queries = spec.outputs["class_logits"].shape[1]
    assert isinstance(queries, int)
    background, found = np.zeros((2, queries, len(CLASSES) + 1), dtype=np.float32)
    background[:, -1], found[0, 0] = 6, 12
    constants = {
        "red": red,
        "threshold": np.full(CHANNELS, -2, dtype=np.float32),
        "channel 0": np.eye(CHANNELS, 1, dtype=np.float32),
        "zero": np.float32(0),
        "zeros": np.zeros((2, 1), dtype=np.float32),
        "background": background,
        "found": found,
        "identity": np.eye(queries, CHANNELS, dtype=np.float32),
        "map axes": np.array([2, 3]),
        "query axis": np.array([2]),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "red", "threshold"], ["mask_features"], strides=[4, 4]),
        helper.make_node("GlobalMaxPool", ["mask_features"], ["peak maps"]),
        helper.make_node("Squeeze", ["peak maps", "map axes"], ["peaks"]),
        helper.make_node("MatMul", ["peaks", "channel 0"], ["peak"]),
        helper.make_node("Unsqueeze", ["peak", "query axis"], ["redness"]),
        helper.make_node("Greater", ["redness", "zero"], ["is red"]),
        helper.make_node("Cast", ["is red"], ["seen"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["seen", "found"], ["evidence"]),
        helper.make_node("Add", ["evidence", "background"], ["class_logits"]),
        helper.make_node("Cast", ["valid_sizes"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["sizes", "zeros"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "query axis"], ["nothing a query"]),
        helper.make_node("Add", ["nothing a query", "identity"], ["embeddings"]),
        helper.make_node("Add", ["nothing a query", "identity"], ["mask_embeddings"]),
    ]
    return model(nodes, spec, constants)


def masks_model(spec: GraphSpec) -> onnx.ModelProto:
    """mask_embeddings @ mask_features."""
    inputs = ["mask_embeddings", "mask_features"]
    return model([helper.make_node("Einsum", inputs, ["mask_logits"], equation="md,dhw->mhw")], spec)


def model(nodes: list[onnx.NodeProto], spec: GraphSpec, constants: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """An ONNX model of `nodes` whose inputs and outputs are those of `spec`."""
    initializer = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "graph", values(spec.inputs), values(spec.outputs), initializer=initializer)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def values(specs: Mapping[str, TensorSpec]) -> list[onnx.ValueInfoProto]:
    return [helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], spec.shape) for spec in specs.values()]
