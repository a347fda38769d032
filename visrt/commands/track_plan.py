"""The sources to track and their output folders; what can be refused early is, before anything loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from visrt.commands.association import Association
from visrt.console import say
from visrt.runtime.errors import PARTIAL, VisrtError
from visrt.runtime.sinks.output import Existing, refuse_taken
from visrt.runtime.sinks.overlay_video import VideoCoding
from visrt.runtime.sources.source import VideoSettings
from visrt.runtime.sources.video import SourceSpec, find_sources

__all__ = ["Plan", "TrackOptions", "plan", "worst"]

SEVERITY = (0, PARTIAL, 2, 4, 5, 1)
"""Exit codes from mild to grave; of several sources the gravest is the program's."""


@dataclass(frozen=True)
class TrackOptions:
    """The options of `visrt track`. overlay: None for no overlay video. streams: sources at work at a time."""

    bundle: Path
    association: Association
    out: Path
    engine: str
    threads: int | None
    device: int
    in_flight: int
    overlay: VideoCoding | None
    streams: int
    limit: int | None
    existing: Existing
    video: VideoSettings


@dataclass(frozen=True)
class Plan:
    """One source and the folder its results go to."""

    source: SourceSpec
    folder: Path


def plan(sources: Sequence[str], options: TrackOptions) -> tuple[list[Plan], int]:
    """The jobs that can start, and the exit code so far: what can be known early is refused before anything loads."""
    code = 0
    found: list[SourceSpec] = []
    for source in sources:
        try:
            found += find_sources(source)
        except VisrtError as error:
            say(str(error))
            code = worst(code, error.exit_code)
    jobs: list[Plan] = []
    for job in _with_folders(found, options.out, apart=len(sources) > 1 or len(found) > 1):
        try:
            refuse_taken(job.folder, job.source.paths, options.existing)
            jobs.append(job)
        except VisrtError as error:
            say(str(error))
            code = worst(code, error.exit_code)
    return jobs, code


def worst(one: int, other: int) -> int:
    return max(one, other, key=lambda code: SEVERITY.index(code) if code in SEVERITY else len(SEVERITY))


def _with_folders(found: Sequence[SourceSpec], out: Path, apart: bool) -> Iterator[Plan]:
    """A folder a source where there are several; sources of one name get a number."""
    if not apart:
        yield from (Plan(source, out) for source in found)
        return
    taken: set[str] = set()
    for source in found:
        names = (source.name if count == 1 else f"{source.name}-{count}" for count in range(1, len(found) + 1))
        name = next(name for name in names if name not in taken)
        taken.add(name)
        yield Plan(source, out / name)
