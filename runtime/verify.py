"""Parity of a bundle's engines with what torch computed at export, tensor by tensor and at two batch sizes.

Needs no torch: the expected values are in the bundle.

Masked attention is discontinuous where a mask logit is 0. There the last bit of a float can open or close a pixel to a
query and move that query visibly, in torch itself as much as in another engine, while its neighbours move by next to
nothing. So the mask features, which come before, must agree everywhere, while of the queries a few may not: two in a
hundred, or twice as many as torch itself moved under noise when that is more, as on untrained networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.backends import EngineOptions, open_engines
from visrt.runtime.bundle import Bundle, open_bundle
from visrt.runtime.engine import Array, Engine
from visrt.runtime.errors import ParityError
from visrt.runtime.reference import Reference, reference_from_bytes

__all__ = [
    "BY_QUERY",
    "TOLERANCES",
    "TensorParity",
    "compare",
    "errors_of_items",
    "require_parity",
    "scale_of",
    "verify",
]

TOLERANCES = {
    "class_logits": 2e-4,
    "embeddings": 2e-4,
    "mask_embeddings": 2e-4,
    "mask_features": 2e-4,
    "mask_logits": 1e-3,
}
"""Largest error of a float32 engine, relative to the larger of 1 and the largest expected value of the tensor."""

BY_QUERY = ("class_logits", "embeddings", "mask_embeddings", "mask_logits")
"""Roles whose second axis are the queries."""

BEYOND_SHARE = 0.02
"""Queries that may lie beyond the tolerance, of all queries of all frames, rounded down."""

BEYOND_SHARE_MAX = 0.1
"""The same where torch itself is unsteady."""

BATCH = 3
"""Frames in the batched run: neither one nor the two that the graph was traced with."""

Errors = NDArray[np.float64]


@dataclass(frozen=True)
class TensorParity:
    """One output of one graph against torch, over all reference frames.

    batch: frames a call of the frame graph. max_abs: largest absolute error. max_rel: the same over the larger of 1
    and the largest expected value. items: what was compared, queries or frames of mask features. beyond: how many of
    them lie beyond `tolerance`, and `allowed` how many may.
    """

    graph: str
    role: str
    batch: int
    max_abs: float
    max_rel: float
    tolerance: float
    items: int
    beyond: int
    allowed: int

    @property
    def passed(self) -> bool:
        """NaN, infinity and another shape never pass."""
        return bool(np.isfinite(self.max_abs)) and self.beyond <= self.allowed


def verify(folder: str | Path, backend: str = "cpu", threads: int | None = None) -> list[TensorParity]:
    """Parity of the bundle in `folder`, run by `backend`, with its reference; the caller judges `passed`.

    Raises BundleError for a bundle that is damaged, EngineError for a backend that is absent or refuses a graph.
    """
    bundle = open_bundle(folder)
    reference = _reference(bundle)
    engines = open_engines(bundle, backend, EngineOptions(threads))
    try:
        return compare(engines, reference)
    finally:
        for engine in engines.values():
            engine.close()


def require_parity(table: Sequence[TensorParity], what: str) -> None:
    """Raises ParityError naming the worst tensor of `what` unless all of `table` passed."""
    failed = [row for row in table if not row.passed]
    if failed:
        worst = max(failed, key=lambda row: row.max_rel / row.tolerance)
        raise ParityError(
            f"{what}: {len(failed)} of {len(table)} comparisons fail; worst is {worst.graph}.{worst.role} at batch "
            f"{worst.batch}, error {worst.max_rel:.1e}, tolerance {worst.tolerance:.0e}, {worst.beyond} of "
            f"{worst.items} beyond it where {worst.allowed} may be; do not deploy it"
        )


def compare(engines: Mapping[str, Engine], reference: Reference) -> list[TensorParity]:
    """Parity of `engines`, by graph, with `reference`: each frame alone, then a batch."""
    singly = [np.array([i]) for i in range(len(reference))]
    together = [np.arange(max(BATCH, len(reference))) % len(reference)]
    return [*_compared(engines, reference, singly), *_compared(engines, reference, together)]


def errors_of_items(role: str, given: Array, expected: Array) -> Errors:
    """The largest absolute error of each item: of each query, or frame of mask features. NaN counts as infinite.

    `given` and `expected` [T, ...]; where the shapes differ, every item is infinitely wrong.
    """
    axes = 2 if role in BY_QUERY else 1
    if given.shape != expected.shape:
        return np.full(int(np.prod(expected.shape[:axes])), np.inf)
    errors = np.abs(given.astype(np.float64) - expected).reshape(*expected.shape[:axes], -1).max(axis=-1).ravel()
    return np.where(np.isfinite(errors), errors, np.inf)


def scale_of(expected: Array) -> float:
    """What errors are relative to."""
    return max(1.0, float(np.abs(expected).max()))


def _compared(engines: Mapping[str, Engine], reference: Reference, calls: list[Array]) -> list[TensorParity]:
    """One row a tensor. Each of `calls` holds the frames of one call of the frame graph."""
    errors: dict[str, list[Errors]] = {}
    for frames in calls:
        for role, given in _outputs(engines, reference, frames):
            items = errors_of_items(role, reference.picked(role, given), reference.expected[role][frames])
            errors.setdefault(role, []).append(items)
    return [_row(role, len(calls[0]), np.concatenate(found), reference) for role, found in errors.items()]


def _row(role: str, batch: int, errors: Errors, reference: Reference) -> TensorParity:
    relative = errors / scale_of(reference.expected[role])
    return TensorParity(
        graph="masks" if role == "mask_logits" else "frame",
        role=role,
        batch=batch,
        max_abs=float(errors.max()),
        max_rel=float(relative.max()),
        tolerance=TOLERANCES[role],
        items=len(errors),
        beyond=int((relative > TOLERANCES[role]).sum()),
        allowed=int(_beyond_share(reference) * len(errors)) if role in BY_QUERY else 0,
    )


def _beyond_share(reference: Reference) -> float:
    return min(max(BEYOND_SHARE, 2 * reference.moved_share), BEYOND_SHARE_MAX)


def _outputs(engines: Mapping[str, Engine], reference: Reference, frames: Array) -> Iterator[tuple[str, Array]]:
    """Every role [len(frames), ...]; mask logits are made from the frame graph's own outputs, as in a session."""
    outputs = engines["frame"]({"images": reference.images[frames], "valid_sizes": reference.valid_sizes[frames]})
    for role, tensor in outputs.items():
        yield role, tensor.numpy()
    embeddings, features = outputs["mask_embeddings"].numpy(), outputs["mask_features"]
    logits = [
        engines["masks"]({"mask_embeddings": embeddings[i], "mask_features": features.row(i)})["mask_logits"].numpy()
        for i in range(len(frames))
    ]
    yield "mask_logits", np.stack(logits)


def _reference(bundle: Bundle) -> Reference:
    spec = bundle.manifest.reference
    return reference_from_bytes(bundle.read(spec), str(bundle.folder / spec.file))
