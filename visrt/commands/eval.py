"""`visrt eval`: a bundle or a results file against annotated videos."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visrt.commands.association import PRESET_HELP, association_in
from visrt.commands.class_choice import CHOICE_HELP, class_choice
from visrt.commands.data import SkipFaulty, SkipMissing
from visrt.commands.device import Device
from visrt.runtime.engines.backends import BACKENDS

if TYPE_CHECKING:
    from visrt.benchmarks.accuracy.scores import BundleRun, Measured
    from visrt.runtime.sinks.output import Existing
    from visrt.training.data.annotations import ClassChoice
    from visrt.training.data.picture_folder import ReadRules
    from visrt.training.data.set_formats import SetPlaces

__all__ = ["evaluate"]


class Rule(str, Enum):
    """How a bundle's output becomes tracks: frame by frame, by the family's published video-level rule, or both."""

    causal = "causal"
    official = "official"
    both = "both"


class Coverage(str, Enum):
    """Whether every object of the known classes is annotated. The user says so; nothing is guessed."""

    complete = "complete"
    partial = "partial"


def evaluate(
    data: Annotated[
        Path, typer.Option(help="Folder of the set or its annotation file, as `visrt data check` takes it.")
    ],
    bundle: Annotated[Path | None, typer.Option(help="Bundle to run over the videos.")] = None,
    results: Annotated[Path | None, typer.Option(help="Results file (YouTube-VIS) to measure instead.")] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="Its json or yaml file, or folder of masks, if not in its usual place.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Its folder of pictures, if not in its usual place.")] = None,
    split: Annotated[
        str | None, typer.Option(help="train, valid or test, where the folder holds several, as public sets do.")
    ] = None,
    skip_missing: SkipMissing = False,
    skip_faulty: SkipFaulty = False,
    classes: Annotated[str | None, typer.Option(help=CHOICE_HELP)] = None,
    association: Annotated[
        Path | None, typer.Option(help="Association settings (json) in place of the bundle's or the preset's.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help=PRESET_HELP)] = None,
    engine: Annotated[str, typer.Option(help=f"What runs the network: {', '.join(BACKENDS)}.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the network; all cores if not given.")] = None,
    device: Device = 0,
    rule: Annotated[
        Rule,
        typer.Option(
            help="causal: what a stream gives; official: the video-level result, which sees the future; both."
        ),
    ] = Rule.causal,
    coverage: Annotated[
        Coverage,
        typer.Option(help="partial: objects are visible that nobody annotated, so AP and false positives mean little."),
    ] = Coverage.complete,
    fps: Annotated[
        float | None,
        typer.Option(min=0.001, help="Frames a second of the videos, for ages; the set's, or 24, if not given."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Tracks of an official result; the number published for the set if not given."),
    ] = None,
    write_results: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT",
            help="Folder for results.json and results.zip, as evaluation servers take them; the set may be without "
            "annotations. An interrupted run goes on where it was.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Videos at a time; they share the threads. Without --write-results one, so that FPS is measured.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in OUT.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
    report: Annotated[
        Path | None, typer.Option(help="Empty or new folder for figures, plots and the worst videos.")
    ] = None,
) -> None:
    """Measure AP and AR of whole tracks by the YouTube-VIS rule; HOTA, IDF1, recall and id switches frame by frame.

    Of causal output a track's label is the one with the largest sum of scores, its score the mean over its frames.
    Where not every object is annotated, recall and id switches mean something, AP and false positives do not.
    """
    from visrt.benchmarks.accuracy.bundle_run import BundleRun
    from visrt.benchmarks.accuracy.scores import evaluate_results_file
    from visrt.benchmarks.new_folder import new_folder, refuse_nowhere
    from visrt.runtime.errors import UsageError
    from visrt.training.data.picture_folder import MissingPictures, ReadRules
    from visrt.training.data.set_formats import SetPlaces

    if (bundle is None) == (results is None):
        raise UsageError("give either --bundle to run or --results to measure, and not both")
    running = (association, preset, threads, fps, top_k, write_results, jobs)
    if bundle is None and (rule is not Rule.causal or any(option is not None for option in running)):
        raise UsageError(
            "--results are measured as they are: --association, --preset, --threads, --rule, --fps, --top-k, "
            "--write-results and --jobs go with --bundle"
        )
    if overwrite and write_results is None:
        raise UsageError("--overwrite replaces the results of an earlier run; give it with --write-results")
    if write_results is not None and write_results.suffix in (".json", ".zip") and not write_results.is_dir():
        raise UsageError(
            f"--write-results {write_results}: takes a folder, for results.json, results.zip and what an interrupted "
            f"run goes on from; give {write_results.with_suffix('')}"
        )
    rules = ("causal", "official") if rule is Rule.both else (rule.value,)
    changes = association_in(association, preset).changes
    existing: Existing = "replace" if overwrite else "refuse"
    run = BundleRun(engine, threads, changes, preset, fps, rules, top_k, jobs, write_results, existing, device)
    refuse_nowhere(json)
    if report is not None:
        new_folder(report, "--report")
    choice, places = class_choice(classes), SetPlaces(data, annotations, images, split=split)
    missing = MissingPictures.leave_out if skip_missing else MissingPictures.refuse
    strictness = ReadRules(missing, skip_faulty)
    if bundle is not None:
        measured = _of_bundle(bundle, places, choice, run, strictness)
    else:
        assert results is not None
        measured = evaluate_results_file(results, places, choice, strictness)
    given = {
        "data": data,
        "annotations": annotations,
        "images": images,
        "split": split,
        "bundle": bundle,
        "results": results,
        "classes": classes,
        "association": association,
        "write_results": write_results,
    }
    settings = {name: None if path is None else str(path) for name, path in given.items()}
    _write(measured, {**settings, **measured.settings, "coverage": coverage.value}, json, report)
    if write_results is not None:
        _name_results(write_results, measured)


def _of_bundle(bundle: Path, data: SetPlaces, choice: ClassChoice | None, run: BundleRun, rules: ReadRules) -> Measured:
    """The evaluation, with its progress; after Ctrl-C, what is kept."""
    from visrt.benchmarks.accuracy.scores import evaluate
    from visrt.commands.eval_progress import progress
    from visrt.console import say
    from visrt.runtime.errors import INTERRUPTED

    try:
        with progress() as on_progress:
            return evaluate(bundle, data, choice, run, on_progress, rules)
    except KeyboardInterrupt:
        if run.write_results is None:
            raise
        say(f"interrupted; the videos that are done are kept in {run.write_results}: the same command goes on")
        raise typer.Exit(INTERRUPTED) from None


def _write(measured: Measured, settings: dict[str, Any], json: Path | None, folder: Path | None) -> None:
    """Tables on stdout, remarks on stderr, and the files that were requested."""
    from visrt.benchmarks.accuracy.report import evaluation_report, write_folder, write_report
    from visrt.commands.eval_tables import PARTIAL_NOTE, eval_tables
    from visrt.console import report_console, say

    note = PARTIAL_NOTE if settings["coverage"] == Coverage.partial.value else None
    for table in eval_tables(measured.annotated, measured.scores, note):
        report_console().print(table)
    report = evaluation_report(measured.annotated, measured.scores, settings)
    for remark in report["remarks"]:
        say(remark)
    if json is not None:
        write_report(json, report)
    if folder is not None:
        write_folder(folder, measured.annotated, measured.scores, report)


def _name_results(folder: Path, measured: Measured) -> None:
    """Where the files for the evaluation server are."""
    from visrt.benchmarks.accuracy.run_folder import ARCHIVE, RESULTS
    from visrt.console import report_console

    videos = len(measured.annotated.videos)
    report_console().print(f"{folder / ARCHIVE}: {RESULTS} of {videos} videos, for the evaluation server", markup=False)
