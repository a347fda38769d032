"""A network that carries state, in a few plain operators: for tests of how engines keep it on the device.

`frame` makes tokens of a frame; `decoder` mixes them with the queries of the frame before; `memory` sums the entries
that count, of one stream; `masks` picks the embeddings of slots.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from bundles import model
from fakes import fake_manifest, graph_spec
from onnx import helper

from visrt.runtime.arrays import Array
from visrt.runtime.bundles.manifest import GraphSpec, Manifest, TensorSpec

__all__ = ["QUERIES", "decoded", "stateful_manifest", "stateful_models", "summed"]

QUERIES = 4
STATES = ("tokens", "queries", "next_queries", "mask_embeddings", "keys", "summary")


def stateful_manifest(channels: int = 64, clips: int = 8) -> Manifest:
    rows = (QUERIES, channels)
    streams = ("float32", ("streams", *rows))
    graphs = {
        "frame": graph_spec({"images": ("float32", ("batch", *rows))}, {"tokens": ("float32", ("batch", *rows))}),
        "decoder": graph_spec(
            {"tokens": streams, "queries": streams},
            {"class_logits": ("float32", ("streams", QUERIES, 3)), "next_queries": streams, "mask_embeddings": streams},
        ),
        "memory": graph_spec(
            {"keys": ("float32", (QUERIES, "clips", channels)), "clips": ("int32", ("clips",))},
            {"summary": ("float32", rows)},
        ),
        "masks": graph_spec(
            {"slots": ("int32", ("streams", "masks")), "mask_embeddings": streams},
            {"kept_embeddings": ("float32", ("streams", "masks", channels))},
        ),
    }
    return fake_manifest().model_copy(
        update={
            "graphs": {name: _placed(graph) for name, graph in graphs.items()},
            "association": {"memory_clips": clips},
        }
    )


def _placed(graph: GraphSpec) -> GraphSpec:
    def placed(specs: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
        return {
            role: spec.model_copy(update={"place": "device" if role in STATES else "host"})
            for role, spec in specs.items()
        }

    return graph.model_copy(update={"inputs": placed(graph.inputs), "outputs": placed(graph.outputs)})


def stateful_models(manifest: Manifest) -> dict[str, onnx.ModelProto]:
    node, graphs = helper.make_node, manifest.graphs
    half, three = {"half": np.float32(0.5)}, {"starts": np.array([0]), "ends": np.array([3]), "axes": np.array([2])}
    decoder = [
        node("Mul", ["queries", "half"], ["kept"]),
        node("Add", ["kept", "tokens"], ["next_queries"]),
        node("Neg", ["next_queries"], ["mask_embeddings"]),
        node("Slice", ["next_queries", "starts", "ends", "axes"], ["class_logits"]),
    ]
    memory = [
        node("GreaterOrEqual", ["clips", "first"], ["counts"]),
        node("Cast", ["counts"], ["weights"], to=onnx.TensorProto.FLOAT),
        node("Einsum", ["weights", "keys"], ["summary"], equation="m,qmc->qc"),
    ]
    masks = [
        node("Cast", ["slots"], ["long"], to=onnx.TensorProto.INT64),
        node("Unsqueeze", ["long", "last"], ["indices"]),
        node("GatherND", ["mask_embeddings", "indices"], ["kept_embeddings"], batch_dims=1),
    ]
    return {
        "frame": model([node("Identity", ["images"], ["tokens"])], graphs["frame"], {}),
        "decoder": model(decoder, graphs["decoder"], half | three),
        "memory": model(memory, graphs["memory"], {"first": np.int32(0)}),
        "masks": model(masks, graphs["masks"], {"last": np.array([2])}),
    }


def decoded(tokens: Array, queries: Array) -> Array:
    """The next queries of a frame, in numpy."""
    return queries * np.float32(0.5) + tokens


def summed(keys: Array, clips: Array) -> Array:
    """What `memory` gives."""
    total: Array = keys[:, clips >= 0].sum(axis=1)
    return total
