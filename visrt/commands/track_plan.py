"""The sources to track and their output folders; what can be refused early is, before anything loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from visrt.commands.association import Association
from visrt.commands.tracking.many import found_folder, is_finished
from visrt.commands.tracking.options import Wishes
from visrt.console import say
from visrt.runtime.errors import PARTIAL, SourceError, VisrtError
from visrt.runtime.sinks.line_count import Line
from visrt.runtime.sinks.output import Existing, refuse_taken
from visrt.runtime.sinks.overlay import STYLE, OverlayStyle
from visrt.runtime.sinks.overlay_video import VideoCoding
from visrt.runtime.sources.source import VideoSettings
from visrt.runtime.sources.video import Camera, SourceSpec, StandardInput, find_sources, open_source

__all__ = ["Plan", "Planned", "TrackOptions", "out_of_all", "plan", "worst"]

SEVERITY = (0, PARTIAL, 2, 4, 5, 1)
"""Exit codes from mild to grave; of several sources the gravest is the program's."""


@dataclass(frozen=True)
class TrackOptions:
    """The options of `visrt track`. out: None where it is found by itself. overlay: None for no overlay video. streams:
    sources at work at a time. many: the name of a list of sources, whose finished ones are left out."""

    bundle: str
    association: Association
    out: Path | None
    engine: str
    threads: int | None
    device: int
    in_flight: int
    overlay: VideoCoding | None
    streams: int
    limit: int | None
    existing: Existing
    video: VideoSettings
    style: OverlayStyle = STYLE
    wishes: Wishes = field(default_factory=Wishes)
    many: str | None = None


@dataclass(frozen=True)
class Plan:
    """One source and the folder its results go to."""

    source: SourceSpec
    folder: Path

    @property
    def path(self) -> str:
        """The source as the user may name it again."""
        if isinstance(self.source, Camera):
            return str(self.source.index)
        if isinstance(self.source, StandardInput):
            return "-"
        paths = self.source.paths
        return str(paths[0] if len(paths) == 1 else paths[0].parent)


@dataclass
class Planned:
    """What is to be done: jobs, and where they are many the folder of all. finished: sources that were complete.
    refused: sources that cannot start, and why. code: the exit code so far."""

    jobs: list[Plan] = field(default_factory=list)
    finished: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    code: int = 0

    def refuse(self, source: str, error: VisrtError) -> None:
        say(str(error))
        self.refused.append((source, str(error)))
        self.code = worst(self.code, error.exit_code)


def plan(sources: Sequence[str], options: TrackOptions) -> Planned:
    """The jobs that can start: what can be known early is refused before anything loads."""
    planned = Planned()
    found: list[SourceSpec] = []
    for source in sources:
        try:
            found += find_sources(source)
        except VisrtError as error:
            planned.refuse(source, error)
    for job in _with_folders(found, options, apart=len(sources) > 1 or len(found) > 1):
        if options.many is not None and is_finished(job.folder, job.path):
            planned.finished += 1
            continue
        try:
            refuse_taken(job.folder, job.source.paths, options.existing)
            _check_lines(job.source, options.wishes.lines, options.video)
            planned.jobs.append(job)
        except VisrtError as error:
            planned.refuse(job.path, error)
    return planned


def worst(one: int, other: int) -> int:
    return max(one, other, key=lambda code: SEVERITY.index(code) if code in SEVERITY else len(SEVERITY))


def out_of_all(options: TrackOptions) -> Path | None:
    """The folder that holds the results of all sources, None where each finds its own."""
    return found_folder(options.many, again=True) if options.out is None and options.many is not None else options.out


def _with_folders(found: Sequence[SourceSpec], options: TrackOptions, apart: bool) -> Iterator[Plan]:
    """A folder a source where there are several; sources of one name get a number."""
    out = out_of_all(options)
    if out is not None and not apart and options.many is None:
        yield from (Plan(source, out) for source in found)
        return
    taken: set[Path] = set()
    for source in found:
        names = (source.name if count == 1 else f"{source.name}-{count}" for count in range(1, len(found) + 1))
        folders = (found_folder(name, again=False) if out is None else out / name for name in names)
        folder = next(folder for folder in folders if folder not in taken)
        taken.add(folder)
        yield Plan(source, folder)


def _check_lines(source: SourceSpec, lines: Sequence[Line], settings: VideoSettings) -> None:
    """Raises UsageError for a line outside the first frame. Of what can be read only once the sink checks it."""
    if not lines or isinstance(source, Camera | StandardInput):
        return
    try:
        opened = open_source(source, settings)
    except SourceError:
        return  # it is told when it is opened to be tracked
    with closing(opened):
        try:
            first = next(iter(opened), None)
        except SourceError:
            return
    for line in lines:
        if first is not None:
            line.check_inside((first.image.shape[0], first.image.shape[1]))
