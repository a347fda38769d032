"""The manifest of a bundle, written from the graphs themselves: names, dtypes and shapes are read, never repeated."""

from __future__ import annotations

from pathlib import Path

import onnx

from visrt.export.counting import count
from visrt.models.fingerprint import checkpoint_sha256
from visrt.runtime.bundle_writer import creation_time, package_versions
from visrt.runtime.manifest import FileSpec, GraphSpec, Producer, TensorSpec

__all__ = ["graph_spec", "producer"]

MEANINGS = {
    "images": "frames, RGB 0..255, fitted into the input from the top left; beyond the valid size is ignored",
    "valid_sizes": "height and width in pixels of each frame inside the input",
    "class_logits": "of each query, before softmax with 'no object' last, or of InsPro before sigmoid without it",
    "embeddings": "of each query, compared between frames by cosine",
    "mask_embeddings": "of each query; the masks graph makes its mask of it and the mask features",
    "mask_features": "at stride 4, of InsPro at 8",
    "frame_queries": "of each frame of a clip: what it holds, for the clip graph to gather into instances",
    "instance_queries": "what the slots of a clip start from: base and what they read from memory",
    "prototypes": "of each slot, as it passes on to the next clip",
    "base": "what each slot of the next clip starts from, before it reads",
    "key": "what each slot of the next clip reads its memory with",
    "memory_key": "by which this clip is found in each slot's memory",
    "memory_value": "what each slot reads of this clip",
    "pyramid": "four maps at strides 4, 8, 16, 32, pixel by pixel, one after another",
    "picture_sizes": "height and width in pixels of each frame inside the input",
    "picture_size": "height and width in pixels of the frame inside the input",
    "queries": "of each slot, as the frame before handed them over",
    "proposals": "box of each slot, x1, y1, x2, y2 as parts of the frame, as the frame before handed them over",
    "bank": "object features of frames before, the newest last",
    "fill": "how many of the newest entries of the bank count for each slot",
    "boxes": "of each slot, x1, y1, x2, y2 in pixels",
    "object_features": "of each slot; the next entry of the bank",
    "next_queries": "of each slot, for the next frame",
    "next_proposals": "box of each slot as parts of the frame, for the next frame",
    "mask_logits": "at stride 4 of the input; above 0 is inside",
}
PACKAGES = ("visrt", "torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def graph_spec(model: onnx.ModelProto, file: FileSpec, precision: str) -> GraphSpec:
    """The manifest's entry of `model`, with what it costs; its tensors carry their roles as names."""
    counts = count(model)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return GraphSpec(
        file=file,
        opset=opset,
        precision=precision,
        inputs={value.name: _tensor_spec(value) for value in model.graph.input},
        outputs={value.name: _tensor_spec(value) for value in model.graph.output},
        macs=counts.macs,
        parameters=counts.parameters,
    )


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim)
    return TensorSpec.model_validate(
        {"name": value.name, "dtype": dtype, "shape": shape, "meaning": MEANINGS[value.name]}
    )


def producer(checkpoint: Path) -> Producer:
    """Versions and time of this export, and the checkpoint by name and hash."""
    return Producer(
        versions=package_versions(PACKAGES),
        checkpoint=checkpoint.absolute().name,
        checkpoint_sha256=checkpoint_sha256(checkpoint),
        created=creation_time(),
    )
