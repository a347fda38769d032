"""The whole on a GPU, as a model: one 480p file and eight streams, with the host's work measured and the GPU's given.

    visrt bench --bundle bundles/default --gpu-model --rounds 8

**No GPU runs here.** The real `Pipeline` and the real runtime for TensorRT run on a simulated GPU that takes the times
it is given (`simulated_gpu.py`). Measured is the CPU time of each thread on this machine: the engines' thread, and for
each source one that decodes and prepares frames and one that resizes masks and writes results. The network is scripted:
each of its objects has a mask in every frame.

The engines' thread and the others take turns, so that they do not disturb each other.

What the model leaves out: each thread has a core of its own, and Python's lock, which they share, is not waited for.
`locked_fps` is what would be left if every thread held the lock in all of its work: the truth lies between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from threading import Event
from time import process_time, sleep, thread_time

import numpy as np

from visrt.benchmarks.speed.host_overhead import enlarged_clip
from visrt.benchmarks.speed.scripted import CHANNELS, Scene, disc_masks, scripted_manifest
from visrt.benchmarks.speed.simulated_gpu import GpuSpeed, SimulatedGpu, simulated_engines
from visrt.runtime.arrays import Array
from visrt.runtime.errors import UsageError
from visrt.runtime.pipeline import SWITCH_S, Job, Pipeline, PipelineSettings
from visrt.runtime.results import FrameResult
from visrt.runtime.sinks.journal import Journal
from visrt.runtime.sources.source import Image, Source, SourceInfo, SourceReport, VideoFrame
from visrt.runtime.sources.video import open_source

__all__ = ["NETWORK_MS", "SCENE", "ModelFigures", "gpu_model", "network_ms_of"]

NETWORK_MS = "1:2.0,8:6.4"
"""Milliseconds of a call by the frames in it: what an R50 at 480x864 is taken to need on a large GPU, unmeasured."""

SCENE = Scene(objects=10, queries=100, network=(480, 864))
CLIP = (480, 854)
STREAMS = (1, 8)
FRAMES = 60
WARM = 10
"""Frames of each stream before those that count."""

AHEAD = 3
"""Results that may wait for a writer, as in a pipeline."""

POLL_S = 2e-4
QUIET_S = 2e-4
"""CPU time of the process below which, in ten polls, its other threads count as at rest."""


@dataclass(frozen=True)
class ModelFigures:
    """One number of streams. fps: of all together. limit: what it is held by. call_ms: from one call of the network to
    the next, of which the GPU works busy_ms. engines_ms, reader_ms, writer_ms: CPU time a frame of the engines' thread,
    and of the threads of one source. cores: that are busy at this speed. locked_fps: see above.
    """

    streams: int
    fps: float
    limit: str
    call_ms: float
    busy_ms: float
    engines_ms: float
    reader_ms: float
    writer_ms: float
    cores: float
    locked_fps: float


def network_ms_of(text: str) -> dict[int, float]:
    """Milliseconds by frames of a call, from a text such as 1:2.0,8:6.4."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        return {int(frames): float(ms) for frames, ms in pairs}
    except ValueError:
        raise UsageError(f"network times are {text!r}; expected frames:milliseconds such as {NETWORK_MS}") from None


def gpu_model(clip: Path, speed: GpuSpeed, rounds: int = 3, frames: int = FRAMES) -> list[ModelFigures]:
    """The model for `clip` at 480p. Of the rounds the one with the least work of the host counts, which other programs
    disturb least."""
    with TemporaryDirectory() as folder:
        small = enlarged_clip(clip, Path(folder) / "480p.mp4", CLIP, WARM + frames)
        runs = {count: [_run(small, Path(folder), speed, count) for _ in range(rounds)] for count in STREAMS}
    return [min(found, key=lambda one: one.engines_ms) for found in runs.values()]


@dataclass
class _Network:
    """Answers of the scripted graphs: queries in a new random order in each frame, discs for masks."""

    scene: Scene
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        scene = self.scene
        logits = self.random.normal(scale=0.1, size=(scene.queries, 4)).astype(np.float32)
        logits[:, -1] += 8
        logits[: scene.objects, 0] += 16
        looks = self.random.normal(size=(scene.queries, CHANNELS)).astype(np.float32)
        numbers = np.eye(scene.queries, CHANNELS, dtype=np.float32)
        self._queries = {"class_logits": logits, "embeddings": looks, "mask_embeddings": numbers}
        self._discs = disc_masks(scene.objects, scene.cells).astype(np.float16)

    def __call__(self, graph: str, arrays: Mapping[str, Array]) -> None:
        if graph == "masks":
            numbers = np.minimum(arrays["mask_embeddings"].argmax(axis=1), self.scene.objects - 1)
            arrays["mask_logits"][:] = self._discs[numbers]
            return
        for at in range(len(arrays["images"])):
            order = self.random.permutation(self.scene.queries)
            for role, values in self._queries.items():
                arrays[role][at] = values[order]


@dataclass
class _TimedSource:
    """Notes the CPU time of the thread that reads it, at each frame, and reads on only while `turn` is set."""

    source: Source
    turn: Event
    cpu_s: list[float] = field(default_factory=list)
    ended: bool = False

    @property
    def info(self) -> SourceInfo:
        return self.source.info

    @property
    def report(self) -> SourceReport:
        return self.source.report

    def __iter__(self) -> Iterator[VideoFrame]:
        for frame in self.source:
            self.cpu_s.append(thread_time())
            yield frame
            self.turn.wait()
        self.ended = True

    def close(self) -> None:
        self.source.close()


@dataclass
class _TimedSink:
    """Notes the CPU time of the thread that writes to it, after each frame, and goes on only while `turn` is set."""

    sink: Journal
    turn: Event
    cpu_s: list[float] = field(default_factory=list)

    def write(self, result: FrameResult, image: Image) -> None:
        assert len(result.objects) == SCENE.objects, f"{len(result.objects)} objects in frame {result.index}"
        self.sink.write(result, image)
        self.cpu_s.append(thread_time())
        self.turn.wait()

    def close(self) -> None:
        self.sink.close()


def _run(clip: Path, folder: Path, speed: GpuSpeed, streams: int) -> ModelFigures:
    gpu = SimulatedGpu(speed, _Network(SCENE))
    manifest = scripted_manifest(SCENE, masks="float16")
    turn = Event()
    turn.set()
    sources = [_TimedSource(open_source(clip), turn) for _ in range(streams)]
    sinks = [_TimedSink(Journal(folder / f"{at}.jsonl", manifest.classes), turn) for at in range(streams)]
    settings = PipelineSettings(streams, batch=streams)

    begun = 0

    def jobs() -> Iterator[Job]:
        nonlocal begun
        for source, sink in zip(sources, sinks, strict=True):
            begun += 1
            yield Job(source, [sink])

    def ready() -> bool:
        """Whether each source has its next frame, and its last results are written: on a core of its own it would."""
        calls = len(gpu.network_s) - warm
        if begun < streams:
            return True
        read = all(one.ended or len(one.cpu_s) > calls + 1 for one in sources)
        return read and all(len(one.cpu_s) >= calls - AHEAD for one in sinks)

    def wait() -> None:
        turn.set()
        while not ready():
            sleep(POLL_S)
        if begun < streams or all(one.ended for one in sources):
            return
        turn.clear()
        spent = -1.0
        while process_time() - spent > QUIET_S:
            spent = process_time()
            sleep(10 * POLL_S)

    def stopped() -> bool:
        gpu.pause(wait)
        return False

    engines = simulated_engines(gpu, manifest, streams)
    warm = len(gpu.network_s)
    with Pipeline(manifest, engines, settings, switch_s=SWITCH_S) as pipeline:
        before, left_out = process_time(), gpu.left_out_s
        pipeline.track(jobs(), stopped=stopped)
        cpu_s = process_time() - before - (gpu.left_out_s - left_out)
    return _figures(gpu, [one.cpu_s for one in sources], [one.cpu_s for one in sinks], warm, cpu_s)


def _figures(
    gpu: SimulatedGpu, read_s: Sequence[Sequence[float]], written_s: Sequence[Sequence[float]], warm: int, cpu_s: float
) -> ModelFigures:
    """The middle of the calls of the network after the first ones."""
    streams, calls = len(read_s), gpu.network_s[warm + WARM :]
    steps_ms = 1e3 * np.diff(calls)
    kernels = [(work.end_s or 0.0, work.cost_s) for work in gpu.timeline.done if work.part == "kernels"]
    busy_ms = float(np.median(_sums_ms(kernels, calls)))
    worked_ms = float(np.median(steps_ms - _sums_ms(gpu.timeline.waited, calls)))
    call_ms, engines_ms = float(np.median(steps_ms)), worked_ms / streams
    reader_ms = median(_steps_ms(read_s))
    writer_ms = median(_steps_ms(written_s))
    limits = {
        "the network" if busy_ms > worked_ms else "the engines' thread": 1e3 * streams / call_ms,
        "decoding": 1e3 * streams / reader_ms,
        "making results": 1e3 * streams / writer_ms,
    }
    limit, fps = min(limits.items(), key=lambda item: item[1])
    frame_cpu_ms = 1e3 * cpu_s / sum(map(len, written_s))
    return ModelFigures(
        streams=streams,
        fps=fps,
        limit=limit,
        call_ms=call_ms,
        busy_ms=busy_ms,
        engines_ms=engines_ms,
        reader_ms=reader_ms,
        writer_ms=writer_ms,
        cores=1e-3 * frame_cpu_ms * fps,
        locked_fps=min(fps, 1e3 / (engines_ms + reader_ms + writer_ms)),
    )


def _sums_ms(spans: Sequence[tuple[float, float]], calls: Sequence[float]) -> Array:
    """Milliseconds between one call and the next, of spans that are given by a time and their seconds."""
    at, seconds = np.array(spans).reshape(-1, 2).T
    sums: Array = 1e3 * np.histogram(at, bins=calls, weights=seconds)[0]
    return sums


def _steps_ms(times: Sequence[Sequence[float]]) -> list[float]:
    return [1e3 * float(step) for one in times for step in np.diff(one[WARM:])]
