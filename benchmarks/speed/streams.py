"""Throughput and latency by the number of streams: the same clip, opened so many times, through one pipeline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, process_time, sleep

from visrt.benchmarks.speed.interleaved import Spread, spread
from visrt.benchmarks.speed.percentiles import Percentiles, percentiles
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.pipeline import Job, Pipeline, PipelineSettings
from visrt.runtime.results import FrameResult
from visrt.runtime.sinks.outcome import SourceOutcome
from visrt.runtime.sources.source import Source, SourceInfo, SourceReport, VideoFrame
from visrt.runtime.sources.video import open_source

__all__ = [
    "LiveFigures",
    "StampedSource",
    "StreamFigures",
    "StreamRun",
    "figures_of_runs",
    "live_streams",
    "run_streams",
    "streams_at_once",
]


@dataclass
class StampedSource:
    """A source that measures the seconds from each frame to its result.

    fps: frames arrive at this rate, as from a camera; None: as fast as they are read.
    """

    source: Source
    fps: float | None = None
    seconds: list[float] = field(default_factory=list)
    _arrived_s: dict[float | None, float] = field(default_factory=dict)

    @property
    def info(self) -> SourceInfo:
        info = self.source.info
        return SourceInfo(info.name, "camera", fps=self.fps, live=True) if self.fps else info

    @property
    def report(self) -> SourceReport:
        return self.source.report

    def __iter__(self) -> Iterator[VideoFrame]:
        start = perf_counter()
        for number, frame in enumerate(self.source):
            if self.fps:
                sleep(max(0.0, start + number / self.fps - perf_counter()))
            self._arrived_s[frame.time_s] = perf_counter()
            yield frame

    def close(self) -> None:
        self.source.close()

    def record(self, result: FrameResult) -> None:
        """Called with each result. Frames are identified by time, as indices do not count dropped frames."""
        self.seconds.append(perf_counter() - self._arrived_s.pop(result.time_s))


@dataclass(frozen=True)
class StreamFigures:
    """Of `streams` streams of `frames` frames each. fps: of all together. slowest_fps, fastest_fps: of one stream, in
    the median round. cores: CPU time over wall time. latency: from the decoded frame to its result, waiting included.
    lost: frames of the files that gave no result. stages: mean milliseconds a frame by stage, in the median round;
    decoding and resizing run at the same time as the engines.
    """

    streams: int
    frames: int
    fps: Spread
    slowest_fps: float
    fastest_fps: float
    cores: float
    cpu_ms: float
    latency: Percentiles
    lost: int
    stages: Mapping[str, float]


@dataclass(frozen=True)
class LiveFigures:
    """Of `streams` sources that give `fps` frames a second each and wait for nobody: what was shown and dropped, and
    the latency of what was shown, from the frame to its result."""

    streams: int
    fps: float
    processed: int
    dropped: int
    latency: Percentiles

    @property
    def dropped_share(self) -> float:
        return self.dropped / max(self.processed + self.dropped, 1)


@dataclass(frozen=True)
class StreamRun:
    """One round of one number of streams: their outcomes, the latency of every frame, wall and CPU seconds."""

    outcomes: Sequence[SourceOutcome]
    latencies_s: Sequence[float]
    wall_s: float
    cpu_s: float

    @property
    def processed(self) -> int:
        return sum(outcome.processed for outcome in self.outcomes)

    @property
    def fps(self) -> float:
        return self.processed / self.wall_s


def streams_at_once(
    bundle: Bundle,
    engine: str,
    clip: Path,
    counts: Sequence[int],
    frames: int,
    rounds: int,
    threads: int | None = None,
    device: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> list[StreamFigures]:
    """`frames` frames of each stream, for each number of streams in turn, `rounds` times after one that warms up."""
    runs: dict[int, list[StreamRun]] = {count: [] for count in counts}
    with ExitStack() as opened:
        pipelines = {count: opened.enter_context(_pipeline(bundle, engine, threads, device, count)) for count in counts}
        for number in range(rounds + 1):
            for count, pipeline in pipelines.items():
                say(f"{count} streams, round {number} of {rounds}")
                run = run_streams(pipeline, clip, count, frames if number else 2)
                if number:
                    runs[count].append(run)
    return [figures_of_runs(count, frames, runs[count]) for count in counts]


def live_streams(
    bundle: Bundle,
    engine: str,
    clip: Path,
    counts: Sequence[int],
    frames: int,
    fps: float,
    threads: int | None = None,
    device: int = 0,
) -> list[LiveFigures]:
    """`frames` frames of each of so many sources that behave as cameras of `fps` frames a second."""
    found = []
    for count in counts:
        with _pipeline(bundle, engine, threads, device, count) as pipeline:
            run_streams(pipeline, clip, 1, 2)
            outcomes: list[SourceOutcome] = []
            sources = [StampedSource(_Part(open_source(clip), frames), fps) for _ in range(count)]
            jobs = [Job(source, progress=source.record) for source in sources]
            pipeline.track(jobs, lambda job, outcome: outcomes.append(outcome))  # noqa: B023
            processed = sum(outcome.processed for outcome in outcomes)
            dropped = sum(outcome.dropped for outcome in outcomes)
            latency = percentiles([seconds for source in sources for seconds in source.seconds])
            found.append(LiveFigures(count, fps, processed, dropped, latency))
    return found


def _pipeline(bundle: Bundle, engine: str, threads: int | None, device: int, streams: int) -> Pipeline:
    settings = PipelineSettings(streams=streams)
    return Pipeline.open(bundle, engine, threads=threads, device=device, settings=settings)


@dataclass(frozen=True)
class _Part:
    """The first frames of a source."""

    source: Source
    frames: int

    @property
    def info(self) -> SourceInfo:
        return self.source.info

    @property
    def report(self) -> SourceReport:
        return self.source.report

    def __iter__(self) -> Iterator[VideoFrame]:
        for number, frame in enumerate(self.source, start=1):
            yield frame
            if number == self.frames:
                return

    def close(self) -> None:
        self.source.close()


def run_streams(pipeline: Pipeline, clip: Path, count: int, frames: int) -> StreamRun:
    """`clip` as so many streams of `frames` frames each, all at the same time."""
    sources = [StampedSource(open_source(clip)) for _ in range(count)]
    outcomes: list[SourceOutcome] = []
    start, cpu = perf_counter(), process_time()
    jobs = [Job(source, limit=frames, progress=source.record) for source in sources]
    pipeline.track(jobs, lambda job, outcome: outcomes.append(outcome))
    wall_s, cpu_s = perf_counter() - start, process_time() - cpu
    return StreamRun(outcomes, [seconds for source in sources for seconds in source.seconds], wall_s, cpu_s)


def figures_of_runs(count: int, frames: int, runs: Sequence[StreamRun]) -> StreamFigures:
    """The figures of one or several rounds."""
    middle = sorted(runs, key=lambda run: run.fps)[len(runs) // 2]
    each = [outcome.fps for outcome in middle.outcomes]
    return StreamFigures(
        streams=count,
        frames=frames,
        fps=spread([run.fps for run in runs]),
        slowest_fps=min(each),
        fastest_fps=max(each),
        cores=middle.cpu_s / middle.wall_s,
        cpu_ms=1e3 * middle.cpu_s / max(middle.processed, 1),
        latency=percentiles([seconds for run in runs for seconds in run.latencies_s]),
        lost=count * frames - middle.processed,
        stages=_stages(middle.outcomes),
    )


def _stages(outcomes: Sequence[SourceOutcome]) -> dict[str, float]:
    """Mean milliseconds a frame of all streams."""
    frames = max(sum(outcome.processed for outcome in outcomes), 1)
    names = dict.fromkeys(stage for outcome in outcomes for stage in outcome.ms)
    return {
        stage: sum(outcome.ms.get(stage, 0.0) * outcome.processed for outcome in outcomes) / frames for stage in names
    }
