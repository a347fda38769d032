"""Checks of tensors: a method's needs against the manifest, the feeds of a call against the graph.

Axes are written as in einsum: "B Q C" are three axes, a letter means the same size wherever it appears, a number
means itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from visrt.runtime.arrays import Feed
from visrt.runtime.bundles.manifest import GraphSpec, Manifest, StateSpec, TensorSpec
from visrt.runtime.errors import BundleError, EngineError

__all__ = ["GraphNeed", "TensorNeed", "check_feeds", "check_graphs", "slot_masks"]

Axis = int | str


@dataclass(frozen=True)
class TensorNeed:
    """One tensor a family needs: its axes and the dtypes it may have. optional: a bundle may do without it."""

    axes: str
    dtypes: tuple[str, ...] = ("float32", "float16")
    optional: bool = False


@dataclass(frozen=True)
class GraphNeed:
    """The tensors, by role, that a family feeds to a graph and reads from it. optional: a bundle may do without it."""

    inputs: Mapping[str, TensorNeed]
    outputs: Mapping[str, TensorNeed]
    optional: bool = False


def slot_masks(embedding: str, features: str, dtypes: tuple[str, ...] = ("float32", "float16")) -> GraphNeed:
    """The `masks` graph of networks whose slots are objects: M masks of each of N streams. `embedding` and `features`
    are axes of a mask embedding and of a frame's mask features, whose last two may differ from the masks' h x w."""
    return GraphNeed(
        inputs={
            "slots": TensorNeed("N M", ("int32",)),
            "mask_embeddings": TensorNeed(f"N Q {embedding}", ("float32",)),
            "mask_features": TensorNeed(f"N {features}", dtypes),
        },
        outputs={
            "mask_logits": TensorNeed("N M h w", ("float32",)),
            "kept_embeddings": TensorNeed(f"N M {embedding}", ("float32",)),
        },
    )


def check_graphs(
    manifest: Manifest,
    needs: Mapping[str, GraphNeed],
    sizes: Mapping[str, int],
    states: Mapping[str, TensorNeed] = MappingProxyType({}),
) -> None:
    """Raises BundleError unless the manifest offers the graphs and states a family needs; `sizes` are letters known
    before."""
    if missing := {name for name, need in needs.items() if not need.optional} - manifest.graphs.keys():
        found = ", ".join(sorted(manifest.graphs)) or "none"
        raise BundleError(
            f"bundle {manifest.name!r}: family {manifest.family!r} needs graph {', '.join(sorted(missing))}, "
            f"found {found}; export it again"
        )
    known: dict[str, Axis] = dict(sizes)
    faults: list[str] = []
    for name, need in ((name, need) for name, need in needs.items() if name in manifest.graphs):
        graph = manifest.graphs[name]
        faults += _role_faults(f"{name}.inputs", need.inputs, graph.inputs, known)
        faults += _role_faults(f"{name}.outputs", need.outputs, graph.outputs, known)
    faults += [fault for name, need in states.items() for fault in _state_faults(name, need, manifest, known)]
    faults += [fault for name in manifest.states for fault in _carried_faults(name, manifest)]
    faults += [fault for name in manifest.graphs for fault in _device_faults(name, manifest)]
    if faults:
        raise BundleError(f"bundle {manifest.name!r}: " + "; ".join(faults) + "; export it again")


def _role_faults(
    where: str, needs: Mapping[str, TensorNeed], specs: Mapping[str, TensorSpec], known: dict[str, Axis]
) -> list[str]:
    """Faults in the tensors of one side of a graph, as text; letters met first are added to `known`."""
    faults = [f"{where}: unknown role {role!r}, known are {', '.join(needs)}" for role in specs if role not in needs]
    for role, need in needs.items():
        if role not in specs:
            faults += [] if need.optional else [f"{where}: missing role {role!r}"]
        elif not _fits(need, specs[role], known):
            spec = specs[role]
            expected = " ".join(_named(axis, known) for axis in need.axes.split())
            found = " ".join(map(str, spec.shape))
            faults.append(
                f"{where}.{role}: expected {'|'.join(need.dtypes)} [{expected}], found {spec.dtype} [{found}]"
            )
    return faults


def _state_faults(name: str, need: TensorNeed, manifest: Manifest, known: dict[str, Axis]) -> list[str]:
    """Faults in a state tensor, as text."""
    if name not in manifest.states:
        return [] if need.optional else [f"states: missing state {name!r}"]
    spec = manifest.states[name]
    faults = []
    if not _fits(need, spec, known):
        expected = " ".join(_named(axis, known) for axis in need.axes.split())
        found = " ".join(map(str, spec.shape))
        faults.append(f"states.{name}: expected {'|'.join(need.dtypes)} [{expected}], found {spec.dtype} [{found}]")
    graphs = manifest.graphs.values()
    if not any(spec.input in graph.inputs for graph in graphs):
        faults.append(f"states.{name}: feeds {spec.input!r}, which is no input of any graph")
    if not any(spec.output in graph.outputs for graph in graphs):
        faults.append(f"states.{name}: renewed by {spec.output!r}, which is no output of any graph")
    return faults


def _carried_faults(name: str, manifest: Manifest) -> list[str]:
    """Why a state cannot stay in the engine's memory from call to call, where it is to."""
    state = manifest.states[name]
    if state.device != "engine":
        return []
    given: list[tuple[str, TensorSpec, tuple[Axis, ...]]] = [
        (f"{graph}.{state.output}", manifest.graphs[graph].outputs[state.output], state.shape)
        for graph in manifest.graphs
        if name in manifest.renewed_by(graph)
    ]
    taken: list[tuple[str, TensorSpec, tuple[Axis, ...]]] = [
        (f"{graph}.{state.input}", manifest.graphs[graph].inputs[state.input], state.shape)
        for graph in manifest.graphs
        if name in manifest.read_by(graph)
    ]
    if state.ring:
        taken = [(where, spec, _with_entries(state, spec)) for where, spec, _ in taken]
    return [
        f"states.{name}: is {state.dtype} {_listed(shape)}, but {where} is {spec.dtype} {_listed(spec.shape)}"
        for where, spec, shape in (*given, *taken)
        if spec.dtype != state.dtype or spec.item_shape != shape
    ]


def _with_entries(state: StateSpec, spec: TensorSpec) -> tuple[Axis, ...]:
    """The shape of all entries of a ring, as the input `spec` counts them: [Q, entries, C]."""
    return (*state.shape[:-1], spec.shape[-2], state.shape[-1]) if len(spec.shape) > 1 else state.shape


def _device_faults(name: str, manifest: Manifest) -> list[str]:
    """Inputs of a graph that are to be taken on the device, but that no other graph leaves there in their shape."""
    roles, spec = manifest.device_roles(name), manifest.graphs[name]
    given = {
        (role, tensor.dtype, tensor.item_shape)
        for other, graph in manifest.graphs.items()
        if other != name
        for role, tensor in graph.outputs.items()
        if role in manifest.device_roles(other)
    }
    states = {state.input for state in manifest.read_by(name).values()}
    return [
        f"{name}.inputs.{role}: taken on the device, where no graph leaves {tensor.dtype} {_listed(tensor.shape)}"
        for role, tensor in spec.inputs.items()
        if role in roles - states and (role, tensor.dtype, tensor.item_shape) not in given
    ]


def _fits(need: TensorNeed, spec: TensorSpec | StateSpec, known: dict[str, Axis]) -> bool:
    axes = need.axes.split()
    if spec.dtype not in need.dtypes or len(axes) != len(spec.shape):
        return False
    pairs = zip(axes, spec.shape, strict=True)
    return all(size == (int(axis) if axis.isdigit() else known.setdefault(axis, size)) for axis, size in pairs)


def _named(axis: str, known: Mapping[str, Axis]) -> str:
    return f"{axis}={known[axis]}" if axis in known else axis


def check_feeds(graph: GraphSpec, feeds: Mapping[str, Feed]) -> None:
    """Raises EngineError unless `feeds` are exactly the graph's inputs, in their dtypes and shapes."""
    if feeds.keys() != graph.inputs.keys():
        raise EngineError(
            f"{graph.file.file}: given inputs {', '.join(feeds) or 'none'}; expected {', '.join(graph.inputs)}"
        )
    dynamic: dict[str, int] = {}
    for role, spec in graph.inputs.items():
        tensor = feeds[role]
        if tensor.dtype != spec.dtype or not _shape_fits(spec.shape, tensor.shape, dynamic):
            raise EngineError(
                f"{graph.file.file}: input {role!r} is {tensor.dtype} {_listed(tensor.shape)}; "
                f"expected {spec.dtype} {_listed(spec.shape)}" + (f" with {dynamic}" if dynamic else "")
            )


def _shape_fits(expected: tuple[Axis, ...], given: tuple[int, ...], dynamic: dict[str, int]) -> bool:
    """Sizes are equal; a dynamic axis has one size throughout a call."""
    if len(expected) != len(given):
        return False
    pairs = zip(expected, given, strict=True)
    return all(size == (dynamic.setdefault(axis, size) if isinstance(axis, str) else axis) for axis, size in pairs)


def _listed(shape: tuple[Any, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
