"""Parity of a bundle's engines with what torch computed at export, tensor by tensor and at two batch sizes.

Needs no torch: the expected values are in the bundle. Masked attention is discontinuous where a mask logit is 0, so on
some frames the last bit of a float moves a query visibly; export keeps only reference frames on which torch itself is
steady (see `visrt.export.reference`), which is why elementwise tolerances make sense here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visrt.runtime.backends import open_engines
from visrt.runtime.bundle import Bundle, open_bundle
from visrt.runtime.engine import Array, Engine
from visrt.runtime.errors import ParityError
from visrt.runtime.ort import OrtOptions
from visrt.runtime.reference import Reference, reference_from_bytes

__all__ = ["TOLERANCES", "TensorParity", "compare", "require_parity", "scaled_error", "verify"]

TOLERANCES = {
    "class_logits": 2e-4,
    "embeddings": 2e-4,
    "mask_embeddings": 2e-4,
    "mask_features": 2e-4,
    "mask_logits": 1e-3,
}
"""Largest error of a float32 engine, relative to the larger of 1 and the largest expected value of the tensor."""

BATCH = 3
"""Frames in the batched run: neither one nor the two that the graph was traced with."""


@dataclass(frozen=True)
class TensorParity:
    """One output of one graph against torch, the worst value of all frames.

    batch: frames a call of the frame graph. max_abs: largest absolute error. max_rel: the same over the larger of 1
    and the largest expected value; this is what must not exceed `tolerance`.
    """

    graph: str
    role: str
    batch: int
    max_abs: float
    max_rel: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.max_rel <= self.tolerance


def verify(folder: str | Path, backend: str = "cpu", threads: int | None = None) -> list[TensorParity]:
    """Parity of the bundle in `folder`, run by `backend`, with its reference; the caller judges `passed`.

    Raises BundleError for a bundle that is damaged, EngineError for a backend that is absent or refuses a graph.
    """
    bundle = open_bundle(folder)
    reference = _reference(bundle)
    engines = open_engines(bundle, backend, OrtOptions(threads))
    try:
        return compare(engines, reference)
    finally:
        for engine in engines.values():
            engine.close()


def require_parity(table: list[TensorParity], what: str) -> None:
    """Raises ParityError naming the worst tensor of `what` unless all of `table` passed."""
    failed = [row for row in table if not row.passed]
    if failed:
        worst = max(failed, key=lambda row: np.nan_to_num(row.max_rel / row.tolerance, nan=np.inf))
        raise ParityError(
            f"{what}: {len(failed)} of {len(table)} comparisons fail; worst is {worst.graph}.{worst.role} at batch "
            f"{worst.batch}, error {worst.max_rel:.1e}, tolerance {worst.tolerance:.0e}; do not deploy it"
        )


def compare(engines: Mapping[str, Engine], reference: Reference) -> list[TensorParity]:
    """Parity of `engines`, by graph, with `reference`: each frame alone, then a batch."""
    singly = [np.array([i]) for i in range(len(reference))]
    together = [np.arange(max(BATCH, len(reference))) % len(reference)]
    return [*_compared(engines, reference, singly), *_compared(engines, reference, together)]


def scaled_error(given: Array, expected: Array) -> tuple[float, float]:
    """Largest absolute error, and the same over the larger of 1 and the largest expected value.

    NaN, and another shape, are infinitely wrong.
    """
    if given.shape != expected.shape:
        return float("inf"), float("inf")
    error = float(np.abs(given.astype(np.float64) - expected).max())
    worst = error if np.isfinite(error) else float("inf")
    return worst, worst / max(1.0, float(np.abs(expected).max()))


def _compared(engines: Mapping[str, Engine], reference: Reference, calls: list[Array]) -> list[TensorParity]:
    """One row a tensor. Each of `calls` holds the frames of one call of the frame graph."""
    worst: dict[str, tuple[float, float]] = {}
    for frames in calls:
        for role, given in _outputs(engines, reference, frames).items():
            errors = scaled_error(reference.picked(role, given), reference.expected[role][frames])
            worst[role] = max(worst.get(role, errors), errors, key=lambda pair: pair[1])
    return [
        TensorParity(_graph_of(role), role, len(calls[0]), *errors, TOLERANCES[role]) for role, errors in worst.items()
    ]


def _graph_of(role: str) -> str:
    return "masks" if role == "mask_logits" else "frame"


def _outputs(engines: Mapping[str, Engine], reference: Reference, frames: Array) -> dict[str, Array]:
    """Every role [len(frames), ...]; mask logits are made from the frame graph's own outputs, as in a session."""
    outputs = engines["frame"]({"images": reference.images[frames], "valid_sizes": reference.valid_sizes[frames]})
    arrays = {role: tensor.numpy() for role, tensor in outputs.items()}
    embeddings = arrays["mask_embeddings"]
    features = outputs["mask_features"]
    logits = [
        engines["masks"]({"mask_embeddings": embeddings[i], "mask_features": features.row(i)})["mask_logits"].numpy()
        for i in range(len(frames))
    ]
    return {**arrays, "mask_logits": np.stack(logits)}


def _reference(bundle: Bundle) -> Reference:
    spec = bundle.manifest.reference
    return reference_from_bytes(bundle.read(spec), str(bundle.folder / spec.file))
