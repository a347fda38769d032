"""What `visrt track` does: plans the sources, runs them one after the other, tells how each ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from visrt.commands.association import Association
from visrt.console import report_console, say
from visrt.runtime.errors import PARTIAL, VisrtError
from visrt.runtime.journal import Journal
from visrt.runtime.output import JOURNAL, OVERLAY, RESULTS, SUMMARY, Existing, Sink, prepare_folder, refuse_taken
from visrt.runtime.overlay_video import OverlayVideo, VideoCoding
from visrt.runtime.results import FrameResult
from visrt.runtime.session import Session, SessionSettings
from visrt.runtime.source import SourceInfo, VideoSettings
from visrt.runtime.summary import summary_of, write_summary
from visrt.runtime.tracking import SourceOutcome, track_source
from visrt.runtime.video import SourceSpec, find_sources, open_source
from visrt.runtime.youtube_vis import write_youtube_vis
from visrt.signals import StopRequest

__all__ = ["TrackOptions", "track_all", "worst"]

SEVERITY = (0, PARTIAL, 2, 4, 5, 1)
"""Exit codes from mild to grave; of several sources the gravest is the program's."""

OVERLAY_FPS = 25.0
"""Rate the overlay's encoder plans with where the source does not know its own; times stay the source's."""


@dataclass(frozen=True)
class TrackOptions:
    """The options of `visrt track`. overlay: None for no overlay video."""

    bundle: Path
    association: Association
    out: Path
    engine: str
    threads: int | None
    in_flight: int
    overlay: VideoCoding | None
    limit: int | None
    existing: Existing
    video: VideoSettings


@dataclass(frozen=True)
class Job:
    """One source and the folder its results go to."""

    source: SourceSpec
    folder: Path


def track_all(sources: Sequence[str], options: TrackOptions) -> int:
    """Tracks every source that can be; returns the exit code. One bad source does not stop the others."""
    jobs, code = plan(sources, options)
    if not jobs:
        return code
    with _session(options) as session, StopRequest() as stop:
        for job in jobs:
            code = worst(code, track_one(job, session, options, stop))
            if stop():
                return stop.exit_code
    return code


def _session(options: TrackOptions) -> Session:
    return Session.open(
        options.bundle,
        options.engine,
        threads=options.threads,
        settings=SessionSettings(in_flight=options.in_flight),
        association=options.association.changes,
        preset=options.association.preset,
    )


def plan(sources: Sequence[str], options: TrackOptions) -> tuple[list[Job], int]:
    """The jobs that can start, and the exit code so far: what can be known early is refused before anything loads."""
    code = 0
    found: list[SourceSpec] = []
    for source in sources:
        try:
            found += find_sources(source)
        except VisrtError as error:
            say(str(error))
            code = worst(code, error.exit_code)
    jobs: list[Job] = []
    for job in _with_folders(found, options.out, apart=len(sources) > 1 or len(found) > 1):
        try:
            refuse_taken(job.folder, job.source.paths, options.existing)
            jobs.append(job)
        except VisrtError as error:
            say(str(error))
            code = worst(code, error.exit_code)
    return jobs, code


def track_one(job: Job, session: Session, options: TrackOptions, stop: StopRequest) -> int:
    """Tracks one source and prints how it went; returns its exit code."""
    try:
        outcome, objects = _run(job, session, options, stop)
    except VisrtError as error:
        say(str(error))
        return error.exit_code
    _print_summary(outcome, objects, job.folder)
    if outcome.reason:
        say(outcome.reason if outcome.end == "failed" else f"{outcome.source}: {outcome.reason}")
    return outcome.exit_code


def worst(one: int, other: int) -> int:
    return max(one, other, key=lambda code: SEVERITY.index(code) if code in SEVERITY else len(SEVERITY))


def _with_folders(found: Sequence[SourceSpec], out: Path, apart: bool) -> Iterator[Job]:
    """A folder a source where there are several; sources of one name get a number."""
    if not apart:
        yield from (Job(source, out) for source in found)
        return
    taken: set[str] = set()
    for source in found:
        names = (source.name if count == 1 else f"{source.name}-{count}" for count in range(1, len(found) + 1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield Job(source, out / name)


def _run(job: Job, session: Session, options: TrackOptions, stop: StopRequest) -> tuple[SourceOutcome, int]:
    source = open_source(job.source, options.video)
    try:
        prepare_folder(job.folder, job.source.paths, options.existing)
        sinks = _sinks(job.folder, session, source.info, options)
    except VisrtError:
        source.close()
        raise
    with _progress(source.info, options.limit) as advance:
        outcome = track_source(source, session, sinks, stop, options.limit, advance)
    return _finish(job.folder, outcome, session, options)


def _sinks(folder: Path, session: Session, info: SourceInfo, options: TrackOptions) -> list[Sink]:
    """The journal comes first: it is what the other results can be made from."""
    classes = session.manifest.classes
    sinks: list[Sink] = [Journal(folder / JOURNAL, classes)]
    if options.overlay is not None:
        sinks.append(OverlayVideo(folder / OVERLAY, classes, info.fps or OVERLAY_FPS, options.overlay))
    return sinks


def _finish(folder: Path, outcome: SourceOutcome, session: Session, options: TrackOptions) -> tuple[SourceOutcome, int]:
    """The files that need the whole video. Where they cannot be written, the journal is still there."""
    objects = 0
    try:
        objects = write_youtube_vis(folder / JOURNAL, folder / RESULTS)
        summary = summary_of(outcome, objects, session.manifest.classes, _made_by(session, options))
        write_summary(folder / SUMMARY, summary)
    except VisrtError as error:
        if outcome.end != "failed":
            outcome = replace(outcome, end="failed", reason=str(error), exit_code=error.exit_code)
    return outcome, objects


def _made_by(session: Session, options: TrackOptions) -> dict[str, Any]:
    manifest = session.manifest
    return {
        "bundle": manifest.name,
        "family": manifest.family,
        "engine": options.engine,
        "threads": options.threads,
        "input": [manifest.input.height, manifest.input.width],
        "overlay": options.overlay.preset if options.overlay else None,
        **options.association.in_force(session.family),
    }


@contextmanager
def _progress(info: SourceInfo, limit: int | None) -> Iterator[Any]:
    """Gives what is to be called with every result: a bar on a terminal, nothing elsewhere.

    A source that does not know its frames is measured by its time, one that knows neither shows only that it moves.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        frames = min(info.frames, limit) if info.frames and limit else info.frames or limit
        task = progress.add_task(info.name, total=frames or info.duration_s, shown="")

        def advance(result: FrameResult) -> None:
            done = result.index + 1
            shown = f"frame {done}, {len(result.objects)} objects"
            progress.update(task, completed=done if frames else result.time_s, shown=shown)

        yield advance


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
