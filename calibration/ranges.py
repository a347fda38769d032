"""The range of values of each tensor of a graph on real frames, and the tensors that leave the range of FP16.

The graph is run as it is, its tensors made outputs a group at a time, so that memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from visrt.calibration.histogram import Magnitudes, magnitudes_of
from visrt.calibration.tensors import GraphView
from visrt.runtime.arrays import Array, Feed, HostTensor, Tensor
from visrt.runtime.bundles.manifest import GraphSpec
from visrt.runtime.engines.engine import Engine, HostEngine
from visrt.runtime.errors import EngineError, ParityError, one_line

__all__ = ["FP16_MAX", "Hazard", "Replay", "TensorRange", "hazards", "ranges_of", "refuse_overflow"]

FP16_MAX = 65504.0
FP16_MARGIN = 4
"""A tensor within this factor of FP16_MAX may leave it on a frame that was not seen."""

FP16_SMALLEST_NORMAL = 2.0**-14
"""Smaller magnitudes lose precision in FP16; a tensor that has no larger ones is lost."""

HIGH_PERCENTILE = 99.99
NAMED = 5
GROUP_BYTES = 2**29
"""Of tensors that are outputs at the same time, about."""

Replay = Callable[[Engine], None]
"""Runs the range frames through the network with this engine in the place of one graph."""


@dataclass(frozen=True)
class TensorRange:
    """One tensor of one graph over all range frames: which node makes it, and its magnitudes.

    on_purpose: what lies beyond FP16's range here comes from a constant beyond it, as masked attention adds.
    """

    graph: str
    tensor: str
    node: str
    op: str
    magnitudes: Magnitudes
    on_purpose: bool

    @property
    def high(self) -> float:
        return self.magnitudes.percentile(HIGH_PERCENTILE)


@dataclass(frozen=True)
class Hazard:
    """A tensor that FP16 does not hold. what: "overflow", "near overflow" or "underflow"."""

    what: str
    found: TensorRange

    def describe(self) -> str:
        spoilt = self.found.magnitudes.not_finite
        size = f"{spoilt} values not finite" if spoilt else f"largest {self.found.magnitudes.largest:.3g}"
        found = self.found
        return f"{found.tensor} of {found.op} {found.node} in the {found.graph} graph ({self.what}, {size})"


def ranges_of(
    graph: str,
    spec: GraphSpec,
    model: onnx.ModelProto,
    replay: Replay,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, TensorRange]:
    """The range of every float tensor of `graph`, which is `model`, that varies, by tensor name; none where `replay`
    never calls it.

    A tensor that is a view of another has the range of the other, under its own name too.
    """
    view = GraphView(model)
    groups = _groups(view)
    magnitudes: dict[str, Magnitudes] = {}
    for done, names in enumerate(groups):
        progress(done, len(groups))
        watched = _Watched(spec, model, names)
        replay(watched)
        magnitudes |= watched.magnitudes
    progress(len(groups), len(groups))
    on_purpose = _on_purpose(view, magnitudes)
    made = {
        name: TensorRange(graph, name, node.name, node.op_type, magnitudes[name], name in on_purpose)
        for name, node in view.float_results()
        if name in magnitudes
    }
    views = {name: made[view.origin(name)] for name in view.varying if view.origin(name) in made}
    return {**views, **made}


def hazards(ranges: Mapping[str, TensorRange]) -> list[Hazard]:
    """The tensors that FP16 does not hold, the worst first; views of a tensor are not named again."""
    found = [Hazard(what, entry) for name, entry in ranges.items() if name == entry.tensor and (what := _hazard(entry))]
    order = ("overflow", "near overflow", "underflow")
    return sorted(found, key=lambda hazard: (order.index(hazard.what), -hazard.found.magnitudes.largest))


def refuse_overflow(ranges: Mapping[str, TensorRange], what: str) -> None:
    """Raises ParityError naming the tensors where NaN or infinity arises."""
    spoilt = [hazard for hazard in hazards(ranges) if hazard.found.magnitudes.not_finite]
    if spoilt:
        named = "; ".join(hazard.describe() for hazard in spoilt[:NAMED])
        more = f" and {len(spoilt) - NAMED} more" if len(spoilt) > NAMED else ""
        raise ParityError(
            f"{what}: NaN or infinity arises on the calibration frames in {named}{more}; export it again with "
            "`visrt export --precision fp16` and pictures like these as --reference, so that it keeps these nodes in "
            "FP32, or calibrate a bundle of precision fp32"
        )


def _hazard(entry: TensorRange) -> str:
    largest = entry.magnitudes.largest
    if entry.on_purpose:
        return ""
    if _beyond(entry.magnitudes):
        return "overflow"
    if largest > FP16_MAX / FP16_MARGIN:
        return "near overflow"
    return "underflow" if 0 < largest < FP16_SMALLEST_NORMAL else ""


def _on_purpose(view: GraphView, magnitudes: Mapping[str, Magnitudes]) -> frozenset[str]:
    """Tensors beyond FP16's range because a constant is, or a tensor that is so on purpose."""
    found: set[str] = set()
    for name, node in view.float_results():
        if name in magnitudes and _beyond(magnitudes[name]):
            origins = [view.origin(source) for source in node.input if source]
            if any(origin in found or _constant_beyond(view.constant(origin)) for origin in origins):
                found.add(name)
    return frozenset(found)


def _beyond(magnitudes: Magnitudes) -> bool:
    """The largest number of FP16 itself counts: attention is masked with it, and a sum with it is infinite."""
    return magnitudes.not_finite > 0 or magnitudes.largest >= FP16_MAX


def _constant_beyond(value: Array | None) -> bool:
    return value is not None and value.dtype.kind == "f" and not bool((np.abs(value) < FP16_MAX).all())


def _groups(view: GraphView) -> list[list[str]]:
    """The tensors to be recorded, in order, in groups of about GROUP_BYTES for one frame."""
    sizes = _sizes(view.model)
    largest = max(sizes.values(), default=1)
    groups: list[list[str]] = [[]]
    filled = 0
    for name, _ in view.float_results():
        if name in sizes and sizes[name] == 0:
            continue
        size = sizes.get(name, largest)
        if groups[-1] and filled + size > GROUP_BYTES:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of each tensor for one frame, 0 for one that holds no floats; a size that is not known is missing."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    sizes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.tensor_type
        shape = [axis.dim_value or 1 for axis in kind.shape.dim]
        floats = kind.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        sizes[value.name] = 4 * int(np.prod(shape)) if floats else 0
    return sizes


class _Watched(HostEngine):
    """The graph `model` as an engine that takes note of the magnitudes of its tensors `names`."""

    provider = "CPUExecutionProvider"

    def __init__(self, spec: GraphSpec, model: onnx.ModelProto, names: Sequence[str]) -> None:
        self.magnitudes: dict[str, Magnitudes] = {}
        self._spec, self._watched = spec, frozenset(names)
        self._names = list(dict.fromkeys([*names, *(output.name for output in spec.outputs.values())]))
        self._session = _session(_with_outputs(model, names))

    def __call__(self, feeds: Mapping[str, Feed]) -> dict[str, Tensor]:
        arrays = {self._spec.inputs[role].name: _array(feed) for role, feed in feeds.items()}
        made: dict[str, Array] = dict(zip(self._names, self._session.run(self._names, arrays), strict=True))
        for name, array in made.items():
            if name in self._watched and array.dtype.kind == "f":
                here, before = magnitudes_of(array), self.magnitudes.get(name)
                self.magnitudes[name] = here if before is None else before.plus(here)
        return {role: HostTensor(made[output.name]) for role, output in self._spec.outputs.items()}

    def close(self) -> None:
        del self._session


def _array(feed: Feed) -> Array:
    return feed if isinstance(feed, np.ndarray) else feed.numpy()


def _with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """`model` with the tensors `names` as outputs; ONNX Runtime finds out their types itself."""
    more = onnx.ModelProto()
    more.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    more.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return more


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime refuses the graph with its tensors as outputs: {one_line(error)}") from error
