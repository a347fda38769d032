"""The results of a bundle on a set as its evaluation server takes them; an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from visrt.benchmarks.accuracy.bundle_run import OnProgress, OpenedRun
from visrt.benchmarks.accuracy.evaluate import Reported
from visrt.benchmarks.accuracy.run_folder import Form, RunFolder, open_run
from visrt.runtime.bundles.bundle import MANIFEST
from visrt.runtime.errors import DataError, VisrtError
from visrt.training.data.annotations import AnnotatedSet
from visrt.training.data.set_formats import ReadSet

__all__ = ["category_ids", "without_category", "write_results"]


def write_results(
    folder: Path, run: OpenedRun, read: ReadSet, annotated: AnnotatedSet, on_progress: OnProgress
) -> dict[int, Reported]:
    """Run the videos that `folder` does not hold yet, and write results.json and results.zip of all.

    `read`: the set as it is, whose ids are written; `annotated`: with the classes of the bundle as labels. The reports
    by video come back where there are annotations to measure them by. Raises DataError after the last video if some of
    them failed; the others are kept, and the next run tries these again.
    """
    form = Form(category_ids(read, annotated), boxes="masks" not in run.bundle.manifest.graphs)
    videos = annotated.videos
    with open_run(folder, _identity(run, read, form), run.options.existing) as kept:
        faults = _run_the_others(kept, run, annotated, on_progress)
        if faults:
            raise _failed(folder, faults, len(videos))
        reported = {video.id: kept.load(video) for video in videos} if annotated.annotated else {}
        kept.finish(videos, form)
    return reported


def _run_the_others(kept: RunFolder, run: OpenedRun, annotated: AnnotatedSet, on_progress: OnProgress) -> list[str]:
    """Runs and keeps the videos that are not kept yet; of those that failed the name and what is wrong."""
    [rule] = run.options.rules
    waiting = [video for video in annotated.videos if not kept.holds(video)]
    faults = []
    with closing(run.reports(rule, waiting, on_progress, len(annotated.videos) - len(waiting))) as outcomes:
        for video, report in outcomes:
            if isinstance(report, VisrtError):
                faults.append(f"{video.name}: {report}")
            else:
                kept.keep(video, report if annotated.annotated else replace(report, boxes=None))
    return faults


def category_ids(read: ReadSet, annotated: AnnotatedSet) -> dict[int, int]:
    """The category id of the set for each label that has one. DataError if a label has two: one could not choose."""
    of: dict[int, int] = {}
    for number, label in annotated.label_of.items():
        if label is not None and of.setdefault(label, number) != number:
            names = [read.annotated.classes[read.annotated.label_of[each] or 0] for each in (of[label], number)]
            raise DataError(
                f"{read.path}: {names[0]} and {names[1]} are both the class {annotated.classes[label]} of the bundle; "
                "results need one category for a class: give a class map that leaves one of them out (null)"
            )
    return of


def without_category(annotated: AnnotatedSet) -> Iterator[str]:
    """A remark on classes of the bundle whose tracks are not written, if any."""
    named = [name for label, name in enumerate(annotated.classes) if label not in annotated.label_of.values()]
    if named:
        yield f"the set has no category for {', '.join(named)}: their tracks are not in the results"


def _identity(run: OpenedRun, read: ReadSet, form: Form) -> dict[str, Any]:
    """Everything that changes the bytes of the results, but for the pictures themselves."""
    options, classes = run.options, run.bundle.manifest.classes
    official = options.rules == ("official",)
    return {
        "visrt": version("visrt"),
        "rule": options.rules[0],
        "bundle": hashlib.sha256((run.bundle.folder / MANIFEST).read_bytes()).hexdigest(),
        "annotations": _digest(read),
        "categories": {str(number): classes[label] for label, number in form.category_of.items()},
        "engine": options.engine,
        "preset": options.preset,
        "association": asdict(run.method.settings),
        "top_k": options.top_k,
        "fps": None if official else options.fps,
    }


def _digest(read: ReadSet) -> str:
    """Of the annotation file; of a set without one, of its videos and pictures by name."""
    if read.path.is_file():
        return hashlib.sha256(read.path.read_bytes()).hexdigest()
    listed = [(video.id, video.name, [path.name for path in video.pictures]) for video in read.annotated.videos]
    return hashlib.sha256(repr(listed).encode()).hexdigest()


def _failed(folder: Path, faults: Sequence[str], of: int) -> DataError:
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return DataError(
        f"{folder}: no results are written, as {len(faults)} of {of} videos failed: {'; '.join(faults[:3])}{more}. The "
        "others are kept: repair the pictures, or remove those of the whole video and give --skip-missing, and run the "
        "same again"
    )
