"""The report of `visrt bench` as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from visrt.benchmarks.speed.bench import BenchReport
from visrt.benchmarks.speed.candidates import STAGE_NAMES
from visrt.benchmarks.speed.gpu_model import SCENE, ModelFigures
from visrt.benchmarks.speed.interleaved import Figures, Spread
from visrt.benchmarks.speed.percentiles import Percentiles
from visrt.benchmarks.speed.simulated_gpu import GpuSpeed
from visrt.benchmarks.speed.sweeps import SweepFigures, SweepPoint

__all__ = ["tables"]

SLOPE_FROM = 5000
"""Frames from which a slope stands out from the noise of the machine."""


def tables(report: BenchReport) -> Iterator[Table]:
    """The tables that are not empty, in reading order."""
    yield speed_table(report)
    yield from (stage_table(figures) for figures in report.candidates)
    yield from map(sweep_table, report.sweeps)
    if report.streams:
        yield streams_table(report)
    if report.live:
        yield live_table(report)
    if report.length:
        yield length_table(report)
    if report.host:
        yield host_table(report)
    if report.roofline:
        yield roofline_table(report)
    if report.gpu is not None:
        yield gpu_model_table(report.gpu, report.gpu_model)


def speed_table(report: BenchReport) -> Table:
    columns = ("FPS of everything", "FPS of the engines", "CPU-ms a frame", "p50 ms", "p95 ms", "p99 ms")
    table = Table("", *columns, "objects a frame", "opened in", "first frame", title="Speed: median (least to most)")
    for found in report.candidates:
        frame = found.frame
        table.add_row(
            escape(found.name),
            *map(_spread, (found.fps, found.engines_fps, found.cpu_ms)),
            *(f"{ms:.1f}" for ms in (frame.p50_ms, frame.p95_ms, frame.p99_ms)),
            f"{found.objects:.1f}",
            f"{found.opening.open_s:.2f} s",
            f"{1e3 * found.opening.first_frame_s:.0f} ms",
        )
    return table


def stage_table(figures: Figures) -> Table:
    """Milliseconds a frame by stage."""
    table = Table("stage", "mean", "share", "p50", "p95", "p99", title=f"{escape(figures.name)}: ms a frame")
    for stage, found in figures.stages.items():
        table.add_row(STAGE_NAMES[stage], *_stage_row(found, figures.frame.mean_ms))
    table.add_section()
    table.add_row("frame", *_stage_row(figures.frame, figures.frame.mean_ms))
    return table


def _stage_row(found: Percentiles, whole_ms: float) -> tuple[str, ...]:
    share = f"{found.mean_ms / whole_ms:.1%}"
    return f"{found.mean_ms:.2f}", share, f"{found.p50_ms:.2f}", f"{found.p95_ms:.2f}", f"{found.p99_ms:.2f}"


def sweep_table(found: SweepFigures) -> Table:
    """A row for each value, and on the right the paper's figures where they are known."""
    sweep = found.sweep
    table = Table(sweep.axis, "FPS of everything", "faster", "FPS of the engines", title=escape(found.name))
    table.caption = f"paper: {sweep.paper}"
    if sweep.published:
        for column in ("paper AP", "paper FPS", "paper faster"):
            table.add_column(column)
    for point in found.points:
        own = str(point.value), _spread(point.fps), f"{point.faster:.2f}", _spread(point.engines_fps)
        table.add_row(*own, *(_published(point) if sweep.published else ()))
    return table


def _published(point: SweepPoint) -> tuple[str, str, str]:
    """AP, FPS, and how many times faster than the first value; a dash where the paper has none."""
    if point.published is None:
        return "-", "-", "-"
    faster = "-" if point.published_faster is None else f"{point.published_faster:.2f}"
    return f"{point.published.ap:.1f}", f"{point.published.fps:.1f}", faster


def streams_table(report: BenchReport) -> Table:
    columns = ("streams", "FPS of all", "of one, least to most", "cores", "CPU-ms a frame", "latency p50 ms", "p95")
    table = Table("", *columns, "lost", title="Streams through one set of engines, from files")
    for name, figures in report.streams.items():
        for found in figures:
            table.add_row(
                escape(name),
                str(found.streams),
                _spread(found.fps),
                f"{found.slowest_fps:.1f} to {found.fastest_fps:.1f}",
                f"{found.cores:.2f}",
                f"{found.cpu_ms:.1f}",
                f"{found.latency.p50_ms:.0f}",
                f"{found.latency.p95_ms:.0f}",
                str(found.lost),
            )
    return table


def live_table(report: BenchReport) -> Table:
    columns = ("streams", "frames a second each", "shown", "dropped", "latency p50 ms", "p95")
    table = Table("", *columns, title="Live sources, newest frame")
    for name, figures in report.live.items():
        for found in figures:
            dropped = f"{found.dropped} ({found.dropped_share:.0%})"
            waited = f"{found.latency.p50_ms:.0f}", f"{found.latency.p95_ms:.0f}"
            table.add_row(escape(name), str(found.streams), f"{found.fps:g}", str(found.processed), dropped, *waited)
    return table


def length_table(report: BenchReport) -> Table:
    grows = "a 10,000 frames"
    columns = ("frames", "RSS MB, first to last", grows, "GPU MB", "ms a frame", grows, "norm of the state", grows)
    title = f"Length: memory and time over one stream; growth is shown from {SLOPE_FROM:,} frames on"
    table = Table("", *columns, title=title)
    for name, found in report.length.items():
        first, last = found.points[0], found.points[-1]
        long = last.frames >= SLOPE_FROM
        table.add_row(
            escape(name),
            str(last.frames),
            f"{first.rss_mb:.1f} to {last.rss_mb:.1f}",
            f"{found.rss_mb_per_10k:+.2f} MB" if long else "-",
            "-" if last.gpu_mb is None else f"{first.gpu_mb} to {last.gpu_mb}",
            f"{first.ms:.1f} to {last.ms:.1f}",
            f"{found.ms_per_10k:+.2f} ms" if long else "-",
            "-" if last.state_norm is None else f"{first.state_norm:.1f} to {last.state_norm:.1f}",
            "-" if found.state_norm_per_10k is None or not long else f"{found.state_norm_per_10k:+.2f}",
        )
    return table


def host_table(report: BenchReport) -> Table:
    items = list(report.host[0].ms)
    columns = ("objects", "queries", "video", *(STAGE_NAMES[item] for item in items), "sum")
    table = Table(*columns, title="Around the engines: CPU-ms a frame")
    varied = report.host[0].case.varied
    for found in report.host:
        case = found.case
        if case.varied != varied:
            table.add_section()
            varied = case.varied
        size = f"{case.size[1]}x{case.size[0]}"
        row = (f"{found.ms[item]:.2f}" for item in items)
        table.add_row(str(case.scene.objects), str(case.scene.queries), size, *row, f"{found.total_ms:.2f}")
    return table


def roofline_table(report: BenchReport) -> Table:
    columns = ("graph", "million MACs", "MB at least", "MB unfused", "best ms", "measured ms", "reached")
    table = Table("", *columns, title="Roofline: the least the machine could take, and what is reached")
    for name, found in report.roofline.items():
        for graph in found["graphs"]:
            table.add_row(
                escape(name),
                graph.graph,
                f"{graph.macs / 1e6:.0f}",
                f"{graph.least_bytes / 1e6:.1f}",
                f"{graph.unfused_bytes / 1e6:.1f}",
                f"{max(graph.macs_ms, graph.bytes_ms):.2f}",
                f"{graph.measured_ms:.2f}",
                f"{graph.fraction:.0%}",
            )
        peak = found["peak"]
        table.caption = f"measured peak: {peak.macs / 1e9:.1f} billion MACs and {peak.bytes / 1e9:.1f} GB a second"
    return table


def gpu_model_table(gpu: GpuSpeed, found: Sequence[ModelFigures]) -> Table:
    """Plain about what it is: nothing in it ran on a GPU."""
    columns = ("FPS", "held by", "ms a call", "GPU", "engines' thread", "reader", "writer", "cores", "FPS if locked")
    table = Table("streams", *columns, title="A model of a GPU, R50 at 480x864 in FP16, 480p video: no GPU ran")
    for one in found:
        times = (one.call_ms, one.busy_ms, one.engines_ms, one.reader_ms, one.writer_ms)
        table.add_row(
            str(one.streams),
            f"{one.fps:.0f}",
            one.limit,
            *(f"{ms:.2f}" for ms in times),
            f"{one.cores:.1f}",
            f"{one.locked_fps:.0f}",
        )
    given = ", ".join(f"{ms:g} ms for {frames}" for frames, ms in sorted(gpu.network_ms.items()))
    table.caption = (
        f"The network's time is given, not measured: {given} frames. Thread times are CPU ms a frame, measured here "
        f"with a scripted network of {SCENE.objects} objects. Each thread has a core of its own; FPS if locked: if no "
        "thread ever released Python's lock."
    )
    return table


def _spread(found: Spread) -> str:
    return f"{found.median:.1f} ({found.least:.1f} to {found.most:.1f})"
