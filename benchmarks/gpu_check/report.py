"""The tables of a GPU check in markdown: a row for each bundle, engine and batch; and the time of a frame by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from visrt.benchmarks.gpu_check.parts import ON_GPU, Kind, Part
from visrt.benchmarks.gpu_check.record import Done, Record
from visrt.benchmarks.speed.candidates import STAGE_NAMES
from visrt.runtime.errors import PARTIAL

__all__ = ["FAILED", "exit_code", "page", "part_line", "verdict_of"]

FAILED = 5

Text = Callable[[Mapping[str, Any]], str]
"""From the figures of a part that is done."""

Row = tuple[str, str, int]
"""Bundle, engine, batch."""


def exit_code(parts: Sequence[Part], record: Record) -> int:
    """0 if an engine ran on a GPU and nothing failed, FAILED if something did, PARTIAL if no GPU was used."""
    ended = [(part, done) for part in parts if (done := record.of(part))]
    if any(done.state == "failed" for _, done in ended):
        return FAILED
    return 0 if any(part.engine in ON_GPU and done.state == "done" for part, done in ended) else PARTIAL


def verdict_of(parts: Sequence[Part], record: Record) -> str:
    to_do = sum(1 for part in parts if (done := record.of(part)) is None or done.state == "left out")
    words = {
        0: "GPU check passed",
        FAILED: "GPU check FAILED",
        PARTIAL: "this was NOT a GPU check: no engine has run on a GPU; the reasons are above",
    }[exit_code(parts, record)]
    return f"{words}; {to_do} of {len(parts)} parts are still to do" if to_do else words


def part_line(part: Part, done: Done) -> str:
    """One line for a part that has ended."""
    return f"{part.id}: {done.state}{_figure(part, done)}{f', {done.reason}' if done.reason else ''}"


def _figure(part: Part, done: Done) -> str:
    """The main figure of a part that is done."""
    return f", {FIGURES[part.kind](done.figures)}" if done.state == "done" else ""


def page(parts: Sequence[Part], record: Record) -> str:
    """The whole report."""
    lines = [
        *_machine(record),
        "",
        *_speed(parts, record),
        "",
        "FPS are those of all streams together. Engines alone: as many streams as share a call, if nothing but the",
        "engines took time. Streams: end to end, from the decoder to masks and ids, median of the rounds; with one",
        "stream no calls are shared. Batch: the most streams that share a call. Build: seconds until the engines are",
        "open. Memory: of the GPU, the most in any part.",
        "",
        *_stages(parts, record),
        *_troubles(parts, record),
        f"**{record.verdict}**",
    ]
    return "\n".join(lines) + "\n"


def _machine(record: Record) -> list[str]:
    known = [f"{subject} {found}" for subject, found in record.machine.items() if subject in ("gpu", "cpu", "cores")]
    libraries = [
        f"{subject} {record.machine[subject]}" for subject in ("onnxruntime", "tensorrt") if subject in record.machine
    ]
    absent = [f"- {engine}: absent, {absence}" for engine, absence in record.absences.items() if absence]
    return ["; ".join([*known, *libraries]) + ".", *([""] if absent else []), *absent]


def _speed(parts: Sequence[Part], record: Record) -> Iterator[str]:
    streams = sorted({part.streams for part in parts if part.streams})
    counted = [f"{count} stream{'s' if count > 1 else ''}, FPS" for count in streams]
    head = ["bundle", "engine", "batch", "build, s", "engines, MB", "agrees with torch", "engines alone, FPS", *counted]
    yield _row([*head, "GPU memory, MB"])
    yield "|---" * (len(head) + 1) + "|"
    for (bundle, engine, batch), ended in _rows(parts, record).items():
        cells = [_cell(ended, "build", lambda f: f"{_build_s(f):.1f}")]
        cells += [_cell(ended, "build", _built_mb)]
        cells += [_cell(ended, "verify", lambda f: "yes", failed="no")]
        cells += [_cell(ended, "engines", lambda f: f"{f['fps']:.1f}")]
        cells += [_cell(ended, f"streams {count}", lambda f: f"{f['fps']['median']:.1f}") for count in streams]
        yield _row([bundle, engine, str(batch), *cells, _memory(ended)])


def _rows(parts: Sequence[Part], record: Record) -> dict[Row, dict[str, Done | None]]:
    """The parts of each row by kind; of streams with their number."""
    rows: dict[Row, dict[str, Done | None]] = {}
    for part in parts:
        if part.engine:
            name = f"streams {part.streams}" if part.streams else part.kind
            rows.setdefault((part.subject.name, part.engine, part.batch), {})[name] = record.of(part)
    return rows


def _cell(
    ended: Mapping[str, Done | None], name: str, text: Callable[[Mapping[str, Any]], str], failed: str = "failed"
) -> str:
    if name not in ended:
        return "–"
    done = ended[name]
    if done is None:
        return "to do"
    return text(done.figures) if done.state == "done" else {"failed": failed}.get(done.state, done.state)


def _build_s(figures: Mapping[str, Any]) -> float:
    """Seconds of the builds and of opening what was built."""
    return float(figures["opened_s"] + sum(graph["seconds"] for graph in figures["graphs"]))


def _built_mb(figures: Mapping[str, Any]) -> str:
    """Size of TensorRT's engines; the others build none."""
    return f"{sum(graph['bytes'] for graph in figures['graphs']) / 1e6:.0f}" if figures["graphs"] else "no"


def _memory(ended: Mapping[str, Done | None]) -> str:
    held = [done.figures["memory_mb"] for done in ended.values() if done and done.figures.get("memory_mb") is not None]
    return str(max(held)) if held else "not known"


FIGURES: dict[Kind, Text] = {
    "export": lambda figures: f"{figures['seconds']:.0f} s, {figures['bytes'] / 1e6:.0f} MB",
    "build": lambda figures: f"open after {_build_s(figures):.1f} s, {_built_mb(figures)} MB of engines",
    "verify": lambda figures: "agrees with torch",
    "engines": lambda figures: f"{figures['fps']:.1f} FPS of the engines alone",
    "streams": lambda figures: f"{figures['fps']['median']:.1f} FPS end to end",
}


def _stages(parts: Sequence[Part], record: Record) -> Iterator[str]:
    """A table with the milliseconds a frame by stage: of the engines alone, and with each number of streams."""
    timed = [(part, done) for part in parts if (done := record.of(part)) and "stages" in done.figures]
    names = [name for name in (*STAGE_NAMES, "write") if any(done.figures["stages"].get(name) for _, done in timed)]
    if not timed:
        return
    yield _row(["ms a frame", "engine", "batch", "streams", *(STAGE_NAMES.get(name, name) for name in names)])
    yield "|---" * (len(names) + 4) + "|"
    for part, done in timed:
        stages = done.figures["stages"]
        spent = [f"{stages[name]:.2f}" if name in stages else "–" for name in names]
        streams = str(part.streams or "engines alone")
        yield _row([part.subject.name, part.engine, str(part.batch), streams, *spent])
    yield ""
    yield "Streams are decoded, resized and written while the engines work, so that stages add up to more than a frame"
    yield "takes; with two calls in flight an engine's time is what the host waits for."
    yield ""


def _troubles(parts: Sequence[Part], record: Record) -> list[str]:
    ended = [(part, done) for part in parts if (done := record.of(part)) and done.reason]
    return [*(f"- {part_line(part, done)}" for part, done in ended), ""] if ended else []


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
