"""Bundles of one network, each at one size of its input -> one bundle of several sizes, shared weights stored once.

Tracing at another height and width gives another graph with the same weights, some under other names. What all sizes
have is taken out of their graphs into one file: a model of initializers alone. Protobuf merges messages that follow one
another, so a graph's bytes followed by the weights' are the whole model again.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.bundles.manifest import FileSpec, GraphSpec, InputSpec, Manifest, SizeSpec, StateSpec
from visrt.runtime.bundles.writer import file_spec, write_bundle
from visrt.runtime.errors import UsageError

__all__ = ["join_sizes"]

SHARED_BYTES_MIN = 256
"""Smaller initializers stay in their graph: shapes and scalars are not worth a second name."""
TABLE_BYTES_MIN = 2**16
"""Larger ones that a size does not share are stored without their repetitions, as the position tables have them."""


def join_sizes(folder: Path, bundles: Sequence[Bundle]) -> Manifest:
    """Writes to `folder` one bundle of the sizes of `bundles`, each of one size; that of the first is the main one.

    Raises UsageError unless they are the same network, tracked in the same way, at different sizes.
    """
    _refuse_different(bundles)
    files = _Files(tuple(bundle.manifest.input for bundle in bundles))
    main = bundles[0].manifest
    graphs = {name: _joined_graph(files, bundles, name) for name in main.graphs}
    states = {name: _joined_state(files, bundles, name) for name in main.states}
    references = files.add("reference", ".npz", [bundle.read(bundle.manifest.reference) for bundle in bundles])
    nodes = _joined_nodes(files, bundles)
    if main.thresholds is not None:
        files.data[main.thresholds.file] = bundles[0].read(main.thresholds)
    sizes = [
        SizeSpec(
            input=spec,
            graphs={name: of_sizes[i] for name, of_sizes in graphs.items()},
            states={name: of_sizes[i] for name, of_sizes in states.items()},
            reference=references[i],
            nodes=nodes[i],
        )
        for i, spec in enumerate(files.inputs)
    ]
    joined = main.model_copy(update={**dict(sizes[0]), "other_sizes": tuple(sizes[1:])})
    write_bundle(folder, joined, files.data)
    return joined


@dataclass(frozen=True)
class _Files:
    """The files of the bundle of several sizes, by name."""

    inputs: tuple[InputSpec, ...]
    data: dict[str, bytes] = field(default_factory=dict)

    def add(self, stem: str, suffix: str, of_sizes: Sequence[bytes]) -> list[FileSpec]:
        """Adds one file if it is the same at every size, else one a size: `stem`-384x640`suffix`."""
        if len(set(of_sizes)) == 1:
            return [self._one(stem + suffix, of_sizes[0])] * len(of_sizes)
        names = [f"{stem}-{spec.text}{suffix}" for spec in self.inputs]
        return [self._one(name, data) for name, data in zip(names, of_sizes, strict=True)]

    def _one(self, name: str, data: bytes) -> FileSpec:
        self.data[name] = data
        return file_spec(name, data)


def _joined_graph(files: _Files, bundles: Sequence[Bundle], name: str) -> list[GraphSpec]:
    """The manifest's entry of graph `name` at each size, whose files are added to `files`."""
    contents = [_Contents.of(onnx.load_from_string(bundle.graph(name))) for bundle in bundles]
    weights, graphs = onnx.ModelProto(), list[bytes]()
    for bundle, names in zip(bundles, _shared_names(contents), strict=True):
        model = onnx.load_from_string(bundle.graph(name))
        taken = _taken_out(model, names)
        _store_without_repetitions(model.graph)
        if not graphs:
            weights.graph.initializer.extend(taken)
        graphs.append(model.SerializeToString(deterministic=True))
    if len(set(graphs)) == 1:  # it does not depend on the size, and stays whole
        graphs = [bundle.graph(name) for bundle in bundles[:1]] * len(bundles)
        weights = onnx.ModelProto()
    specs = files.add(name, ".onnx", graphs)
    shared = None
    if weights.graph.initializer:
        data = weights.SerializeToString(deterministic=True)
        shared = files.add(name, ".weights", [data])[0]
    return [
        bundle.manifest.graphs[name].model_copy(update={"file": spec, "weights": shared})
        for bundle, spec in zip(bundles, specs, strict=True)
    ]


@dataclass(frozen=True)
class _Contents:
    """Of one graph the sha256 of each initializer that may be shared, by name, and the names of all tensors."""

    initializers: Mapping[str, str]
    tensors: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto) -> _Contents:
        graph = model.graph
        ends = {value.name for value in (*graph.input, *graph.output)}
        large = [weight for weight in graph.initializer if weight.ByteSize() >= SHARED_BYTES_MIN]
        hashes = {weight.name: _sha256(weight) for weight in large if weight.name not in ends}
        named = {weight.name for weight in graph.initializer} | {name for node in graph.node for name in node.output}
        return cls(hashes, frozenset(ends | named))


def _sha256(weight: onnx.TensorProto) -> str:
    """Of the dtype, shape and values, whatever the name."""
    nameless = onnx.TensorProto()
    nameless.CopyFrom(weight)
    nameless.ClearField("name")
    return hashlib.sha256(nameless.SerializeToString(deterministic=True)).hexdigest()


def _shared_names(contents: Sequence[_Contents]) -> list[dict[str, str]]:
    """For each size, by their names in its graph, the initializers that all sizes have, and their names when shared.

    Where all call one by the same name, it keeps the name; else it gets one that no tensor has.
    """
    first = contents[0].initializers
    same = [name for name, value in first.items() if all(one.initializers.get(name) == value for one in contents)]
    shared = [dict(zip(same, same, strict=True)) for _ in contents]
    others: list[dict[str, list[str]]] = [defaultdict(list) for _ in contents]
    for by_value, one in zip(others, contents, strict=True):
        for name, value in one.initializers.items():
            if name not in shared[0]:
                by_value[value].append(name)
    taken = frozenset[str]().union(*(one.tensors for one in contents))
    for value in others[0]:
        # As many of one value as every size has.
        for names in zip(*(by_value.get(value, []) for by_value in others), strict=False):
            new = f"shared.{names[0]}"
            while new in taken:
                new = f"shared.{new}"
            for of_size, name in zip(shared, names, strict=True):
                of_size[name] = new
    return shared


def _taken_out(model: onnx.ModelProto, names: Mapping[str, str]) -> list[onnx.TensorProto]:
    """The initializers of `names`, under their new names, which go from `model`; its nodes then use the new names."""
    graph = model.graph
    by_name = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        for i, given in enumerate(node.input):
            node.input[i] = names.get(given, given)
    taken = []
    for old, new in names.items():
        weight = onnx.TensorProto()
        weight.CopyFrom(by_name[old])
        weight.name = new
        taken.append(weight)
    kept = [weight for weight in graph.initializer if weight.name not in names]
    copies = onnx.GraphProto(initializer=kept).initializer
    del graph.initializer[:]
    graph.initializer.extend(copies)
    return taken


def _store_without_repetitions(graph: onnx.GraphProto) -> None:
    """Large initializers that repeat along axes, each as one repetition and a node that expands it."""
    ends = {value.name for value in (*graph.input, *graph.output)}
    for weight in list(graph.initializer):
        if weight.ByteSize() < TABLE_BYTES_MIN or weight.name in ends:
            continue
        values = numpy_helper.to_array(weight)
        once = values
        for axis in range(values.ndim):
            first = once.take([0], axis)
            once = first if np.array_equal(np.broadcast_to(first, once.shape), once) else once
        if once.size < values.size:
            stored, shape = f"{weight.name}.once", f"{weight.name}.shape"
            expand = onnx.helper.make_node("Expand", [stored, shape], [weight.name], name=f"{weight.name}.expand")
            weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(once), stored))
            graph.initializer.append(numpy_helper.from_array(np.array(values.shape, np.int64), shape))
            graph.node.insert(0, expand)


def _joined_state(files: _Files, bundles: Sequence[Bundle], name: str) -> list[StateSpec]:
    """The manifest's entry of state `name` at each size, whose initial values are added to `files`."""
    states = [bundle.manifest.states[name] for bundle in bundles]
    values = [bundle.read(state.initial) for bundle, state in zip(bundles, states, strict=True) if state.initial]
    initial = files.add(name, ".npy", values) if values else [None] * len(bundles)
    return [state.model_copy(update={"initial": file}) for state, file in zip(states, initial, strict=True)]


def _joined_nodes(files: _Files, bundles: Sequence[Bundle]) -> Sequence[FileSpec | None]:
    """The file of node precisions at each size, added to `files`; None where the bundles have none."""
    data = [bundle.read(bundle.manifest.nodes) for bundle in bundles if bundle.manifest.nodes]
    return files.add("nodes", ".json", data) if data else [None] * len(bundles)


def _refuse_different(bundles: Sequence[Bundle]) -> None:
    """Raises UsageError unless `bundles` are of one size each, all differ in it, and in nothing else that counts."""
    sizes = [bundle.manifest.input.text for bundle in bundles]
    if len(bundles) < 2 or len(set(sizes)) != len(sizes) or any(bundle.manifest.other_sizes for bundle in bundles):
        raise UsageError(f"bundles of {', '.join(sizes) or 'no size'} to join; expected two or more, each of one size")
    main, *others = [_of_all_sizes(bundle.manifest) for bundle in bundles]
    for bundle, size, values in zip(bundles[1:], sizes[1:], others, strict=True):
        if differ := [what for what, value in values.items() if value != main[what]]:
            raise UsageError(
                f"{bundle.folder} ({size}) and {bundles[0].folder} ({sizes[0]}) differ in {', '.join(differ)}; "
                "expected the same network at different sizes: export them alike"
            )


def _of_all_sizes(manifest: Manifest) -> dict[str, Any]:
    spec, states = manifest.input, manifest.states
    return {
        "family": manifest.family,
        "classes": manifest.classes,
        "association": manifest.association,
        "thresholds": manifest.thresholds,
        "checkpoint": manifest.producer.checkpoint_sha256,
        "graphs": set(manifest.graphs),
        "states": {name: state.initial is None for name, state in states.items()},
        "short and long side": (spec.short_side, spec.long_side),
        "resize": (spec.resize, spec.colour_order, spec.source),
        "nodes": manifest.nodes is None,
    }
