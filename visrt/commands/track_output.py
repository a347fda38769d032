"""The results of `visrt track` for one source: its files, and the summary it prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from visrt.commands.track_plan import Plan, TrackOptions
from visrt.commands.tracking.many import Total
from visrt.commands.tracking.written import NumberedSource, ShownSinks
from visrt.console import report_console, say
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.errors import VisrtError
from visrt.runtime.machine import machine_of_run
from visrt.runtime.methods.method import TrackingMethod
from visrt.runtime.results import Shown
from visrt.runtime.sinks.line_count import LineCount
from visrt.runtime.sinks.outcome import SourceOutcome, summary_of, write_summary
from visrt.runtime.sinks.output import (
    JOURNAL,
    RESULTS,
    SUMMARY,
    Sink,
    prepare_folder,
)
from visrt.runtime.sinks.youtube_vis import write_youtube_vis
from visrt.runtime.sources.source import Source
from visrt.runtime.sources.video import open_source
from visrt.runtime.tracking import files_of_a_run

__all__ = ["Opened", "finished", "opened"]


@dataclass(frozen=True)
class Opened:
    """A source that is read and the sinks its results go to; lines: those of them that count."""

    source: Source
    sinks: Sequence[Sink]
    lines: Sequence[LineCount]


def opened(one: Plan, shown: Shown, options: TrackOptions) -> Opened:
    """The source of a plan, and the files its results go to as they come."""
    source, wishes = NumberedSource(open_source(one.source, options.video)), options.wishes
    lines = [LineCount(line) for line in wishes.lines]
    try:
        prepare_folder(one.folder, one.source.paths, "replace" if options.many is not None else options.existing)
        sinks = files_of_a_run(
            one.folder,
            source,
            every=options.video.every,
            overlay=options.overlay,
            style=options.style,
            masks=wishes.masks,
            crops=wishes.crops,
            mot=wishes.mot,
        )
    except VisrtError:
        source.close()
        raise
    return Opened(source, [ShownSinks(source, shown, [*sinks, *lines])], lines)


def finished(
    one: Plan,
    outcome: SourceOutcome,
    manifest: Manifest,
    method: TrackingMethod[Any],
    options: TrackOptions,
    lines: Sequence[LineCount],
    total: Total,
) -> int:
    """Writes the files that need the whole video and tells how it went; the exit code of the source.

    Where they cannot be written, the journal is still there.
    """
    objects, folder = 0, one.folder
    counts = [line.summary() for line in lines]
    try:
        objects = write_youtube_vis(folder / JOURNAL, folder / RESULTS)
        made_by = _made_by(outcome, manifest, method, options)
        summary = summary_of(outcome, objects, manifest.classes, made_by, machine_of_run())
        summary |= {"path": one.path} | ({"lines": counts} if counts else {})
        write_summary(folder / SUMMARY, summary)
    except VisrtError as error:
        if outcome.end != "failed":
            outcome = replace(outcome, end="failed", reason=str(error), exit_code=error.exit_code)
    total.add(outcome.end, outcome.processed, objects)
    if outcome.end != "complete":
        total.failed(one.path, outcome.reason)
    if options.many is None:
        _print_summary(outcome, objects, one, counts)
    if outcome.reason:
        say(outcome.reason if outcome.end == "failed" else f"{outcome.source}: {outcome.reason}")
    return outcome.exit_code


def _made_by(
    outcome: SourceOutcome, manifest: Manifest, method: TrackingMethod[Any], options: TrackOptions
) -> dict[str, Any]:
    """input: height and width of the network input that the frames had, other_inputs: those they had after a change of
    aspect. What was selected of frames and objects, where anything was."""
    inputs = [list(size) for size in outcome.inputs] or [[manifest.input.height, manifest.input.width]]
    video = options.video
    selected = {
        "start": video.start and str(video.start),
        "end": video.end and str(video.end),
        "every": video.every if video.every > 1 else None,
        "cuts": video.cuts if video.cuts == "find" else None,
        "classes": options.wishes.classes,
        "score": options.wishes.score or None,
    }
    return {
        "bundle": manifest.name,
        "family": manifest.family,
        "engine": options.engine,
        "threads": options.threads,
        "streams": options.streams,
        "input": inputs[0],
        **({"other_inputs": inputs[1:]} if inputs[1:] else {}),
        "overlay": options.overlay.preset if options.overlay else None,
        **{name: value for name, value in selected.items() if value is not None},
        **options.association.in_force(method),
    }


def _print_summary(outcome: SourceOutcome, objects: int, one: Plan, lines: Sequence[dict[str, Any]]) -> None:
    frames = f"{outcome.processed} of {outcome.captured} frames"
    counts = {"dropped": outcome.dropped, "corrupt": outcome.corrupt, "skipped": outcome.skipped}
    frames += "".join(f", {count} {name}" for name, count in counts.items() if count)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(outcome.source, outcome.end)
    table.add_row("frames", frames)
    table.add_row("objects", str(objects))
    if outcome.events.cuts:
        table.add_row("cuts", str(outcome.events.cuts))
    for line in lines:
        ways = (
            f"{name}: {found['to_right']} to the right, {found['to_left']} to the left"
            for name, found in line["counts"].items()
        )
        table.add_row(f"line {','.join(map(str, line['line']))}", "; ".join(ways) or "nothing crossed it")
    table.add_row("speed", f"{outcome.fps:.1f} FPS, everything included ({outcome.wall_s:.1f} s)")
    table.add_row("ms a frame", ", ".join(f"{stage} {ms:.1f}" for stage, ms in outcome.ms.items()))
    table.add_row("written to", str(one.folder))
    report_console().print(table)
