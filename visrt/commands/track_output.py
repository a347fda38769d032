"""The results of `visrt track` for one source: its files, and the summary it prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from visrt.commands.track_plan import Plan, TrackOptions
from visrt.console import report_console, say
from visrt.runtime.bundles.manifest import Manifest
from visrt.runtime.errors import VisrtError
from visrt.runtime.machine import machine_of_run
from visrt.runtime.methods.method import TrackingMethod
from visrt.runtime.sinks.journal import Journal
from visrt.runtime.sinks.outcome import SourceOutcome, summary_of, write_summary
from visrt.runtime.sinks.output import JOURNAL, OVERLAY, RESULTS, SUMMARY, Sink, prepare_folder
from visrt.runtime.sinks.overlay_video import OverlayVideo
from visrt.runtime.sinks.youtube_vis import write_youtube_vis
from visrt.runtime.sources.source import Source
from visrt.runtime.sources.video import open_source

__all__ = ["finished", "opened"]

OVERLAY_FPS = 25.0
"""Rate the overlay's encoder plans with where the source does not know its own; times stay the source's."""


def opened(one: Plan, manifest: Manifest, options: TrackOptions) -> tuple[Source, list[Sink]]:
    """The source of a plan, and the files its results go to as they come.

    The journal comes first: it is what the other results can be made from.
    """
    source = open_source(one.source, options.video)
    try:
        prepare_folder(one.folder, one.source.paths, options.existing)
        sinks: list[Sink] = [Journal(one.folder / JOURNAL, manifest.classes)]
        if options.overlay is not None:
            fps = source.info.fps or OVERLAY_FPS
            sinks.append(OverlayVideo(one.folder / OVERLAY, manifest.classes, fps, options.overlay))
    except VisrtError:
        source.close()
        raise
    return source, sinks


def finished(
    folder: Path, outcome: SourceOutcome, manifest: Manifest, method: TrackingMethod[Any], options: TrackOptions
) -> int:
    """Writes the files that need the whole video and tells how it went; the exit code of the source.

    Where they cannot be written, the journal is still there.
    """
    objects = 0
    try:
        objects = write_youtube_vis(folder / JOURNAL, folder / RESULTS)
        made_by = _made_by(outcome, manifest, method, options)
        summary = summary_of(outcome, objects, manifest.classes, made_by, machine_of_run())
        write_summary(folder / SUMMARY, summary)
    except VisrtError as error:
        if outcome.end != "failed":
            outcome = replace(outcome, end="failed", reason=str(error), exit_code=error.exit_code)
    _print_summary(outcome, objects, folder)
    if outcome.reason:
        say(outcome.reason if outcome.end == "failed" else f"{outcome.source}: {outcome.reason}")
    return outcome.exit_code


def _made_by(
    outcome: SourceOutcome, manifest: Manifest, method: TrackingMethod[Any], options: TrackOptions
) -> dict[str, Any]:
    """input: height and width of the network input that the frames had, other_inputs: those they had after a change of
    aspect."""
    inputs = [list(size) for size in outcome.inputs] or [[manifest.input.height, manifest.input.width]]
    return {
        "bundle": manifest.name,
        "family": manifest.family,
        "engine": options.engine,
        "threads": options.threads,
        "streams": options.streams,
        "input": inputs[0],
        **({"other_inputs": inputs[1:]} if inputs[1:] else {}),
        "overlay": options.overlay.preset if options.overlay else None,
        **options.association.in_force(method),
    }


def _print_summary(outcome: SourceOutcome, objects: int, folder: Path) -> None:
    frames = f"{outcome.processed} of {outcome.captured} frames"
    counts = {"dropped": outcome.dropped, "corrupt": outcome.corrupt, "skipped": outcome.skipped}
    frames += "".join(f", {count} {name}" for name, count in counts.items() if count)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_row(outcome.source, outcome.end)
    table.add_row("frames", frames)
    table.add_row("objects", str(objects))
    table.add_row("speed", f"{outcome.fps:.1f} FPS, everything included ({outcome.wall_s:.1f} s)")
    table.add_row("ms a frame", ", ".join(f"{stage} {ms:.1f}" for stage, ms in outcome.ms.items()))
    table.add_row("written to", str(folder))
    report_console().print(table)
