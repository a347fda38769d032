"""The calibrated bundle: that of the user with another frame graph, and what each node computes in."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import onnx

from visrt.export.contract import graph_spec
from visrt.export.nodes import NODES, nodes_json
from visrt.runtime.bundle import MANIFEST, Bundle
from visrt.runtime.bundle_writer import file_spec
from visrt.runtime.errors import UsageError
from visrt.runtime.families import family_of
from visrt.runtime.manifest import Manifest, Producer

__all__ = ["refuse_family", "refuse_int8", "write_calibrated"]

GRAPH = "frame"
"""The graph that is quantised. The masks graph has no constant weight; GenVIS's clip graph is small, and what it hands
on to the next clip is not to be rounded."""

FAMILIES = ("minvis", "ctvis", "genvis")
"""Those whose queries have a class "no object", by which agreement is judged."""

PACKAGES = ("visrt", "onnx", "onnxruntime", "numpy")


def refuse_int8(bundle: Bundle) -> None:
    """Raises UsageError for a bundle that was calibrated before: its graphs hold Q/DQ already."""
    precisions = {name: graph.precision for name, graph in bundle.manifest.graphs.items()}
    if "int8" in precisions.values():
        raise UsageError(
            f"{bundle.folder}: is int8 already ({', '.join(f'{n} {p}' for n, p in precisions.items())}); expected the "
            "fp32 or fp16 bundle it was made from"
        )


def refuse_family(bundle: Bundle) -> None:
    """Raises UsageError for a bundle of a family that is not calibrated, BundleError for one that does not fit its."""
    family_of(bundle.manifest)
    if bundle.manifest.family not in FAMILIES:
        raise UsageError(
            f"{bundle.folder}: is of family {bundle.manifest.family!r}; INT8 is for bundles of {', '.join(FAMILIES)}, "
            "whose agreement is judged query by query; keep it in fp16"
        )


def write_calibrated(
    folder: Path, bundle: Bundle, model: onnx.ModelProto, nodes: Mapping[str, Mapping[str, str]]
) -> Manifest:
    """Writes to `folder` the bundle `bundle` with the frame graph `model`. nodes: by graph, a precision a node."""
    old = bundle.manifest
    files = {f"{name}.onnx": bundle.graph(name) for name in old.graphs}
    files[f"{GRAPH}.onnx"] = model.SerializeToString(deterministic=True)
    files[NODES] = nodes_json(nodes)
    kept = [old.reference, old.thresholds, *(state.initial for state in old.states.values())]
    files |= {spec.file: bundle.read(spec) for spec in kept if spec is not None}
    specs = {name: file_spec(name, data) for name, data in files.items()}
    graphs = {name: graph.model_copy(update={"file": specs[f"{name}.onnx"]}) for name, graph in old.graphs.items()}
    now = graph_spec(model, specs[f"{GRAPH}.onnx"], "int8")
    graphs[GRAPH] = graphs[GRAPH].model_copy(update={"opset": now.opset, "precision": now.precision})
    manifest = old.model_copy(
        update={
            "name": f"{old.name.removesuffix('-fp16')}-int8",
            "graphs": graphs,
            "nodes": specs[NODES],
            "producer": _producer(old.producer),
        }
    )
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, indent=1) + "\n")
    return manifest


def _producer(old: Producer) -> Producer:
    """The same checkpoint and tracer, the versions that calibrated it. SOURCE_DATE_EPOCH fixes the time."""
    here = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    seconds = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(seconds), timezone.utc) if seconds else datetime.now(timezone.utc)
    return old.model_copy(update={"versions": {**old.versions, **here}, "created": now.isoformat(timespec="seconds")})
