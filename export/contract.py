"""The manifest of a bundle, written from the graphs themselves: names, dtypes and shapes are read, never repeated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import onnx

from visrt.export.counting import count
from visrt.models.checkpoints.fingerprint import checkpoint_sha256
from visrt.runtime.bundles.manifest import FileSpec, GraphSpec, Producer, TensorSpec
from visrt.runtime.bundles.writer import creation_time, package_versions

__all__ = ["graph_spec", "producer"]

MEANINGS = {
    "images": "frames, RGB 0..255, fitted into the input from the top left; beyond the valid size is ignored",
    "valid_sizes": "height and width in pixels of each frame inside the input",
    "class_logits": "of each query, before softmax with 'no object' last, or of InsPro before sigmoid without it",
    "embeddings": "of each query, compared between frames by cosine",
    "mask_embeddings": "of each query; the masks graph makes its mask of it and the mask features",
    "mask_features": "at stride 4, of InsPro at 8",
    "slots": "of which masks are made, of each stream",
    "kept_embeddings": "mask embeddings of these slots",
    "mask_logits": "at stride 4 of the input; above 0 is inside",
}
"""Roles that several families have; `Exportable.meanings` gives those of one family."""

PACKAGES = ("visrt", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def graph_spec(
    model: onnx.ModelProto, file: FileSpec, precision: str, meanings: Mapping[str, str] = MappingProxyType({})
) -> GraphSpec:
    """The manifest's entry of `model`, with what it costs; its tensors carry their roles as names.

    meanings: what the roles mean that are the family's own, by role.
    """
    counts, known = count(model), {**MEANINGS, **meanings}
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return GraphSpec(
        file=file,
        opset=opset,
        precision=precision,
        inputs={value.name: _tensor_spec(value, known) for value in model.graph.input},
        outputs={value.name: _tensor_spec(value, known) for value in model.graph.output},
        macs=counts.macs,
        parameters=counts.parameters,
    )


def _tensor_spec(value: onnx.ValueInfoProto, meanings: Mapping[str, str]) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec.model_validate(
        {"name": value.name, "dtype": dtype, "shape": shape, "meaning": meanings[value.name]}
    )


def producer(checkpoint: Path) -> Producer:
    """Versions and time of this export, and the checkpoint by name and hash."""
    return Producer(
        versions=package_versions(PACKAGES),
        checkpoint=checkpoint.absolute().name,
        checkpoint_sha256=checkpoint_sha256(checkpoint),
        created=creation_time(),
    )
