"""The tables of a GPU check in markdown: a row for each bundle, engine and batch; and the time of a frame by stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from visrt.benchmarks.gpu_check.known_failures import known_failures
from visrt.benchmarks.gpu_check.parts import ON_GPU, Kind, Part
from visrt.benchmarks.gpu_check.record import Done, Record
from visrt.benchmarks.speed.candidates import STAGE_NAMES
from visrt.runtime.errors import PARTIAL

__all__ = ["FAILED", "advice_lines", "exit_code", "page", "part_line", "verdict_of"]

FAILED = 5

Text = Callable[[Mapping[str, Any]], str]
"""From the figures of a part that is done."""

Row = tuple[str, str, int]
"""Bundle, engine, batch."""


def exit_code(parts: Sequence[Part], record: Record) -> int:
    """0 if an engine ran on a GPU, or the CUDA layer where nothing else was to be checked, and nothing failed; FAILED
    if something did; PARTIAL if no GPU was used."""
    ended = [(part, done) for part in parts if (done := record.of(part))]
    if any(done.state == "failed" for _, done in ended):
        return FAILED
    counts = ("cuda",) if _only_cuda(parts) else ()
    ran = [part for part, done in ended if done.state == "done"]
    return 0 if any(part.engine in ON_GPU or part.kind in counts for part in ran) else PARTIAL


def _only_cuda(parts: Sequence[Part]) -> bool:
    return all(part.kind == "cuda" for part in parts)


def verdict_of(parts: Sequence[Part], record: Record) -> str:
    to_do = sum(1 for part in parts if (done := record.of(part)) is None or done.state == "left out")
    words = {
        0: "the CUDA layer passed; no engine was checked" if _only_cuda(parts) else "GPU check passed",
        FAILED: "GPU check FAILED",
        PARTIAL: "this was NOT a GPU check: no engine has run on a GPU; the reasons are above",
    }[exit_code(parts, record)]
    return f"{words}; {to_do} of {len(parts)} parts are still to do" if to_do else words


def part_line(part: Part, done: Done) -> str:
    """One line for a part that has ended."""
    return f"{part.id}: {done.state}{_figure(part, done)}{f', {done.reason}' if done.reason else ''}"


def advice_lines(part: Part, done: Done) -> list[str]:
    """What the failure of a part most likely means, and what to try; nothing if it did not fail."""
    if done.state != "failed":
        return []
    return [
        f"  - likely: {known.meaning}{f' ({known.where})' if known.where else ''}; try: {known.to_try}"
        for known in known_failures(part.id, done.reason)
    ]


def _figure(part: Part, done: Done) -> str:
    """The main figure of a part that is done."""
    return f", {FIGURES[part.kind](done.figures)}" if done.state == "done" else ""


def page(parts: Sequence[Part], record: Record) -> str:
    """The whole report."""
    lines = [*_machine(record), "", *_cuda(parts, record)]
    if not _only_cuda(parts):
        lines += [
            *_speed(parts, record),
            "",
            "FPS are those of all streams together. Engines alone: as many streams as share a call, if nothing but the",
            "engines took time. In flight: wall time of the same with two calls in flight, tracking included. Streams:",
            "end to end, from the decoder to masks and ids, median of the rounds; with one stream no calls are shared.",
            "Batch: the most streams that share a call. Build: seconds until the engines are open. First frame:",
            "seconds from opening built engines to the first result. Memory: of the GPU, the most in any part.",
            "",
            *_calls(parts, record),
            *_stages(parts, record),
        ]
    return "\n".join([*lines, *_troubles(parts, record), f"**{record.verdict}**"]) + "\n"


def _machine(record: Record) -> list[str]:
    known = [f"{subject} {found}" for subject, found in record.machine.items() if subject in ("gpu", "cpu", "cores")]
    libraries = [
        f"{subject} {record.machine[subject]}" for subject in ("onnxruntime", "tensorrt") if subject in record.machine
    ]
    absent = [f"- {engine}: absent, {absence}" for engine, absence in record.absences.items() if absence]
    return ["; ".join([*known, *libraries]) + ".", *([""] if absent else []), *absent]


def _cuda(parts: Sequence[Part], record: Record) -> Iterator[str]:
    """A table of the CUDA layer: a row for each library that calls the driver."""
    ended = [(part, done) for part in parts if part.kind == "cuda" and (done := record.of(part))]
    if not ended:
        return
    yield _row(["CUDA by", "steps that passed", "up, GB/s", "on the GPU, GB/s", "down, GB/s", "launch of a graph, us"])
    yield "|---" * 6 + "|"
    for part, done in ended:
        steps = done.figures.get("steps", {})
        tried = [outcome for outcome in steps.values() if "not tried" not in outcome]
        passed = f"{tried.count('ok')} of {len(tried)}"
        names = ("up_gb_s", "device_gb_s", "down_gb_s", "launch_us")
        yield _row(
            [part.engine, passed, *(f"{done.figures[name]:.1f}" if name in done.figures else "–" for name in names)]
        )
    yield ""
    for part, done in ended:
        untried = [
            f"{step} {outcome}" for step, outcome in done.figures.get("steps", {}).items() if "not tried" in outcome
        ]
        if untried:
            yield from (f"{part.engine}: {'; '.join(untried)}.", "")


def _speed(parts: Sequence[Part], record: Record) -> Iterator[str]:
    streams = sorted({part.streams for part in parts if part.streams})
    counted = [f"{count} stream{'s' if count > 1 else ''}, FPS" for count in streams]
    head = ["bundle", "engine", "batch", "build, s", "engines, MB", "agrees with torch", "engines alone, FPS"]
    head += ["in flight, FPS", *counted, "first frame, s", "GPU memory, MB"]
    yield _row(head)
    yield "|---" * len(head) + "|"
    for (bundle, engine, batch), ended in _rows(parts, record).items():
        cells = [_cell(ended, "build", "opened_s", lambda f: f"{_build_s(f):.1f}")]
        cells += [_cell(ended, "build", "graphs", _built_mb)]
        cells += [_cell(ended, "verify", "passed", lambda f: "yes" if f["passed"] else "no")]
        cells += [_cell(ended, "engines", "fps", lambda f: f"{f['fps']:.1f}")]
        cells += [_cell(ended, "engines", "in_flight_fps", lambda f: f"{f['in_flight_fps']:.1f}")]
        cells += [_cell(ended, f"streams {count}", "fps", lambda f: f"{f['fps']['median']:.1f}") for count in streams]
        yield _row([bundle, engine, str(batch), *cells, _first_frame(ended), _memory(ended)])


def _rows(parts: Sequence[Part], record: Record) -> dict[Row, dict[str, Done | None]]:
    """The parts of each row by kind; of streams with their number."""
    rows: dict[Row, dict[str, Done | None]] = {}
    for part in parts:
        if part.engine and part.kind != "cuda":
            name = f"streams {part.streams}" if part.streams else part.kind
            rows.setdefault((part.subject.name, part.engine, part.batch), {})[name] = record.of(part)
    return rows


def _cell(ended: Mapping[str, Done | None], name: str, figure: str, text: Callable[[Mapping[str, Any]], str]) -> str:
    """The text of a part's figures if it has this one. What failed has those that it came to."""
    if name not in ended:
        return "–"
    done = ended[name]
    if done is None:
        return "to do"
    return text(done.figures) if figure in done.figures else done.state


def _build_s(figures: Mapping[str, Any]) -> float:
    """Seconds of the builds and of opening what was built."""
    return float(figures["opened_s"] + sum(graph["seconds"] for graph in figures["graphs"]))


def _first_frame(ended: Mapping[str, Done | None]) -> str:
    """Of the fewest streams."""
    found = [done.figures["first_frame_s"] for done in ended.values() if done and "first_frame_s" in done.figures]
    return f"{found[0]:.1f}" if found else "–"


def _built_mb(figures: Mapping[str, Any]) -> str:
    """Size of TensorRT's engines; the others build none."""
    return f"{sum(graph['bytes'] for graph in figures['graphs']) / 1e6:.0f}" if figures["graphs"] else "no"


def _memory(ended: Mapping[str, Done | None]) -> str:
    held = [done.figures["memory_mb"] for done in ended.values() if done and done.figures.get("memory_mb") is not None]
    return str(max(held)) if held else "not known"


FIGURES: dict[Kind, Text] = {
    "cuda": lambda figures: f"{figures['gpu']}, {figures['up_gb_s']:.1f} GB/s up, {figures['down_gb_s']:.1f} GB/s down",
    "export": lambda figures: f"{figures['seconds']:.0f} s, {figures['bytes'] / 1e6:.0f} MB",
    "build": lambda figures: f"open after {_build_s(figures):.1f} s, {_built_mb(figures)} MB of engines",
    "verify": lambda figures: "agrees with torch",
    "engines": lambda figures: (
        f"{figures['fps']:.1f} FPS of the engines alone, {figures['in_flight_fps']:.1f} with calls in flight"
    ),
    "streams": lambda figures: f"{figures['fps']['median']:.1f} FPS end to end",
}


def _calls(parts: Sequence[Part], record: Record) -> Iterator[str]:
    """A table with the milliseconds of one call of the frame engine, and what they tell."""
    timed = [(part, done) for part in parts if (done := record.of(part)) and "call" in done.figures]
    if not timed:
        return
    yield _row(["ms a call of the frame engine", "engine", "batch", "alone", "in flight", "trtexec", "MB a call"])
    yield "|---" * 7 + "|"
    for part, done in timed:
        call, by_trtexec = done.figures["call"], done.figures.get("trtexec_ms")
        cells = [f"{call['alone_ms']:.2f}", f"{call['in_flight_ms']:.2f}"]
        cells += ["–" if by_trtexec is None else f"{by_trtexec:.2f}", f"{call['mb']:.1f}"]
        yield _row([part.subject.name, part.engine, str(part.batch), *cells])
    yield ""
    yield "Alone: until the outputs are on the host, one call after the other. In flight: call n is made before the"
    yield "outputs of call n - 1 are read. trtexec: the GPU's time alone, with a CUDA graph and without copies."
    yield ""
    notes = dict.fromkeys(done.figures["note"] for _, done in timed if "note" in done.figures)
    for note in notes:
        of = [part.id for part, done in timed if done.figures.get("note") == note]
        yield f"- {', '.join(of)}: {note}"
    if notes:
        yield ""


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
    lines = [line for part, done in ended for line in (f"- {part_line(part, done)}", *advice_lines(part, done))]
    return [*lines, ""] if lines else []


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
