"""All of `visrt bench`: what is measured, in which order, and the figures as lines of json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from visrt.benchmarks.speed.candidates import BundleCandidate, Candidate
from visrt.benchmarks.speed.gpu_model import ModelFigures, gpu_model
from visrt.benchmarks.speed.host_overhead import HostFigures, cases_of, figures_of_case, host_overhead
from visrt.benchmarks.speed.interleaved import METHOD, Figures, interleave
from visrt.benchmarks.speed.lengths import LengthFigures, over_length
from visrt.benchmarks.speed.simulated_gpu import GpuSpeed
from visrt.benchmarks.speed.streams import LiveFigures, StreamFigures, live_streams, streams_at_once
from visrt.benchmarks.speed.sweeps import CLIP_LENGTHS, KEY_EVERY, Sweep, SweepFigures, check_sweep, swept
from visrt.runtime.bundles.bundle import Bundle
from visrt.runtime.engines.backends import backend_named
from visrt.runtime.errors import UsageError, install_hint
from visrt.runtime.image import best_size
from visrt.runtime.machine import machine_and_packages
from visrt.runtime.sources.video import open_source

__all__ = ["BenchReport", "BenchSettings", "bench", "report_lines", "settings_of"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class BenchSettings:
    """What `visrt bench` measures. Empty parts, and a length of 0, are left out.

    frames: of the clip, in a round. in_flight: each bundle is measured with so many frames in flight. engines, peers:
    by name. checkpoint: the weights of the peers in PyTorch. clip_lengths, key_every: each bundle is measured with
    clips of so many frames, or a key frame every so many. streams: numbers of streams; live_fps: rate of live sources,
    0 for none. length: frames of the endless stream. objects, queries, heights: of scenes for the work around the
    engines. roofline: calls to time for it, 0 for none. device: number of the GPU for the engines that use one.
    """

    clip: Path
    frames: int = 60
    rounds: int = 5
    threads: int | None = None
    engines: tuple[str, ...] = ("cpu",)
    in_flight: tuple[int, ...] = (1,)
    peers: tuple[str, ...] = ()
    checkpoint: Path | None = None
    clip_lengths: tuple[int, ...] = ()
    key_every: tuple[int, ...] = ()
    streams: tuple[int, ...] = ()
    live_fps: float = 0.0
    length: int = 0
    objects: tuple[int, ...] = ()
    queries: tuple[int, ...] = ()
    heights: tuple[int, ...] = ()
    roofline: int = 0
    device: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint is not None and not {"eager", "compile"} & set(self.peers):
            raise UsageError("--checkpoint gives the weights of a peer in PyTorch: add --peer eager or --peer compile")
        scenes = (*self.objects, *self.queries, *self.heights)
        if min((*self.clip_lengths, *self.key_every, *self.streams, *scenes, self.frames, self.rounds)) < 1:
            raise UsageError("numbers of streams, objects, queries, pixels, frames and rounds are 1 or more")

    def device_of(self, engine: str) -> int:
        return self.device if backend_named(engine).on_gpu else 0

    @property
    def sweeps(self) -> list[tuple[Sweep, tuple[int, ...]]]:
        """The sweeps that are measured, with their values."""
        every = ((CLIP_LENGTHS, self.clip_lengths), (KEY_EVERY, self.key_every))
        return [(sweep, values) for sweep, values in every if values]


@dataclass
class BenchReport:
    """The figures, by bundle and engine where they depend on these. left_out: what was not measured, and why."""

    settings: BenchSettings
    bundles: Sequence[Bundle]
    made_on: dict[str, str] = field(default_factory=machine_and_packages)
    at: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    candidates: list[Figures] = field(default_factory=list)
    sweeps: list[SweepFigures] = field(default_factory=list)
    streams: dict[str, list[StreamFigures]] = field(default_factory=dict)
    live: dict[str, list[LiveFigures]] = field(default_factory=dict)
    length: dict[str, LengthFigures] = field(default_factory=dict)
    host: list[HostFigures] = field(default_factory=list)
    gpu: GpuSpeed | None = None
    gpu_model: list[ModelFigures] = field(default_factory=list)
    roofline: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def bench(
    bundles: Sequence[Bundle], settings: BenchSettings, say: Say = lambda line: None, gpu: GpuSpeed | None = None
) -> BenchReport:
    """Measure what `settings` name; what cannot be measured here is listed in the report with its reason. gpu: what a
    GPU is taken to need, for a model of one."""
    bundles = _at_the_best_size(bundles, settings.clip)
    report = BenchReport(settings, bundles)
    for sweep, values in settings.sweeps:
        for bundle in bundles:
            check_sweep(sweep, values, bundle)
    pairs = [(bundle, engine) for bundle in bundles for engine in settings.engines]
    candidates = [*_candidates(pairs, settings), *_baselines(bundles[0], settings)]
    report.candidates = interleave(candidates, settings.rounds, say)
    for sweep, _ in settings.sweeps:
        report.sweeps += swept(sweep, candidates, report.candidates)
    for bundle, engine in pairs:
        name = f"{bundle.manifest.name} on {engine}"
        _streams(report, name, bundle, engine, say)
        if settings.length:
            threads, device = settings.threads, settings.device_of(engine)
            report.length[name] = over_length(
                bundle, engine, settings.clip, settings.length, threads=threads, device=device, say=say
            )
    if settings.roofline:
        _roofline(report, pairs, say)
    if cases := cases_of(settings.objects, settings.queries, settings.heights):
        say(f"the work around the engines, {len(cases)} scenes")
        report.host = host_overhead(cases, settings.rounds)
    if gpu is not None:
        say("the model of a GPU")
        report.gpu, report.gpu_model = gpu, gpu_model(settings.clip, gpu, settings.rounds)
    return report


def _at_the_best_size(bundles: Sequence[Bundle], clip: Path) -> list[Bundle]:
    """Of each bundle the size in which the frames of `clip` are seen best. Raises SourceError if it cannot be read."""
    with closing(open_source(clip)) as source:
        if not any(bundle.manifest.other_sizes for bundle in bundles):
            return list(bundles)
        height, width = next(iter(source)).image.shape[:2]
    sizes = [bundle.sizes for bundle in bundles]
    return [each[best_size((height, width), [size.manifest.input for size in each])] for each in sizes]


def _candidates(pairs: Sequence[tuple[Bundle, str]], settings: BenchSettings) -> list[Candidate]:
    """Each bundle on each engine, with each number of frames in flight, as it is or with each value of a sweep."""
    variants: list[tuple[Mapping[str, int], str]] = [
        ({sweep.setting: value}, sweep.variant.format(value)) for sweep, values in settings.sweeps for value in values
    ]
    of_clip = settings.clip, settings.frames, settings.threads
    return [
        BundleCandidate(bundle, engine, *of_clip, in_flight, association, variant, settings.device_of(engine))
        for bundle, engine in pairs
        for in_flight in settings.in_flight
        for association, variant in variants or [({}, "")]
    ]


def _baselines(bundle: Bundle, settings: BenchSettings) -> list[Candidate]:
    """The baselines, on the first bundle's input; torch is imported only for them."""
    if not settings.peers:
        return []
    from visrt.benchmarks.speed.baselines import baseline_of

    return [
        baseline_of(peer, bundle, settings.checkpoint, settings.clip, settings.frames, settings.threads)
        for peer in settings.peers
    ]


def _streams(report: BenchReport, name: str, bundle: Bundle, engine: str, say: Say) -> None:
    settings = report.settings
    if not settings.streams:
        return
    of_clip = bundle, engine, settings.clip, settings.streams
    rounds, on = min(settings.rounds, 3), (settings.threads, settings.device_of(engine))
    report.streams[name] = streams_at_once(*of_clip, settings.frames, rounds, *on, say)
    if settings.live_fps:
        say(f"{name}: live sources of {settings.live_fps:g} frames a second")
        report.live[name] = live_streams(*of_clip, settings.frames, settings.live_fps, *on)


def _roofline(report: BenchReport, pairs: Sequence[tuple[Bundle, str]], say: Say) -> None:
    try:
        from visrt.benchmarks.speed.roofline import machine_peak, reached
    except ModuleNotFoundError as error:
        report.left_out.append(f"roofline: {error.name} is not installed; {install_hint('train')}")
        return
    settings = report.settings
    say("the machine's peak")
    peak = machine_peak(settings.threads)
    for bundle, engine in pairs:
        name = f"{bundle.manifest.name} on {engine}"
        if backend_named(engine).on_gpu:
            report.left_out.append(f"roofline of {name}: the machine's peak is measured on the CPU only")
        elif "mask_embeddings" not in bundle.manifest.graphs["frame"].outputs:
            report.left_out.append(f"roofline of {name}: its family looks at clips; minvis and ctvis are counted")
        else:
            graphs = reached(bundle, peak, settings.threads, settings.roofline)
            report.roofline[name] = {"peak": peak, "graphs": graphs}


def report_lines(report: BenchReport) -> Iterator[str]:
    """One line of json per figure, each with its kind; the first holds machine, time, settings and method."""
    settings = settings_of(report.bundles, report.settings)
    yield _line("run", at=report.at, machine=report.made_on, settings=settings, method=METHOD)
    for figures in report.candidates:
        yield _line("subject", **asdict(figures))
    for one in report.sweeps:
        said = {"subject": one.name, "option": one.sweep.option, "setting": one.sweep.setting, "paper": one.sweep.paper}
        yield from (_line("sweep", **said, **asdict(point)) for point in one.points)
    for name, streams in report.streams.items():
        yield from (_line("streams", subject=name, **asdict(found)) for found in streams)
    for name, live in report.live.items():
        yield from (_line("live", subject=name, **asdict(one), dropped_share=one.dropped_share) for one in live)
    for name, length in report.length.items():
        yield _line("length", subject=name, **asdict(length))
    for name, found in report.roofline.items():
        for graph in found["graphs"]:
            values = {**asdict(graph), "fraction": graph.fraction}
            yield _line("roofline", subject=name, peak=asdict(found["peak"]), **values)
    yield from (_line("host", **figures_of_case(one)) for one in report.host)
    if report.gpu is not None:
        given = asdict(report.gpu)
        yield from (_line("gpu model", given=given, **asdict(one)) for one in report.gpu_model)
    yield from (_line("left out", reason=reason) for reason in report.left_out)


def settings_of(bundles: Sequence[Bundle], settings: BenchSettings) -> dict[str, Any]:
    """As they are recorded with the figures: every option, and the network and association of each bundle."""
    options = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()}
    measured = [
        {
            "name": bundle.manifest.name,
            "frame_sha256": bundle.manifest.graphs["frame"].sha256,
            "association": bundle.manifest.association,
        }
        for bundle in bundles
    ]
    return {**options, "bundles": measured}


def _line(kind: str, **values: Any) -> str:
    return json.dumps({"kind": kind, **_rounded(values)}, allow_nan=False)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
