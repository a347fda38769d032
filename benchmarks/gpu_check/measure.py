"""Does one part of a GPU check, in a process of its own.

    python -m visrt.benchmarks.gpu_check.measure PART FIGURES

PART is the json of a part. FIGURES is the file for what was measured, or for the line that says why it was not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

from visrt.benchmarks.gpu_check.networks import export_random
from visrt.benchmarks.gpu_check.parts import Part
from visrt.benchmarks.speed.candidates import ENGINES
from visrt.benchmarks.speed.memory import gpu_memory_mb
from visrt.benchmarks.speed.streams import StreamRun, figures_of_runs, run_streams
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.engines.trt.build_progress import ignore_progress
from visrt.runtime.engines.trt.bundle_build import BuildPlan, build_bundle
from visrt.runtime.engines.trt.engine_cache import EngineCache
from visrt.runtime.engines.trt.library import FLAVOURS, load_tensorrt
from visrt.runtime.errors import EngineError, ParityError, VisrtError
from visrt.runtime.methods.registry import method_of
from visrt.runtime.parity.verify import VerifySettings, stored_reference, verification_values, verify_engines
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.runtime.sinks.outcome import SourceOutcome
from visrt.runtime.sinks.output import write_atomically
from visrt.runtime.sources.source import SourceInfo, SourceReport, VideoFrame
from visrt.runtime.sources.video import open_source
from visrt.runtime.tracker import SessionSettings

__all__ = ["main", "measured"]

Figures = dict[str, Any]
WARM_UP = 3


def measured(part: Part) -> Figures:
    """The figures of `part` as plain values, with a "fault" where they are wrong. Raises VisrtError where there are
    none."""
    return MEASURES[part.kind](part)


def _export(part: Part) -> Figures:
    random = part.subject.random
    assert random is not None
    start = perf_counter()
    export_random(random, part.subject.folder, lambda stage: print(stage, flush=True))
    size = sum(path.stat().st_size for path in part.subject.folder.iterdir())
    return {"seconds": perf_counter() - start, "bytes": size}


def _build(part: Part) -> Figures:
    """Builds what the engine builds, then opens it: seconds, bytes and GPU memory."""
    bundle, before = part.subject.opened(), gpu_memory_mb(part.device)
    graphs: list[Figures] = []
    for flavour in FLAVOURS:
        if flavour == part.engine:
            plan = BuildPlan(_frames_a_call(bundle, part.batch), device=part.device)
            built = build_bundle(bundle, load_tensorrt(flavour), plan, EngineCache(), lambda _: ignore_progress)
            graphs = [asdict(report) for report in built]
    start = perf_counter()
    with _pipeline(bundle, part, streams=part.batch, in_flight=1):
        return {
            "opened_s": perf_counter() - start,
            "graphs": graphs,
            "memory_mb": _more_than(before, part.device),
        }


def _frames_a_call(bundle: Bundle, batch: int) -> int:
    """Frames of a call of the frame graph, for which a pipeline opens engines."""
    return batch * int(method_of(bundle.manifest).clip_frames)


def _verify(part: Part) -> Figures:
    bundle = part.subject.opened()
    batches = tuple(sorted({1, _frames_a_call(bundle, part.batch)}))
    settings = VerifySettings((part.engine,), batches, device=part.device)
    verification = verify_engines(bundle, stored_reference(bundle), settings)
    values = verification_values(verification)
    try:
        verification.require(part.subject.name)
    except ParityError as error:
        values["fault"] = str(error)
    return values


def _engines(part: Part) -> Figures:
    """As many streams as share a call, one call at a time: the milliseconds a frame that the engines take."""
    clip = _frames_of(part)
    with _pipeline(part.subject.opened(), part, part.batch, in_flight=1) as pipeline:
        stages = [_engine_stages(pipeline, part, clip) for _ in range(part.rounds + 1)][1:]
    middle = sorted(stages, key=lambda one: sum(one.values()))[len(stages) // 2]
    return {"fps": 1e3 / max(sum(middle.values()), 1e-9), "stages": middle}


def _engine_stages(pipeline: Pipeline, part: Part, clip: Sequence[VideoFrame]) -> dict[str, float]:
    outcomes: list[SourceOutcome] = []
    jobs = [Job(_Kept(clip)) for _ in range(part.batch)]
    pipeline.track(jobs, lambda job, outcome: outcomes.append(outcome))
    _require_complete(outcomes)
    found = figures_of_runs(part.batch, len(clip), [StreamRun(outcomes, [], 1.0, 0.0)]).stages
    return {stage: ms for stage, ms in found.items() if stage in ENGINES}


def _streams(part: Part) -> Figures:
    """FPS of all streams together, end to end but for the writing of results, and where the time goes."""
    bundle, before, clip = part.subject.opened(), gpu_memory_mb(part.device), Path(part.clip)
    runs: list[StreamRun] = []
    frames = len(_frames_of(part))
    with _pipeline(bundle, part, part.streams, in_flight=2) as pipeline:
        _require_complete(run_streams(pipeline, clip, part.streams, min(WARM_UP, frames)).outcomes)
        for _ in range(part.rounds):
            runs.append(run_streams(pipeline, clip, part.streams, frames))
            _require_complete(runs[-1].outcomes)
        return {**asdict(figures_of_runs(part.streams, frames, runs)), "memory_mb": _more_than(before, part.device)}


def _pipeline(bundle: Bundle, part: Part, streams: int, in_flight: int) -> Pipeline:
    session = SessionSettings(in_flight=in_flight)
    calls = 1 if in_flight == 1 else None
    settings = PipelineSettings(streams, part.batch, calls, session)
    return Pipeline.open(bundle, part.engine, device=part.device, settings=settings)


def _frames_of(part: Part) -> list[VideoFrame]:
    """The frames of the clip that are timed."""
    with closing(open_source(Path(part.clip))) as source:
        return list(islice(source, part.frames))


@dataclass(frozen=True)
class _Kept:
    """A source whose frames are decoded already."""

    frames: Sequence[VideoFrame]
    info: SourceInfo = field(default_factory=lambda: SourceInfo("kept", "file"))
    report: SourceReport = field(default_factory=lambda: SourceReport(end="complete"))

    def __iter__(self) -> Iterator[VideoFrame]:
        return iter(self.frames)

    def close(self) -> None: ...


def _require_complete(outcomes: Sequence[SourceOutcome]) -> None:
    """Raises EngineError with the first reason if a stream did not run to its end."""
    for outcome in outcomes:
        if outcome.end != "complete":
            raise EngineError(f"a stream ended as {outcome.end} after {outcome.processed} frames: {outcome.reason}")


def _more_than(before: int | None, device: int) -> int | None:
    """MB of the GPU's memory in use now and not `before`; None where it is not known."""
    now = gpu_memory_mb(device)
    return None if before is None or now is None else now - before


MEASURES = {"export": _export, "build": _build, "verify": _verify, "engines": _engines, "streams": _streams}


def main(arguments: Sequence[str] | None = None) -> None:
    """Bugs keep their traceback, which goes to the part's log."""
    part, out = sys.argv[1:] if arguments is None else arguments
    try:
        result: Figures = {"figures": measured(Part.from_json(part))}
    except VisrtError as error:
        result = {"refused": str(error)}
    write_atomically(Path(out), [json.dumps(result).encode()])


if __name__ == "__main__":
    main()
