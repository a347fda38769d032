"""The calibrated bundle: the user's bundle with other graphs and the precision of each node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from visrt.export.nodes import NODES, nodes_json
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.manifest import FileSpec, GraphSpec, Manifest
from visrt.runtime.bundles.writer import copied_files, creation_time, file_spec, package_versions, write_bundle
from visrt.runtime.errors import UsageError
from visrt.runtime.methods.registry import method_of

__all__ = ["int8_graphs", "write_calibrated"]

PACKAGES = ("visrt", "onnx", "onnxruntime", "numpy")


def int8_graphs(bundle: Bundle) -> tuple[str, ...]:
    """The graphs of `bundle` whose layers may compute in INT8, as its family's plan names them.

    Raises UsageError for a bundle that calibration does not support: one that holds Q/DQ pairs already, whose family
    names none of its graphs, or where one of them carries state and its plan judges no streams. BundleError for a
    damaged one.
    """
    manifest = bundle.manifest
    plan = method_of(manifest).int8
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    if "int8" in precisions.values():
        raise UsageError(
            f"{bundle.folder}: is int8 already ({', '.join(f'{n} {p}' for n, p in precisions.items())}); expected the "
            "fp32 or fp16 bundle it was made from"
        )
    graphs = tuple(name for name in plan.graphs if name in manifest.graphs)
    if not graphs:
        raise UsageError(
            f"{bundle.folder}: family {manifest.family!r} has no graph for INT8 among {', '.join(manifest.graphs)}; "
            "keep it in fp16"
        )
    for name in graphs:
        if not plan.follows_state and (carried := manifest.read_by(name)):
            raise UsageError(
                f"{bundle.folder}: its {name} graph carries the state {', '.join(carried)} from call to call, in which "
                "rounding would add up unseen; expected graphs without such state; keep it in fp16"
            )
    return graphs


def write_calibrated(
    folder: Path, bundle: Bundle, models: Mapping[str, onnx.ModelProto], nodes: Mapping[str, Mapping[str, str]]
) -> Manifest:
    """Writes to `folder` the bundle `bundle` with `models`, by graph, in place of its own.

    nodes: by graph, a precision per node.
    """
    old = bundle.manifest
    graphs = {name: old.graphs[name] for name in models}
    changed = {graphs[name].file.file: model.SerializeToString(deterministic=True) for name, model in models.items()}
    changed[NODES] = nodes_json(nodes)
    specs = {name: file_spec(name, data) for name, data in changed.items()}
    new = {name: _in_int8(graph, specs[graph.file.file], models[name]) for name, graph in graphs.items()}
    versions = {**old.producer.versions, **package_versions(PACKAGES)}
    manifest = old.model_copy(
        update={
            "name": f"{old.name.removesuffix('-fp16')}-int8",
            "graphs": {**old.graphs, **new},
            "nodes": specs[NODES],
            "producer": old.producer.model_copy(update={"versions": versions, "created": creation_time()}),
        }
    )
    replaced = [*(spec for graph in graphs.values() for spec in (graph.file, graph.weights)), old.nodes]
    write_bundle(folder, manifest, copied_files(bundle, replaced=replaced) | changed)
    return manifest


def _in_int8(graph: GraphSpec, file: FileSpec, model: onnx.ModelProto) -> GraphSpec:
    """`graph` with its `model`, which lies whole in `file`."""
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    return graph.model_copy(update={"file": file, "weights": None, "opset": opset, "precision": "int8"})
