"""The judgement on engines: do they compute what torch computed, as far as their precision lets them?

A float32 bundle is judged tensor by tensor. In FP16 and INT8 masked attention moves queries by hundredths while what a
user sees stays as it is. So these are judged by masks, classes and assignment, and FP16 by its mask features too,
which lie before the masked attention; the other errors are reported and not judged. NaN and infinity never pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.arrays import Array
from visrt.runtime.bundles.bundle import Bundle, initial_states
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.engine import Engine
from visrt.runtime.errors import BundleError, EngineError, ParityError, UsageError
from visrt.runtime.methods.outputs import PER_FRAME, FullOutputs, Outputs
from visrt.runtime.methods.registry import method_of
from visrt.runtime.parity.agreement import Agreement, Floors, FrameAnswer, agreement, answers_of, shape_role
from visrt.runtime.parity.reference import Reference
from visrt.runtime.parity.tolerances import (
    REPORTED,
    TOLERANCE,
    TOLERANCES,
    Errors,
    TensorParity,
    errors_of_items,
    kind_of,
    tensor_parity,
    worst_of,
)

__all__ = [
    "BATCHES",
    "GATES",
    "BatchParity",
    "Gate",
    "ParityReport",
    "full_outputs_of",
    "gate_of",
    "judge",
    "precision_of",
]

Indices = NDArray[np.intp]

BATCHES = (1, 3)
"""One frame a call, and a number that is neither one nor the two that the graph was traced with."""


@dataclass(frozen=True)
class Gate:
    """The limits that engines must keep: errors of tensors by role, relative to their scale, and floors of agreement.

    others: the tolerance of roles that are not among `tolerances`.
    """

    tolerances: Mapping[str, float]
    floors: Floors
    others: float = REPORTED

    def tolerance(self, role: str) -> float:
        return self.tolerances.get(kind_of(role), self.others)


GATES = {
    "fp32": Gate(TOLERANCES, Floors(iou_mean=0.0, iou_min=0.0, top_class=0.0, assignment=0.0), TOLERANCE),
    "fp16": Gate({"mask_features": 1e-2}, Floors(iou_mean=0.995, top_class=0.99, assignment=0.99)),
    "int8": Gate({}, Floors(iou_mean=0.97, top_class=0.99, assignment=0.9)),
}
"""By the precision of the bundle, whatever engine runs it."""


@dataclass(frozen=True)
class BatchParity:
    """Engines against what was expected, at `batch` frames a call.

    agreement: None where there is nothing to compare; its IoUs are NaN where the reference keeps no masks. faults: in
    words, apart from tensors: floors missed, other shapes, a run that failed.
    """

    batch: int
    tensors: tuple[TensorParity, ...] = ()
    agreement: Agreement | None = None
    faults: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        return not self.faults and all(row.passed for row in self.tensors)


@dataclass(frozen=True)
class ParityReport:
    """The judgement on one set of engines. precision, gate: what they were judged by."""

    precision: str
    gate: Gate
    batches: tuple[BatchParity, ...]

    @property
    def passed(self) -> bool:
        return all(batch.passed for batch in self.batches)

    @property
    def tensors(self) -> list[TensorParity]:
        return [row for batch in self.batches for row in batch.tensors]

    def faults(self) -> list[str]:
        """All that speaks against the engines, in words, and where to look first; nothing if they passed."""
        others = [f"batch {batch.batch}: {fault}" for batch in self.batches for fault in batch.faults]
        return [*_tensor_faults(self.tensors), *others, *_largest(self.tensors)] if not self.passed else []

    def require(self, what: str) -> None:
        """Raises ParityError that tells all faults of `what` unless it passed."""
        if faults := self.faults():
            raise ParityError(f"{what}: {'; '.join(faults)}; do not deploy it")


def _tensor_faults(rows: list[TensorParity]) -> list[str]:
    failed = [row for row in rows if not row.passed]
    if not failed:
        return []
    worst = worst_of(failed)
    return [
        f"{len(failed)} of {len(rows)} comparisons fail; worst is {worst.graph}.{worst.role} at batch {worst.batch}, "
        f"error {worst.max_rel:.1e}, tolerance {worst.tolerance:.0e}, {worst.beyond} of {worst.items} beyond it where "
        f"{worst.allowed} may be"
    ]


def _largest(rows: list[TensorParity]) -> list[str]:
    """If only floors were missed, the tensor with the largest error."""
    if not rows or any(not row.passed for row in rows):
        return []
    worst = worst_of(rows)
    return [f"the largest error is {worst.max_rel:.1e} in {worst.graph}.{worst.role} at batch {worst.batch}"]


def precision_of(manifest: Manifest) -> str:
    """The least exact precision among the graphs of a bundle. Raises BundleError for one that is unknown."""
    ranks = {name: rank for rank, name in enumerate(GATES)}
    for name, graph in manifest.graphs.items():
        if graph.precision not in ranks:
            raise BundleError(
                f"bundle {manifest.name!r}: precision of graph {name!r} is {graph.precision!r}, expected one of "
                f"{', '.join(GATES)}; open it with the visrt that wrote it"
            )
    return max((graph.precision for graph in manifest.graphs.values()), key=ranks.__getitem__)


def gate_of(precision: str, floors: Mapping[str, float] | None = None) -> Gate:
    """The gate of `precision`, with `floors` by name in place of its own."""
    given = floors or {}
    known = [floor.name for floor in fields(Floors)]
    if unknown := given.keys() - set(known):
        raise UsageError(f"floor {', '.join(sorted(unknown))} is unknown; known are {', '.join(known)}")
    gate = GATES[precision]
    return replace(gate, floors=replace(gate.floors, **given))


def judge(
    engines: Mapping[str, Engine],
    reference: Reference,
    precision: str = "fp32",
    batches: tuple[int, ...] = BATCHES,
    floors: Mapping[str, float] | None = None,
    outputs: FullOutputs = PER_FRAME,
) -> ParityReport:
    """The judgement on `engines`, by graph, at each of `batches`, against `reference`; `outputs` as the family has
    them.

    An engine that fails while it runs is a fault of that batch; the other batches are reported all the same.
    """
    gate = gate_of(precision, floors)
    if reference.masks is None and {"iou_mean", "iou_min"} & (floors or {}).keys():
        raise UsageError("a floor for the IoU of masks was given, but the reference keeps no masks; export it again")
    return ParityReport(precision, gate, tuple(_judged(engines, reference, gate, batch, outputs) for batch in batches))


def _judged(
    engines: Mapping[str, Engine], reference: Reference, gate: Gate, batch: int, outputs: FullOutputs
) -> BatchParity:
    seen = _Seen()
    try:
        for frames in _calls(len(reference), batch):
            seen.add(reference, frames, outputs.run(engines, reference.images[frames], reference.valid_sizes[frames]))
    except EngineError as error:
        return BatchParity(batch, faults=(f"it fails while it runs: {error}",))
    rows = tuple(
        tensor_parity(outputs.graph_of(role), role, batch, np.concatenate(errors), reference, gate.tolerance(role))
        for role, errors in seen.errors.items()
    )
    if seen.misfits:
        return BatchParity(batch, rows, faults=tuple(seen.misfits))
    expected = reference.answers()
    reached = agreement([expected[t] for t in seen.frames], seen.given)
    known = reached if reference.masks is not None else replace(reached, iou_mean=np.nan, iou_min=np.nan)
    return BatchParity(batch, rows, known, tuple(gate.floors.missed(reached)))


def full_outputs_of(bundle: Bundle) -> FullOutputs:
    """The functions that give all outputs of a bundle's engines, by its tracking method.

    Raises BundleError where the graphs do not fit the family.
    """
    method, initial = method_of(bundle.manifest), initial_states(bundle)

    def run(engines: Mapping[str, Engine], images: Array, valid_sizes: Array) -> Outputs:
        return method.full_outputs(engines, bundle.manifest, initial, images, valid_sizes)

    return FullOutputs(run, method.graph_of)


def _calls(count: int, batch: int) -> Iterator[Indices]:
    """`count` frames in order in calls of `batch`; the last call is filled up with the last frame."""
    for start in range(0, count, batch):
        yield np.minimum(np.arange(start, start + batch), count - 1)


@dataclass
class _Seen:
    """The engines' outputs so far: the frames, errors of items by role, answers, and shapes that do not fit."""

    frames: list[int] = field(default_factory=list)
    errors: dict[str, list[Errors]] = field(default_factory=dict)
    given: list[FrameAnswer] = field(default_factory=list)
    misfits: dict[str, None] = field(default_factory=dict)

    def add(self, reference: Reference, frames: Indices, outputs: Outputs) -> None:
        """Adds the outputs of one call for `frames`."""
        self.frames += frames.tolist()
        for role in reference.expected:
            given, expected = reference.picked(role, outputs[role]), reference.expected[role][frames]
            self.errors.setdefault(role, []).append(errors_of_items(role, given, expected))
            if given.shape != expected.shape:
                self.misfits[f"{role} is {list(given.shape)}, expected {list(expected.shape)}"] = None
        self.given += [_comparable(answer, reference) for answer in answers_of(outputs)]
        if reference.masks is not None and self.given[-1].masks.shape != reference.masks.shape[1:]:
            role, kept = shape_role(outputs), reference.masks.shape[2]
            self.misfits[f"{role} is {list(outputs[role].shape)}, expected masks of {kept} bytes a query"] = None


def _comparable(answer: FrameAnswer, reference: Reference) -> FrameAnswer:
    """`answer`, with masks of no pixels where the reference keeps none."""
    return answer if reference.masks is not None else replace(answer, masks=answer.masks[:, :0])
