"""What `visrt bench` found as one page of HTML that needs nothing else: plots are inline, there is no script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from zlib import crc32

from rich.table import Table

from visrt.benchmarks.bench import BenchReport
from visrt.benchmarks.bench_plots import host_plots, length_plots, stages_plot, streams_plots
from visrt.benchmarks.bench_tables import (
    host_table,
    length_table,
    live_table,
    roofline_table,
    speed_table,
    stage_table,
    streams_table,
)
from visrt.benchmarks.interleaved import METHOD

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
    yield _figure([stages_plot(report.subjects)], "Mean time of a frame, stage on stage; nothing is left out.")
    yield _table(speed_table(report))
    for figures in report.subjects:
        yield _table(stage_table(figures))
    if report.streams:
        yield "<h2>Streams</h2>"
        yield _figure(streams_plots(report.streams), "The same clip opened several times; waiting in line is included.")
        yield _table(streams_table(report))
    if report.live:
        yield _table(live_table(report))
    if report.length:
        yield "<h2>Length</h2>"
        yield _figure(length_plots(report.length), "One endless stream, from its decoder to its journal.")
        yield _table(length_table(report))
    if report.host:
        yield "<h2>Around the engines</h2>"
        yield _figure(host_plots(report.host), "CPU time without the engines and without decoding, scripted objects.")
        yield _table(host_table(report))
    if report.roofline:
        yield "<h2>Roofline</h2>"
        yield _table(roofline_table(report))
    yield from _method(report)


def _head(report: BenchReport) -> Iterator[str]:
    settings, made_on, first = report.settings, report.made_on, report.subjects[0]
    yield "<h1>visrt bench</h1>"
    yield (
        f'<p class="made">{escape(report.at)} · {escape(made_on["cpu"])}, {escape(made_on["cores"])} cores · '
        f"{escape(made_on['gpu'])} · {settings.rounds} rounds of {settings.frames} frames of "
        f"{escape(settings.clip.name)}</p>"
    )
    told = {
        "FPS, everything included": f"{first.fps.median:.1f}",
        "ms a frame, half of them within": f"{first.frame.p50_ms:.1f}",
        "ms a frame, 99 % within": f"{first.frame.p99_ms:.1f}",
        "CPU-ms a frame": f"{first.cpu_ms.median:.1f}",
        "first frame after opening": f"{1e3 * first.opening.first_frame_s:.0f} ms",
    }
    boxes = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in told.items())
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
