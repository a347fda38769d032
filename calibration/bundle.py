"""The calibrated bundle: the user's bundle with another frame graph and the precision of each node."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from visrt.export.nodes import NODES, nodes_json
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.bundles.writer import copied_files, creation_time, file_spec, package_versions, write_bundle
from visrt.runtime.errors import UsageError
from visrt.runtime.methods.registry import method_of

__all__ = ["GRAPH", "require_calibratable", "write_calibrated"]

GRAPH = "frame"
"""The graph that is quantised. The masks graph has no constant weight; GenVIS's clip graph is small, and what it passes
on to the next clip must not be rounded."""

INPUTS = {"images", "valid_sizes"}
PACKAGES = ("visrt", "onnx", "onnxruntime", "numpy")


def require_calibratable(bundle: Bundle) -> None:
    """Raises UsageError for a bundle that INT8 calibration does not support, BundleError for one that is damaged.

    Its graphs must hold no Q/DQ pairs yet, its frame graph must take nothing but frames, and its queries must have a
    class "no object", by which agreement is judged.
    """
    manifest = bundle.manifest
    method_of(manifest)
    precisions = {name: graph.precision for name, graph in manifest.graphs.items()}
    if "int8" in precisions.values():
        raise UsageError(
            f"{bundle.folder}: is int8 already ({', '.join(f'{n} {p}' for n, p in precisions.items())}); expected the "
            "fp32 or fp16 bundle it was made from"
        )
    if unknown := manifest.graphs[GRAPH].inputs.keys() - INPUTS:
        raise UsageError(
            f"{bundle.folder}: its {GRAPH} graph takes {', '.join(sorted(unknown))}, which calibration cannot give it; "
            "INT8 is for graphs of frames alone; keep it in fp16"
        )
    outputs = [graph.outputs for graph in manifest.graphs.values()]
    logits = {tensors["class_logits"].shape[-1] for tensors in outputs if "class_logits" in tensors}
    expected = len(manifest.classes) + 1
    if logits != {expected}:
        raise UsageError(
            f"{bundle.folder}: its queries have {' and '.join(map(str, logits)) or 'no'} class logits; INT8 is judged "
            f'query by query and needs {expected}, one for each class and one for "no object"; keep it in fp16'
        )


def write_calibrated(
    folder: Path, bundle: Bundle, model: onnx.ModelProto, nodes: Mapping[str, Mapping[str, str]]
) -> Manifest:
    """Writes to `folder` the bundle `bundle` with the frame graph `model`. nodes: by graph, a precision per node."""
    old = bundle.manifest
    graph = old.graphs[GRAPH]
    changed = {graph.file.file: model.SerializeToString(deterministic=True), NODES: nodes_json(nodes)}
    specs = {name: file_spec(name, data) for name, data in changed.items()}
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    update = {"file": specs[graph.file.file], "opset": opset, "precision": "int8"}
    versions = {**old.producer.versions, **package_versions(PACKAGES)}
    manifest = old.model_copy(
        update={
            "name": f"{old.name.removesuffix('-fp16')}-int8",
            "graphs": {**old.graphs, GRAPH: graph.model_copy(update=update)},
            "nodes": specs[NODES],
            "producer": old.producer.model_copy(update={"versions": versions, "created": creation_time()}),
        }
    )
    write_bundle(folder, manifest, copied_files(bundle, replaced=[graph.file, old.nodes]) | changed)
    return manifest
