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

__all__ = ["host_plot", "length_plot", "stages_plot", "streams_plot"]

INCHES = (6.4, 3.4)
"""Of a plot of its own; on the page it is as wide as there is room."""

COLOURS = dict(zip(STAGE_NAMES, matplotlib.colormaps["tab20"].colors, strict=False))  # type: ignore[attr-defined]


def stages_plot(subjects: Sequence[Figures]) -> str:
    """A bar a subject: the mean milliseconds of a frame, stage on stage."""
    figure, axes = _axes(height=1.5 + 0.55 * len(subjects))
    names = [_short(found.name) for found in subjects]
    for stage in (stage for stage in STAGE_NAMES if any(stage in found.stages for found in subjects)):
        widths = [found.stages[stage].mean_ms if stage in found.stages else 0.0 for found in subjects]
        starts = [_before(found, stage) for found in subjects]
        axes.barh(names, widths, left=starts, label=STAGE_NAMES[stage], color=COLOURS[stage], height=0.6)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a frame, mean")
    _legend_below(figure, axes)
    return _svg(figure)


def streams_plot(streams: dict[str, list[StreamFigures]]) -> str:
    """Frames a second of all streams together, with the least and the most, over their number; and the latency."""
    figure, (speed, latency) = _pair()
    for name, figures in streams.items():
        counts = [found.streams for found in figures]
        speed.plot(counts, [found.fps.median for found in figures], marker="o", label=_short(name))
        speed.fill_between(
            counts, [found.fps.least for found in figures], [found.fps.most for found in figures], alpha=0.15
        )
        latency.plot(counts, [found.latency.p50_ms for found in figures], marker="o", label="p50")
        latency.plot(counts, [found.latency.p95_ms for found in figures], marker=".", linestyle="--", label="p95")
        for axes in (speed, latency):
            axes.set_xticks(counts)
    speed.set(title="frames a second, all streams", xlabel="streams", ylim=(0, None))
    latency.set(title="frame to result, ms", xlabel="streams", ylim=(0, None))
    for axes in (speed, latency):
        axes.legend(fontsize="small")
    return _svg(figure)


def length_plot(length: dict[str, LengthFigures]) -> str:
    """Memory and time a frame over the frames of one stream."""
    figure, (memory, time) = _pair()
    for name, found in length.items():
        frames = [point.frames for point in found.points]
        memory.plot(frames, [point.rss_mb for point in found.points], label=_short(name))
        if found.gpu_mb_per_10k is not None:
            memory.plot(frames, [point.gpu_mb for point in found.points], linestyle="--", label="GPU")
        time.plot(frames, [point.ms for point in found.points], label="wall clock")
        time.plot(frames, [point.cpu_ms for point in found.points], linestyle="--", label="CPU, all threads")
    memory.set(title="memory, MB", xlabel="frames", ylim=(0, None))
    time.set(title="milliseconds a frame", xlabel="frames", ylim=(0, None))
    for axes in (memory, time):
        axes.legend(fontsize="small")
    return _svg(figure)


def host_plot(found: Sequence[HostFigures]) -> str:
    """CPU time around the engines by what was varied: a panel for each, item on item."""
    varied = list(dict.fromkeys(one.case.varied for one in found))
    figure = _figure((INCHES[0], 3.4))
    panels = figure.subplots(1, len(varied), squeeze=False, sharey=True)[0]
    for axes, name in zip(panels, varied, strict=True):
        cases = [one for one in found if one.case.varied == name]
        labels = [str(_value(one)) for one in cases]
        starts = [0.0] * len(cases)
        for item in cases[0].ms:
            heights = [one.ms[item] for one in cases]
            axes.bar(labels, heights, bottom=starts, label=STAGE_NAMES[item], color=COLOURS[item], width=0.65)
            starts = [start + height for start, height in zip(starts, heights, strict=True)]
        axes.set(xlabel={"height": "height of the video, pixels"}.get(name, name))
        _plain(axes)
    panels[0].set_ylabel("CPU milliseconds a frame")
    _legend_below(figure, panels[0])
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


def _axes(height: float) -> tuple[Figure, Any]:
    figure = _figure((INCHES[0], height))
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _pair() -> tuple[Figure, Any]:
    figure = _figure(INCHES)
    panels = figure.subplots(1, 2)
    for axes in panels:
        _plain(axes)
    return figure, panels


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend_below(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)), frameon=False, fontsize=9)


def _svg(figure: Figure) -> str:
    """The figure as an <svg> element; its text is text, in the page's own typeface."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "visrt"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
