"""The report of `visrt bench` as one self-contained HTML page: tables, and plots as inline SVG; no script."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any
from zlib import crc32

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from rich.table import Table

from visrt.benchmarks.speed.bench import BenchReport
from visrt.benchmarks.speed.bench_tables import (
    host_table,
    length_table,
    live_table,
    roofline_table,
    speed_table,
    stage_table,
    streams_table,
    sweep_table,
)
from visrt.benchmarks.speed.candidates import STAGE_NAMES
from visrt.benchmarks.speed.host_overhead import HostFigures
from visrt.benchmarks.speed.interleaved import METHOD, Figures
from visrt.benchmarks.speed.lengths import LengthFigures
from visrt.benchmarks.speed.streams import StreamFigures
from visrt.benchmarks.speed.sweeps import SweepFigures

__all__ = ["page"]

STYLE = """
:root { color-scheme: light; --ink: #1c2330; --quiet: #5c6675; --line: #dde2ea; --paper: #fff; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 70rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-top: 1.2rem; border-top: 1px solid var(--line); }
p.made, figcaption, .note { color: var(--quiet); font-size: .9rem; margin: .3rem 0; overflow-wrap: anywhere; }
.key { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .8rem; margin: 1.4rem 0; }
.key div { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.key b { display: block; font-size: 1.5rem; line-height: 1.3; }
.key span { color: var(--quiet); font-size: .85rem; }
figure { margin: 1rem 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)); gap: 1rem; }
.plots svg { display: block; width: 100%; height: auto; max-width: 44rem; }
.table { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; min-width: 100%; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { text-align: right; padding: .32rem .7rem; border-bottom: 1px solid var(--line); max-width: 9rem; }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; min-width: 6.5rem; }
ul { padding-left: 1.2rem; }
@media (max-width: 30rem) { table { min-width: 36rem; } body { padding: 1rem .8rem 3rem; } h1 { font-size: 1.35rem; } }
"""

INCHES = (4.4, 3.1)
"""Of a plot of which two stand side by side where there is room: about as wide as a telephone."""

WIDE = 5.6

COLOURS = dict(zip(STAGE_NAMES, matplotlib.colormaps["tab20"].colors, strict=False))  # type: ignore[attr-defined]


def page(report: BenchReport) -> str:
    """The whole page."""
    body = "\n".join(_body(report))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>visrt bench</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _body(report: BenchReport) -> Iterator[str]:
    yield from _head(report)
    yield "<h2>Where the time goes</h2>"
    yield _figure([_stages_plot(report.candidates)], "Mean time of a frame, stage on stage; nothing is left out.")
    yield _table(speed_table(report))
    for figures in report.candidates:
        yield _table(stage_table(figures))
    if report.sweeps:
        yield "<h2>Sweeps</h2>"
    for found in report.sweeps:
        yield _figure(_sweep_plots(found), f"{found.name}: median, with the least and the most of the rounds.")
        yield _table(sweep_table(found))
    if report.streams:
        yield "<h2>Streams</h2>"
        yield _figure(
            _streams_plots(report.streams), "The same clip opened several times; waiting in line is included."
        )
        yield _table(streams_table(report))
    if report.live:
        yield _table(live_table(report))
    if report.length:
        yield "<h2>Length</h2>"
        yield _figure(_length_plots(report.length), "One endless stream, from its decoder to its journal.")
        yield _table(length_table(report))
    if report.host:
        yield "<h2>Around the engines</h2>"
        yield _figure(_host_plots(report.host), "CPU time without the engines and without decoding, scripted objects.")
        yield _table(host_table(report))
    if report.roofline:
        yield "<h2>Roofline</h2>"
        yield _table(roofline_table(report))
    yield from _method(report)


def _head(report: BenchReport) -> Iterator[str]:
    settings, made_on, first = report.settings, report.made_on, report.candidates[0]
    yield "<h1>visrt bench</h1>"
    yield (
        f'<p class="made">{escape(report.at)} · {escape(made_on["cpu"])}, {escape(made_on["cores"])} cores · '
        f"{escape(made_on['gpu'])} · {settings.rounds} rounds of {settings.frames} frames of "
        f"{escape(settings.clip.name)}</p>"
    )
    key_figures = {
        "FPS, everything included": f"{first.fps.median:.1f}",
        "ms a frame, half of them within": f"{first.frame.p50_ms:.1f}",
        "ms a frame, 99 % within": f"{first.frame.p99_ms:.1f}",
        "CPU-ms a frame": f"{first.cpu_ms.median:.1f}",
        "first frame after opening": f"{1e3 * first.opening.first_frame_s:.0f} ms",
    }
    boxes = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in key_figures.items())
    yield f'<p class="note">{escape(first.name)}</p><div class="key">{boxes}</div>'


def _method(report: BenchReport) -> Iterator[str]:
    yield "<h2>How it was measured</h2>"
    yield f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in METHOD)}</ul>"
    for reason in report.left_out:
        yield f'<p class="note">Left out: {escape(reason)}</p>'
    made_on = "; ".join(f"{subject} {found}" for subject, found in report.made_on.items())
    yield f'<p class="note">{escape(made_on)}</p>'


def _figure(plots: Sequence[str], caption: str) -> str:
    own = "".join(f"<div>{_with_own_ids(svg)}</div>" for svg in plots)
    return f'<figure><div class="plots">{own}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _with_own_ids(svg: str) -> str:
    """Two plots on a page must not share an id."""
    name = f"p{crc32(svg.encode()):08x}"
    return re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)


def _table(table: Table) -> str:
    """A table made for the terminal, as HTML."""
    head = "".join(f"<th>{_cell(column.header)}</th>" for column in table.columns)
    rows = zip(*(column.cells for column in table.columns), strict=True)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    caption = f"<caption>{_cell(table.title or '')}</caption>"
    note = f'<p class="note">{_cell(table.caption)}</p>' if table.caption else ""
    return f'<div class="table"><table>{caption}<tr>{head}</tr>{body}</table></div>{note}'


def _cell(cell: object) -> str:
    """Text of the terminal's tables, whose brackets are escaped with a backslash there."""
    return escape(str(cell).replace("\\[", "["))


def _stages_plot(candidates: Sequence[Figures]) -> str:
    """A bar per candidate: the mean milliseconds of a frame, stage on stage."""
    figure, axes = _axes((WIDE, 1.9 + 0.6 * len(candidates)))
    names = [_short(found.name) for found in candidates]
    for stage in (stage for stage in STAGE_NAMES if any(stage in found.stages for found in candidates)):
        widths = [found.stages[stage].mean_ms if stage in found.stages else 0.0 for found in candidates]
        starts = [_before(found, stage) for found in candidates]
        axes.barh(names, widths, left=starts, label=STAGE_NAMES[stage], color=COLOURS[stage], height=0.6)
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds a frame, mean")
    _legend_below(figure, axes)
    return _svg(figure)


def _sweep_plots(found: SweepFigures) -> list[str]:
    """FPS over the values; where the paper's are known, how many times faster than the first, next to the paper's."""
    figure, axes = _axes(INCHES)
    values = [point.value for point in found.points]
    for name in ("fps", "engines_fps"):
        spreads = [getattr(point, name) for point in found.points]
        label = {"fps": "everything", "engines_fps": "engines"}[name]
        [line] = axes.plot(values, [spread.median for spread in spreads], marker="o", label=label)
        limits = [spread.least for spread in spreads], [spread.most for spread in spreads]
        axes.fill_between(values, *limits, alpha=0.15, color=line.get_color())
    axes.set_xticks(values)
    axes.set(title="frames a second", xlabel=found.sweep.axis)
    return [_with_legend(figure, axes), *_faster_plots(found)]


def _faster_plots(found: SweepFigures) -> Iterator[str]:
    known = [point for point in found.points if point.published_faster is not None]
    if not known:
        return
    figure, axes = _axes(INCHES)
    values = [point.value for point in found.points]
    axes.plot(values, [point.faster for point in found.points], marker="o", label="here, everything")
    published = [point.published_faster for point in known]
    axes.plot([point.value for point in known], published, marker="o", linestyle="--", label="paper")
    axes.set_xticks(values)
    axes.set(title=f"times the FPS at {values[0]}", xlabel=found.sweep.axis)
    yield _with_legend(figure, axes)


def _streams_plots(streams: dict[str, list[StreamFigures]]) -> list[str]:
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


def _length_plots(length: dict[str, LengthFigures]) -> list[str]:
    """Memory, time a frame and the norm of carried state over the frames of one stream."""
    (first, memory), (second, time), (third, state) = _axes(INCHES), _axes(INCHES), _axes(INCHES)
    for name, found in length.items():
        frames = [point.frames for point in found.points]
        [line] = memory.plot(frames, [point.rss_mb for point in found.points], label=f"RSS, {_short(name)}")
        if found.gpu_mb_per_10k is not None:
            gpu = [point.gpu_mb for point in found.points]
            memory.plot(frames, gpu, linestyle="--", color=line.get_color(), label=f"GPU, {_short(name)}")
        time.plot(frames, [point.ms for point in found.points], color=line.get_color(), label="wall clock")
        cpu_ms = [point.cpu_ms for point in found.points]
        time.plot(frames, cpu_ms, linestyle="--", color=line.get_color(), label="CPU, all threads")
        if found.state_norm_per_10k is not None:
            norms = [point.state_norm for point in found.points]
            state.plot(frames, norms, color=line.get_color(), label=_short(name))
    memory.set(title="memory, MB", xlabel="frames")
    time.set(title="milliseconds a frame", xlabel="frames")
    state.set(title="largest norm of a vector in the state", xlabel="frames")
    plots = [_with_legend(first, memory), _with_legend(second, time)]
    return plots + ([_with_legend(third, state)] if state.lines else [])


def _host_plots(found: Sequence[HostFigures]) -> list[str]:
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


def _axes(inches: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasSVG(figure)
    axes: Any = figure.subplots()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _with_legend(figure: Figure, axes: Any) -> str:
    axes.set_ylim(0, 1.15 * axes.dataLim.y1)
    axes.legend(fontsize="small")
    return _svg(figure)


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
