"""A bundle's engines on this machine, each judged against what torch computed. Needs no torch.

The expected values are in the bundle, or come from elsewhere as a `Reference`: a checkpoint run again in torch, or
another bundle run by ONNX Runtime on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visrt.runtime.bundles.bundle import Bundle, open_bundle
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.engines.backends import BACKENDS, open_engines
from visrt.runtime.engines.engine import Engine
from visrt.runtime.engines.options import EngineOptions
from visrt.runtime.errors import EngineError, ParityError, UsageError, install_hint
from visrt.runtime.parity.check import BATCHES, BatchParity, ParityReport, full_outputs_of, gate_of, judge, precision_of
from visrt.runtime.parity.reference import Reference, reference_from_bytes, reference_from_outputs

__all__ = [
    "EngineParity",
    "Failed",
    "Skipped",
    "Verification",
    "VerifySettings",
    "closing",
    "reference_from_bundle",
    "require_all",
    "require_available",
    "stored_reference",
    "verification_values",
    "verify",
    "verify_engines",
]


@dataclass(frozen=True)
class VerifySettings:
    """engines: by name; none takes all that this machine can run. batches: frames a call. floors: of agreement by
    name, in place of those of the bundle's precision. threads: of ONNX Runtime on the CPU, None takes all cores.
    device: number of the GPU for the engines that use one."""

    engines: tuple[str, ...] = ()
    batches: tuple[int, ...] = BATCHES
    floors: Mapping[str, float] = field(default_factory=dict)
    threads: int | None = None
    device: int = 0

    def __post_init__(self) -> None:
        if unknown := [name for name in self.engines if name not in BACKENDS]:
            raise UsageError(f"engine {', '.join(unknown)} is unknown; choose of {', '.join(BACKENDS)}")
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batches {', '.join(map(str, self.batches))}: expected numbers of 1 or more, as in 1,3")
        gate_of("fp32", self.floors)


@dataclass(frozen=True)
class Skipped:
    """Not run: this machine cannot, and it was not requested by name."""

    reason: str


@dataclass(frozen=True)
class Failed:
    """It should run here, but could not be opened."""

    reason: str


@dataclass(frozen=True)
class EngineParity:
    """One engine. provider: what executed the frame graph, as the backend reports it; empty where nothing did."""

    engine: str
    outcome: ParityReport | Skipped | Failed
    provider: str = ""

    @property
    def passed(self) -> bool:
        """A skipped engine is no fault."""
        return isinstance(self.outcome, Skipped) or (isinstance(self.outcome, ParityReport) and self.outcome.passed)


@dataclass(frozen=True)
class Verification:
    """All engines of one bundle. masks: whether the reference keeps masks, to judge IoU by."""

    bundle: str
    precision: str
    engines: tuple[EngineParity, ...]
    masks: bool = True

    @property
    def passed(self) -> bool:
        return all(engine.passed for engine in self.engines)

    def require(self, what: str) -> None:
        """Raises ParityError that tells the faults of every engine unless all passed."""
        require_all({what: self})


def require_all(verifications: Mapping[str, Verification]) -> None:
    """Raises ParityError that names all faults, by what was verified and engine, unless all passed."""
    engines = [(what, engine) for what, one in verifications.items() for engine in one.engines if not engine.passed]
    faults = [f"{what} on {engine.engine}: {'; '.join(_faults(engine))}" for what, engine in engines]
    if faults:
        raise ParityError(f"{'; '.join(faults)}; do not deploy it")


def _faults(engine: EngineParity) -> list[str]:
    return engine.outcome.faults() if isinstance(engine.outcome, ParityReport) else [engine.outcome.reason]


def verify(folder: str | Path, backend: str = "cpu", threads: int | None = None) -> ParityReport:
    """The judgement on the bundle in `folder` at its main size, run by `backend`, against its stored reference.

    Raises BundleError for a bundle that is damaged, EngineError for a backend that is absent or refuses a graph.
    """
    settings = VerifySettings((backend,), threads=threads)
    bundle = open_bundle(folder)
    return _judged(bundle, stored_reference(bundle), backend, settings)[0]


def verify_engines(
    bundle: Bundle,
    reference: Reference,
    settings: VerifySettings,
    on_engine: Callable[[str], None] = lambda _: None,
) -> Verification:
    """The judgement on every engine of `settings`; `on_engine` hears which one is next.

    Raises what `require_available` raises. An engine that fails later is reported among the others.
    """
    engines = []
    for name, absence in require_available(settings).items():
        on_engine(name)
        engines.append(EngineParity(name, Skipped(absence)) if absence else _tried(bundle, reference, name, settings))
    precision = precision_of(bundle.manifest)
    return Verification(bundle.manifest.name, precision, tuple(engines), reference.masks is not None)


def require_available(settings: VerifySettings) -> dict[str, str]:
    """For each engine of `settings` why this machine cannot run it, empty where it can.

    Raises EngineError if one was requested by name that it cannot run, or if it can run none.
    """
    absences = {name: BACKENDS[name].absence() for name in settings.engines or BACKENDS}
    reasons = "; ".join(f"{name}: {absence}" for name, absence in absences.items() if absence)
    if settings.engines and reasons:
        raise EngineError(f"{reasons}; leave out --engine to verify on all that this machine has (see `visrt doctor`)")
    if all(absences.values()):
        raise EngineError(f"this machine can run no engine: {reasons}; {install_hint('cpu')}")
    return absences


def _tried(bundle: Bundle, reference: Reference, name: str, settings: VerifySettings) -> EngineParity:
    try:
        report, provider = _judged(bundle, reference, name, settings)
        return EngineParity(name, report, provider)
    except EngineError as error:
        return EngineParity(name, Failed(str(error)))


def _judged(bundle: Bundle, reference: Reference, name: str, settings: VerifySettings) -> tuple[ParityReport, str]:
    """The judgement on engine `name`, and its provider."""
    options = EngineOptions(settings.threads, settings.device, batch=max(settings.batches))
    with closing(open_engines(bundle, name, options)) as engines:
        provider = engines["frame"].provider
        precision = precision_of(bundle.manifest)
        outputs = full_outputs_of(bundle)
        return judge(engines, reference, precision, settings.batches, settings.floors, outputs), provider


@contextmanager
def closing(engines: dict[str, Engine]) -> Iterator[dict[str, Engine]]:
    """`engines`, closed at the end whatever happens."""
    try:
        yield engines
    finally:
        for engine in engines.values():
            engine.close()


def stored_reference(bundle: Bundle) -> Reference:
    """The reference in `bundle`: torch's outputs when it was exported."""
    spec = bundle.manifest.reference
    return reference_from_bytes(bundle.read(spec), str(bundle.folder / spec.file))


def reference_from_bundle(
    expected: Bundle,
    judged: Manifest,
    images: NDArray[np.uint8],
    valid_sizes: NDArray[np.int32],
    threads: int | None = None,
) -> Reference:
    """The float32 bundle `expected`, run by ONNX Runtime on the CPU, as the reference for `judged` on `images` [T, H,
    W, 3].

    Raises UsageError unless `expected` is in float32 and the same network at the same size. How many queries torch
    itself moves on these frames is not known without torch; what was found at export is taken.
    """
    _refuse_another(expected.manifest, judged)
    with closing(open_engines(expected, "cpu", EngineOptions(threads))) as engines:
        outputs = full_outputs_of(expected)
        calls = (outputs.run(engines, images[t : t + 1], valid_sizes[t : t + 1]) for t in range(len(images)))
        frames = ({role: array[0] for role, array in one.items()} for one in calls)
        reference = reference_from_outputs(images, valid_sizes, frames)
    return replace(reference, moved_share=stored_reference(expected).moved_share)


def _refuse_another(expected: Manifest, judged: Manifest) -> None:
    if (precision := precision_of(expected)) != "fp32":
        raise UsageError(f"--against {expected.name!r}: its precision is {precision}; expected an fp32 bundle")
    pairs = {
        "checkpoint": (expected.producer.checkpoint_sha256[:12], judged.producer.checkpoint_sha256[:12]),
        "input": (_size(expected), _size(judged)),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UsageError(
                f"--against {expected.name!r}: its {what} is {theirs}, that of {judged.name!r} is {ours}; expected "
                "the same network, exported in fp32 at the same size"
            )


def _size(manifest: Manifest) -> str:
    network, images = (manifest.input.height, manifest.input.width), manifest.input.image_size
    return "{}x{}".format(*network) + ("" if images == network else " of images of {}x{}".format(*images))


def verification_values(verification: Verification) -> dict[str, Any]:
    """The verification as plain values for json; what is not finite, or not judged, is null."""
    return {
        "bundle": verification.bundle,
        "precision": verification.precision,
        "passed": verification.passed,
        "engines": [_engine_values(engine) for engine in verification.engines],
    }


def _engine_values(engine: EngineParity) -> dict[str, Any]:
    outcome = engine.outcome
    if isinstance(outcome, Skipped):
        return {"engine": engine.engine, "state": "skipped", "reason": outcome.reason}
    if isinstance(outcome, Failed):
        return {"engine": engine.engine, "state": "failed", "reason": outcome.reason}
    state = "passed" if outcome.passed else "failed"
    return {"engine": engine.engine, "state": state, "provider": engine.provider, **_report_values(outcome)}


def _report_values(report: ParityReport) -> dict[str, Any]:
    return {
        "faults": report.faults(),
        "tolerances": dict(report.gate.tolerances),
        "floors": asdict(report.gate.floors),
        "batches": [_batch_values(batch) for batch in report.batches],
    }


def _batch_values(batch: BatchParity) -> dict[str, Any]:
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
