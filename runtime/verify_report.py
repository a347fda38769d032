"""A verification as plain values for json. What is not finite, or not judged, is null."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from visrt.runtime.judge import BatchParity, ParityReport
from visrt.runtime.verify import EngineParity, Failed, Skipped, Verification

__all__ = ["verification_values"]


def verification_values(verification: Verification) -> dict[str, Any]:
    """The whole verdict: bundle, precision, and each engine with its floors, tensors and agreement."""
    return {
        "bundle": verification.bundle,
        "precision": verification.precision,
        "passed": verification.passed,
        "engines": [_engine(engine) for engine in verification.engines],
    }


def _engine(engine: EngineParity) -> dict[str, Any]:
    outcome = engine.outcome
    if isinstance(outcome, Skipped):
        return {"engine": engine.engine, "state": "skipped", "reason": outcome.reason}
    if isinstance(outcome, Failed):
        return {"engine": engine.engine, "state": "failed", "reason": outcome.reason}
    state = "passed" if outcome.passed else "failed"
    return {"engine": engine.engine, "state": state, "provider": engine.provider, **_report(outcome)}


def _report(report: ParityReport) -> dict[str, Any]:
    return {
        "faults": report.faults(),
        "tolerances": dict(report.gate.tolerances),
        "floors": asdict(report.gate.floors),
        "batches": [_batch(batch) for batch in report.batches],
    }


def _batch(batch: BatchParity) -> dict[str, Any]:
    return {
        "batch": batch.batch,
        "passed": batch.passed,
        "faults": list(batch.faults),
        "agreement": None if batch.agreement is None else _finite(asdict(batch.agreement)),
        "tensors": [{**_finite(asdict(row)), "passed": row.passed} for row in batch.tensors],
    }


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
