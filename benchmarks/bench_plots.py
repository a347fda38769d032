"""Plots of what `visrt bench` found, as SVG: where the time goes, how it scales, what stays flat."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from visrt.benchmarks.host_work import HostFigures
from visrt.benchmarks.interleaved import Figures
from visrt.benchmarks.lengths import LengthFigures
from visrt.benchmarks.streams import StreamFigures
from visrt.benchmarks.subjects import STAGE_NAMES

__all__ = ["host_plots", "length_plots", "stages_plot", "streams_plots"]

INCHES = (4.4, 3.1)
"""Of a plot of which two stand side by side where there is room: about as wide as a telephone."""

WIDE = 5.6

COLOURS = dict(zip(STAGE_NAMES, matplotlib.colormaps["tab20"].colors, strict=False))  # type: ignore[attr-defined]


def stages_plot(subjects: Sequence[Figures]) -> str:
    """A bar a subject: the mean milliseconds of a frame, stage on stage."""
    figure, axes = _axes((WIDE, 1.9 + 0.6 * len(subjects)))
    names = [_short(found.name) for found in subjects]
    for stage in (stage for stage in STAGE_NAMES if any(stage in found.stages for found in subjects)):
        widths = [found.stages[stage].mean_ms if stage in found.stages else 0.0 for found in subjects]
        starts = [_before(found, stage) for found in subjects]
        axes.barh(names, widths, left=starts, label=STAGE_NAMES[stage], color=COLOURS[stage], height=0.6)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a frame, mean")
    _legend_below(figure, axes)
    return _svg(figure)


def streams_plots(streams: dict[str, list[StreamFigures]]) -> list[str]:
    """Frames a second of all streams together, with the least and the most, over their number; and the latency."""
    (first, speed), (second, latency) = _axes(INCHES), _axes(INCHES)
    for name, figures in streams.items():
        counts = [found.streams for found in figures]
        least, most = [found.fps.least for found in figures], [found.fps.most for found in figures]
        [line] = speed.plot(counts, [found.fps.median for found in figures], marker="o", label=_short(name))
        speed.fill_between(counts, least, most, alpha=0.15, color=line.get_color())
        for part, style in (("p50", "-"), ("p95", "--")):
            ms = [getattr(found.latency, f"{part}_ms") for found in figures]
            label = f"{part}, {_short(name)}" if len(streams) > 1 else part
            latency.plot(counts, ms, marker=".", linestyle=style, color=line.get_color(), label=label)
        for axes in (speed, latency):
            axes.set_xticks(counts)
    speed.set(title="frames a second, all streams", xlabel="streams")
    latency.set(title="milliseconds from frame to result", xlabel="streams")
    return [_with_legend(first, speed), _with_legend(second, latency)]


def length_plots(length: dict[str, LengthFigures]) -> list[str]:
    """Memory and time a frame over the frames of one stream."""
    (first, memory), (second, time) = _axes(INCHES), _axes(INCHES)
    for name, found in length.items():
        frames = [point.frames for point in found.points]
        [line] = memory.plot(frames, [point.rss_mb for point in found.points], label=f"RSS, {_short(name)}")
        if found.gpu_mb_per_10k is not None:
            gpu = [point.gpu_mb for point in found.points]
            memory.plot(frames, gpu, linestyle="--", color=line.get_color(), label=f"GPU, {_short(name)}")
        time.plot(frames, [point.ms for point in found.points], color=line.get_color(), label="wall clock")
        cpu_ms = [point.cpu_ms for point in found.points]
        time.plot(frames, cpu_ms, linestyle="--", color=line.get_color(), label="CPU, all threads")
    memory.set(title="memory, MB", xlabel="frames")
    time.set(title="milliseconds a frame", xlabel="frames")
    return [_with_legend(first, memory), _with_legend(second, time)]


def host_plots(found: Sequence[HostFigures]) -> list[str]:
    """CPU time around the engines by what was varied: a plot for each, item on item."""
    varied = dict.fromkeys(one.case.varied for one in found)
    return [_host_plot([one for one in found if one.case.varied == name], name) for name in varied]


def _host_plot(cases: Sequence[HostFigures], varied: str) -> str:
    figure, axes = _axes((INCHES[0], 3.5))
    labels = [str(_value(one)) for one in cases]
    starts = [0.0] * len(cases)
    for item in cases[0].ms:
        heights = [one.ms[item] for one in cases]
        axes.bar(labels, heights, bottom=starts, label=STAGE_NAMES[item], color=COLOURS[item], width=0.65)
        starts = [start + height for start, height in zip(starts, heights, strict=True)]
    names = {"height": "height of the video, pixels", "objects": "objects in sight", "queries": "queries"}
    axes.set(xlabel=names[varied], ylabel="CPU milliseconds a frame")
    _legend_below(figure, axes)
    return _svg(figure)


def _value(one: HostFigures) -> int:
    case = one.case
    return {"objects": case.scene.objects, "queries": case.scene.queries, "height": case.size[0]}[case.varied]


def _before(found: Figures, stage: str) -> float:
    """Milliseconds of the stages that come before `stage`."""
    order = list(STAGE_NAMES)
    earlier = order[: order.index(stage)]
    return sum(found.stages[name].mean_ms for name in earlier if name in found.stages)


def _short(name: str) -> str:
    return name.replace(", published order", ",\npublished order").replace(" on ", "\non ")


def _figure(inches: tuple[float, float]) -> Figure:
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _axes(inches: tuple[float, float]) -> tuple[Figure, Any]:
    figure = _figure(inches)
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _with_legend(figure: Figure, axes: Any) -> str:
    axes.set_ylim(0, 1.15 * axes.dataLim.y1)
    axes.legend(fontsize="small")
    return _svg(figure)


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend_below(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element; its text is text, in the page's own typeface."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "visrt"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
