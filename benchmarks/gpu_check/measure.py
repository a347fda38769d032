"""Does one part of a GPU check, in a process of its own.

    python -m visrt.benchmarks.gpu_check.measure PART FIGURES

PART is the json of a part. FIGURES is the file for what was measured, or for the line that says why it was not.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from visrt.benchmarks.gpu_check.calls import timed_calls, trtexec_ms, trtexec_note, trtexec_tool
from visrt.benchmarks.gpu_check.cuda_steps import CudaSteps
from visrt.benchmarks.gpu_check.networks import export_random
from visrt.benchmarks.gpu_check.parts import Part
from visrt.benchmarks.speed.candidates import ENGINES
from visrt.benchmarks.speed.memory import gpu_memory_mb
from visrt.benchmarks.speed.streams import StreamRun, figures_of_runs, run_streams
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.engines.trt.build_progress import ignore_progress
from visrt.runtime.engines.trt.bundle_build import BuildPlan, build_bundle
from visrt.runtime.engines.trt.cuda import cuda_layer
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


def _cuda(part: Part) -> Figures:
    return CudaSteps(partial(cuda_layer, part.engine), part.device).run()


@contextmanager
def _going_on(faults: list[str]) -> Iterator[None]:
    """An error goes to `faults`, each once, and what comes next is tried all the same."""
    try:
        yield
    except VisrtError as error:
        if str(error) not in faults:
            faults.append(str(error))


def _with(faults: Sequence[str], figures: Figures) -> Figures:
    return {**figures, "fault": " | ".join(faults)} if faults else figures


def _export(part: Part) -> Figures:
    random = part.subject.random
    assert random is not None
    start = perf_counter()
    export_random(random, part.subject.folder, lambda stage: print(stage, flush=True))
    size = sum(path.stat().st_size for path in part.subject.folder.iterdir())
    return {"seconds": perf_counter() - start, "bytes": size}


def _build(part: Part) -> Figures:
    """Builds what the engine builds, every graph whatever becomes of the others, then opens it: seconds, bytes and GPU
    memory."""
    bundle, before = part.subject.opened(), gpu_memory_mb(part.device)
    graphs: list[Figures] = []
    faults: list[str] = []
    for flavour in FLAVOURS:
        if flavour == part.engine:
            plan, library = BuildPlan(_frames_a_call(bundle, part.batch), device=part.device), load_tensorrt(flavour)
            refused = lambda error: faults.append(str(error))  # noqa: E731
            built = build_bundle(bundle, library, plan, EngineCache(), lambda _: ignore_progress, refused)
            graphs = [asdict(report) for report in built]
    if faults:
        # To open it would build again what was refused.
        return _with(faults, {"graphs": graphs} if graphs else {})
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
    """The engines without decoder and sinks, each of these whatever becomes of the others: as many streams as share a
    call, one call at a time (milliseconds a frame by stage) and with calls in flight (FPS); the frame engine by itself;
    trtexec's account of it."""
    bundle, clip = part.subject.opened(), _frames_of(part)
    figures: Figures = {}
    faults: list[str] = []
    with _going_on(faults), _pipeline(bundle, part, part.batch, in_flight=1) as pipeline:
        stages = [_engine_stages(pipeline, part, clip) for _ in range(part.rounds + 1)][1:]
        middle = sorted(stages, key=lambda one: sum(one.values()))[len(stages) // 2]
        figures |= {"fps": 1e3 / max(sum(middle.values()), 1e-9), "stages": middle}
    with _going_on(faults), _pipeline(bundle, part, part.batch, in_flight=2) as pipeline:
        figures["in_flight_fps"] = median([_kept_fps(pipeline, part, clip) for _ in range(part.rounds + 1)][1:])
    frames = _frames_a_call(bundle, part.batch)
    with _going_on(faults):
        figures["call"] = timed_calls(bundle, part.engine, frames, part.frames, part.device)
    if part.engine == "tensorrt":
        figures |= _by_trtexec(bundle, part, frames, figures.get("call"))
    return _with(faults, figures)


def _by_trtexec(bundle: Bundle, part: Part, frames: int, call: Figures | None) -> Figures:
    """trtexec's milliseconds, and a note where they tell something. What fails in trtexec is no fault of the engine."""
    tool = trtexec_tool()
    if tool is None:
        return {"note": "trtexec is not installed, so nothing says how fast the engine could be at best"}
    try:
        found = trtexec_ms(tool, bundle, frames, part.device)
    except EngineError as error:
        return {"note": str(error)}
    note = trtexec_note(call["alone_ms"], call["in_flight_ms"], found, call["mb"]) if call else ""
    return {"trtexec_ms": found, **({"note": note} if note else {})}


def _kept_fps(pipeline: Pipeline, part: Part, clip: Sequence[VideoFrame]) -> float:
    """FPS of as many streams as share a call, of frames that are decoded already."""
    start = perf_counter()
    outcomes = _tracked(pipeline, part, clip)
    return sum(outcome.processed for outcome in outcomes) / (perf_counter() - start)


def _engine_stages(pipeline: Pipeline, part: Part, clip: Sequence[VideoFrame]) -> dict[str, float]:
    outcomes = _tracked(pipeline, part, clip)
    found = figures_of_runs(part.batch, len(clip), [StreamRun(outcomes, [], 1.0, 0.0)]).stages
    return {stage: ms for stage, ms in found.items() if stage in ENGINES}


def _tracked(pipeline: Pipeline, part: Part, clip: Sequence[VideoFrame]) -> list[SourceOutcome]:
    """The outcomes of as many streams of `clip` as share a call."""
    outcomes: list[SourceOutcome] = []
    jobs = [Job(_Kept(clip)) for _ in range(part.batch)]
    pipeline.track(jobs, lambda job, outcome: outcomes.append(outcome))
    _require_complete(outcomes)
    return outcomes


def _streams(part: Part) -> Figures:
    """FPS of all streams together, end to end but for the writing of results, and where the time goes; the time from
    opening kept engines to the first result. A round that fails does not keep the others from running."""
    bundle, before, clip = part.subject.opened(), gpu_memory_mb(part.device), Path(part.clip)
    runs: list[StreamRun] = []
    faults: list[str] = []
    frames = len(_frames_of(part))
    start = perf_counter()
    with _pipeline(bundle, part, part.streams, in_flight=2) as pipeline:
        opened_s = perf_counter() - start
        first = run_streams(pipeline, clip, part.streams, min(WARM_UP, frames))
        with _going_on(faults):
            _require_complete(first.outcomes)
        for _ in range(part.rounds):
            run = run_streams(pipeline, clip, part.streams, frames)
            with _going_on(faults):
                _require_complete(run.outcomes)
                runs.append(run)
        figures: Figures = {"opened_s": opened_s, "memory_mb": _more_than(before, part.device)}
    # Fewer streams than the batch open engines that were not built yet.
    if first.latencies_s and part.batch <= part.streams:
        figures["first_frame_s"] = opened_s + first.latencies_s[0]
    return _with(faults, {**(asdict(figures_of_runs(part.streams, frames, runs)) if runs else {}), **figures})


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


MEASURES = {
    "cuda": _cuda,
    "export": _export,
    "build": _build,
    "verify": _verify,
    "engines": _engines,
    "streams": _streams,
}


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
