"""Many sources: their list, where their results go, what is finished, and how it went in one line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from visrt.console import report_console, say
from visrt.runtime.errors import OutputError, UsageError
from visrt.runtime.sinks.output import SUMMARY, write_atomically

__all__ = ["FAILURES", "Total", "found_folder", "is_finished", "sources_in"]

FAILURES = "failures.txt"
RUNS = Path("runs") / "track"


def sources_in(file: Path) -> list[str]:
    """The sources that a list file names, one a line; empty lines and those that begin with # are left out.

    What is relative is so to the folder of the list, where it is there, else to the present one.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not a list that can be read ({error}); expected a source a line") from None
    named = [line.partition("\t")[0].strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not named:
        raise UsageError(f"{file}: names no source; expected a video or a folder of images a line")
    return [str(file.parent / name) if (file.parent / name).exists() else name for name in named]


def found_folder(name: str, again: bool) -> Path:
    """runs/track/NAME for the results; NAME-2 and so on where it holds something, unless a run is to go on there."""
    folder, count = RUNS / name, 1
    while not again and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        count += 1
        folder = RUNS / f"{name}-{count}"
    return folder


def is_finished(folder: Path, source: str) -> bool:
    """Whether the results of `source` in `folder` are complete."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(summary, dict) and summary.get("end") == "complete" and summary.get("path", source) == source


class Total:
    """Adds up how sources ended, and writes the list of those that failed, which `--list` reads again."""

    def __init__(self, out: Path | None, finished: int, refused: Sequence[tuple[str, str]]) -> None:
        self._out = out
        self._failures = list(refused)
        self._ends = Counter({"finished before": finished, "refused": len(refused)})
        self._frames = self._objects = 0

    def add(self, end: str, frames: int, objects: int) -> None:
        self._ends[end] += 1
        self._frames, self._objects = self._frames + frames, self._objects + objects

    def refuse(self, source: str, reason: str) -> None:
        """A source that could not be opened."""
        self._ends["refused"] += 1
        self.failed(source, reason)

    def failed(self, source: str, reason: str) -> None:
        self._failures.append((source, " ".join(reason.split())))

    def tell(self, wall_s: float) -> None:
        """One line for all, and the list of failures in the folder of all, if there are any."""
        sources = self._ends.total()
        if sources < 2:
            return
        counts = ", ".join(f"{count} {end}" for end, count in self._ends.items() if count)
        report_console().print(
            f"{sources} sources: {counts}; {self._frames} frames, {self._objects} objects, {wall_s:.1f} s"
        )
        if self._out is None:
            return
        path = self._out / FAILURES
        if not self._failures:
            path.unlink(missing_ok=True)
            return
        try:
            self._out.mkdir(parents=True, exist_ok=True)
            write_atomically(path, [f"{source}\t{reason}\n".encode() for source, reason in self._failures])
        except (OSError, OutputError) as error:
            say(str(error))
            return
        report_console().print(f"what did not end well is listed in {path}, which --list reads")
